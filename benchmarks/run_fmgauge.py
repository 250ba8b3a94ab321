"""Run one config through the package's own steps, as notebooks 1 to 3 do, without the notebooks.

A process of its own, so that it can be pinned and its CPU time counted.
"""

from __future__ import annotations

import sys

from fmgauge.endpoints import bring_up, serving
from fmgauge.load import run_stages
from fmgauge.runs import open_run
from fmgauge.workloads import prepare_payloads


def main() -> None:
    """Prepare payloads, bring endpoints up, run every stage of the config named first."""
    run = open_run(sys.argv[1], sys.argv[2])
    prepare_payloads(run)
    bring_up(run)
    with serving(run) as served:
        run_stages(run, served.endpoints, on_experiment_done=served.release)


if __name__ == "__main__":  # workers are spawned, and import this
    main()
