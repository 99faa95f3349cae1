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

from aqtopo.evaluation.report import write_ablation_report, write_report

# Chromium's windows are at least 500 pixels wide, so the page is put into a frame of the wanted width.
FRAME = """<!doctype html><meta charset="utf-8"><body><pre id="findings"></pre>
<iframe width="{width}" height="900" srcdoc="{page}"></iframe>
<script>
const frame = document.querySelector("iframe");
const visible = (element) => element.getClientRects().length > 0;
const shown = (page, selector) => [...page.querySelectorAll(selector)].filter(visible);
const look = (page) => ({{
  width: frame.contentWindow.innerWidth,
  contentWidth: page.documentElement.scrollWidth,
  maps: shown(page, "#maps .map img").map((image) => image.alt),
  blank: shown(page, "img").filter((image) => !image.naturalWidth).length,
  controls: shown(page, ".controls").length,
}});
frame.addEventListener("load", () => {{
  const page = frame.contentDocument;
  const first = look(page);
  page.querySelector("input[value=o3]").click();
  page.querySelector("input[value='48']").click();
  const second = look(page);
  for (const details of page.querySelectorAll("details")) details.open = true;
  document.querySelector("#findings").textContent = JSON.stringify({{ first, second, open: look(page) }});
}});
</script>"""


# Pages without controls, at both widths in one browser.
FRAMES = """<!doctype html><meta charset="utf-8"><body><pre id="findings"></pre>
<iframe width="1280" height="900" srcdoc="{page}"></iframe>
<iframe width="420" height="900" srcdoc="{page}"></iframe>
<script>
window.addEventListener("load", () => {{
  const looks = [...document.querySelectorAll("iframe")].map((frame) => {{
    const page = frame.contentDocument;
    for (const details of page.querySelectorAll("details")) details.open = true;
    return {{
      width: frame.contentWindow.innerWidth,
      contentWidth: page.documentElement.scrollWidth,
      pictures: [...page.querySelectorAll("img")].filter((image) => image.naturalWidth).length,
    }};
  }});
  document.querySelector("#findings").textContent = JSON.stringify({{ looks }});
}});
</script>"""


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
        pytest.skip("no chromium here: install it (Debian: apt-get install chromium) to test the page in it")
    return Browser(program, tmp_path / "profile")


def _framed(report: Path, width: int) -> Path:
    page = report.with_name(f"frame{width}.html")
    page.write_text(FRAME.format(width=width, page=html.escape(report.read_text(encoding="utf-8"))))
    return page


def _findings(markup: str) -> dict[str, Any]:
    found = re.search(r'<pre id="findings">(.*?)</pre>', markup, re.DOTALL)
    assert found is not None
    findings: dict[str, Any] = json.loads(html.unescape(found[1]))
    return findings


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 420])
def test_the_page_works_at_two_widths(finished_run: Path, browser: Browser, width: int) -> None:
    markup, console = browser.open(_framed(write_report(finished_run), width))
    assert console == []
    findings = _findings(markup)
    for look in findings.values():
        assert look["width"] == width
        assert look["contentWidth"] <= width
        assert look["blank"] == 0
        assert look["controls"] == 1
        assert len(look["maps"]) == 4
    assert findings["first"]["maps"][1] == "Map of the forecast of PM2.5, 12 h ahead."
    assert findings["second"]["maps"][1] == "Map of the forecast of ozone, 48 h ahead."


@pytest.mark.slow
def test_the_page_of_an_ablation_works_at_two_widths(ablation: Path, browser: Browser) -> None:
    page = ablation / "frames.html"
    text = write_ablation_report(ablation).read_text(encoding="utf-8")
    page.write_text(FRAMES.format(page=html.escape(text)))
    markup, console = browser.open(page)
    assert console == []
    looks = _findings(markup)["looks"]
    assert [look["width"] for look in looks] == [1280, 420]
    assert all(look["contentWidth"] <= look["width"] for look in looks)
    assert [look["pictures"] for look in looks] == [1, 1]


@pytest.mark.slow
def test_the_browser_would_report_an_error(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "broken.html"
    page.write_text("<!doctype html><script>missing();</script>")
    _, console = browser.open(page)
    assert any("missing is not defined" in line for line in console)
