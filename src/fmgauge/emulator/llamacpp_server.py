"""The embedded llama.cpp server as a process of its own, which ends when its lease has expired.

Run as `python -m fmgauge.emulator.llamacpp_server`. Knows the engine's settings and its own end;
not who started it, or what is asked of it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from fmgauge.emulator.lease import LeaseWatch
from fmgauge.emulator.ready_file import write_ready_file

MODULE = "fmgauge.emulator.llamacpp_server"

_WAITING_CLIENTS = 64  # HTTP threads beyond the slots, so that requests queue in the engine


def command(
    *,
    model: Path,
    parallel: int,
    threads: int,
    context_tokens: int,
    lease: Path,
    ready: Path,
) -> list[str]:
    """The command line that starts a server; `-P` keeps the working folder's code out of it."""
    program = [sys.executable, "-P", "-m", MODULE]
    options = {
        "--model": model,
        "--parallel": parallel,
        "--threads": threads,
        "--context-tokens": context_tokens,
        "--lease": lease,
        "--ready": ready,
    }
    return [*program, *(str(part) for option in options.items() for part in option)]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Serve until the lease has expired or SIGTERM comes; the exit code is 0 then, 1 on failure."""
    _answer_signals()
    options = _options(arguments)
    server = _started(options)
    write_ready_file(options.ready, server.listening_address)
    _wait_for_expiry(options.lease)
    _end("ended: the lease has expired")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve a GGUF model on 127.0.0.1.")
    parser.add_argument("--check", action=_Check, nargs=0, help="whether the engine can be used")
    parser.add_argument("--model", type=Path, required=True, help="GGUF file")
    parser.add_argument("--parallel", type=int, required=True, help="slots")
    parser.add_argument("--threads", type=int, required=True, help="threads that compute")
    parser.add_argument("--context-tokens", type=int, required=True, help="tokens in one slot")
    parser.add_argument("--lease", type=Path, required=True, help="lives as long as this says")
    parser.add_argument("--ready", type=Path, required=True, help="written once it listens")
    return parser.parse_args(arguments)


def _answer_signals() -> None:
    """End on SIGTERM alone: a Ctrl-C or a closed terminal leaves the end to clean-up."""
    signal.signal(signal.SIGTERM, lambda *_: _end("ended: SIGTERM"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _end(reason: str) -> NoReturn:
    """Leave at once: the engine takes a second or two to shut down, with nothing to save."""
    print(reason, flush=True)
    os._exit(0)


def _started(options: argparse.Namespace) -> Any:
    """An xllamacpp.Server that listens, or the process's end with the reason."""
    if not options.model.is_file():
        sys.exit(f"there is no model file {options.model}")
    engine = _engine()
    try:
        return engine.Server(_settings(engine.CommonParams(), options))
    except RuntimeError as error:
        sys.exit(f"llama.cpp cannot serve {options.model}: {error}")


def _engine() -> Any:
    """The module xllamacpp, or the process's end with the reason and a way out."""
    try:
        return importlib.import_module("xllamacpp")
    except ImportError as error:
        sys.exit(_engine_missing(error))


class _Check(argparse.Action):
    """Ends the program at once: with 0 where the engine can be used here, else with the reason."""

    def __call__(self, *_: object) -> NoReturn:
        _engine()
        sys.exit()


def _engine_missing(error: ImportError) -> str:
    machine = f"{platform.system()} on {platform.machine()}"
    return (
        f"the embedded llama.cpp engine (xllamacpp) cannot be used here ({machine}): {error}. "
        "Its wheels cover Linux and macOS on x86-64 and arm64; elsewhere start a server of your "
        "own and use endpoint: {kind: openai}, or a simulated one: endpoint: {kind: simulated}"
    )


def _settings(settings: Any, options: argparse.Namespace) -> Any:
    """The engine's own `settings`, an xllamacpp.CommonParams, changed to what is asked for."""
    settings.model.path = str(options.model)
    settings.hostnames, settings.port = ["127.0.0.1"], 0
    settings.n_parallel = options.parallel
    settings.n_ctx = options.context_tokens * options.parallel
    settings.fit_params = False  # the context asked for, or none: never quietly a smaller one
    settings.n_gpu_layers = 0  # it is priced as a CPU, so it runs on one
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = options.threads
    settings.n_threads_http = options.parallel + _WAITING_CLIENTS
    settings.cont_batching = settings.warmup = True
    settings.cache_prompt = settings.cache_idle_slots = False  # every prompt is computed
    settings.cache_ram_mib = 0
    settings.endpoint_metrics = settings.endpoint_slots = True
    settings.ui = False
    settings.verbosity = 1  # errors
    return settings


def _wait_for_expiry(lease: Path) -> None:
    watch = LeaseWatch(lease)
    while not watch.over():
        time.sleep(watch.poll_s)


if __name__ == "__main__":
    main()
