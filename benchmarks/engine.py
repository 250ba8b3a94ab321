"""The load engine against its peers: fidelity, throughput, open loop, CPU. `make bench` runs it.

Each scenario runs every client against the C reference server of this folder, the server pinned to
one core and the client to another, and adds its rows to one page of Markdown:

    .venv/bin/python benchmarks/engine.py                      # everything; about an hour
    .venv/bin/python benchmarks/engine.py --only fidelity --in-flight 128 \\
        --clients fmgauge,aiohttp --seconds 10                 # a part, quickly
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from clients import Asked, BareAiohttp, Client, Fmgauge
from fidelity import errors_of
from open_loop import Schedule, schedule_of
from page import machine, put_into, rendered
from peers import every_client
from reference import CLIENT_CORE, ReferenceServer, build, cache_folder, pinned
from trial import Trial, trial_of

from fmgauge.config.model import OpenLoop
from fmgauge.load.arrivals import stage_seed

TTFT_MS, ITL_MS, TOKENS = 200, 20, 64
ANSWER_S = (TTFT_MS + ITL_MS * (TOKENS - 1)) / 1e3
RATE_GUESSES = {"inference-perf": 700.0}  # answers a second, for a tool that only knows counts
Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What is to be run."""

    clients: dict[str, Client]
    in_flight: tuple[int, ...]
    seconds: float
    warmup_s: float
    rates: tuple[float, ...]


def client_in_c(port: int, arguments: list[str]) -> Row:
    """What the C client reaches against a server; requests, tokens, seconds, cpu_s."""
    program = str(build("reference_client", cache_folder()))
    command = pinned(CLIENT_CORE, [program, "--port", str(port), *arguments])
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def server_limits(options: Options) -> list[Row]:
    """What the server gives to a client in C: the ceiling of every other figure."""
    kinds: dict[str, dict[str, float | bool]] = {
        "1-token answers": {"tokens": 1},
        "one write per token": {"tokens": TOKENS},
        "all tokens together": {"tokens": TOKENS, "together": True},
    }
    rows = []
    for kind, server_options in kinds.items():
        with (
            tempfile.TemporaryDirectory(prefix="fmgauge-bench-c-") as folder,
            ReferenceServer(Path(folder), server_options) as server,
        ):
            seconds = str(min(options.seconds, 5.0))
            result = client_in_c(server.port, ["--in-flight", "64", "--seconds", seconds])
        rates = {
            f"{name}_per_s": result[name] / result["seconds"] for name in ("requests", "tokens")
        }
        rows.append({"kind": kind, **rates})
    return rows


def fidelity(options: Options) -> list[Row]:
    """Errors per request, concurrency held and CPU, at every number in flight."""
    server_options = {"ttft-ms": TTFT_MS, "itl-ms": ITL_MS, "tokens": TOKENS, "token-times": True}
    rows = []
    for in_flight in options.in_flight:
        asked = Asked(in_flight, options.seconds, options.warmup_s, in_flight / ANSWER_S)
        for client in options.clients.values():
            with trial_of(client, asked, server_options) as trial:
                row = {"in_flight": in_flight, **_of_trial(client, trial)}
                if trial.reported is not None:
                    row |= asdict(errors_of(client, trial)) | _said_of_itself(client, trial)
                rows.append(_said(row))
    return rows


def _said_of_itself(client: Client, trial: Trial) -> Row:
    """How late fmgauge says its own stamps were; no other tool tells."""
    if not isinstance(client, Fmgauge):
        return {}
    use = client.records(trial.folder)[0].client
    return {"own_lag_p99_s": use.loop_lag_p99_s, "own_cpu_share": use.cpu_share} if use else {}


def _of_trial(client: Client, trial: Trial) -> Row:
    return {
        "client": client.name,
        "version": client.version(),
        "cpu_ms_per_request": trial.cpu_ms_per_request,
        "server_busy_share": trial.server_busy_share,
        "failure": trial.failure,
        "folder": str(trial.folder),
    }


def _said(row: Row) -> Row:
    print(json.dumps(row), flush=True)
    return row


def _rates(options: Options, kind: str, server_options: dict[str, float | bool]) -> list[Row]:
    """Requests and tokens a second, 64 in flight, of a server that answers at once."""
    rows = []
    for client in options.clients.values():
        guess = RATE_GUESSES.get(client.name, 2000.0)
        asked = Asked(64, options.seconds, min(options.warmup_s, 2.0), guess)
        with trial_of(_without_times(client), asked, server_options) as trial:
            rows.append(_said({"kind": kind, **_of_trial(client, trial), **_rate_of(trial)}))
    return rows


def _rate_of(trial: Trial) -> Row:
    """What the server completed within the window, by its own truth."""
    if trial.truth is None or trial.truth.rows.empty:
        return {}
    start_s, end_s = trial.window
    ended = trial.truth.ended_in((start_s, end_s))
    return {
        "requests_per_s": len(ended) / (end_s - start_s),
        "tokens_per_s": int(ended["tokens"].sum()) / (end_s - start_s),
        "aborted": int((trial.truth.rows["last_s"] == 0).sum()),
        "failed": trial.reported.failed if trial.reported else None,
    }


def _without_times(client: Client) -> Client:
    """The bare loop keeps no times where only rates are asked; the tools have no such choice."""
    return BareAiohttp(times=False) if isinstance(client, BareAiohttp) else client


def requests_per_s(options: Options) -> list[Row]:
    """Complete requests a second: 1-token answers, streaming, 64 in flight."""
    return _rates(options, "1-token answers", {"tokens": 1})


def tokens_per_s(options: Options) -> list[Row]:
    """Tokens a second, one write per token and all of an answer together."""
    together: dict[str, float | bool] = {"tokens": TOKENS, "together": True}
    return [
        *_rates(options, "one write per token", {"tokens": TOKENS}),
        *_rates(options, "all tokens together", together),
    ]


def open_loop(options: Options) -> list[Row]:
    """fmgauge's Poisson arrivals held against the distribution asked for, by the server's truth."""
    client, rows = Fmgauge(), []
    for rate in options.rates:
        asked = Asked(None, options.seconds, 2.0, rate, request_rate=rate)
        with trial_of(client, asked, {"ttft-ms": 20, "tokens": 1}) as trial:
            row = {"request_rate": rate, **_of_trial(client, trial)}
            if trial.failure is None:
                row |= asdict(_schedule(client, trial, rate))
            rows.append(_said(row))
    return rows


def _schedule(client: Fmgauge, trial: Trial, rate: float) -> Schedule:
    assert trial.truth is not None
    info, records = client.records(trial.folder)
    asked = trial.asked
    load = OpenLoop(
        kind="open_loop",
        request_rate=(rate,),
        duration_s=asked.seconds,
        warmup_s=asked.warmup_s,
    )
    measured = records[records["phase"] == "measured"]
    seen = trial.truth.rows[trial.truth.rows["request_id"].isin(set(measured["request_id"]))]
    received_s = seen["received_s"].sort_values().to_numpy()
    seed = stage_seed(info.seed, info.key, info.replication)
    window_s = (info.window_start_s, info.window_end_s)
    return schedule_of(load, rate, seed, measured, window_s, received_s)


def two_workers(options: Options) -> list[Row]:
    """CPU per request with two workers against one, at 64 in flight, and the concurrency held."""
    client, rows = Fmgauge(), []
    asked = Asked(64, options.seconds, 2.0, 2000.0)
    for workers in (1, 2):
        with trial_of(client, replace(asked, workers=workers), {"tokens": 1}) as trial:
            row = {"workers": workers, **_of_trial(client, trial)}
            if trial.truth is not None and not trial.truth.rows.empty:
                row["mean_in_flight"] = trial.truth.mean_in_flight(trial.window)
                row["max_in_flight"] = int(trial.truth.rows["in_flight"].max())
            rows.append(_said(row))
    return rows


SCENARIOS: dict[str, Callable[[Options], list[Row]]] = {
    "server": server_limits,
    "fidelity": fidelity,
    "requests": requests_per_s,
    "tokens": tokens_per_s,
    "open_loop": open_loop,
    "workers": two_workers,
}


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    known = ", ".join(every_client())
    parser.add_argument("--only", default=",".join(SCENARIOS), help="scenarios, by commas")
    parser.add_argument("--clients", default=",".join(every_client()), help=f"of {known}")
    parser.add_argument("--in-flight", type=_numbers, default=(16.0, 128.0, 1024.0, 2048.0))
    parser.add_argument("--rates", type=_numbers, default=(200.0, 2000.0), help="open loop, 1/s")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each window")
    parser.add_argument("--warmup", type=float, default=6.0, help="left out before it, seconds")
    parser.add_argument("--out", type=Path, default=cache_folder() / "results")
    parser.add_argument("--page", type=Path, help="Markdown file to put the tables into")
    return parser.parse_args()


def main() -> int:
    """Run the scenarios asked for, keep their rows as JSON, and show the page."""
    arguments = _arguments()
    clients = every_client()
    options = Options(
        clients={name: clients[name] for name in arguments.clients.split(",")},
        in_flight=tuple(int(number) for number in arguments.in_flight),
        seconds=arguments.seconds,
        warmup_s=arguments.warmup,
        rates=arguments.rates,
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"machine": machine(), "seconds": options.seconds}
    for name in arguments.only.split(","):
        results[name] = SCENARIOS[name](options)
        (arguments.out / "engine.json").write_text(json.dumps(results, indent=1))
    text = rendered(results)
    print(text)
    if arguments.page is not None:
        put_into(arguments.page, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
