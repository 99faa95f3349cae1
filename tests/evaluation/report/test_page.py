import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from aqtopo.config import RunConfig
from aqtopo.evaluation.report import write_report

MAX_BYTES = 2_000_000


class Page(HTMLParser):
    """What a page holds, element by element."""

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
        "PM2.5 12 h ahead: the model is off by",
        "the better of two simple forecasts",
        "Simulated data",
        "smooth waves made for tests",
        "6 forecasts, started from 2018-01-01 00:00 UTC to 2018-01-06 00:00 UTC.",
        "epoch00-step000007-val0.5000",
        "not installed",  # triton, by run.json
        "torchrun",
        "f00dfeed-dirty",
        "Starts and resumes",
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


def test_the_page_is_one_file_of_reasonable_size(finished_run: Path) -> None:
    path = write_report(finished_run)
    html = path.read_text(encoding="utf-8")
    assert path.stat().st_size < MAX_BYTES
    addresses = [
        value
        for _, attributes in Page(html).elements
        for key, value in attributes.items()
        if key in ("src", "href", "srcset", "xlink:href", "action")
    ]
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert not re.search(r"url\((?!data:)", html)
    assert "@import" not in html


def test_every_anchor_leads_somewhere(finished_run: Path) -> None:
    page = Page(write_report(finished_run).read_text(encoding="utf-8"))
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    links = [a["href"] for tag in ("a", "use") for a in page.all(tag)]
    assert {link.removeprefix("#") for link in links} <= ids
    labelled = [section["aria-labelledby"] for section in page.all("section")]
    assert set(labelled) <= ids


def test_text_of_the_user_is_escaped(
    tiny_config: Callable[..., RunConfig], finish: Callable[[RunConfig], Path]
) -> None:
    hostile = "<script>alert('x')</script> & \"quoted\""
    html = write_report(finish(tiny_config(description=hostile))).read_text(encoding="utf-8")
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &#34;quoted&#34;" in html


def test_a_chosen_start_is_shown(finished_run: Path) -> None:
    html = write_report(finished_run, np.datetime64("2018-01-02T06")).read_text(encoding="utf-8")
    assert "Started 2018-01-02 06:00 UTC: chosen by hand." in html
    assert "Valid 2018-01-02 18:00 UTC, 12 h ahead." in html


def test_missing_scores_are_asked_for_and_nothing_is_written(untrained_run: Path) -> None:
    with pytest.raises(ValueError, match=rf"scores\.json is missing.*`aqtopo evaluate {untrained_run}`"):
        write_report(untrained_run)
    assert not (untrained_run / "report.html").exists()


def test_an_older_page_survives_a_failure(finished_run: Path) -> None:
    (finished_run / "report.html").write_text("older")
    (finished_run / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json cannot be read"):
        write_report(finished_run)
    assert (finished_run / "report.html").read_text() == "older"


def test_a_run_that_was_resumed_says_so(finished_run: Path) -> None:
    path = finished_run / "metrics.jsonl"
    path.write_text(json.dumps({"event": "start"}) + "\n" + path.read_text())
    assert "7 steps in 1 epoch, started 2 times, 3.5 samples a second (median)." in write_report(
        finished_run
    ).read_text(encoding="utf-8")
