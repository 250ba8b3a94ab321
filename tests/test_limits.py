"""What this machine gives one process: its limits foreseen, and named where they are reached."""

from __future__ import annotations

import errno
import json
import resource
import subprocess
import sys

import pytest

from fmgauge.transport.limits import most_descriptors, most_ports, ran_out_of

OUT_OF_FILES = """
import asyncio, json, os, sys
from fmgauge.transport import Client, Exchange, RealClock, Timeouts, origin_of, run_event_loop

held = []

class Asked(Exchange):
    def on_end(self):
        over.set_result(self.failure)

async def ask():
    global over
    over = asyncio.get_running_loop().create_future()
    client = Client(origin_of("http://127.0.0.1:9/v1"), RealClock(), Timeouts(total_s=10))
    await client.connector.resolve()
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass
    client.send(Asked(b"GET / HTTP/1.1\\r\\n\\r\\n"))
    failure = await over
    while held:
        os.close(held.pop())
    await client.close()
    return [failure.kind, failure.message, sorted(client.ran_out_of)]

print(json.dumps(run_event_loop(ask())))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit sets the limit")
def test_a_client_without_descriptors_names_itself() -> None:
    """Nothing listens there either, but that was never tried: the request failed here."""
    command = ["prlimit", "--nofile=64:64", sys.executable, "-c", OUT_OF_FILES]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    reason = "cannot connect: this machine ran out of file descriptors"
    assert json.loads(done.stdout) == ["connection_error", reason, ["file descriptors"]]


@pytest.mark.parametrize(
    ("number", "has_connected", "what"),
    [
        (errno.EMFILE, False, "file descriptors"),
        (errno.EADDRNOTAVAIL, True, "local ports"),
        (errno.EADDRNOTAVAIL, False, ""),  # no network of that address's family
        (errno.ECONNREFUSED, True, ""),
        (None, True, ""),
    ],
)
def test_what_ran_out_is_known_by_the_error(number, has_connected, what) -> None:
    """Any other error is the endpoint's or the network's."""
    assert ran_out_of(number, has_connected=has_connected) == what


def test_a_hard_limit_without_an_end_is_not_asked_for() -> None:
    """macOS has one and refuses it: 10,240 is what it takes."""
    assert most_descriptors(resource.RLIM_INFINITY) == 10_240
    assert most_descriptors(4096) == 4096


def test_ports_are_those_of_one_address() -> None:
    """Between some thousands and all of them."""
    assert 1000 < most_ports() < 65_536
