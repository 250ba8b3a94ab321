"""What a person types. Knows commands, options and exit codes; everything it does is done below.

Exit codes: 0 done, and a candidate met the budgets; 1 a step failed, or not one stage could be
measured; 2 bad usage or config; 3 measured, but no candidate met the budgets; 130 and 143 after
Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fmgauge import __version__
from fmgauge.errors import ConfigError, FmgaugeError
from fmgauge.pipeline import exit_codes

if TYPE_CHECKING:
    from fmgauge.pipeline.notebooks import Runner

_LAST_PORT = 65535


def main(arguments: Sequence[str] | None = None, *, runner: Runner | None = None) -> int:
    """Run one command and give its exit code; `runner` executes notebooks in papermill's place."""
    options = _parser().parse_args(arguments)
    options.runner = runner
    try:
        code: int = options.command(options)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return exit_codes.BAD_INPUT
    except FmgaugeError as error:
        print(f"fmgauge: {error}", file=sys.stderr)
        return exit_codes.STEP_FAILED
    except KeyboardInterrupt:  # before a run begins; from then on the pipeline takes signals
        return exit_codes.SIGNAL + signal.SIGINT
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fmgauge",
        description="Which deployment of a language model serves this workload, within this "
        "budget, at the lowest price, and how sure are we?",
    )
    parser.add_argument("--version", action="version", version=f"fmgauge {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands)
    _add_check(commands)
    _add_report(commands)
    _add_clean_up(commands)
    _add_serve(commands)
    return parser


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("run", help="run the notebooks of a config, end to end")
    command.add_argument("config", type=Path, metavar="CONFIG")
    command.add_argument("--resume", metavar="RUN_ID", help="redo only what this run lacks")
    _add_set(command)
    command.set_defaults(command=_run)


def _add_check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "check", help="check a config, its data and prices; start nothing"
    )
    command.add_argument("config", type=Path, metavar="CONFIG")
    command.add_argument("--offline", action="store_true", help="ask nothing of the network")
    _add_set(command)
    command.set_defaults(command=_check)


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("report", help="build a run's metrics and report anew")
    command.add_argument("run_id", metavar="RUN_ID", help="a run's id or folder")
    command.set_defaults(command=_report)


def _add_clean_up(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "clean-up", help="end what one run, or any run in ./results, left running"
    )
    command.add_argument("run_id", metavar="RUN_ID", nargs="?", help="a run's id or folder")
    command.add_argument(
        "--force", action="store_true", help="also what a run that is still going on uses"
    )
    command.set_defaults(command=_clean_up)


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "serve", help="serve a config's simulated endpoints until Ctrl-C or SIGTERM"
    )
    command.add_argument("config", type=Path, metavar="CONFIG")
    command.add_argument("--experiment", metavar="NAME", help="serve this one's endpoint alone")
    command.add_argument(
        "--port", type=_port, default=0, help="the first one's port; without it, free ones"
    )
    _add_set(command)
    command.set_defaults(command=_serve)


def _port(text: str) -> int:
    """A port's number; argparse tells of a ValueError in its own words."""
    if not (text.isdecimal() and 0 <= int(text) <= _LAST_PORT):
        raise argparse.ArgumentTypeError(f"{text!r} is no port: give a number from 0 to 65535")
    return int(text)


def _add_set(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one key of the config, such as experiments.0.endpoint.parallel=2",
    )


def _run(options: argparse.Namespace) -> int:
    from fmgauge.pipeline.sequence import run_pipeline

    return run_pipeline(
        options.config,
        overrides=options.overrides,
        resume=options.resume,
        called=_as_called(sys.argv[0]),
        runner=options.runner,
    )


def _as_called(program: str) -> str:
    """What the user types to call this program again; `program` is how it was called this time.

    Its path as it was given, which holds in the same folder; its bare name where the shell finds
    just this one by that; the interpreter's way where it was called as a module.
    """
    path = Path(program)
    if path.suffix == ".py":
        return f"{shlex.quote(sys.executable)} -m fmgauge.cli"
    found = shutil.which(path.name)
    if found and path.exists() and path.samefile(found):
        return path.name
    return shlex.quote(program)


def _check(options: argparse.Namespace) -> int:
    from fmgauge.pipeline.preflight import preflight

    for line in preflight(options.config, options.overrides, offline=options.offline):
        print(line)
    return 0


def _report(options: argparse.Namespace) -> int:
    from fmgauge.pipeline.sequence import rebuild_report
    from fmgauge.runs import find_run

    called = _as_called(sys.argv[0])
    return rebuild_report(find_run(options.run_id), called=called, runner=options.runner)


def _clean_up(options: argparse.Namespace) -> int:
    from fmgauge.endpoints import RunInUse, clean_up
    from fmgauge.runs import find_run_folder, find_run_folders

    runs = [find_run_folder(options.run_id)] if options.run_id else find_run_folders()
    n_left = n_in_use = 0
    for run in runs:
        try:
            report = clean_up(run, force=options.force)
        except RunInUse as in_use:
            if options.run_id:
                raise
            print(f"{run.run_id}: left alone: {in_use}")
            n_in_use += 1
            continue
        except OSError as error:  # another user's run, for one
            print(f"{run.run_id}: CANNOT BE LOOKED AT: {error}", file=sys.stderr)
            n_left += 1
            continue
        for name in report.ended:
            print(f"{run.run_id}: ended {name}")
        for name in report.left:
            print(f"{run.run_id}: STILL RUNNING {name}", file=sys.stderr)
        n_left += len(report.left)
    place = options.run_id or Path("results").resolve()
    in_use_too = f", {n_in_use} of them in use and left alone" if n_in_use else ""
    others = " of the others" if n_in_use else ""
    print(f"{len(runs)} run(s) looked at in {place}{in_use_too}; ", end="")
    print(f"{n_left} resource(s){others} left running.")
    return exit_codes.STEP_FAILED if n_left else 0


def _serve(options: argparse.Namespace) -> int:
    from fmgauge.config import load_config
    from fmgauge.endpoints import serve
    from fmgauge.pipeline.notebooks import StopSignal

    loaded = load_config(options.config, options.overrides)
    with StopSignal() as stop:
        serve(
            loaded,
            experiment=options.experiment,
            port=options.port,
            stopped=lambda: stop.signum is not None,
            say=partial(print, flush=True),
        )
    return exit_codes.SIGNAL + (stop.signum or 0)


if __name__ == "__main__":
    raise SystemExit(main())
