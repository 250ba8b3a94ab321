"""The notebooks in order, with progress, resume, and clean-up whatever happens.

Knows which notebook comes when and how one is executed; knows no formulas and no formats.
"""

from fmgauge.pipeline.preflight import preflight
from fmgauge.pipeline.sequence import EXIT_NO_CANDIDATE, rebuild_report, run_pipeline

__all__ = ["EXIT_NO_CANDIDATE", "preflight", "rebuild_report", "run_pipeline"]
