"""Base of every group of settings, and the ranges that several of them use."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mrcg.frozen import Frozen

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]


class Settings(Frozen):
    """Base of every group of settings: frozen, and unknown keys are rejected."""
