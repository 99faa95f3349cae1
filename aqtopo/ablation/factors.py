"""Factors of an ablation: settings with their levels, the last of which is the baseline."""

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

from aqtopo.config import ModelConfig
from aqtopo.config.overrides import parse_override
from aqtopo.config.paths import spell

BF16 = "deepspeed.bf16.enabled"

DEFAULT_LEVELS: dict[str, tuple[object, ...]] = {"elevation_bias": ("published", False), BF16: (True, False)}
"""Default levels, by setting, that differ from the list of all allowed values."""

VARIABLE_SECTIONS = ("model", "optimizer")
"""Sections all of whose settings can be varied; others would change samples, their order or the budget."""

VARIABLE_INPUTS = (
    "data.forcings",
    "data.history_hours",
    "data.history_variables",
    "data.weather_at_horizons",
)
"""Inputs that can be varied; all variants have the samples that the longest history leaves."""

VARIABLE_SETTINGS = (*VARIABLE_INPUTS, BF16)
"""Settings that can be varied in other sections."""


@dataclass(frozen=True)
class Factor:
    """Path of a setting, as in `--set`, and its levels; the last one is the baseline."""

    path: str
    levels: tuple[object, ...]

    @property
    def name(self) -> str:
        """Last part of the path that distinguishes the setting."""
        return _short_name(self.path)

    @property
    def baseline(self) -> object:
        """Level that the others are compared with."""
        return self.levels[-1]


@dataclass(frozen=True)
class Variant:
    """One level of each factor, or an extra variant outside the grid.

    An extra variant has the levels of the baseline and, in `also`, other settings (path and value).
    """

    factors: tuple[Factor, ...]
    levels: tuple[object, ...]
    also: tuple[tuple[str, object], ...] = ()

    @property
    def overrides(self) -> list[str]:
        """Overrides as for `--set`."""
        pairs = zip((factor.path for factor in self.factors), self.levels, strict=True)
        return [f"{path}={json.dumps(level)}" for path, level in (*pairs, *self.also)]

    @property
    def label(self) -> str:
        """Readable name: `wind_order=true elevation_bias=false`."""
        return " ".join(f"{name}={format_level(level)}" for name, level in self._named())

    @property
    def slug(self) -> str:
        """Folder name of letters, digits, dot, dash and underscore."""
        parts = [f"{_slug(name, '_')}-{_slug(format_level(level))}" for name, level in self._named()]
        return "_".join(["also", *parts] if self.also else parts)

    def _named(self) -> list[tuple[str, object]]:
        """Return the names and values that distinguish the variant."""
        if self.also:
            return [(_short_name(path), value) for path, value in self.also]
        return [(factor.name, level) for factor, level in zip(self.factors, self.levels, strict=True)]

    def level(self, factor: Factor) -> object:
        """Return the level of one factor."""
        return self.levels[self.factors.index(factor)]

    def with_level(self, factor: Factor, level: object) -> "Variant":
        """Return the variant that differs from this one in one factor."""
        place = self.factors.index(factor)
        return Variant(self.factors, (*self.levels[:place], level, *self.levels[place + 1 :]))


def _short_name(path: str) -> str:
    """Return the last part of a path, but `bf16` for `deepspeed.bf16.enabled`."""
    return path.removesuffix(".enabled").rpartition(".")[2]


def format_level(level: object) -> str:
    """Format a level as a user writes it: JSON, but strings without quotes."""
    return level if isinstance(level, str) else json.dumps(level, separators=(",", ":"))


def _slug(text: str, kept: str = "") -> str:
    """Replace all characters but letters, digits, dots and `kept` by dashes."""
    return re.sub(rf"[^A-Za-z0-9.{kept}]+", "-", text).strip("-")


def parse_factors(texts: Iterable[str]) -> tuple[Factor, ...]:
    """Parse the grid: `wind_order,elevation_bias`, or a factor with levels, `sectors=8,16`.

    A name without a section is in `model`. Default levels are true and false, or all enumerated words.

    Raises:
        ValueError: a factor is unknown, repeated, without levels, or cannot be varied.
    """
    factors = tuple(itertools.chain.from_iterable(_parse(text) for text in texts))
    for factor in factors:
        if sum(other.path == factor.path for other in factors) > 1:
            raise ValueError(f"--grid names {factor.path} twice. Give all its levels at once.")
    if not factors:
        raise ValueError("--grid is empty. Name settings, such as wind_order,elevation_bias.")
    return factors


def _parse(text: str) -> Iterator[Factor]:
    """Yield the factors of one `--grid`."""
    name, equals, levels = text.partition("=")
    if equals:
        path = _path(name.strip())
        values = tuple(parse_override(f"{path}={level}").value for level in _split(levels))
        if len(values) < 2 or len({format_level(value) for value in values}) < len(values):
            raise ValueError(
                f"--grid {text} is invalid. Give at least two levels, each once, the baseline last."
            )
        yield Factor(path, values)
        return
    for part in text.split(","):
        path = _path(part.strip())
        yield Factor(path, _default_levels(path))


def _path(name: str) -> str:
    """Return the full path of a factor; a bare name is in `model`."""
    path = name if "." in name else f"model.{name}"
    section = path.partition(".")[0]
    if section not in VARIABLE_SECTIONS and path not in VARIABLE_SETTINGS:
        raise ValueError(
            f"{name} cannot be varied: a factor must be in {' or '.join(VARIABLE_SECTIONS)}, or one of "
            f"{', '.join(VARIABLE_SETTINGS)}, so that all variants have the same samples in the same order "
            "and the same budget. Set other settings with --set."
        )
    field = path.partition(".")[2]
    if section == "model" and field not in ModelConfig.model_fields:
        known = ", ".join(ModelConfig.model_fields)
        raise ValueError(f"{name} cannot be varied: the model has no such setting. Choose from {known}.")
    return spell(parse_override(f"{path}=0").path)


def _default_levels(path: str) -> tuple[object, ...]:
    """Return the default levels of a factor."""
    name = path.removeprefix("model.")
    field = ModelConfig.model_fields.get(name)
    if name in DEFAULT_LEVELS:
        return DEFAULT_LEVELS[name]
    if field is not None and field.annotation is bool:
        return (True, False)
    words = () if field is None else get_args(field.annotation)
    if words and all(isinstance(word, str | bool) for word in words):
        return words
    raise ValueError(f"--grid {path} needs levels. Give {path}=VALUE,VALUE, the baseline last.")


def _split(text: str) -> list[str]:
    """Split at commas outside of brackets: `[4,4],[1,1]` is two levels."""
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    return [*parts, text[start:]]


def variants(factors: Sequence[Factor], also: Iterable[str] = ()) -> list[Variant]:
    """Return the extra variants, then every combination of levels; the last has all baselines.

    Args:
        factors: the grid.
        also: extra variants as settings that differ from the baseline: `bias_blocks=[0,1] alpha=1.0`.

    Raises:
        ValueError: a setting cannot be varied, or the form is invalid.
    """
    chosen = tuple(factors)
    baseline = tuple(factor.baseline for factor in chosen)
    extra = [Variant(chosen, baseline, _parse_also(text)) for text in also]
    grid = [Variant(chosen, levels) for levels in itertools.product(*(factor.levels for factor in chosen))]
    return [*extra, *grid]


def _parse_also(text: str) -> tuple[tuple[str, object], ...]:
    """Parse the settings of one `--also`."""
    settings = [part.partition("=") for part in text.split()]
    if not settings or not all(equals for _, equals, _ in settings):
        raise ValueError(f"--also {text!r} is invalid. Example: --also 'elevation_bias=uphill alpha=1.0'.")
    pairs = [(_path(name), value) for name, _, value in settings]
    return tuple((path, parse_override(f"{path}={value}").value) for path, value in pairs)
