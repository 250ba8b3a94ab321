"""The simulated endpoint: a timing model's parameters, and how it may misbehave.

Knows names, units and bounds; not how batching is simulated, nor what the presets hold.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fmgauge.config.formats import refused
from fmgauge.config.strict import (
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Strict,
    Text,
)


class BatchingProfile(Strict):
    """A server with continuous batching, as far as timing goes.

    It works in steps. A step holds one token of every decoding sequence and as many prompt tokens
    as fit the token budget, and takes step_s + prefill_token_s x (prompt tokens in it)
    + decode_sequence_s x (decoding sequences) + kv_token_s x (tokens held in the KV cache, its own
    included). A request waits until the cache has room for its prompt and all of its output.
    """

    step_s: PositiveFloat = Field(description="Time of a step, however little it holds.")
    prefill_token_s: NonNegativeFloat = Field(description="Time added per prompt token in a step.")
    decode_sequence_s: NonNegativeFloat = Field(
        description="Time added per sequence that gets its next token in a step."
    )
    kv_token_s: NonNegativeFloat = Field(
        default=0.0, description="Time added per token held in the KV cache."
    )
    token_budget: PositiveInt = Field(
        default=2048, description="Most tokens in one step: decoding sequences first, then prompts."
    )
    slots: PositiveInt = Field(default=256, description="Most sequences served side by side.")
    kv_tokens: PositiveInt = Field(
        default=200_000, description="Tokens that the KV cache holds; beyond it, requests wait."
    )
    queue: PositiveInt | None = Field(
        default=None,
        description="Most requests beside those that fill the slots; one more is refused with 429.",
    )
    jitter: NonNegativeFloat = Field(
        default=0.0, description="Sigma of the lognormal noise on a step's time, of mean 1."
    )


class Faults(Strict):
    """How often a simulated server misbehaves. Shares are of requests, drawn by its seed.

    A request has one fault at most, so the shares add up to 1 at most.
    """

    http_error: Fraction = Field(default=0.0, description="Answered with status 500.")
    throttle: Fraction = Field(default=0.0, description="Answered with 429 and Retry-After.")
    error_in_stream: Fraction = Field(
        default=0.0, description="Answered with 200, then an error within the stream."
    )
    latency_spike: Fraction = Field(default=0.0, description="First token late by latency_spike_s.")
    latency_spike_s: PositiveFloat = Field(default=1.0, description="Length of a latency spike.")
    stall: Fraction = Field(
        default=0.0, description="Silent for ever after half of the tokens, the connection open."
    )
    truncate: Fraction = Field(
        default=0.0, description="Ends properly after half of the tokens, without a finish reason."
    )
    close_before_headers: Fraction = Field(default=0.0, description="Closed without an answer.")
    close_after_headers: Fraction = Field(default=0.0, description="Closed after the headers.")
    close_mid_chunk: Fraction = Field(default=0.0, description="Closed in the middle of a chunk.")
    reset: Fraction = Field(default=0.0, description="Reset (RST) after half of the tokens.")
    wrong_content_type: Fraction = Field(
        default=0.0, description="Answered with 200 and an HTML page."
    )
    malformed_json: Fraction = Field(default=0.0, description="One chunk holds no valid JSON.")
    usage_missing: Fraction = Field(default=0.0, description="No usage at the stream's end.")
    usage_wrong: Fraction = Field(default=0.0, description="Usage tells half of the tokens.")
    duplicate_role: Fraction = Field(
        default=0.0, description="The chunk that only names the role comes three times."
    )
    stream_options_refused: bool = Field(
        default=False,
        description="Every request with stream_options is answered with 400, as older servers do.",
    )
    slow_accept_s: NonNegativeFloat = Field(
        default=0.0, description="Wait before every connection's first byte is read."
    )

    @model_validator(mode="after")
    def _not_more_than_all(self) -> Faults:
        shares = [value for name, value in self if not name.endswith(("_s", "_refused"))]
        if sum(shares) > 1 + 1e-9:
            raise refused(
                f"the shares of requests add up to {sum(shares):g}, more than all of them",
                "Lower them: a request has one fault at most",
            )
        return self


class SimulatedEndpoint(Strict):
    """A timing model of a server on this machine, on its own process. Its tokens mean nothing."""

    kind: Literal["simulated"] = Field(description="A timing model of a server.")
    preset: Text | None = Field(
        default=None, description="Name of the profile to use: what it imitates."
    )
    profile: BatchingProfile | None = Field(
        default=None, description="The timing model's parameters, in place of a preset."
    )
    api: Literal["chat", "completions", "responses"] = Field(
        default="chat", description="Which of OpenAI's APIs the load speaks to it."
    )
    seed: int = Field(default=7, ge=0, le=2**32 - 1, description="Seed of its noise and faults.")
    faults: Faults = Field(default_factory=Faults, description="How it misbehaves; not at all.")
