"""What an ablation varies: settings of a run, each with its levels; the last of them is the baseline."""

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

from aqtopo.config import ModelConfig
from aqtopo.config.overrides import parse_override
from aqtopo.config.paths import spell

DEFAULT_LEVELS: dict[str, tuple[object, ...]] = {"elevation_bias": ("published", False)}
"""Levels of what is named without any, where they are not simply all that the setting allows."""

ABOUT_THE_RUN_ITSELF = ("model", "optimizer")
"""Sections in which factors may lie: with another, variants would differ in data, order or budget as well."""


@dataclass(frozen=True)
class Factor:
    """One setting and the values that it takes.

    Attributes:
        path: the setting, as `--set` spells it: `model.wind_order`.
        levels: its values; the last one is the baseline.
    """

    path: str
    levels: tuple[object, ...]

    @property
    def name(self) -> str:
        """The path's last part."""
        return self.path.rpartition(".")[2]

    @property
    def baseline(self) -> object:
        """What the other levels are compared with."""
        return self.levels[-1]


@dataclass(frozen=True)
class Variant:
    """One level of every factor, and further settings of its own where it stands beside the grid.

    Attributes:
        factors: in the order of the grid.
        levels: one of each; all baselines beside the grid.
        also: path and value of further settings; empty for a variant of the grid.
    """

    factors: tuple[Factor, ...]
    levels: tuple[object, ...]
    also: tuple[tuple[str, object], ...] = ()

    @property
    def overrides(self) -> list[str]:
        """As `--set` takes them."""
        pairs = zip((factor.path for factor in self.factors), self.levels, strict=True)
        return [f"{path}={json.dumps(level)}" for path, level in (*pairs, *self.also)]

    @property
    def label(self) -> str:
        """For people: `wind_order=true elevation_bias=false`."""
        return " ".join(f"{name}={spelled(level)}" for name, level in self._named())

    @property
    def slug(self) -> str:
        """For folders: letters, digits, dot, dash and underscore."""
        parts = [f"{_slug(name, '_')}-{_slug(spelled(level))}" for name, level in self._named()]
        return "_".join(["also", *parts] if self.also else parts)

    def _named(self) -> list[tuple[str, object]]:
        """What tells it apart: its levels, or what it has beside the grid."""
        if self.also:
            return [(path.rpartition(".")[2], value) for path, value in self.also]
        return [(factor.name, level) for factor, level in zip(self.factors, self.levels, strict=True)]

    def level(self, factor: Factor) -> object:
        """The level of one factor."""
        return self.levels[self.factors.index(factor)]

    def with_level(self, factor: Factor, level: object) -> "Variant":
        """The variant that differs from this one in one factor."""
        place = self.factors.index(factor)
        return Variant(self.factors, (*self.levels[:place], level, *self.levels[place + 1 :]))


def spelled(level: object) -> str:
    """A level as a user writes it: JSON, but words without quotes."""
    return level if isinstance(level, str) else json.dumps(level, separators=(",", ":"))


def _slug(text: str, kept: str = "") -> str:
    """Letters, digits, dots and what is `kept`; a dash for anything else between them."""
    return re.sub(rf"[^A-Za-z0-9.{kept}]+", "-", text).strip("-")


def parse_grid(texts: Iterable[str]) -> tuple[Factor, ...]:
    """Read the grid: `wind_order,elevation_bias`, or a factor with its levels, `sectors=8,16`; all together.

    A name without a section is the model's. Without levels, a switch takes true and false, and what knows
    only a few words all of them.

    Raises:
        ValueError: a factor is unknown, named twice, without levels, or no part of model or optimizer.
    """
    factors = tuple(itertools.chain.from_iterable(_parse(text) for text in texts))
    for factor in factors:
        if sum(other.path == factor.path for other in factors) > 1:
            raise ValueError(f"--grid names {factor.path} twice: give all its levels at once.")
    if not factors:
        raise ValueError("--grid is empty: name what is to be varied, such as wind_order,elevation_bias.")
    return factors


def _parse(text: str) -> Iterator[Factor]:
    """The factors of one `--grid`."""
    name, equals, levels = text.partition("=")
    if equals:
        path = _path(name.strip())
        values = tuple(parse_override(f"{path}={level}").value for level in _split(levels))
        if len(values) < 2 or len({spelled(value) for value in values}) < len(values):
            raise ValueError(f"--grid {text}: give at least two levels, each once, the baseline last.")
        yield Factor(path, values)
        return
    for part in text.split(","):
        path = _path(part.strip())
        yield Factor(path, _usual_levels(path))


def _path(name: str) -> str:
    """The full path of a factor; a bare name is the model's."""
    path = name if "." in name else f"model.{name}"
    section = path.partition(".")[0]
    if section not in ABOUT_THE_RUN_ITSELF:
        raise ValueError(
            f"{name} cannot be varied: a factor must lie in {' or '.join(ABOUT_THE_RUN_ITSELF)}, so that all "
            "variants see the same data in the same order for as long. Set anything else for all with --set."
        )
    field = path.partition(".")[2]
    if section == "model" and field not in ModelConfig.model_fields:
        known = ", ".join(ModelConfig.model_fields)
        raise ValueError(f"{name} cannot be varied: the model has no such setting. It has {known}.")
    return spell(parse_override(f"{path}=0").path)


def _usual_levels(path: str) -> tuple[object, ...]:
    """The levels of a factor that was named without any."""
    name = path.removeprefix("model.")
    field = ModelConfig.model_fields.get(name)
    if name in DEFAULT_LEVELS:
        return DEFAULT_LEVELS[name]
    if field is not None and field.annotation is bool:
        return (True, False)
    words = () if field is None else get_args(field.annotation)
    if words and all(isinstance(word, str | bool) for word in words):
        return words
    raise ValueError(f"--grid {path}: give its levels, the baseline last, as {path}=VALUE,VALUE.")


def _split(text: str) -> list[str]:
    """Split at the commas outside of brackets: `[4,4],[1,1]` is two levels."""
    parts, depth, start = [], 0, 0
    for place, character in enumerate(text):
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    return [*parts, text[start:]]


def variants(factors: Sequence[Factor], also: Iterable[str] = ()) -> list[Variant]:
    """What stands beside the grid, then every combination of levels; the last has all at the baseline.

    Args:
        factors: the grid.
        also: further variants, each as settings that differ from the baseline: `bias_blocks=[0,1] alpha=1.0`.

    Raises:
        ValueError: a setting cannot be varied, or is not of that form.
    """
    chosen = tuple(factors)
    baseline = tuple(factor.baseline for factor in chosen)
    beside = [Variant(chosen, baseline, _parse_also(text)) for text in also]
    grid = [Variant(chosen, levels) for levels in itertools.product(*(factor.levels for factor in chosen))]
    return [*beside, *grid]


def _parse_also(text: str) -> tuple[tuple[str, object], ...]:
    """The settings of one `--also`."""
    settings = [part.partition("=") for part in text.split()]
    if not settings or not all(equals for _, equals, _ in settings):
        example = "'elevation_bias=uphill alpha=1.0'"
        raise ValueError(f"--also {text}: must be settings with their values, such as {example}.")
    return tuple((_path(name), parse_override(f"{_path(name)}={value}").value) for name, _, value in settings)
