"""Brings endpoints up and takes them down; the only code that creates or deletes anything.

One file per kind behind one protocol, and what goes through it. Knows no load and no metrics.
"""

from fmgauge.endpoints.bring_up import announcements, bring_up
from fmgauge.endpoints.clean_up import CleanUpReport, RunInUse, clean_up
from fmgauge.endpoints.foreground import serve
from fmgauge.endpoints.kinds import kind_of, register
from fmgauge.endpoints.ledger import read_ledger
from fmgauge.endpoints.protocol import Kind, Resource
from fmgauge.endpoints.serving import Serving, hold_lease, serving

__all__ = [
    "CleanUpReport",
    "Kind",
    "Resource",
    "RunInUse",
    "Serving",
    "announcements",
    "bring_up",
    "clean_up",
    "hold_lease",
    "kind_of",
    "read_ledger",
    "register",
    "serve",
    "serving",
]
