"""When requests are sent, and what came of each. Knows no formats and no prices."""

from fmgauge.load.progress import Progress, read_progress
from fmgauge.load.sending import api_key_of, ask_once
from fmgauge.load.stages import run_stages

__all__ = ["Progress", "api_key_of", "ask_once", "read_progress", "run_stages"]
