import copy
import json
from pathlib import Path

import pytest

from aqtopo.evaluation.report import write_ablation_report
from aqtopo.evaluation.report.ablation_page import read_histories
from aqtopo.evaluation.report.comparison import compared, read_results, trained

from .test_page import Page


def test_changes_are_placed_on_one_scale_with_zero_in_the_middle(ablation: Path) -> None:
    (contrast,) = compared(read_results(ablation))
    overall, plateau, val_loss = contrast.overall
    assert [each.score for each in contrast.overall] == ["test RMSE", "test RMSE, plateau", "validation loss"]
    assert overall.days is not None
    assert overall.days.left < overall.place < overall.days.right < 50.0 < val_loss.place
    assert plateau.days is not None
    assert plateau.days.left < 50.0 < plateau.days.right
    assert (overall.verdict, plateau.verdict) == ("better", "no difference shown")
    assert overall.percent == "\N{MINUS SIGN}2.00 %"
    assert (contrast.shown, contrast.total, contrast.horizons) == (1, 2, ("12 h", "24 h"))
    assert contrast.pairs[0][0] == "PM2.5"


def test_variants_have_mean_lowest_and_highest(ablation: Path) -> None:
    wind, baseline = trained(read_results(ablation))
    assert wind.val_loss == "0.3000 (0.2000 \N{EN DASH} 0.4000)"
    assert (wind.alpha, baseline.alpha) == ("2.100", "\N{EN DASH}")


def test_the_page_says_what_is_shown_and_is_one_file(ablation: Path) -> None:
    path = write_ablation_report(ablation)
    assert path == ablation / "report.html"
    html = path.read_text(encoding="utf-8")
    assert (
        "Shown in the test RMSE of all pollutants and horizons together: wind_order=true (not false)" in html
    )
    assert "wind_order=false (baseline)" in html
    assert "First weights: 43 tensors equal" in html
    (picture,) = Page(html).all("img")
    assert "wind_order-true 0.5000, 0.5000" in picture["alt"]
    assert picture["src"].startswith("data:")
    assert list(read_histories(ablation)) == ["wind_order-false", "wind_order-true"]


def test_where_nothing_is_shown_the_page_says_that(ablation: Path) -> None:
    content = copy.deepcopy(read_results(ablation))
    for each in content["changes"]:
        each["shown"] = False
    (ablation / "results.json").write_text(json.dumps(content))
    assert "No difference is shown" in write_ablation_report(ablation).read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["{", json.dumps({"format_version": 0})])
def test_results_that_cannot_be_read_are_refused(ablation: Path, text: str) -> None:
    (ablation / "results.json").write_text(text)
    with pytest.raises(ValueError, match=r"results\.json .*`?aqtopo ablate"):
        write_ablation_report(ablation)
    assert not (ablation / "report.html").exists()
