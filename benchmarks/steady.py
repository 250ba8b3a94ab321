"""An open loop whose answers take longer than its warm-up, in real time: is it measured right?

4 constant arrivals a second at a simulated server that takes 15 s for every answer, with the
default warm-up of 5 s and a window of 30 s. Its truth is known: 4 requests/s are served, at a
price of $3.60 an hour for $0.00025 each. Prints what was measured as one Markdown table; exit code
1 where the rate or the price is off by more than 2 %, or the stage is called overloaded.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

RATE, LATENCY_S, USD_PER_HOUR, TOKENS = 4.0, 15.0, 3.60, 100
MOST_OFF = 0.02
CONFIG = {
    "run": {"name": "steady", "seed": 7},
    "workloads": [
        {
            "name": "short",
            "source": {
                "kind": "synthetic",
                "prompt_tokens": {"kind": "fixed", "value": 50},
            },
            "max_output_tokens": TOKENS,
        }
    ],
    "experiments": [
        {
            "name": "slow",
            "model": {"name": "slow"},
            "endpoint": {
                "kind": "simulated",
                "profile": {
                    "step_s": LATENCY_S / TOKENS,
                    "prefill_token_s": 0.0,
                    "decode_sequence_s": 0.0,
                    "slots": 1000,
                },
            },
            "instance_type": "box",
            "workloads": ["short"],
            "load": [
                {
                    "kind": "open_loop",
                    "request_rate": [RATE],
                    "arrivals": "constant",
                    "duration_s": 30,
                }
            ],
        }
    ],
    "prices": {"hourly_usd": {"box": USD_PER_HOUR}},
}


def main() -> int:
    """Run it and compare."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "steady.yml"
        config = CONFIG | {"run": {**CONFIG["run"], "results_dir": folder}}
        path.write_text(json.dumps(config))
        subprocess.run(
            [sys.executable, "-m", "fmgauge.cli", "run", str(path)],
            check=False,
            stdout=subprocess.DEVNULL,
        )
        (results,) = Path(folder).glob("steady-*")
        row = pd.read_parquet(results / "metrics.parquet").iloc[0]
        (stage,) = json.loads((results / "decision.json").read_text())["stages"]
    codes = [caveat["code"] for caveat in stage["caveats"]]
    price = USD_PER_HOUR / 3600 / RATE
    print("| | truth | measured | off by |\n|---|---|---|---|")
    for name, truth, measured in (
        ("served, requests/s", RATE, row["request_rate"]),
        ("price, USD a transaction", price, row["price_per_txn"]),
        ("mean latency, s", LATENCY_S, row["latency_mean"]),
    ):
        print(f"| {name} | {truth:.6g} | {measured:.6g} | {100 * (measured / truth - 1):+.2f} % |")
    print(f"\nwarm-up {row['warmup_s']:.2f} s ({row['warmup_end']})", end="")
    print(f", window {row['duration_s']:.2f} s ({row['window_end']})", end="")
    print(f", {row['n_requests']} requests, caveats: {', '.join(codes) or 'none'}")
    off = max(abs(row["request_rate"] / RATE - 1), abs(row["price_per_txn"] / price - 1))
    return int(off > MOST_OFF or "fell_behind" in codes)


if __name__ == "__main__":
    raise SystemExit(main())
