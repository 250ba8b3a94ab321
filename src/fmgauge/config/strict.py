"""What every part of the config has in common: strictness, and bounds on plain values."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(min_length=1)]
PositiveInt = Annotated[int, Field(ge=1, le=10**15)]  # which arithmetic in floats survives
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    """A model that refuses unknown keys, so that a misspelt one never passes in silence."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,  # a value may be a secret in the wrong place
    )
