"""One notebook, executed so that it can be interrupted.

Knows papermill, kernels and where the notebooks lie; not what any notebook does.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fmgauge.errors import StepError

if TYPE_CHECKING:
    from jupyter_client.manager import AsyncKernelManager

NOTEBOOKS = (
    "1_prepare_data",
    "2_deploy_endpoints",
    "3_run_inference",
    "4_compute_metrics",
    "5_build_report",
    "6_clean_up",
)
PARAMETERS = {"config_path", "run_id"}
_TICK_S = 0.25
_LONGEST_PLACE = 70  # of the some 100 characters that the path of a socket may have
_GRACE_S = 8.0  # for a cell to end by itself after an interrupt


class NotebookError(StepError):
    """A cell of a notebook raised an error, or what executes its cells did."""

    def __init__(self, error_name: str, error_text: str, executed: Path) -> None:
        super().__init__(f"{executed.stem}: {error_name}: {error_text}\nSee {executed}")
        self.error_name = error_name
        self.error_text = error_text


class Interrupted(StepError):
    """The user, or the system, asked the run to stop."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class StopSignal:
    """Notes SIGINT, SIGTERM and SIGHUP while it is open, instead of letting them break in anywhere.

    A signal that the caller had ignored (nohup does) stays ignored.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, signum: int, _frame: object) -> None:
        self.signum = self.signum or signum


def notebooks_folder() -> Path:
    """Where the notebooks lie: beside the source in a checkout, else inside the package."""
    checkout = Path(__file__).parents[3] / "notebooks"
    return checkout if checkout.is_dir() else Path(__file__).parents[1] / "notebooks"


class Runner(Protocol):
    """Executes the cells of one notebook at a time."""

    def run(self, source: Path, executed: Path, parameters: Mapping[str, str]) -> None:
        """Execute the notebook at `source`, keeping it and its outputs at `executed`.

        Returns when its last cell has ended. Raises NotebookError where one fails.
        """

    def interrupt(self, signum: int) -> None:
        """Have the running cell end: SIGINT as by Jupyter's stop button, SIGKILL in any case."""


class PapermillRunner:
    """Executes notebooks with papermill, each in a kernel of its own."""

    def run(self, source: Path, executed: Path, parameters: Mapping[str, str]) -> None:
        """Execute the notebook at `source`; see Runner."""
        import papermill
        from nbclient.exceptions import DeadKernelError
        from papermill.exceptions import PapermillExecutionError
        from zmq.error import ZMQError

        log_path = executed.with_suffix(".log")
        with tempfile.TemporaryDirectory(prefix="fmgauge-", dir=_sockets_place()) as sockets:
            try:
                papermill.execute_notebook(
                    source,
                    executed,
                    parameters=dict(parameters),
                    progress_bar=False,
                    kernel_manager_class=_kernel_manager(log_path, Path(sockets)),
                    extra_arguments=["--IPKernelApp.log_level=CRITICAL"],  # the notebook tells it
                )
            except PapermillExecutionError as error:
                raise NotebookError(error.ename, error.evalue, executed) from error
            except (DeadKernelError, ZMQError) as error:
                raise NotebookError(
                    type(error).__name__, f"its kernel died: {error}", executed
                ) from error
            finally:
                if log_path.exists() and log_path.stat().st_size == 0:
                    log_path.unlink()

    def interrupt(self, signum: int) -> None:
        """Send `signum` to the kernel."""
        for pid in _kernel_pids():
            os.kill(pid, signum)


def _sockets_place() -> str | None:
    """Where temporary folders go by default, or /tmp where a socket's path would be too long."""
    return None if len(tempfile.gettempdir()) <= _LONGEST_PLACE else "/tmp"


def _kernel_manager(log_path: Path, sockets: Path) -> type[AsyncKernelManager]:
    """A manager whose kernel prints what is no cell's output to a file, not to this terminal.

    Its sockets are files in the folder `sockets`: a port that is found to be free may be another
    program's by the time that the kernel listens there.
    """
    from jupyter_client.manager import AsyncKernelManager

    class KernelManager(AsyncKernelManager):
        async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
            self.transport = "ipc"
            self.ip = str(sockets / "kernel")
            with log_path.open("ab") as log:
                await super().start_kernel(**options, stdout=log, stderr=log)

    return KernelManager


def execute_notebook(
    name: str,
    executed: Path,
    parameters: Mapping[str, str],
    *,
    runner: Runner,
    stop: StopSignal | None,
    tick: Callable[[], None],
    stopping: Callable[[str], None],
) -> None:
    """Execute notebook `name` with `parameters`, saving it to `executed` as it goes.

    `tick` is called a few times a second meanwhile. Raises NotebookError where a cell fails and,
    once `stop` has noted a signal, Interrupted: after `stopping(signal's name)` was called and the
    notebook has ended. With no `stop`, it cannot be interrupted.
    """
    source = notebooks_folder() / f"{name}.ipynb"
    _refuse_other_parameters(source)
    executed.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix=name) as pool:
        running = pool.submit(runner.run, source, executed, parameters)
        while not running.done():
            wait([running], timeout=_TICK_S)
            tick()
            if stop and stop.signum:
                stopping(signal.Signals(stop.signum).name)
                _interrupt(runner, running)
                raise Interrupted(stop.signum)
    running.result()


def _refuse_other_parameters(source: Path) -> None:
    """Papermill only warns of a parameter that a notebook lacks, and carries on."""
    import papermill

    declared = set(papermill.inspect_notebook(str(source)))
    if declared != PARAMETERS:
        raise StepError(f"{source} declares {sorted(declared)}, not {sorted(PARAMETERS)}")


def _interrupt(runner: Runner, running: Future[None]) -> None:
    """Interrupt what runs as Jupyter's stop button does; kill it if it does not end."""
    for number in (signal.SIGINT, signal.SIGKILL):
        runner.interrupt(number)
        wait([running], timeout=_GRACE_S)
        if running.done():
            return


def _kernel_pids() -> list[int]:
    import psutil

    children = psutil.Process().children()
    return [child.pid for child in children if _is_kernel(child)]


def _is_kernel(process: Any) -> bool:
    import psutil

    try:
        return any("ipykernel" in part for part in process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False
