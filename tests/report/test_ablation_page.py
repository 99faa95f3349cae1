import json
import shutil
from collections.abc import Callable
from pathlib import Path

from aqtopo.ablation.results_file import RESULTS_FILE, read_results
from aqtopo.config import RunConfig
from aqtopo.report import write_ablation_report
from aqtopo.report.ablation_page import read_histories
from aqtopo.report.ablation_tables import contrast_tables, overview, variant_rows
from aqtopo.report.curves import mean_validation_curve
from aqtopo.report.history import History

from .conftest import logged_validation
from .test_run_page import Page


def test_changes_are_placed_on_one_scale_with_zero_in_the_middle(ablation: Path) -> None:
    (contrast,) = contrast_tables(read_results(ablation))
    overall, plateau, val_loss = contrast.overall
    assert [each.score for each in contrast.overall] == ["test RMSE", "test RMSE, plateau", "validation loss"]
    assert overall.days is not None
    assert overall.days.left < overall.position < overall.days.right < 50.0 < val_loss.position
    assert plateau.days is not None
    assert plateau.days.left < 50.0 < plateau.days.right
    assert (overall.verdict, plateau.verdict) == ("better", "no difference shown")
    assert overall.percent == "\N{MINUS SIGN}2.00 %"
    assert (contrast.shown, contrast.total, contrast.horizons) == (1, 2, ("12 h", "24 h"))
    assert contrast.pairs[0][0] == "PM2.5"


def test_the_overview_has_one_scale_with_round_values(ablation: Path) -> None:
    content = read_results(ablation)
    other = content.changes[0].model_copy(update={"contrast": "alpha=1 (not 2)", "change": -20.0})
    found = overview(content.model_copy(update={"changes": (*content.changes, other)}))
    (first, small), (second, large) = found.changes
    assert (first, second) == ("wind_order=true (not false)", "alpha=1 (not 2)")
    assert large.position < small.position < 50.0
    assert (50.0, "0") in found.ticks
    assert [text for _, text in found.ticks] == ["\N{MINUS SIGN}20", "\N{MINUS SIGN}10", "0", "+10", "+20"]


def test_losses_are_compared_where_every_seed_has_one() -> None:
    seeds = [
        History((), tuple(logged_validation(step, loss) for step, loss in losses.items()), 1)
        for losses in ({2: 0.4, 4: 0.2}, {2: 0.6})
    ]
    curve = mean_validation_curve({"wind_order-true": seeds})
    assert curve is not None
    assert curve.alt.endswith("At the end: wind_order-true 0.5000.")
    assert mean_validation_curve({"stopped early": [History((), (), 1)]}) is None


def test_the_page_says_that_its_data_are_simulated_and_which_commit_compared(ablation: Path) -> None:
    page = write_ablation_report(ablation).read_text(encoding="utf-8")
    assert "<strong>Simulated data</strong> (aqtopo simulator, not observations)" in page
    assert "0123456789ab" in page


def test_results_of_before_sources_were_kept_are_shown_without(ablation: Path) -> None:
    path = ablation / RESULTS_FILE
    older = json.loads(path.read_text(encoding="utf-8"))
    for name in ("source", "simulated", "commit"):
        del older[name]
    path.write_text(json.dumps(older), encoding="utf-8")
    page = write_ablation_report(ablation).read_text(encoding="utf-8")
    assert "Simulated data" not in page
    assert 'class="source"' not in page


def test_a_change_that_is_not_known_has_no_number(ablation: Path) -> None:
    content = read_results(ablation)
    changes = [change.model_copy(update={"change": None}) for change in content.changes]
    (contrast,) = contrast_tables(content.model_copy(update={"changes": tuple(changes)}))
    assert contrast.pairs[0][1][0].percent == "n/a"


def test_variants_have_mean_lowest_and_highest(ablation: Path) -> None:
    wind, baseline = variant_rows(read_results(ablation))
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
    assert "First weights: 43 tensors equal; DIFFERENT: head.0.weight." in html
    together, apart = Page(html).all("img")
    assert "At the end: wind_order=true 0.5000; wind_order=false 0.5000." in together["alt"]
    assert "wind_order=true 0.5000, 0.5000" in apart["alt"]
    assert together["src"].startswith("data:")
    first_seed = read_results(ablation).model_copy(update={"seeds": (0,)})
    histories = read_histories(ablation, first_seed)
    assert {name: len(seeds) for name, seeds in histories.items()} == {
        "wind_order=true": 1,
        "wind_order=false": 1,
    }


def test_an_ablation_without_a_shown_difference_has_that_as_its_finding(ablation: Path) -> None:
    content = json.loads((ablation / "results.json").read_text(encoding="utf-8"))
    for each in content["changes"]:
        each["shown"] = False
    (ablation / "results.json").write_text(json.dumps(content), encoding="utf-8")
    assert "No difference is shown" in write_ablation_report(ablation).read_text(encoding="utf-8")


def test_an_ablation_that_grew_shows_what_is_compared_and_names_what_is_not(
    ablation: Path, tiny_config: Callable[..., RunConfig]
) -> None:
    """Another variant was trained and not compared, and another seed was planned."""
    assert "not compared" not in write_ablation_report(ablation).read_text(encoding="utf-8")
    trainings = ["wind_order-true/seed0", "also_alpha-1/seed0", "wind_order-true/seed2"]
    (ablation / "configs").mkdir()
    for number, place in enumerate(trainings):
        config = tiny_config(training={"run_dir": str(ablation / "runs" / place)})
        (ablation / "configs" / f"{number}.json").write_text(config.to_json(), encoding="utf-8")
    shutil.copytree(ablation / "runs" / "wind_order-true", ablation / "runs" / "also_alpha-1")
    html = write_ablation_report(ablation).read_text(encoding="utf-8")
    assert "2 trainings of this ablation are not compared here" in html
    assert "also_alpha-1, seed 0; wind_order-true, seed 2" in html
    assert all("alpha-1" not in image["alt"] for image in Page(html).all("img"))
