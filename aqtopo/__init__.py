"""Terrain- and wind-aware air-quality transformers, trained with DeepSpeed ZeRO-2.

From Python:

    model = aqtopo.load("runs/first")
    forecast = model.forecast("2018-01-15T00")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aqtopo.api import Model, export, load, train
    from aqtopo.config import load_config
    from aqtopo.data.dataset import open_dataset
    from aqtopo.model import AirQualityViT, Terrain

    __version__: str

__all__ = [
    "AirQualityViT",
    "Model",
    "Terrain",
    "__version__",
    "export",
    "load",
    "load_config",
    "open_dataset",
    "train",
]

_MODULE_OF = {
    "AirQualityViT": "aqtopo.model",
    "Terrain": "aqtopo.model",
    "Model": "aqtopo.api",
    "export": "aqtopo.api",
    "load": "aqtopo.api",
    "load_config": "aqtopo.config",
    "open_dataset": "aqtopo.data.dataset",
    "train": "aqtopo.api",
}


def __getattr__(name: str) -> Any:
    """Import the module of a public name at first use, so that `import aqtopo` and the commands are quick."""
    if name == "__version__":
        from importlib.metadata import version

        return version("aqtopo")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
