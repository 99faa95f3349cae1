"""Paths as text, and what the models have at them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticUndefined

from aqtopo.config import DataConfig, DeepSpeedConfig, ParameterGroup, RunConfig
from aqtopo.config.deepspeed import OffloadOptimizer
from aqtopo.config.paths import default_at, model_at, parse, spell, suggestion

KEYS = st.from_regex(r"[a-z_$][a-z0-9_]{0,8}", fullmatch=True)


@given(first=KEYS, rest=st.lists(KEYS | st.integers(0, 99), max_size=5))
def test_a_path_survives_being_spelled(first: str, rest: list[str | int]) -> None:
    path = (first, *rest)
    assert parse(spell(path)) == path


def test_an_index_may_be_written_with_a_dot() -> None:
    assert (
        parse("optimizer.groups.0.name")
        == parse("optimizer.groups[0].name")
        == ("optimizer", "groups", 0, "name")
    )


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ((), RunConfig),
        (("data",), DataConfig),
        (("deepspeed",), DeepSpeedConfig),
        (("optimizer", "groups", 3), ParameterGroup),
        (("deepspeed", "zero_optimization", "offload_optimizer"), OffloadOptimizer),
        (("data", "grid"), None),
        (("nowhere", "at", "all"), None),
    ],
)
def test_the_model_at_a_path(path: tuple[str | int, ...], model: type | None) -> None:
    assert model_at(RunConfig, path) is model


def test_defaults_are_json() -> None:
    assert default_at(RunConfig, ("data", "horizons")) == [12, 24, 48, 96]
    assert default_at(RunConfig, ("training", "epochs")) is PydanticUndefined
    assert default_at(RunConfig, ("no", "such")) is PydanticUndefined


def test_a_key_found_in_several_places_is_not_guessed_at() -> None:
    assert suggestion(RunConfig, ("training", "enabled")).startswith("known here: run_dir, epochs")
