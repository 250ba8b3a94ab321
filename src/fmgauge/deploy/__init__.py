"""Brings endpoints up and takes them down; the only code that creates or deletes anything.

Knows the ledger; not load, metrics or prices.
"""

from fmgauge.deploy.bring_up import announcements, bring_up
from fmgauge.deploy.clean_up import CleanUpReport, RunInUse, clean_up
from fmgauge.deploy.foreground import serve
from fmgauge.deploy.ledger import read_ledger
from fmgauge.deploy.local_kinds import preset_problems
from fmgauge.deploy.serving import Serving, hold_lease, serving

__all__ = [
    "CleanUpReport",
    "RunInUse",
    "Serving",
    "announcements",
    "bring_up",
    "clean_up",
    "hold_lease",
    "preset_problems",
    "read_ledger",
    "serve",
    "serving",
]
