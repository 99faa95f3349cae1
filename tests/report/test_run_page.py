import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import markupsafe
import numpy as np
import pytest

from aqtopo.checkpoint.tags import find_tag
from aqtopo.config import RunConfig
from aqtopo.evaluation.evaluate import EvalOptions, evaluate
from aqtopo.evaluation.points import BASELINES
from aqtopo.evaluation.results import write_scores, write_tables
from aqtopo.inference.load import load_run
from aqtopo.report import run_page, write_report

from .conftest import station_sums

MAX_BYTES = 2_000_000


class Page(HTMLParser):
    """Elements of a page, in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_the_page_shows_scores_maps_curves_and_set_up(finished_run: Path) -> None:
    path = write_report(finished_run)
    assert path == finished_run / "report.html"
    html = path.read_text(encoding="utf-8")
    for expected in (
        "PM2.5 12 h ahead: the RMSE of the model is",
        f"the best of {len(BASELINES)} baselines",
        *(f"{name} ({markupsafe.escape(description)})" for name, description in BASELINES.items()),
        "Simulated data",
        "smooth waves made for tests",
        "6 forecasts, initial times from 2018-01-01 00:00 UTC to 2018-01-06 00:00 UTC.",
        "epoch00-step000007-val0.5000",
        "not installed",  # triton, by run.json
        "torchrun",
        "f00dfeed-dirty",
        "Starts and resumes",
        "15 variables",
        "The model reads the wind at the start only.",
        "block 0 from 2.000 to 2.000 km⁻¹, at step 7.",
        "2026-11-21 20:15 UTC",
        "&#34;gradient_accumulation_steps&#34;: 2",
    ):
        assert expected in re.sub(r"</?(em|strong)>", "", html), expected
    page = Page(html)
    images = page.all("img")
    places = 1 + 7  # the most polluted, and the cities
    assert len(images) == 6 * (1 + 4 * 3) + 3 * places + 3
    assert all(len(image["alt"]) > 10 for image in images)
    assert len(page.all("input")) == 6 + 1 + 1 + places  # pollutants, slider, wind, places


def test_earlier_fields_and_forcings_are_named(tiny_config: Callable[..., RunConfig]) -> None:
    config = tiny_config(data={"forcings": ["cos_local_time"], "history_hours": [6, 24]})
    inputs = "15 variables; cos_local_time; 11 of the variables 6, 24 h before"
    assert run_page._inputs(config) == inputs
    ahead = {"forcings": ["insolation"], "weather_at_horizons": ["u", "rh"]}
    texts = [
        run_page._inputs(tiny_config(data=ahead, model={"lead_time": mode}))
        for mode in ("encoder", "decoder")
    ]
    assert texts[0] == "15 variables; insolation; u, rh, insolation at the horizon's own valid time"
    assert texts[1] == "15 variables; insolation; u, rh, insolation at the valid times of all horizons"
    assert run_page._earlier_wind(config) == " and 6, 24 h before"
    assert run_page._earlier_wind(tiny_config(data={"history_hours": [6], "history_variables": ["o3"]})) == ""


def test_the_page_is_one_small_file_without_dead_links(finished_run: Path) -> None:
    path = write_report(finished_run)
    html = path.read_text(encoding="utf-8")
    assert path.stat().st_size < MAX_BYTES
    page = Page(html)
    addresses = [
        value
        for _, attributes in page.elements
        for key, value in attributes.items()
        if key in ("src", "href", "srcset", "xlink:href", "action")
    ]
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert not re.search(r"url\((?!data:)", html)
    assert "@import" not in html
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    links = [a["href"] for tag in ("a", "use") for a in page.all(tag)]
    assert {link.removeprefix("#") for link in links} <= ids
    labelled = [section["aria-labelledby"] for section in page.all("section")]
    assert set(labelled) <= ids


def test_what_a_run_does_not_have_is_left_out(
    tiny_config: Callable[..., RunConfig], finish: Callable[[RunConfig], Path]
) -> None:
    config = tiny_config(data={"horizons": [24]}, model={"elevation_bias": False})
    page = Page(write_report(finish(config)).read_text(encoding="utf-8"))
    assert [section["id"] for section in page.all("section")] == ["maps", "scores", "learning", "setup"]
    assert {each["type"] for each in page.all("input")} == {"radio", "checkbox"}  # no slider
    assert len(page.all("img")) == 6 * (1 + 3) + 2


def test_validation_scores_are_called_optimistic(finished_run: Path) -> None:
    write_scores(evaluate(load_run(finished_run), "validation").scores, finished_run)
    html = write_report(finished_run).read_text(encoding="utf-8")
    assert "Scored on the validation period 2017, which was used for choosing the weights" in html


def test_weights_of_the_cells_are_named(finished_run: Path) -> None:
    weighted = evaluate(load_run(finished_run), options=EvalOptions(weighting="area"))
    write_scores(weighted.scores, finished_run)
    html = write_report(finished_run).read_text(encoding="utf-8")
    assert "for choosing the weights. Cells are weighted by area.</p>" in html


def test_text_of_the_user_is_escaped(
    tiny_config: Callable[..., RunConfig], finish: Callable[[RunConfig], Path]
) -> None:
    hostile = "<script>alert('x')</script> & \"quoted\""
    run_dir = finish(tiny_config(description=hostile))
    write_tables({"stations": station_sums(3)}, run_dir)
    html = write_report(run_dir).read_text(encoding="utf-8")
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &#34;quoted&#34;" in html
    assert "<b>0" not in html
    assert "&lt;b&gt;0&lt;/b&gt;" in html  # a station


def test_a_chosen_start_is_shown_as_far_as_the_data_reach(finished_run: Path) -> None:
    html = write_report(finished_run, np.datetime64("2018-01-10T06")).read_text(encoding="utf-8")
    assert "Started 2018-01-10 06:00 UTC: chosen with --init." in html
    assert "Valid 2018-01-10 18:00 UTC, 12 h ahead." in html
    assert html.count("no wind data for that hour") == 6 * 3 * 2  # pollutants, horizons, maps


def test_missing_scores_are_asked_for_and_nothing_is_written(untrained_run: Path) -> None:
    with pytest.raises(ValueError, match=rf"scores\.json is missing.*`aqtopo evaluate {untrained_run}`"):
        write_report(untrained_run)
    assert not (untrained_run / "report.html").exists()


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ("{", r"run\.json is not JSON"),
        ("[]", r"run\.json does not hold one JSON object"),
        ('{"started": "2026-11-21T20:15:00+00:00"}', r"run\.json: versions: missing"),
        ('{"started": 5, "versions": {}}', r"run\.json: started = 5: must be a string"),
        ('{"started": "then", "versions": {}}', r'run\.json: started = "then": must be a time'),
    ],
)
def test_an_older_page_survives_damaged_facts(finished_run: Path, facts: str, message: str) -> None:
    (finished_run / "report.html").write_text("older", encoding="utf-8")
    (finished_run / "run.json").write_text(facts, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{message}(.|\n)*restore it from a copy of the run directory"):
        write_report(finished_run)
    assert (finished_run / "report.html").read_text(encoding="utf-8") == "older"


def test_a_run_says_that_it_was_resumed_and_what_its_heads_prefer(finished_run: Path) -> None:
    path = finished_run / "metrics.jsonl"
    start = {
        "event": "start",
        "time": "2026-01-01T00:00:00+00:00",
        "step": 0,
        "preferences": {"blocks.0 width [km]": [150.0, 300.0]},
    }
    path.write_text(json.dumps(start) + "\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    html = write_report(finished_run).read_text(encoding="utf-8")
    assert "7 steps in 1 epoch, started 2 times, 3.5 samples per second (median)." in html
    assert '<th scope="row">block 0 width [km]</th><td>150, 300</td>' in html


def test_scores_of_a_removed_state_are_refused_with_the_remedy(finished_run: Path) -> None:
    tag = find_tag(finished_run, "last")
    shutil.rmtree(tag.folder(finished_run))
    with pytest.raises(ValueError, match=rf"{tag.name}, which its training has removed.*aqtopo evaluate"):
        write_report(finished_run)
