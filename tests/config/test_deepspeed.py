"""The `deepspeed` block against DeepSpeed itself: the same keys and defaults, nothing lost on the way."""

from typing import Any

import pytest
from pydantic import BaseModel

from aqtopo.config import DeepSpeedConfig
from aqtopo.config import deepspeed as block
from aqtopo.config.paths import fields_of
from aqtopo.config.strict import Strict

SHORT: dict[str, Any] = {"train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": 2}}


def test_verbatim_holds_what_was_written_and_nothing_else() -> None:
    written = SHORT | {
        "gradient_clipping": 0.5,
        "steps_per_print": None,
        "bf16": {"enabled": True},
        "fp16": {},
        "zero_optimization": {"stage": 2, "overlap_comm": False, "reduce_bucket_size": 5e8},
        "comms_logger": {"enabled": True, "prof_ops": ["all_reduce"]},
    }
    assert DeepSpeedConfig.model_validate(written).verbatim() == written


def test_deepspeed_gets_whole_numbers_where_users_write_5e8() -> None:
    written = SHORT | {"zero_optimization": {"stage": 2, "allgather_bucket_size": 2e8}}
    given = DeepSpeedConfig.model_validate(written).verbatim()["zero_optimization"]["allgather_bucket_size"]
    assert isinstance(given, int)
    assert given == 200_000_000


@pytest.mark.parametrize(
    ("extra", "precision"),
    [
        ({}, "fp32"),
        ({"bf16": {"enabled": False}}, "fp32"),
        ({"bf16": {"enabled": True}}, "bf16"),
        ({"fp16": {"enabled": True}}, "fp16"),
    ],
)
def test_precision_is_that_of_the_weights(extra: dict[str, Any], precision: str) -> None:
    assert DeepSpeedConfig.model_validate(SHORT | extra).precision == precision


def test_offload_with_pytorchs_optimizer_is_possible() -> None:
    zero = {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": False}}
    config = DeepSpeedConfig.model_validate(
        SHORT | {"zero_optimization": zero, "zero_force_ds_cpu_optimizer": False}
    )
    assert config.zero_optimization.offload_optimizer is not None
    assert config.zero_optimization.offload_optimizer.device == "cpu"


OTHER_DEFAULTS = {("ThroughputTimer", "enabled")}
"""Keys whose default is not DeepSpeed's; `with_defaults` passes it on."""


def test_every_declared_key_is_deepspeeds_own_with_its_own_default() -> None:
    for ours, theirs in _counterparts():
        for name, field in fields_of(ours).items():
            assert name in theirs.model_fields, f"{theirs.__name__} has no {name}"
            default = theirs.model_fields[name].default
            if (ours.__name__, name) in OTHER_DEFAULTS:
                assert field.default != default
            elif not field.is_required() and not isinstance(field.default, Strict):
                assert field.default == (tuple(default) if isinstance(default, list) else default), name


def test_defaults_that_differ_from_deepspeeds_are_passed_on() -> None:
    from deepspeed.runtime.config import DeepSpeedConfig as Theirs

    read = Theirs(DeepSpeedConfig.model_validate(SHORT).with_defaults())
    assert (read.grad_accum_dtype, read.timers_config.enabled) == ("fp32", False)
    chosen = {"data_types": {"grad_accum_dtype": "bf16"}, "timers": {"throughput": {"enabled": True}}}
    read = Theirs(DeepSpeedConfig.model_validate(SHORT | chosen).with_defaults())
    assert (read.grad_accum_dtype, read.timers_config.enabled) == ("bf16", True)
    assert read.timers_config.synchronized


def test_every_top_level_key_is_known_to_deepspeed() -> None:
    from deepspeed.comm import constants as comm
    from deepspeed.profiling import constants as profiling
    from deepspeed.runtime import constants, precision_config
    from deepspeed.runtime.zero.config import ZERO_OPTIMIZATION
    from deepspeed.utils.config import TIMERS

    modules = (constants, precision_config, comm, profiling)
    known = {value for module in modules for value in vars(module).values() if isinstance(value, str)}
    known |= {ZERO_OPTIMIZATION, TIMERS}
    known |= {"train_micro_batch_size_per_gpu", "gradient_accumulation_steps"}
    assert set(fields_of(DeepSpeedConfig)) <= known


def test_deepspeed_reads_a_verbatim_block() -> None:
    from deepspeed.runtime.config import DeepSpeedConfig as Theirs

    written = SHORT | {"gradient_accumulation_steps": 3, "gradient_clipping": 0.25}
    read = Theirs(DeepSpeedConfig.model_validate(written).verbatim())
    assert read.zero_optimization_stage == 2
    assert (read.train_batch_size, read.gradient_clipping) == (6, 0.25)
    assert not read.monitor_config.enabled


def _counterparts() -> list[tuple[type[Strict], type[BaseModel]]]:
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    return [
        (block.ZeroOptimization, DeepSpeedZeroConfig),
        (block.OffloadOptimizer, DeepSpeedZeroOffloadOptimizerConfig),
        (block.BFloat16, DeepSpeedBF16Config),
        (block.Float16, DeepSpeedFP16Config),
        (block.CommsLogger, CommsLoggerConfig),
        (block.ThroughputTimer, DeepSpeedThroughputTimerConfig),
    ]
