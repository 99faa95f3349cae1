"""`results.json` of an ablation, as it was written and as people may leave it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aqtopo.ablation.results_file import RESULTS_FILE, read_results
from aqtopo.report import write_ablation_report
from aqtopo.variables import Variable, variables_as_json
from tests.report.conftest import ablation

__all__ = ["ablation"]

Content = dict[str, Any]


def without(*way: str | int) -> Callable[[Content], str]:
    """The file without what lies there."""

    def damaged(content: Content) -> str:
        place: Any = content
        for part in way[:-1]:
            place = place[part]
        del place[way[-1]]
        return json.dumps(content)

    return damaged


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda _: "{", "is not JSON"),
        (lambda content: json.dumps(content)[:-30], "is not JSON"),
        (lambda _: "[]", "does not hold one JSON object"),
        (lambda content: json.dumps(content | {"format_version": 1}), "format_version = 1: must be 2"),
        (without("machine"), "machine: missing"),
        (without("variants", 0, "alpha"), "variants[0].alpha: missing"),
        (without("variants", 0, "alpha", 1), "variants[0].alpha = [2.1]: must hold 2, one per seed"),
        (without("changes", 0), "changes = 4: must have `all`"),
        (without("changes", 2, "shown"), "changes[2].shown: missing"),
        (lambda content: json.dumps(content).replace("pm25", "smog"), "must have described pollutants"),
        (lambda content: json.dumps(content).replace("pm25 24 h", "o3 24 h"), "each at the same horizons"),
        (lambda content: json.dumps(content).replace('"wind_order-true"', '"../x"'), "[0].folder = "),
    ],
)
def test_damage_is_named_with_its_place_and_the_remedy(
    ablation: Path,
    damage: Callable[[Content], str],
    message: str,
) -> None:
    path = ablation / RESULTS_FILE
    path.write_text(damage(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        write_ablation_report(ablation)
    assert str(path) in str(caught.value)
    assert "Run `aqtopo ablate` again: it keeps finished trainings" in str(caught.value)
    assert not (ablation / "report.html").exists()


def test_without_results_the_ablation_has_to_finish(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"results\.json is missing\. Let `aqtopo ablate` finish"):
        read_results(tmp_path)


def test_a_pollutant_of_ones_own_has_the_name_of_its_description(ablation: Path) -> None:
    path = ablation / RESULTS_FILE
    content = json.loads(path.read_text(encoding="utf-8").replace("pm25", "nh3"))
    nh3 = Variable(name="nh3", long_name="ammonia", units="ug m-3", valid_range=(0.0, 500.0), pollutant=True)
    content["variables"] = variables_as_json([nh3])
    path.write_text(json.dumps(content), encoding="utf-8")
    assert read_results(ablation).described["nh3"] == nh3
    assert "Ammonia" in write_ablation_report(ablation).read_text(encoding="utf-8")
