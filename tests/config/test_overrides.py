"""`--set path=value`: what it sets, what it refuses, and who is blamed for a bad value."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqtopo.config import RunConfig, load_config
from aqtopo.config.overrides import apply_override, parse_override

Document = dict[str, Any]
Write = Callable[[object], str]


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("model.depth=3", lambda c: c.model.depth, 3),
        ("optimizer.base_lr=2e-4", lambda c: c.optimizer.base_lr, 2e-4),
        ("model.elevation_bias=uphill", lambda c: c.model.elevation_bias, "uphill"),
        ("model.elevation_bias=false", lambda c: c.model.elevation_bias, False),
        ("description=two words", lambda c: c.description, "two words"),
        ("description=a=b", lambda c: c.description, "a=b"),
        ("data.train_years=[2014]", lambda c: c.data.train_years, (2014,)),
        ("data.train_years.0=2012", lambda c: c.data.train_years, (2012, 2014)),
        ("data.train_years[1]=2015", lambda c: c.data.train_years, (2013, 2015)),
        ("training.patience=null", lambda c: c.training.patience, None),
        ("checkpoint.keep_best=1", lambda c: c.checkpoint.keep_best, 1),
        ("deepspeed.bf16.enabled=true", lambda c: c.deepspeed.verbatim()["bf16"], {"enabled": True}),
        ("optimizer.groups.0.lr_multiplier=0.2", lambda c: c.optimizer.groups[0].lr_multiplier, 0.2),
    ],
)
def test_an_override_sets_its_value(
    document: Document, write: Write, override: str, read: Callable[[RunConfig], object], expected: object
) -> None:
    assert read(load_config(write(document), [override])) == expected


def test_a_list_that_the_file_leaves_out_keeps_its_other_defaults(document: Document, write: Write) -> None:
    config = load_config(write(document), ["optimizer.groups.2.lr_multiplier=0.7"])
    assert [group.lr_multiplier for group in config.optimizer.groups] == [0.1, 2.0, 0.7, 1.0]
    assert load_config(write(document)).optimizer.groups[2].lr_multiplier == 0.5


def test_the_last_override_of_a_value_stands(document: Document, write: Write) -> None:
    assert load_config(write(document), ["model.depth=3", "model.depth=4"]).model.depth == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.depth", "--set model.depth: must be path=value"),
        ("=3", "--set =3: '' is not a path"),
        ("model..depth=3", "--set model..depth=3: 'model..depth' is not a path"),
        ("data.grid[x]=3", "--set data.grid[x]=3: 'data.grid[x]' is not a path"),
        ("modle.depth=3", "--set modle.depth=3: modle: unknown key; did you mean model?"),
        ("deepspeed.zero.stage=2", "deepspeed.zero: unknown key; did you mean zero_optimization?"),
        (
            "deepspeed.scheduler.type=x",
            "deepspeed.scheduler: not allowed: set the learning rate in the section",
        ),
        ("model.depth.x=3", "--set model.depth.x=3: model.depth is 2, which has no parts"),
        ("model.alpha.x=3", "--set model.alpha.x=3: model.alpha: it holds a single value"),
        ("data.train_years.2=3", "--set data.train_years.2=3: data.train_years has 2 items, counted from 0"),
        ("data.train_years.x=3", "data.train_years is a list, and its items are counted from 0"),
        ("model.0=3", "--set model.0=3: model is an object, and its keys are names"),
    ],
)
def test_an_impossible_path_is_refused(document: Document, write: Write, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"^--set") as caught:
        load_config(write(document), [override])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.dept=3", "model.dept = 3: unknown key; did you mean depth?"),
        ("model.depth=0", "model.depth = 0: must be at least 1"),
        ('model.depth="3"', 'model.depth = "3": must be a whole number'),
        ("deepspeed.zero_optimization.stage=3", "deepspeed.zero_optimization.stage = 3: must be 2"),
        ("model.patch=3", "data.grid[0] = 16: must be a multiple of model.patch = 3"),
    ],
)
def test_a_bad_value_is_laid_to_the_override(
    document: Document, write: Write, override: str, message: str
) -> None:
    with pytest.raises(ValueError, match=r"^run\.json") as caught:
        load_config(write(document), ["training.seed=1", override])
    lines = [line for line in str(caught.value).splitlines() if message in line]
    assert len(lines) == 1
    assert f" with --set {override}" in lines[0]


def test_a_bad_value_of_the_file_is_not_laid_to_an_override(document: Document, write: Write) -> None:
    document["training"]["epochs"] = 0
    with pytest.raises(ValueError, match=r"^run\.json: training\.epochs = 0: must be at least 1$"):
        load_config(write(document), ["model.depth=3"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(value=JSON)
def test_any_json_value_arrives_as_it_was_written(value: object) -> None:
    document: Document = {"model": {"depth": 2}}
    apply_override(document, parse_override(f"model.depth={json.dumps(value)}"))
    assert document == {"model": {"depth": value}}
