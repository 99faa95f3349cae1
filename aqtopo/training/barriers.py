"""What the model has learnt of barriers, and of where its heads look, for the log."""

import math
from collections.abc import Callable
from typing import Any

from aqtopo.model.attention import ALPHA

HOURS_A_DAY = 24.0

PREFERENCES: dict[str, tuple[str, Callable[[float], float]]] = {
    ".attn.locality.travel": ("travel [h]", HOURS_A_DAY.__mul__),
    ".attn.locality.log_reach": ("width [patches]", math.exp),
}
"""How the names of what each head prefers end, what the log calls it, and how to bring it to that unit."""


def barrier_strengths(engine: Any) -> dict[str, list[float]]:
    """Alpha [km-1] of every block that has one: a number, or one a head, by the parameter's name."""
    return _masters(engine, (ALPHA,))


def preferences(engine: Any) -> dict[str, list[float]]:
    """What the heads of a block prefer, a number a head: such as {"blocks.0 travel [h]": [0.0, 24.0]}."""
    return spelled_preferences(_masters(engine, tuple(PREFERENCES)))


def spelled_preferences(learnt: dict[str, list[float]]) -> dict[str, list[float]]:
    """The same from the parameters by name."""
    found = {}
    for name, values in learnt.items():
        ending = next(ending for ending in PREFERENCES if name.endswith(ending))
        label, in_unit = PREFERENCES[ending]
        found[f"{name.removesuffix(ending)} {label}"] = [in_unit(value) for value in values]
    return found


def _masters(engine: Any, endings: tuple[str, ...]) -> dict[str, list[float]]:
    """The parameters whose names end so.

    Taken from the fp32 masters: in bfloat16 the steps of a small learning rate would not show. All ranks have
    to ask, for each owns a part of the masters.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    return {
        name: safe_get_full_fp32_param(parameter).tolist()
        for name, parameter in engine.module.named_parameters()
        if name.endswith(endings)
    }
