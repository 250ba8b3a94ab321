"""What time and tokens cost: dated price tables, and the config's own entries that win over them.

Knows no load and no metrics. A price that is missing is an error; it is never 0 and never guessed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import Literal

from pydantic import Field, ValidationError

from fmgauge.config import LoadedConfig, planned_stages
from fmgauge.config.model import Experiment, TokenPrice
from fmgauge.config.refusals import explained
from fmgauge.config.strict import PositiveFloat, Strict, Text
from fmgauge.config.yaml_text import YamlText, read_yaml
from fmgauge.errors import ConfigError, Problem


class PriceTable(Strict):
    """A dated list of prices, with where they come from."""

    source: Text = Field(description="Who published the prices, or whose assumption they are.")
    as_of: date = Field(description="The day on which they held, as yyyy-mm-dd.")
    region: Text = Field(description="Where they hold, such as us-east-1.")
    hourly_usd: dict[str, PositiveFloat] = Field(
        default_factory=dict, description="Instance type: USD per instance and hour."
    )
    usd_per_1m_tokens: dict[str, TokenPrice] = Field(
        default_factory=dict, description="Model name: USD per million tokens."
    )


@dataclass(frozen=True)
class Price:
    """What one experiment costs: by the hour for all its instances, or by the token."""

    kind: Literal["hourly", "per_token"]
    usd_per_hour: float | None  # all instances together, nothing else included
    usd_per_1m_input: float | None
    usd_per_1m_output: float | None
    source: str
    as_of: date | None  # None for an entry of the config, which carries no date
    region: str | None

    def tokens_usd(self, prompt_tokens: float, output_tokens: float) -> float:
        """USD for so many tokens at the per-token price; ValueError where the price is hourly."""
        if self.usd_per_1m_input is None or self.usd_per_1m_output is None:
            raise ValueError("an hourly price does not price tokens")
        cost = prompt_tokens * self.usd_per_1m_input + output_tokens * self.usd_per_1m_output
        return cost / 1e6


def price_table(loaded: LoadedConfig) -> PriceTable | None:
    """The table that the config names, or None. ConfigError where it is missing or malformed."""
    named = loaded.config.prices.table
    if named is None:
        return None
    path = loaded.resolve(named)
    if not path.is_file():
        remedy = "Give the path of a price table, or remove the key"
        raise loaded.error(("prices", "table"), f"there is no file {named}", remedy)
    return _validated(read_yaml(path))


def experiment_price(loaded: LoadedConfig, experiment: Experiment) -> Price:
    """What `experiment` costs; the config's entries win over the table.

    With an instance type: its hourly price times the instances. Without: the model's price per
    token. ConfigError at the experiment's line where there is no such price.
    """
    return _price(loaded, price_table(loaded), experiment)


def price_problems(loaded: LoadedConfig) -> list[Problem]:
    """Every experiment without a price, and a plan that costs more than `budgets.spend_usd`."""
    try:
        table = price_table(loaded)
    except ConfigError as error:
        return list(error.problems)
    problems: list[Problem] = []
    for experiment in loaded.config.experiments:
        try:
            _price(loaded, table, experiment)
        except ConfigError as error:
            problems.extend(error.problems)
    return problems or list(_overspending(loaded))


def projected_spend_usd(loaded: LoadedConfig) -> tuple[float, float]:
    """Least and most USD for the time that the planned stages keep hourly instances under load.

    Warm-up and windows of every stage, as asked for and as long as they may become; of a closed
    loop that only a count ends, what is known of them. Experiments priced per token are not in it:
    what they will say is not known beforehand. Nor are starting up, draining and idling.
    """
    table = price_table(loaded)
    least_usd = most_usd = 0.0
    for planned in planned_stages(loaded.config):
        price = _price(loaded, table, planned.experiment)
        usd_per_s = (price.usd_per_hour or 0.0) / 3600
        least_usd += usd_per_s * planned.least_planned_s
        most_usd += usd_per_s * (planned.most_planned_s or planned.most_warmup_s)
    return least_usd, most_usd


def _validated(text: YamlText) -> PriceTable:
    if not isinstance(text.data, dict):
        remedy = "Begin it with source:, as_of:, region: and hourly_usd:"
        raise ConfigError(Problem(str(text.path), 1, "", "must be a mapping of keys", remedy))
    try:
        return PriceTable.model_validate_json(json.dumps(text.data))
    except ValidationError as error:
        raise ConfigError(*explained(error, PriceTable, text)) from error


def _price(loaded: LoadedConfig, table: PriceTable | None, experiment: Experiment) -> Price:
    if experiment.instance_type is None:
        return _token_price(loaded, table, experiment)
    return _hourly_price(loaded, table, experiment, experiment.instance_type)


def _hourly_price(
    loaded: LoadedConfig, table: PriceTable | None, experiment: Experiment, instance_type: str
) -> Price:
    count = experiment.instance_count
    own = loaded.config.prices.hourly_usd.get(instance_type)
    if own is not None:
        return Price("hourly", own * count, None, None, "prices in the config", None, None)
    if table is not None and instance_type in table.hourly_usd:
        usd_per_hour = table.hourly_usd[instance_type] * count
        return Price("hourly", usd_per_hour, None, None, table.source, table.as_of, table.region)
    problem = f"there is no hourly price for {instance_type!r}"
    remedy = "Add it to prices.hourly_usd, or name a prices.table that has it"
    raise loaded.error((*_location(loaded, experiment), "instance_type"), problem, remedy)


def _token_price(loaded: LoadedConfig, table: PriceTable | None, experiment: Experiment) -> Price:
    model = experiment.model.name
    own = loaded.config.prices.usd_per_1m_tokens.get(model)
    if own is not None:
        source = "prices in the config"
        return Price("per_token", None, own.input, own.output, source, None, None)
    if table is not None and model in table.usd_per_1m_tokens:
        listed = table.usd_per_1m_tokens[model]
        origin = (table.source, table.as_of, table.region)
        return Price("per_token", None, listed.input, listed.output, *origin)
    problem = f"there is no instance_type, and no price per token for the model {model!r}"
    remedy = (
        "Add it to prices.usd_per_1m_tokens, name a prices.table that has it, or give the "
        "experiment an instance_type"
    )
    raise loaded.error((*_location(loaded, experiment), "model", "name"), problem, remedy)


def _location(loaded: LoadedConfig, experiment: Experiment) -> tuple[str, int]:
    return "experiments", [e.name for e in loaded.config.experiments].index(experiment.name)


def _overspending(loaded: LoadedConfig) -> Iterator[Problem]:
    limit = loaded.config.budgets.spend_usd
    if limit is None:
        return
    endless = list(_unbounded(loaded))
    yield from endless
    least_usd, most_usd = projected_spend_usd(loaded)
    if most_usd > limit:
        cost = f"at least ${least_usd:.4g}" if endless else f"up to ${most_usd:.4g}"
        problem = f"the planned stages cost {cost} at hourly prices, more than ${limit:.4g}"
        remedy = "Shorten or drop stages, lower their duration_max_s and warmup_max_s, or raise it"
        yield loaded.problem(("budgets", "spend_usd"), problem, remedy)


def _unbounded(loaded: LoadedConfig) -> Iterator[Problem]:
    """Loads on hourly instances that only a count of requests ends: no cap on spending holds."""
    for index, experiment in enumerate(loaded.config.experiments):
        for position, load in enumerate(experiment.load):
            ends = load.duration_s is not None or load.duration_max_s is not None
            if experiment.instance_type is not None and not ends:
                location = ("experiments", index, "load", position, "requests")
                problem = "how long this takes is not known, so budgets.spend_usd cannot be kept"
                yield loaded.problem(location, problem, "Give duration_s or duration_max_s, too")
