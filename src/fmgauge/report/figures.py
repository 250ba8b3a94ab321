"""The report's four pictures by file name. Knows which there are; draws none itself."""

from __future__ import annotations

from fmgauge.endpoints import kind_of
from fmgauge.report.drawing import png, watermark
from fmgauge.report.error_figure import error_rates
from fmgauge.report.latency_figures import concurrency_vs_latency, tokens_vs_latency
from fmgauge.report.material import Material
from fmgauge.report.price_figure import business_summary

_DRAWN = {
    "business_summary.png": business_summary,
    "error_rates.png": error_rates,
    "tokens_vs_latency.png": tokens_vs_latency,
    "concurrency_vs_inference_latency.png": concurrency_vs_latency,
}


def pictures(material: Material) -> dict[str, bytes]:
    """Every picture of the report as PNG, by file name, in the report's order."""
    drawn = {name: draw(material) for name, draw in _DRAWN.items()}
    if any(kind_of(one.endpoint).is_simulated for one in material.experiments):
        for figure in drawn.values():
            watermark(figure, "SIMULATED")  # pictures are passed on without their report
    return {name: png(figure) for name, figure in drawn.items()}
