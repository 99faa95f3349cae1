"""Descriptions of variables: what is accepted, and what a store or a file from elsewhere may not hold."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from aqtopo.variables import VARIABLES, Variable, variables_as_json, variables_from_json

BLH = Variable(name="blh", long_name="boundary-layer height", units="m", valid_range=(0.0, 6000.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../x"}, r"'\.\./x' cannot be the name of a variable\. It must begin with a letter"),
        ({"name": "a b"}, "'a b' cannot be the name"),
        ({"name": "x" * 65}, "cannot be the name"),
        ({"name": "lead_time"}, "'lead_time' cannot be the name of a variable: it has another meaning"),
        ({"name": 3}, "3 cannot be the name"),
        ({"long_name": ""}, "blh has long_name = ''. It must be printable text"),
        ({"long_name": "a\nb"}, "has long_name"),
        ({"units": None}, "has units = None"),
        ({"units": "=cmd|' /C calc'!A0"}, "a text that spreadsheets do not run as a formula"),
        ({"units": "-2+3"}, "a text that spreadsheets do not run as a formula"),
        ({"standard_name": 3}, "has standard_name = 3"),
        ({"valid_range": (5.0, 5.0)}, "two numbers, the lower one first"),
        ({"valid_range": (0.0, float("nan"))}, "has valid_range"),
        ({"valid_range": 3.0}, "has valid_range = 3.0"),
        ({"valid_range": (0, 10**400)}, "has valid_range"),
        ({"valid_range": ("0", "1")}, "has valid_range"),
        ({"plausible_level": (5.0, 1.0)}, "has plausible_level = .*two numbers, the lower one first"),
        ({"plausible_level": 3.0}, "has plausible_level = 3.0. It must be .* or None"),
        ({"kind": "hourly"}, "has kind = 'hourly'. It must be 'dynamic' or 'static'"),
        ({"pollutant": 1}, "has pollutant = 1. It must be True or False"),
        ({"pollutant": True, "kind": "static"}, "has pollutant = True"),
        ({"topoflow_mean": "1"}, "has topoflow_mean = '1'"),
    ],
)
def test_a_wrong_attribute_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(BLH, **change)


def test_ranges_of_any_numbers_are_taken() -> None:
    numbers = np.array([0, 6000], dtype=np.int16)
    assert replace(BLH, valid_range=tuple(numbers)) == BLH


def test_descriptions_survive_json_and_complete_the_defaults() -> None:
    text = json.dumps(variables_as_json([BLH]), allow_nan=False)
    assert variables_from_json(json.loads(text)) == {**VARIABLES, "blh": BLH}
    assert variables_from_json(json.loads(json.dumps(variables_as_json(VARIABLES.values())))) == VARIABLES
    assert variables_from_json([]) == VARIABLES


def test_a_description_with_an_unknown_attribute_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot be read .*colour"):
        variables_from_json([{"colour": "red"}])
