"""The report of a run: four pictures, report.md, report.html. Knows files' names and their order.

Knows nothing of how anything was measured or decided.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fmgauge.records import write_atomically
from fmgauge.report.findings import answer_sentences, simulated_sentence
from fmgauge.report.material import Material, read_material

if TYPE_CHECKING:
    from fmgauge.runs import Run

__all__ = [
    "Material",
    "answer_sentences",
    "build_report",
    "read_material",
    "simulated_sentence",
]


def build_report(run: Run) -> Path:
    """Write the pictures, report.md and report.html of a run whose metrics and decision exist.

    Gives report.html, which holds everything; each file is written whole or not at all.
    """
    from fmgauge.report.figures import pictures
    from fmgauge.report.html import report_html
    from fmgauge.report.markdown import report_markdown

    material = read_material(run)
    drawn = pictures(material)
    markdown = report_markdown(material)
    title = f"{run.config.run.name}: results for performance benchmarking"
    page = report_html(markdown, drawn, {"config.yaml": run.config_path.read_text("utf-8")}, title)
    for name, content in {**drawn, "report.md": markdown.encode()}.items():
        write_atomically(run.folder / name, content)
    write_atomically(run.folder / "report.html", page.encode())
    return run.folder / "report.html"
