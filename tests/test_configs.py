"""The configs that come with the project are sound, and every key of one is described."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fmgauge.config import load_config, planned_stages
from fmgauge.config.model import Strict

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.y*ml"))


def models(base: type[Strict] = Strict) -> Iterator[type[Strict]]:
    """Every model of the config."""
    for model in base.__subclasses__():
        yield model
        yield from models(model)


CONFIG_MODELS = [model for model in models() if model.__module__ == "fmgauge.config.model"]


def test_there_is_a_config_to_begin_with():
    """The quickstart is among the configs."""
    assert ROOT / "configs" / "quickstart.yml" in CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_shipped_config_loads(path):
    """Every config in configs/ loads, asks for a stage, and names a price table that is there."""
    loaded = load_config(path)

    assert planned_stages(loaded.config)
    table = loaded.config.prices.table
    assert table is None or loaded.resolve(table).is_file()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_shipped_config_says_what_it_asks(path):
    """Every config opens with a comment on its purpose."""
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("key", ["api", "api_key_env", "extra_body", "usd_per_1m_tokens"])
def test_what_the_config_to_copy_only_hints_at_can_be_taken_in(key, tmp_path):
    """A commented key of configs/openai-endpoint.yml, uncommented, is a sound key at its place."""
    text = (ROOT / "configs" / "openai-endpoint.yml").read_text()
    assert text.count(f"# {key}: ") == 1
    copy = tmp_path / "copy.yml"
    copy.write_text(text.replace(f"# {key}: ", f"{key}: "))

    assert planned_stages(load_config(copy).config)


@pytest.mark.parametrize("model", CONFIG_MODELS, ids=lambda model: model.__name__)
def test_every_field_is_described(model):
    """No key of a config goes without a description, which error messages show."""
    assert [name for name, field in model.model_fields.items() if not field.description] == []


@pytest.mark.parametrize("model", CONFIG_MODELS, ids=lambda model: model.__name__)
def test_every_model_is_described(model):
    """Every mapping of a config has a docstring of its own."""
    assert model.__doc__
    assert model.__doc__ != Strict.__doc__
