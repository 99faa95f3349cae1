"""Named worlds: the usual one, and those of an ablation, in which it is known what a model should need.

Frozen: what an ablation finds is worth something only if its worlds were not tuned to the answer. The commit
at which they were fixed, before the first model was trained on them, is named in docs/ablation.md.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import TypedDict


class Switches(TypedDict, total=False):
    """What a setting may change of `World`."""

    flat: bool
    ridge_blocking: float
    wind_transport: bool
    wind_strength: float


class Setting(StrEnum):
    """The worlds by name."""

    REAL = "real"
    RIDGES = "ridges"
    FLAT = "flat"
    INERT = "inert"


SWITCHES: Mapping[Setting, Switches] = MappingProxyType(
    {
        Setting.REAL: {},
        # Wind carries pollution half as fast again, and ridges count twice their height: what arrives where
        # is decided by wind and terrain.
        Setting.RIDGES: {"ridge_blocking": 2.0, "wind_strength": 1.5},
        # Neither: no height anywhere and never a breath of wind.
        Setting.FLAT: {"flat": True, "wind_strength": 0.0},
        # The harder null: mountains stand and winds blow as in `ridges`, and pollution does not care.
        Setting.INERT: {"ridge_blocking": 0.0, "wind_transport": False, "wind_strength": 1.5},
    }
)
"""What each setting changes of `World`'s defaults."""
