"""Every key that DeepSpeed has is declared, or refused with a reason; never is it called unknown."""

import inspect
import re

import pytest
from pydantic import BaseModel

from aqtopo.config import DeepSpeedConfig
from aqtopo.config.deepspeed import OffloadOptimizer, ZeroOptimization
from aqtopo.config.paths import fields_of, model_at
from aqtopo.config.refused import REFUSED, reason_against
from aqtopo.config.strict import Strict


def test_no_key_is_both_declared_and_refused() -> None:
    for pattern in REFUSED:
        *parents, key = pattern.split(".")
        model = model_at(DeepSpeedConfig, tuple(parents))
        assert model is not None, f"{pattern} leads nowhere"
        assert key not in fields_of(model)
    for path in (
        "zero_optimization.stage",
        "zero_optimization.offload_optimizer.device",
        "checkpoint.tag_validation",
    ):
        assert reason_against(path) is None


def test_what_deepspeed_does_not_have_is_not_refused_but_unknown() -> None:
    assert reason_against("gradient_cliping") is None
    assert reason_against("zero_optimization.overlap_com") is None


def test_every_zero_key_is_declared_or_refused() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig

    assert _unanswered(ZeroOptimization, DeepSpeedZeroConfig, "zero_optimization") == set()
    offload = "zero_optimization.offload_optimizer"
    assert _unanswered(OffloadOptimizer, DeepSpeedZeroOffloadOptimizerConfig, offload) == set()


def test_every_key_that_deepspeed_has_removed_is_refused() -> None:
    from deepspeed.runtime import config

    for key in config._REMOVED_TOP_LEVEL_CONFIG_KEYS:
        assert reason_against(key), key
    for key in config._REMOVED_ZERO_CONFIG_KEYS:
        assert reason_against(f"zero_optimization.{key}"), key


def test_every_top_level_key_is_declared_or_refused() -> None:
    from deepspeed.runtime import config

    # DeepSpeed has no list of its top-level keys; it reads most of them through this function.
    names = re.findall(r"get_scalar_param\(\s*param_dict,\s*([A-Z_]+),", inspect.getsource(config))
    keys = {getattr(config, name) for name in names}
    assert len(keys) > 15
    assert {key for key in keys if key not in fields_of(DeepSpeedConfig) and not reason_against(key)} == set()


@pytest.mark.parametrize(
    "key", ["pipeline", "compile", "hybrid_engine", "autotuning", "tensor_parallel", "nebula"]
)
def test_blocks_for_other_trainers_are_refused(key: str) -> None:
    assert reason_against(key)


def _unanswered(ours: type[Strict], theirs: type[BaseModel], prefix: str) -> set[str]:
    keys = {field.alias or name for name, field in theirs.model_fields.items()}
    return {key for key in keys if key not in fields_of(ours) and not reason_against(f"{prefix}.{key}")}
