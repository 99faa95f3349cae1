"""One JSON file per run, checked before anything is read, built or started."""

from aqtopo.config.files import load_config
from aqtopo.config.run import DataConfig, ModelConfig, ParameterGroup, RunConfig

__all__ = ["DataConfig", "ModelConfig", "ParameterGroup", "RunConfig", "load_config"]
