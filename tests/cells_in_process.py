"""Notebooks whose cells run in the tests' own process: no kernels, so a whole run takes seconds."""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

from fmgauge.pipeline.notebooks import NotebookError


@dataclass
class InProcessRunner:
    """Executes a notebook's code cells one after the other in the calling thread."""

    _thread_id: int | None = None

    def run(self, source: Path, executed: Path, parameters: Mapping[str, str]) -> None:
        """Execute the cells with `parameters` set after the cell that declares them."""
        notebook = nbformat.read(source, 4)
        names: dict[str, Any] = {}
        self._thread_id = threading.get_ident()
        try:
            for cell in notebook.cells:
                if cell.cell_type == "code":
                    exec(compile(cell.source, f"{source.name} cell", "exec"), names)
                if "parameters" in cell.metadata.get("tags", []):
                    names |= parameters
        except (Exception, KeyboardInterrupt) as error:
            raise NotebookError(type(error).__name__, str(error), executed) from error
        finally:
            self._thread_id = None
            nbformat.write(notebook, executed)

    def interrupt(self, signum: int) -> None:
        """Raise KeyboardInterrupt in the cell that runs; a thread cannot be killed."""
        if self._thread_id is not None and signum == signal.SIGINT:
            thread, error = ctypes.c_ulong(self._thread_id), ctypes.py_object(KeyboardInterrupt)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, error)
