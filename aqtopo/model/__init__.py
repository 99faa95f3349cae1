"""Forecasting transformer: variable aggregation, elevation attention, wind-ordered blocks, one head."""

from aqtopo.model.dropout import sample_seed
from aqtopo.model.geometry import Terrain
from aqtopo.model.vit import AirQualityViT, build_model

__all__ = ["AirQualityViT", "Terrain", "build_model", "sample_seed"]
