"""The other tools, each in a venv of its own: how each is asked, and where it tells what it saw.

aiperf sends an x-request-id of its own and exports it; the others keep the answer or its id, which
holds the server's serial number. Knows their options and exports, nothing of the server.
"""

from __future__ import annotations

import base64
import json
import pickle
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from clients import (
    Asked,
    BareAiohttp,
    Client,
    ClientInC,
    Fmgauge,
    Reported,
    Venv,
    serial_of,
    table,
    tokenizer_folder,
)
from reference import FOLDER

PROMPT = "Say something."


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


class _Peer:
    """A tool in its own venv, called by the name of its package."""

    name: str
    keyed_by = "serial"
    _venv: Venv

    def version(self) -> str:
        """Its name and version."""
        return f"{self.name} {self._venv.version_of(self.name)}"

    def prepare(self) -> None:
        """Make its venv and the tokenizer."""
        self._venv.install()
        tokenizer_folder()


class Aiperf(_Peer):
    """NVIDIA's aiperf: several processes; sends an x-request-id of its own and exports it."""

    name = "aiperf"
    keyed_by = "request_id"
    _venv = Venv("aiperf", ("aiperf==0.13.*",))

    def command(self, asked: Asked, base_url: str, folder: Path) -> list[str]:
        """A run by duration over one prompt from a file."""
        prompts = folder / "prompts.jsonl"
        prompts.write_text(json.dumps({"text": PROMPT}) + "\n")
        return [
            *(self._venv.tool("aiperf"), "profile", "-m", "reference"),
            *("--url", base_url.removesuffix("/v1"), "--endpoint-type", "chat", "--streaming"),
            *("--tokenizer", str(tokenizer_folder()), "--use-server-token-count"),
            *("--concurrency", str(asked.in_flight), "--benchmark-duration", str(asked.total_s)),
            *("--input-file", str(prompts), "--custom-dataset-type", "single_turn"),
            *("--no-gpu-telemetry", "--no-server-metrics", "--no-auto-plot"),
            *("--output-artifact-dir", str(folder / "aiperf"), "--export-level", "records"),
            *("--log-level", "ERROR"),
        ]

    def reported(self, folder: Path) -> Reported:
        """Its record file; milliseconds."""
        records = _lines(folder / "aiperf" / "profile_export.jsonl")
        rows, failed = [], 0
        for record in records:
            metrics = record["metrics"]
            if record.get("error") or "time_to_first_token" not in metrics:
                failed += not record["metadata"]["was_cancelled"]
                continue
            gaps = metrics.get("inter_chunk_latency", {"value": []})["value"]
            ttft_s = metrics["time_to_first_token"]["value"] / 1e3
            rows.append((record["metadata"]["x_request_id"], ttft_s, np.array(gaps) / 1e3))
        return Reported(table(rows), failed)


class Guidellm(_Peer):
    """guidellm: worker processes; exports the first token's time, not the others'."""

    name = "guidellm"
    _venv = Venv("guidellm", ("guidellm==0.8.*",))

    def command(self, asked: Asked, base_url: str, folder: Path) -> list[str]:
        """A concurrent profile that a duration ends."""
        prompts = folder / "prompts.jsonl"
        prompts.write_text((json.dumps({"prompt": PROMPT}) + "\n") * asked.expected_requests * 2)
        target = base_url.removesuffix("/v1")
        return [
            *(self._venv.tool("guidellm"), "run", "--disable-console"),
            *("--backend", f"kind=openai_http,target={target},model=reference"),
            *("--profile", f"kind=concurrent,streams={asked.in_flight}"),
            *("--constraint", f"kind=max_duration,seconds={asked.total_s}"),
            *("--data", f"kind=json_file,path={prompts}"),
            *("--tokenizer", f"kind=hf_auto,model={tokenizer_folder()}"),
            *("--output", f"kind=json,path={folder / 'guidellm.json'}"),
        ]

    def reported(self, folder: Path) -> Reported:
        """Its report's list of successful requests."""
        requests = json.loads((folder / "guidellm.json").read_bytes())["benchmarks"][0]["requests"]
        rows = [
            (serial_of(one["response_id"]), one["time_to_first_token_ms"] / 1e3, None)
            for one in requests["successful"]
        ]
        return Reported(table(rows), len(requests["errored"]))


class Evalscope(_Peer):
    """evalscope perf: one process on aiohttp; keeps every chunk in SQLite."""

    name = "evalscope"
    _venv = Venv("evalscope", ("evalscope[perf]==1.14.*",))

    def command(self, asked: Asked, base_url: str, folder: Path) -> list[str]:
        """A closed loop that a duration ends."""
        prompts = folder / "prompts.txt"
        prompts.write_text(PROMPT + "\n")
        return [
            *(self._venv.tool("evalscope"), "perf", "--model", "reference", "--api", "openai"),
            *("--url", f"{base_url}/chat/completions", "--no-test-connection", "--stream"),
            *("--parallel", str(asked.in_flight), "--number", str(4 * asked.expected_requests)),
            *("--duration", str(int(asked.total_s)), "--max-tokens", "64", "--num-workers", "1"),
            *("--dataset", "line_by_line", "--dataset-path", str(prompts)),
            *("--data-source", "local", "--outputs-dir", str(folder / "evalscope")),
            "--no-timestamp",
        ]

    def reported(self, folder: Path) -> Reported:
        """Its database; the answers are pickled there by evalscope itself, on this machine."""
        (path,) = (folder / "evalscope").glob("reference/*/benchmark_data.db")
        columns = "success, response_messages, first_chunk_latency, inter_token_latencies"
        with sqlite3.connect(path) as database:
            found = database.execute(f"SELECT {columns} FROM result").fetchall()
        rows = []
        for success, messages, ttft_s, gaps in found:
            if success:
                first = pickle.loads(base64.b64decode(messages))[0]
                rows.append((serial_of(first["id"]), ttft_s, np.array(json.loads(gaps))))
        return Reported(table(rows), len(found) - len(rows))


class InferencePerf(_Peer):
    """inference-perf: worker processes on aiohttp; knows counts, not durations."""

    name = "inference-perf"
    _venv = Venv("inference-perf", ("inference-perf==0.7.*",), python="3.13")

    def command(self, asked: Asked, base_url: str, folder: Path) -> list[str]:
        """One concurrent stage of as many requests as the time is thought to hold."""
        fields = {"computed_metrics": True, "response_chunks": False, "request": False}
        report = {"per_request": True, "use_server_output_tokens": True}
        config = {
            "load": {
                "type": "concurrent",
                "interval": 0,
                "num_workers": 1,
                "worker_max_concurrency": asked.in_flight,
                "stages": [
                    {
                        "num_requests": asked.expected_requests,
                        "concurrency_level": asked.in_flight,
                    }
                ],
            },
            "api": {"type": "chat", "streaming": True},
            "data": {"type": "mock"},
            "server": {
                "type": "vllm",
                "model_name": "reference",
                "base_url": base_url.removesuffix("/v1"),
                "ignore_eos": True,
            },
            "tokenizer": {"pretrained_model_name_or_path": str(tokenizer_folder())},
            "report": {"request_lifecycle": {**report, "per_request_fields": fields}},
            "storage": {"local_storage": {"path": str(folder / "inference-perf")}},
        }
        path = folder / "inference-perf.yml"
        path.write_text(yaml.safe_dump(config))
        return [self._venv.tool("inference-perf"), "-c", str(path)]

    def reported(self, folder: Path) -> Reported:
        """Its report per request, with the answer's text."""
        path = folder / "inference-perf" / "per_request_lifecycle_metrics.json"
        found = json.loads(path.read_bytes())
        rows = []
        for one in found:
            metrics = one.get("computed_metrics") or {}
            if one["error"] is None and metrics.get("time_to_first_token") is not None:
                serial = int(one["response"].split('"chatcmpl-', 1)[1][:12])
                gaps = np.array(metrics["inter_token_latencies"] or [])
                rows.append((serial, metrics["time_to_first_token"], gaps))
        return Reported(table(rows), sum(one["error"] is not None for one in found))


class Llmeter(_Peer):
    """LLMeter: a thread a client, through the openai package; exports no times between tokens."""

    name = "llmeter"
    _venv = Venv("llmeter", ("llmeter[openai]==0.2.*", "httpx"))

    def command(self, asked: Asked, base_url: str, folder: Path) -> list[str]:
        """Its Runner, by duration; it has no command of its own."""
        return [
            *(self._venv.tool("python"), str(FOLDER / "run_llmeter.py"), base_url),
            *(str(asked.in_flight), str(asked.total_s), str(folder / "llmeter")),
        ]

    def reported(self, folder: Path) -> Reported:
        """Its responses.jsonl."""
        found = _lines(folder / "llmeter" / "run" / "responses.jsonl")
        ok = [one for one in found if one["error"] is None and one["time_to_first_token"]]
        rows = [(serial_of(one["id"]), one["time_to_first_token"], None) for one in ok]
        return Reported(table(rows), len(found) - len(ok))


def every_client() -> dict[str, Client]:
    """All that can be measured, by name."""
    known: list[Client] = [
        Fmgauge(),
        ClientInC(),
        BareAiohttp(),
        Evalscope(),
        InferencePerf(),
        Llmeter(),
        Aiperf(),
        Guidellm(),
    ]
    return {client.name: client for client in known}
