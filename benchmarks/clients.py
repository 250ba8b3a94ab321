"""What a client is to the benchmarks: a command line, and a way to read what it reported.

Also the clients that come with the project: fmgauge itself and the bare aiohttp loop. Knows no
server and no errors; the other tools are in peers.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import yaml
from reference import FOLDER, build, cache_folder

from fmgauge.records import StageInfo, read_stage, stage_folders

ROOT = FOLDER.parent
PYTHON = "3.11"


@dataclass(frozen=True)
class Asked:
    """The load that a client is asked for: a closed loop, or arrivals at a rate."""

    in_flight: int | None
    seconds: float
    warmup_s: float
    expected_rate: float  # requests a second, for tools that only know counts
    request_rate: float | None = None
    workers: int = 1

    @property
    def total_s(self) -> float:
        """Warm-up and window."""
        return self.warmup_s + self.seconds

    @property
    def expected_requests(self) -> int:
        """How many requests warm-up and window hold, about."""
        return max(int(self.total_s * self.expected_rate), 2 * (self.in_flight or 1))


@dataclass(frozen=True)
class Reported:
    """What a client said: one row per successful request, and how many failed.

    `rows` has `key` (request id, or the server's serial number), `ttft_s`, and `itl_s` (an array,
    or None where the tool does not export it).
    """

    rows: pd.DataFrame
    failed: int


class Client(Protocol):
    """A load generator that can be driven from the command line."""

    name: str
    keyed_by: str  # the truth's column that joins its rows: request_id or serial

    def version(self) -> str:
        """What was measured, with its version."""
        ...

    def prepare(self) -> None:
        """Install what it needs; nothing where that has been done."""
        ...

    def command(self, asked: Asked, base_url: str, folder: Path) -> list[str]:
        """The command that runs it, its files going to `folder`."""
        ...

    def reported(self, folder: Path) -> Reported:
        """What it left in `folder`."""
        ...


def serial_of(response_id: str) -> int:
    """The reference server's serial number, from the id in its answer."""
    return int(response_id.rsplit("-", 1)[1])


def table(rows: Sequence[tuple[Any, float | None, Any]]) -> pd.DataFrame:
    """Rows of key, TTFT and ITLs as a client's report has them."""
    return pd.DataFrame(rows, columns=["key", "ttft_s", "itl_s"])


@dataclass(frozen=True)
class Venv:
    """A virtual environment of its own for one tool, in the cache folder."""

    name: str
    requirements: tuple[str, ...]
    python: str = PYTHON

    @property
    def folder(self) -> Path:
        """Where it is."""
        return cache_folder() / self.name

    def tool(self, name: str) -> str:
        """The path of one of its programs."""
        return str(self.folder / "bin" / name)

    def install(self) -> None:
        """Make it, unless it is there with what is required."""
        wanted = "\n".join(self.requirements)
        marker = self.folder / "installed.txt"
        if marker.exists() and marker.read_text() == wanted:
            return
        uv = str(ROOT / ".venv" / "bin" / "uv")
        make = [uv, "venv", "--quiet", "--clear", "--python", self.python, str(self.folder)]
        subprocess.run(make, check=True)
        python = self.tool("python")
        install = [uv, "pip", "install", "--quiet", "--python", python, *self.requirements]
        subprocess.run(install, check=True)
        marker.write_text(wanted)

    def version_of(self, package: str) -> str:
        """The installed version of a package."""
        code = "import sys, importlib.metadata as m; print(m.version(sys.argv[1]))"
        command = [self.tool("python"), "-c", code, package]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


class Fmgauge:
    """The package of this checkout, driven by a config, read back from its Parquet files."""

    name = "fmgauge"
    keyed_by = "request_id"

    def version(self) -> str:
        """The version of this checkout."""
        return f"fmgauge {installed_version('fmgauge')}"

    def prepare(self) -> None:
        """Nothing: it runs in the environment that this runs in."""

    def command(self, asked: Asked, base_url: str, folder: Path) -> list[str]:
        """Its own steps 1 to 3 on a config written for the occasion."""
        path = folder / "config.yml"
        path.write_text(yaml.safe_dump(self._config(asked, base_url, folder)))
        return [sys.executable, str(FOLDER / "run_fmgauge.py"), str(path), "run"]

    def _config(self, asked: Asked, base_url: str, folder: Path) -> dict[str, Any]:
        load: dict[str, Any] = {"duration_s": asked.seconds, "warmup_s": asked.warmup_s}
        if asked.request_rate is None:
            load |= {"kind": "closed_loop", "concurrency": [asked.in_flight]}
        else:
            load |= {"kind": "open_loop", "request_rate": [asked.request_rate]}
        prompts = folder / "prompts.jsonl"
        prompts.write_text("".join(f'{{"prompt": "Say something: {n}"}}\n' for n in range(200)))
        tokenizer = str(tokenizer_folder() / "tokenizer.json")
        return {
            "run": {"name": "bench", "results_dir": str(folder), "workers": asked.workers},
            "workloads": [
                {
                    "name": "short",
                    "source": {"kind": "jsonl", "paths": [str(prompts)]},
                    "max_output_tokens": 64,
                }
            ],
            "experiments": [
                {
                    "name": "reference",
                    "model": {"name": "reference", "tokenizer": tokenizer},
                    "endpoint": {"kind": "openai", "base_url": base_url},
                    "workloads": ["short"],
                    "load": [load],
                }
            ],
            "prices": {"usd_per_1m_tokens": {"reference": {"input": 1.0, "output": 1.0}}},
        }

    def records(self, folder: Path) -> tuple[StageInfo, pd.DataFrame]:
        """The facts and the records of the one stage that was run."""
        (stage,) = stage_folders(folder / "run" / "requests")
        info, records = read_stage(stage)
        return info, records.to_pandas()

    def reported(self, folder: Path) -> Reported:
        """Its records as the benchmarks compare them."""
        _, records = self.records(folder)
        ok = records[records["status"] == "ok"]
        rows = [
            (request_id, tokens[0] - sent_s, np.diff(tokens))
            for request_id, sent_s, tokens in zip(
                ok["request_id"], ok["sent_at_s"], ok["token_at_s"], strict=True
            )
        ]
        failed = ~records["status"].isin(["ok", "cancelled"])
        return Reported(table(rows), int(failed.sum()))


class ClientInC:
    """reference_client.c: what is left of the errors when the client does next to nothing."""

    name = "c"
    keyed_by = "request_id"

    def version(self) -> str:
        """It has none of its own."""
        return "the client in C"

    def prepare(self) -> None:
        """Compile it."""
        build("reference_client", cache_folder())

    def command(self, asked: Asked, base_url: str, folder: Path) -> list[str]:
        """The loop, its first requests spread over half of the warm-up."""
        ramp_s = asked.warmup_s / 2
        return [
            str(build("reference_client", cache_folder())),
            *("--port", base_url.rsplit(":", 1)[1].partition("/")[0]),
            *("--in-flight", str(asked.in_flight), "--ramp", str(ramp_s)),
            *("--seconds", str(asked.total_s - ramp_s), "--most-tokens", "64"),
            *("--out", str(folder / "c.csv")),
        ]

    def reported(self, folder: Path) -> Reported:
        """The times it kept; it ends itself at the first failure."""
        found = pd.read_csv(folder / "c.csv", dtype={"request_id": str})
        token_s = np.fromfile(folder / "c.csv.tokens", dtype=np.int64) / 1e9
        rows = []
        for one in found.itertuples():
            token_at_s = token_s[one.tokens_at : one.tokens_at + one.tokens]
            ttft_s = (one.first_ns - one.sent_ns) / 1e9
            rows.append((one.request_id, ttft_s, np.diff(token_at_s)))
        return Reported(table(rows), 0)


class BareAiohttp:
    """The loop of bare_aiohttp.py: stamps at the chunk, decodes JSON, no records."""

    name = "aiohttp"
    keyed_by = "request_id"
    _venv = Venv("aiohttp", ("aiohttp", "uvloop", "orjson"))

    def __init__(self, *, decodes: bool = True, times: bool = True) -> None:
        self._flags = ([] if decodes else ["--no-json"]) + (["--times"] if times else [])

    def version(self) -> str:
        """The two packages it is made of."""
        versions = (f"{name} {self._venv.version_of(name)}" for name in ("aiohttp", "uvloop"))
        return "bare " + " + ".join(versions)

    def prepare(self) -> None:
        """Make its venv."""
        self._venv.install()

    def command(self, asked: Asked, base_url: str, folder: Path) -> list[str]:
        """The loop, its first requests spread over half of the warm-up."""
        ramp_s = asked.warmup_s / 2
        return [
            self._venv.tool("python"),
            str(FOLDER / "bare_aiohttp.py"),
            *("--base-url", base_url, "--in-flight", str(asked.in_flight)),
            *("--seconds", str(asked.total_s - ramp_s), "--ramp-s", str(ramp_s)),
            *("--out", str(folder / "aiohttp.json"), *self._flags),
        ]

    def reported(self, folder: Path) -> Reported:
        """The times it kept."""
        result = json.loads((folder / "aiohttp.json").read_bytes())
        rows = [
            (request_id, (token_ns[0] - sent_ns) / 1e9, np.diff(token_ns) / 1e9)
            for request_id, sent_ns, token_ns, _ in result["rows"]
            if token_ns
        ]
        return Reported(table(rows), result["totals"]["failures"])


def tokenizer_folder() -> Path:
    """A tokenizer of whole words, made here: tools ask for one, and none may be downloaded."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = cache_folder() / "tokenizer"
    if not (folder / "tokenizer_config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        words = ["<unk>", "<s>", "</s>", *(f"word{number}" for number in range(2000))]
        model = models.WordLevel({word: index for index, word in enumerate(words)}, "<unk>")
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.save(str(folder / "tokenizer.json"))
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<unk>",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "</s>",
            "model_max_length": 100000,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
