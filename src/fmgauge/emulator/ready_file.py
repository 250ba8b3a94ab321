"""The file by which a server tells that it listens. Knows its keys; not who waits for it."""

from __future__ import annotations

import os
from pathlib import Path

from fmgauge.records import read_json, write_json


def write_ready_file(path: Path, address: str) -> None:
    """Tell that this process answers at `address`, which has no path yet."""
    import psutil

    process = psutil.Process(os.getpid())
    write_json(
        path,
        {
            "base_url": f"{address}/v1",
            "pid": process.pid,
            "process_created_at": process.create_time(),
        },
    )


def ready_base_url(path: Path) -> str:
    """The address, ending in /v1, that a ready file tells."""
    base_url: str = read_json(path)["base_url"]
    return base_url
