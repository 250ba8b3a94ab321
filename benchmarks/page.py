"""The engine's results as Markdown: measured values, ratios, versions, machine, date. Pure but
for reading the machine and writing the page."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

BEGIN, END = "<!-- engine: begin -->", "<!-- engine: end -->"
Row = dict[str, Any]


def machine() -> dict[str, str]:
    """What the benchmarks ran on, and when."""
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def rendered(results: dict[str, Any]) -> str:
    """Every table whose scenario was run."""
    about = results["machine"]
    parts = [
        f"Measured on {about['date']}: {about['processor']}, {about['cores']} cores, "
        f"{about['memory']}, {about['system']}, Python {about['python']}; windows of "
        f"{results['seconds']:g} s, server on one core, client on the other.",
    ]
    writers = {
        "server": _server,
        "fidelity": _fidelity,
        "requests": _rates,
        "tokens": _rates,
        "open_loop": _open_loop,
        "workers": _workers,
    }
    parts += [write(results[name]) for name, write in writers.items() if name in results]
    return "\n\n".join(parts)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _number(value: float | None, form: str = ",.0f") -> str:
    return "-" if value is None else format(value, form)


def _ms(value_s: float | None) -> str:
    return "-" if value_s is None else f"{value_s * 1e3:,.2f}"


def _server(rows: list[Row]) -> str:
    cells = [
        (row["kind"], _number(row["requests_per_s"]), _number(row["tokens_per_s"])) for row in rows
    ]
    head = "What the server gives to a client in C, 64 in flight:\n\n"
    return head + _table(("answers", "requests/s", "tokens/s"), cells)


def _fidelity(rows: list[Row]) -> str:
    header = (
        *("in flight", "client", "TTFT error p50 / p99, ms", "ITL error p50 / p99, ms"),
        *("mean in flight", "failed", "matched", "CPU, ms/request"),
    )
    errors = _table(header, [_fidelity_cells(row) for row in rows])
    own = [
        (
            str(row["in_flight"]),
            _ms(row["ttft_p99_s"]),
            _ms(row["own_lag_p99_s"]),
            _number(row["own_cpu_share"], ".0%"),
        )
        for row in rows
        if "own_lag_p99_s" in row
    ]
    said = (
        *("in flight", "TTFT error p99, ms", "`loop_lag_s_p99` in its own metrics, ms"),
        "`client_cpu_share`",
    )
    head = "\n\nWhat fmgauge said of its own error in the same runs:\n\n"
    return errors + (head + _table(said, own) if own else "")


def _fidelity_cells(row: Row) -> tuple[str, ...]:
    start = (str(row["in_flight"]), row["version"])
    if row["failure"] is not None:
        return (*start, row["failure"], *["-"] * 5)
    return (
        *start,
        f"{_ms(row['ttft_p50_s'])} / {_ms(row['ttft_p99_s'])}",
        f"{_ms(row['itl_p50_s'])} / {_ms(row['itl_p99_s'])}",
        f"{row['mean_in_flight']:,.1f}",
        str(row["failed"]),
        f"{row['n_matched']} of {row['n_requests']}",
        _number(row["cpu_ms_per_request"], ".2f"),
    )


def _rates(rows: list[Row]) -> str:
    ours = {row["kind"]: row for row in rows if row["client"] == "fmgauge"}
    header = (
        *("answers", "client", "requests/s", "tokens/s", "fmgauge is, times"),
        *("requests per client CPU-second", "failed", "server busy"),
    )
    return _table(header, [_rate_cells(row, ours.get(row["kind"])) for row in rows])


def _rate_cells(row: Row, ours: Row | None) -> tuple[str, ...]:
    start = (row["kind"], row["version"])
    if "requests_per_s" not in row:
        return (*start, row["failure"] or "-", *["-"] * 5)
    cpu_ms, ratio = row["cpu_ms_per_request"], "-"
    if ours is not None and ours.get("requests_per_s") and row["requests_per_s"]:
        ratio = f"{ours['requests_per_s'] / row['requests_per_s']:,.1f}"
    return (
        *start,
        _number(row["requests_per_s"]),
        _number(row["tokens_per_s"]),
        ratio,
        _number(1e3 / cpu_ms if cpu_ms else None),
        _number(row["failed"]),
        _number(row["server_busy_share"], ".0%"),
    )


def _open_loop(rows: list[Row]) -> str:
    header = (
        *(
            "asked, 1/s",
            "sent of intended",
            "early",
            "KS p, gaps intended",
            "KS p, instants at the server",
        ),
        "send delay p50 / p99 / max, ms",
    )
    return _table(header, [_open_loop_cells(row) for row in rows])


def _open_loop_cells(row: Row) -> tuple[str, ...]:
    if row["failure"] is not None:
        return (f"{row['request_rate']:g}", row["failure"], *["-"] * 4)
    delays = (row["delay_p50_s"], row["delay_p99_s"], row["delay_max_s"])
    return (
        f"{row['request_rate']:g}",
        f"{row['n_sent']} of {row['n_intended']}",
        str(row["n_early"]),
        f"{row['ks_p_intended']:.3f}",
        f"{row['ks_p_server']:.3f}",
        " / ".join(_ms(delay) for delay in delays),
    )


def _workers(rows: list[Row]) -> str:
    header = ("workers", "CPU, ms/request", "times that of one", "mean in flight", "most in flight")
    one = rows[0]["cpu_ms_per_request"]
    cells = []
    for row in rows:
        cpu_ms = row["cpu_ms_per_request"]
        ratio = f"{cpu_ms / one:.2f}" if cpu_ms and one else "-"
        in_flight = (_number(row.get("mean_in_flight"), ".2f"), _number(row.get("max_in_flight")))
        cells.append((str(row["workers"]), _number(cpu_ms, ".4f"), ratio, *in_flight))
    return _table(header, cells)


def put_into(page: Path, text: str) -> None:
    """Replace what stands between the markers of `page`; the markers are added where missing."""
    old = page.read_text()
    block = f"{BEGIN}\n\n{text}\n\n{END}"
    if BEGIN in old and END in old:
        before, _, rest = old.partition(BEGIN)
        page.write_text(before + block + rest.partition(END)[2])
    else:
        page.write_text(f"{old.rstrip()}\n\n{block}\n")
