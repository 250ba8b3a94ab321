"""The config as strict frozen types. Knows names, units and bounds; not YAML, files or lines."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue

from fmgauge.config.formats import finite_json, folder_name, server_address, variable_name
from fmgauge.config.simulated import SimulatedEndpoint
from fmgauge.config.strict import (
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Strict,
    Text,
)

Name = Annotated[str, AfterValidator(folder_name)]
FiniteJson = Annotated[JsonValue, AfterValidator(finite_json)]

DEFAULT_DURATION_S = 60.0


class RunSettings(Strict):
    """What this run is called and where its results go."""

    name: Name = Field(description="First part of every run id.")
    seed: int = Field(
        default=7, ge=0, le=2**32 - 1, description="Seed of every random choice in the run."
    )
    results_dir: Text = Field(
        default="results", description="Folder for results, from the project's root."
    )
    workers: PositiveInt | None = Field(
        default=None,
        description="Processes that share every stage's load; without it, one for each core but "
        "one, at least 1, and no more than the load needs.",
    )


# --- workloads -----------------------------------------------------------------------------------


class FixedTokens(Strict):
    """Every length is the same."""

    kind: Literal["fixed"] = Field(description="Every length is the same.")
    value: PositiveInt = Field(description="Tokens.")


class UniformTokens(Strict):
    """Every length between two bounds is equally likely."""

    kind: Literal["uniform"] = Field(description="Lengths are equally likely between two bounds.")
    min: PositiveInt = Field(description="Smallest length in tokens.")
    max: PositiveInt = Field(description="Largest length in tokens.")


class NormalTokens(Strict):
    """Lengths from a normal distribution, rounded, at least 1."""

    kind: Literal["normal"] = Field(description="Lengths follow a normal distribution.")
    mean: PositiveFloat = Field(description="Mean length in tokens.")
    stddev: PositiveFloat = Field(description="Standard deviation in tokens.")


class LognormalTokens(Strict):
    """Lengths from a lognormal distribution, rounded, at least 1."""

    kind: Literal["lognormal"] = Field(description="Lengths follow a lognormal distribution.")
    median: PositiveFloat = Field(description="Median length in tokens.")
    sigma: PositiveFloat = Field(description="Standard deviation of the logarithm.")


Tokens = Annotated[
    FixedTokens | UniformTokens | NormalTokens | LognormalTokens, Field(discriminator="kind")
]


class JsonlSource(Strict):
    """Rows from JSON-lines files: LongBench's columns, or plain `prompt` or `messages`."""

    kind: Literal["jsonl"] = Field(description="Rows come from JSON-lines files.")
    paths: tuple[Text, ...] = Field(
        min_length=1, description="Files, globs or s3://bucket/key addresses."
    )


class PythonDocsSource(Strict):
    """English passages from the language reference that comes with Python; no download."""

    kind: Literal["python_docs"] = Field(
        description="Rows come from the Python language reference."
    )


class SyntheticSource(Strict):
    """Prompts of chosen lengths from the words of the Python language reference."""

    kind: Literal["synthetic"] = Field(description="Prompts are made to chosen lengths.")
    n_prompts: PositiveInt = Field(default=200, description="How many prompts to make.")
    prompt_tokens: Tokens = Field(description="Lengths of the prompts.")
    output_tokens: Tokens | None = Field(
        default=None,
        description="Lengths to ask for; without it, the workload's max_output_tokens.",
    )


class HuggingfaceSource(Strict):
    """Rows of a data set on the Hugging Face hub, or of a local folder in the hub's layout."""

    kind: Literal["huggingface"] = Field(description="Rows come from a Hugging Face data set.")
    id: Text = Field(description="Data set id, or a local folder.")
    config: Text | None = Field(default=None, description="Name of the data set's configuration.")
    split: Text = Field(default="test", description="Split to read.")
    columns: dict[str, str] = Field(
        default_factory=dict, description="Template column: data set column, where they differ."
    )


Source = Annotated[
    JsonlSource | PythonDocsSource | SyntheticSource | HuggingfaceSource,
    Field(discriminator="kind"),
]


class Filter(Strict):
    """Which rows become payloads. Token bounds are inclusive and count the whole prompt."""

    language: Text | None = Field(default=None, description="Keep rows with this `language`.")
    min_tokens: PositiveInt = Field(default=1, description="Fewest tokens of a rendered prompt.")
    max_tokens: PositiveInt | None = Field(
        default=None, description="Most tokens of a rendered prompt."
    )


class Workload(Strict):
    """What is asked: where prompts come from, which are kept, and how much output is wanted."""

    name: Name = Field(description="Gives payloads/payload_<name>.jsonl.")
    source: Source = Field(description="Where the rows come from.")
    template: Text | None = Field(
        default=None,
        description="Prompt with {{ column }} places; without it, rows hold prompt or messages.",
    )
    filter: Filter = Field(default_factory=Filter, description="Which rows are kept.")
    max_prompts: PositiveInt = Field(
        default=1000, description="Most prompts to keep after filtering and shuffling."
    )
    salt: bool = Field(
        default=True,
        description="Start every prompt with digits of its own, so that no prefix cache answers.",
    )
    max_output_tokens: PositiveInt = Field(default=100, description="Most tokens to generate.")


# --- experiments ---------------------------------------------------------------------------------


class Model(Strict):
    """The model that an experiment serves."""

    name: Text = Field(description="Its name in reports, and in requests.")
    tokenizer: Text | None = Field(
        default=None, description="tokenizer.json, a folder that holds one, or a hub id."
    )


class LlamacppEndpoint(Strict):
    """The embedded llama.cpp server on this machine, on its own process."""

    kind: Literal["llamacpp"] = Field(description="An embedded llama.cpp server.")
    gguf: Text | None = Field(
        default=None,
        description="Model file; without it, a small model with random weights is built here.",
    )
    layers: PositiveInt = Field(default=4, description="Layers of the built model.")
    width: int = Field(
        default=256, ge=64, multiple_of=64, description="Embedding width of the built model."
    )
    parallel: PositiveInt = Field(default=1, description="Requests served side by side (slots).")
    threads: PositiveInt = Field(default=1, description="Threads that compute.")
    context_tokens: PositiveInt = Field(
        default=2048, description="Prompt and output tokens that fit in one slot."
    )


class OpenaiEndpoint(Strict):
    """A server that exists and speaks one of OpenAI's APIs; never created, never deleted."""

    kind: Literal["openai"] = Field(description="A server that speaks one of OpenAI's APIs.")
    api: Literal["chat", "completions", "responses"] = Field(
        default="chat",
        description="Which API: chat completions, completions (plain prompts), or responses.",
    )
    base_url: Annotated[str, AfterValidator(server_address)] = Field(
        description="Address up to and including /v1, with scheme and without credentials."
    )
    api_key_env: Annotated[str, AfterValidator(variable_name)] | None = Field(
        default=None, description="Name of the environment variable that holds the key."
    )
    extra_body: dict[str, FiniteJson] = Field(
        default_factory=dict,
        description="Fields added to every request body, beside those set elsewhere here.",
    )


Endpoint = Annotated[
    LlamacppEndpoint | OpenaiEndpoint | SimulatedEndpoint, Field(discriminator="kind")
]


class Timeouts(Strict):
    """How long one request may take, in all and in parts, before it counts as failed."""

    timeout_s: PositiveFloat = Field(
        default=120.0, description="Longest that one request may take in all."
    )
    connect_timeout_s: PositiveFloat = Field(
        default=10.0, description="Longest that opening a connection may take."
    )
    first_byte_timeout_s: PositiveFloat | None = Field(
        default=None, description="Longest wait for the answer's first byte."
    )
    between_bytes_timeout_s: PositiveFloat | None = Field(
        default=None, description="Longest silence within an answer."
    )


def _default_duration_s(given: dict[str, Any]) -> float | None:
    """The length of a window that nothing else ends; `given` are the fields above."""
    return DEFAULT_DURATION_S if given.get("requests") is None else None


class Stops(Timeouts):
    """When a stage's measured window begins and ends, and how long its last requests are awaited.

    The warm-up goes on after `warmup_s` until the load is steady, the window after `duration_s`
    until it holds the requests that the budgets need. The window ends with the last of `requests`
    at the latest; 60 seconds are asked for where neither is given. Without a key that says
    otherwise, warm-up and window together take at most four times what was asked.
    """

    requests: PositiveInt | None = Field(
        default=None, description="Most requests to measure; without it, as many as the time holds."
    )
    duration_s: PositiveFloat | None = Field(
        default_factory=_default_duration_s,
        description="Least length of the measured window; 60 where requests is not given.",
    )
    duration_max_s: PositiveFloat | None = Field(
        default=None,
        description="Most length of the window; without it, what four times the warmup_s and "
        "duration_s that were asked for leave.",
    )
    warmup_s: NonNegativeFloat = Field(
        default=5.0, description="Least time under load before the window, on other prompts."
    )
    warmup_max_s: NonNegativeFloat | None = Field(
        default=None,
        description="Most time that the load may take to become steady; without it, four times "
        "the warmup_s and duration_s that were asked for, less one window.",
    )
    drain_s: NonNegativeFloat | None = Field(
        default=None,
        description="Longest wait, after the window, for what was sent in it; what has not ended "
        "then is cancelled, and counts as failed. Without it, time-outs alone end requests.",
    )


class ClosedLoop(Stops):
    """Keeps exactly `concurrency` requests in flight: users who ask again as soon as answered."""

    kind: Literal["closed_loop"] = Field(description="A fixed number of requests in flight.")
    concurrency: tuple[PositiveInt, ...] = Field(
        min_length=1, description="Requests kept in flight; one stage each."
    )
    think_time_s: NonNegativeFloat = Field(
        default=0.0,
        description="Pause of each user between an answer and the next question; requests in "
        "flight are then fewer than users.",
    )
    ramp_up_s: NonNegativeFloat | None = Field(
        default=None,
        description="Time over which the first requests are spread evenly; without it, half of "
        "warmup_s, 5 seconds at most.",
    )


class OpenLoop(Stops):
    """Sends requests at instants settled beforehand, however slow the answers are."""

    kind: Literal["open_loop"] = Field(description="Requests at a rate, whatever the answers do.")
    request_rate: tuple[PositiveFloat, ...] = Field(
        min_length=1, description="Mean arrivals per second; one stage each."
    )
    arrivals: Literal["constant", "poisson", "gamma", "ramp"] = Field(
        default="poisson",
        description="Gaps between arrivals: equal, exponential, gamma-distributed, or exponential "
        "at a rate that rises or falls in a straight line.",
    )
    burstiness: Annotated[float, Field(ge=0.01, le=10_000)] | None = Field(
        default=None,
        description="Shape of the gamma distribution: 1 is Poisson, less is burstier, more is "
        "smoother. Only with arrivals: gamma.",
    )
    ramp_to_rate: PositiveFloat | None = Field(
        default=None,
        description="Rate at the window's end; the window begins with request_rate. Only with "
        "arrivals: ramp.",
    )
    max_in_flight: PositiveInt | None = Field(
        default=None,
        description="Most requests in flight; a request that is due beyond it waits, which is "
        "counted in its latency and told of the stage.",
    )


Load = Annotated[ClosedLoop | OpenLoop, Field(discriminator="kind")]


class Experiment(Strict):
    """One candidate: a model on an endpoint, and the load it is put under."""

    name: Name = Field(description="Its name in every table.")
    model: Model = Field(description="The model that it serves.")
    endpoint: Endpoint = Field(description="Where the model answers.")
    instance_type: Text | None = Field(
        default=None,
        description="What it runs on, priced by the hour; without it, priced per token.",
    )
    instance_count: PositiveInt = Field(default=1, description="Instances behind the endpoint.")
    workloads: tuple[Name, ...] = Field(min_length=1, description="Names of workloads to serve.")
    load: tuple[Load, ...] = Field(min_length=1, description="Load to put it under, in order.")


# --- budgets, prices, report ---------------------------------------------------------------------


class Limits(Strict):
    """Upper limits on statistics of one latency, in seconds."""

    mean: PositiveFloat | None = Field(default=None, description="Limit on the mean.")
    p50: PositiveFloat | None = Field(default=None, description="Limit on the median.")
    p90: PositiveFloat | None = Field(default=None, description="Limit on the 90th percentile.")
    p95: PositiveFloat | None = Field(default=None, description="Limit on the 95th percentile.")
    p99: PositiveFloat | None = Field(default=None, description="Limit on the 99th percentile.")


class Budgets(Strict):
    """What a deployment must keep within; a budget that is not given is not asked."""

    latency_s: Limits | None = Field(default=None, description="End-to-end latency.")
    ttft_s: Limits | None = Field(default=None, description="Time to first token.")
    tpot_s: Limits | None = Field(
        default=None, description="Time per output token after the first."
    )
    usd_per_10k_txn: PositiveFloat | None = Field(
        default=None, description="Price of 10,000 successful requests."
    )
    error_rate: Fraction = Field(
        default=0.0,
        description="Failed share of the requests; without it, none may fail.",
    )
    spend_usd: PositiveFloat | None = Field(
        default=None,
        description="Most that hourly instances may cost under the planned load; a dearer plan is "
        "refused. What is priced per token is not in it: nobody knows the tokens beforehand.",
    )


class TokenPrice(Strict):
    """What one model costs per million tokens."""

    input: PositiveFloat = Field(description="USD per million prompt tokens.")
    output: PositiveFloat = Field(description="USD per million output tokens.")


class Prices(Strict):
    """Where prices come from. Entries here win over the table."""

    table: Text | None = Field(default=None, description="A dated price table (YAML).")
    hourly_usd: dict[str, PositiveFloat] = Field(
        default_factory=dict, description="Instance type: USD per instance and hour."
    )
    usd_per_1m_tokens: dict[str, TokenPrice] = Field(
        default_factory=dict, description="Model name: USD per million tokens."
    )


class ReportSettings(Strict):
    """What the report puts first."""

    workload_of_interest: Name | None = Field(
        default=None, description="Workload of the summary; the first one where none is named."
    )


class Config(Strict):
    """A whole benchmark: what is asked, of whom, under which load, budgets and prices."""

    run: RunSettings = Field(description="Name, seed, results folder.")
    workloads: tuple[Workload, ...] = Field(min_length=1, description="What is asked.")
    experiments: tuple[Experiment, ...] = Field(min_length=1, description="The candidates.")
    budgets: Budgets = Field(default_factory=Budgets, description="What must be kept within.")
    prices: Prices = Field(default_factory=Prices, description="What time and tokens cost.")
    report: ReportSettings = Field(
        default_factory=ReportSettings, description="What the report puts first."
    )

    def workload(self, name: str) -> Workload:
        """The workload called `name`; KeyError where there is none."""
        return {workload.name: workload for workload in self.workloads}[name]

    def experiment(self, name: str) -> Experiment:
        """The experiment called `name`; KeyError where there is none."""
        return {experiment.name: experiment for experiment in self.experiments}[name]

    @property
    def workload_of_interest(self) -> str:
        """Name of the workload that the summary is about."""
        return self.report.workload_of_interest or self.workloads[0].name

    def canonical(self) -> dict[str, Any]:
        """The resolved config as plain data, every default spelt out."""
        return self.model_dump(mode="json")
