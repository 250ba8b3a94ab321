"""Run LLMeter for so long at a fixed number of clients. Runs in LLMeter's own venv.

Usage: run_llmeter.py BASE_URL CLIENTS SECONDS FOLDER
"""

import asyncio
import sys

from llmeter.endpoints.openai import OpenAICompletionStreamEndpoint
from llmeter.runner import Runner


async def run(base_url: str, clients: int, seconds: float, folder: str) -> None:
    """Load the endpoint and leave LLMeter's own files in `folder`."""
    endpoint = OpenAICompletionStreamEndpoint(
        model_id="reference", api_key="none", base_url=base_url, max_retries=0
    )
    payload = endpoint.create_payload("Say something.", max_tokens=64)
    runner = Runner(endpoint, output_path=folder)
    await runner.run(payload=payload, clients=clients, run_duration=seconds, run_name="run")


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]))
