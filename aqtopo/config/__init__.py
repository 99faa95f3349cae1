"""Configuration of a run: one JSON file, checked before the run starts."""

from aqtopo.config.deepspeed import DeepSpeedConfig
from aqtopo.config.files import load_config, schema
from aqtopo.config.optimizer import OptimizerConfig, ParameterGroup, ScheduleConfig
from aqtopo.config.run import RunConfig
from aqtopo.config.sections import (
    AttentionSetting,
    CheckpointConfig,
    DataConfig,
    ModelConfig,
    TrainingConfig,
)

__all__ = [
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
