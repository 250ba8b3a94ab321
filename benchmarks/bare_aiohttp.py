"""A closed loop on bare aiohttp and uvloop: the best that its users write by hand.

It stamps each chunk as `iter_any` hands it over, decodes the JSON of every event, and keeps each
request's times by its id; no time-outs, no retries, no records. Runs in a venv of its own, which
holds aiohttp, uvloop and orjson; knows the options below and nothing of the project.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import time
from pathlib import Path

import aiohttp
import orjson
import uvloop

HEADERS = {"content-type": "application/json"}
BODY = orjson.dumps(
    {
        "model": "reference",
        "messages": [{"role": "user", "content": "Say something."}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 64,
    }
)


async def one_request(
    session: aiohttp.ClientSession, url: str, request_id: str, decodes: bool
) -> tuple[str, int, list[int], int]:
    """Send one request; its id, when it was sent, when each token arrived, how many chunks."""
    token_ns: list[int] = []
    held, n_chunks = b"", 0
    headers = {**HEADERS, "x-request-id": request_id}
    sent_ns = time.perf_counter_ns()
    async with session.post(url, data=BODY, headers=headers) as response:
        async for chunk in response.content.iter_any():
            at_ns = time.perf_counter_ns()
            n_chunks += 1
            *events, held = (held + chunk).split(b"\n\n")
            for event in events:
                if not decodes:
                    has_token = b'"delta":{"content"' in event
                elif event.endswith(b"[DONE]"):
                    has_token = False
                else:
                    choices = orjson.loads(event[6:])["choices"]
                    has_token = bool(choices and choices[0]["delta"].get("content"))
                if has_token:
                    token_ns.append(at_ns)
    return request_id, sent_ns, token_ns, n_chunks


async def closed_loop(options: argparse.Namespace) -> dict[str, object]:
    """Keep `in_flight` requests in flight for so long; the times of every one."""
    url = f"{options.base_url}/chat/completions"
    rows: list[tuple[str, int, list[int], int]] = []
    failures = 0
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        began = time.perf_counter()
        end = began + options.ramp_s + options.seconds

        async def place(number: int) -> None:
            nonlocal failures
            await asyncio.sleep(options.ramp_s * number / options.in_flight)
            count = 0
            while time.perf_counter() < end:
                count += 1
                try:
                    request_id = f"{number}-{count}"
                    rows.append(await one_request(session, url, request_id, not options.no_json))
                except aiohttp.ClientError:
                    failures += 1

        await asyncio.gather(*(place(number) for number in range(options.in_flight)))
        wall_s = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_SELF)
    totals = {
        "requests": len(rows),
        "tokens": sum(len(row[2]) for row in rows),
        "failures": failures,
        "wall_s": wall_s,
        "cpu_s": used.ru_utime + used.ru_stime,
    }
    return {"totals": totals, "rows": rows if options.times else []}


def main() -> None:
    """Read the options, run the loop, write what happened as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--in-flight", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--ramp-s", type=float, default=0.0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--times", action="store_true", help="write every request's times too")
    parser.add_argument("--no-json", action="store_true", help="find tokens without decoding JSON")
    options = parser.parse_args()
    uvloop.install()
    result = asyncio.run(closed_loop(options))
    options.out.write_bytes(orjson.dumps(result))
    print(json.dumps(result["totals"]))


if __name__ == "__main__":
    main()
