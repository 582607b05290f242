"""Types of options with limits, such as `Count`: an integer of at least 1. Imports no torch."""

from typing import Annotated

from pydantic import Field, FiniteFloat

MOST_LAYERS = 4096
"""Largest number of equal layers in sequence, far more than any network has."""

MOST_SIZE = 1 << 24
"""Largest size of a layer in one dimension. No memory can hold a square layer of this size."""

Positive = Annotated[FiniteFloat, Field(gt=0)]
NotNegative = Annotated[FiniteFloat, Field(ge=0)]
Fraction = Annotated[FiniteFloat, Field(ge=0, lt=1)]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
Natural = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Depth = Annotated[int, Field(ge=1, le=MOST_LAYERS)]
Size = Annotated[int, Field(ge=1, le=MOST_SIZE)]
