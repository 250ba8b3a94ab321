"""HTTP/1.1 and TLS, timed at the socket. Alone reads the measuring clock; knows no tokens."""

from fmgauge.transport.clock import Clock, RealClock
from fmgauge.transport.event_loop import LoopMonitor, new_event_loop, run_event_loop
from fmgauge.transport.http1 import Client, Exchange, Failure, FailureKind, Timeouts
from fmgauge.transport.origin import Origin, origin_of
from fmgauge.transport.turns import Turns

__all__ = [
    "Client",
    "Clock",
    "Exchange",
    "Failure",
    "FailureKind",
    "LoopMonitor",
    "Origin",
    "RealClock",
    "Timeouts",
    "Turns",
    "new_event_loop",
    "origin_of",
    "run_event_loop",
]
