"""What the model has learnt of barriers, for the log."""

from typing import Any

ALPHA = ".attn.alpha"
"""How the names of the barrier strengths end."""


def barrier_strengths(engine: Any) -> dict[str, list[float]]:
    """Alpha [km-1] of every block that has one: a number, or one a head, by the parameter's name.

    Taken from the fp32 masters: in bfloat16 the steps of a small learning rate would not show. All ranks have
    to ask, for each owns a part of the masters.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    return {
        name: safe_get_full_fp32_param(parameter).tolist()
        for name, parameter in engine.module.named_parameters()
        if name.endswith(ALPHA)
    }
