"""One JSON file per run, checked before anything is read, built or started."""

from aqtopo.config.deepspeed import DeepSpeedConfig
from aqtopo.config.files import load_config, schema
from aqtopo.config.run import (
    READ_DEADLINE_S,
    AttentionSetting,
    CheckpointConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ParameterGroup,
    RunConfig,
    ScheduleConfig,
    TrainingConfig,
)

__all__ = [
    "READ_DEADLINE_S",
    "AttentionSetting",
    "CheckpointConfig",
    "DataConfig",
    "DeepSpeedConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParameterGroup",
    "RunConfig",
    "ScheduleConfig",
    "TrainingConfig",
    "load_config",
    "schema",
]
