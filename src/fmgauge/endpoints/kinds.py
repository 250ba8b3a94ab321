"""Which kinds of endpoint there are. Knows them by their files; not what any of them does."""

from __future__ import annotations

from typing import Any

from fmgauge.endpoints.llamacpp import LlamacppKind
from fmgauge.endpoints.openai import OpenaiKind
from fmgauge.endpoints.protocol import Kind
from fmgauge.endpoints.simulated import SimulatedKind

KINDS: dict[str, Kind[Any]] = {}
"""The kinds by their names."""


def register(kind: Kind[Any]) -> None:
    """Make `kind` known under its name; a config's type for it is the config's own affair.

    Raises ValueError where another has its name, or creates what the ledger calls the same.
    """
    taken = {name for other in KINDS.values() for name in (other.name, *other.resource_types)}
    if taken & {kind.name, *kind.resource_types}:
        raise ValueError(f"a kind {kind.name!r}, or one with its types of resources, is known")
    KINDS[kind.name] = kind


def kind_of(endpoint: Any) -> Kind[Any]:
    """The kind of an endpoint of a config, or of one of endpoints.json."""
    return KINDS[endpoint.kind]


def kind_that_creates(resource_type: str) -> Kind[Any] | None:
    """The kind whose resources the ledger calls so; None of a type that nothing here creates."""
    return next((kind for kind in KINDS.values() if resource_type in kind.resource_types), None)


for _kind in (LlamacppKind(), OpenaiKind(), SimulatedKind()):
    register(_kind)
