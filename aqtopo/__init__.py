"""Terrain- and wind-aware air-quality transformers, trained with DeepSpeed ZeRO-2."""
