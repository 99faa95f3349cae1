"""The page in a real browser; where chromium is missing and may not be installed, these tests say so."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aqtopo.evaluation.results import write_tables
from aqtopo.report import write_ablation_report, write_report

from .conftest import station_sums

# Chromium's windows are at least 500 pixels wide, so the page is put into frames of the wanted widths.
FRAMES = """<!doctype html><meta charset="utf-8"><body><pre id="findings"></pre>
<iframe width="1280" height="900" srcdoc="{page}"></iframe>
<iframe width="420" height="900" srcdoc="{page}"></iframe>
<script>
const visible = (element) => element.getClientRects().length > 0;
const shown = (page, selector) => [...page.querySelectorAll(selector)].filter(visible);
const look = (frame, page) => ({{
  width: frame.contentWindow.innerWidth,
  contentWidth: page.documentElement.scrollWidth,
  blank: shown(page, "img").filter((image) => !image.naturalWidth).length,
  sections: shown(page, "h2").map((heading) => heading.textContent),
  maps: shown(page, "#maps .map img").map((image) => image.alt),
  arrows: shown(page, "#maps .arrows").map((use) => use.getAttribute("href")),
  places: shown(page, "#attention h3").map((heading) => heading.textContent),
  gazes: shown(page, "#attention .map img").length,
  stations: shown(page, "#stations .map").map((map) => map.getAttribute("aria-label").slice(0, 60)),
}});
const use = {use};
window.addEventListener("load", async () => {{
  const looks = [];
  for (const frame of document.querySelectorAll("iframe")) {{
    const page = frame.contentDocument;
    for (const details of page.querySelectorAll("details")) details.open = true;
    looks.push([look(frame, page), ...(await use(frame, page))]);
  }}
  document.querySelector("#findings").textContent = JSON.stringify(looks);
}});
</script>"""

READ = "async () => []"

# Chooses, slides, lets it run for a map, and takes the wind away; looks after each.
PLAY = """async (frame, page) => {
  const after = (ms) => new Promise((done) => setTimeout(done, ms));
  const slider = page.querySelector("#maps [type=range]"), play = page.querySelector("#maps .play");
  page.querySelector("#maps [value=o3]").click();
  page.querySelector("#attention [value='2']").click();
  page.querySelector("#stations [value=o3]").click();
  slider.value = 2;
  slider.dispatchEvent(new frame.contentWindow.Event("input", { bubbles: true }));
  const chosen = { ...look(frame, page), spoken: slider.getAttribute("aria-valuetext") };
  play.click();
  await after(1500);
  const running = { ...look(frame, page), button: play.textContent };
  play.click();
  page.querySelector("#maps [name=arrows]").click();
  await after(1500);
  return [chosen, running, { ...look(frame, page), button: play.textContent }];
}"""


@dataclass(frozen=True)
class Browser:
    """An installed chromium."""

    program: str
    profile: Path

    def open(self, page: Path) -> tuple[str, list[str]]:
        """Load a page; its final markup, and what it wrote to the console."""
        done = subprocess.run(
            [
                self.program,
                *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
                *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
                *("--disable-dev-shm-usage", "--enable-logging=stderr", "--window-size=1400,1000"),
                f"--user-data-dir={self.profile}",
                "--virtual-time-budget=10000",
                "--dump-dom",
                page.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    return Browser(program, tmp_path / "profile")


def _looks(browser: Browser, report: Path, use: str) -> list[list[dict[str, Any]]]:
    """Return the visible parts of a page at both widths, at first and at each look of `use`.

    The console must be empty.
    """
    page = report.with_name("frames.html")
    page.write_text(
        FRAMES.format(page=html.escape(report.read_text(encoding="utf-8")), use=use), encoding="utf-8"
    )
    markup, console = browser.open(page)
    assert console == []
    found = re.search(r'<pre id="findings">(.+?)</pre>', markup, re.DOTALL)
    assert found is not None, "the page's script ended early"
    looks: list[list[dict[str, Any]]] = json.loads(html.unescape(found[1]))
    assert [each[0]["width"] for each in looks] == [1280, 420]
    for look in (look for frame in looks for look in frame):
        assert look["contentWidth"] <= look["width"]
        assert look["blank"] == 0
    return looks


@pytest.mark.slow
def test_the_page_works_at_two_widths(finished_run: Path, browser: Browser) -> None:
    write_tables({"stations": station_sums(60)}, finished_run)
    for first, chosen, running, stopped in _looks(browser, write_report(finished_run), PLAY):
        assert len(first["maps"]) == 4
        assert first["maps"][1] == "Map of the forecast of PM2.5, 12 h ahead."
        assert first["arrows"] == ["#wind-0", "#wind-1", "#wind-1"]
        assert first["gazes"] == 3
        assert first["places"][0].startswith("Most polluted, ")
        assert [text.split(":")[0] for text in first["stations"]] == [
            "Map of the skill at stations",
            "Map of the bias at stations",
        ]
        assert chosen["maps"][1] == "Map of the forecast of ozone, 48 h ahead."
        assert chosen["arrows"] == ["#wind-0", "#wind-3", "#wind-3"]
        assert chosen["spoken"] == "48 hours ahead"
        assert chosen["places"] != first["places"]
        assert len(chosen["stations"]) == 2
        assert (running["maps"][1], running["button"]) == (
            "Map of the forecast of ozone, 96 h ahead.",
            "Pause",
        )
        assert (stopped["maps"], stopped["button"], stopped["arrows"]) == (running["maps"], "Play", [])


@pytest.mark.slow
def test_the_page_of_an_ablation_works_at_two_widths(ablation: Path, browser: Browser) -> None:
    for (look,) in _looks(browser, write_ablation_report(ablation), READ):
        assert look["sections"] == ["What changes", "Variants", "Learning", "Set-up"]


@pytest.mark.slow
def test_the_browser_would_report_an_error(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "broken.html"
    page.write_text("<!doctype html><script>missing();</script>", encoding="utf-8")
    _, console = browser.open(page)
    assert any("missing is not defined" in line for line in console)
