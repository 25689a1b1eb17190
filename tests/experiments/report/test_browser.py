"""The page of the report in a real browser: every plot drawn, switches and menus at work."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape

import pytest

from experiments.report.document import report
from tests.experiments.report.runs_by_hand import write_everything

pytestmark = pytest.mark.browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SECTIONS = 5

#: Uses the page as a reader would, and leaves what happened on the root element.
USER = """
<script>
(async () => {
  const root = document.documentElement;
  while (!root.dataset.plots) { await new Promise((done) => setTimeout(done, 20)); }
  const wait = () => new Promise((done) => setTimeout(done, 200));
  const lines = (key) => document.querySelectorAll(`#plot-${key} .scatterlayer .trace`).length;
  const plots = [...document.querySelectorAll("[id^=plot-]")];
  const seen = {
    drawn: plots.map((plot) => plot.querySelectorAll(".trace, .bars .point").length),
    heights: plots.map((plot) => plot.getBoundingClientRect().height),
  };
  const box = document.querySelector("#switches input[value=fcfs]");
  seen.uploads = document.querySelectorAll(".modebar-btn[data-title*=loud]").length;
  seen.buttons = document.querySelectorAll(".modebar-btn").length;
  seen.lines = lines("qoe_against_rate");
  box.click();
  await wait();
  seen.hidden = lines("qoe_against_rate");
  const menu = document.getElementById("menu-distributions");
  seen.options = menu.length;
  seen.first = menu.options[menu.selectedIndex].text;
  const x = () => JSON.stringify(document.getElementById("plot-distributions").data[5].x);
  const before = x();
  menu.selectedIndex = 0;
  menu.dispatchEvent(new Event("change"));
  await wait();
  seen.changed = x() !== before;
  seen.still = lines("distributions");
  box.click();
  await wait();
  seen.again = lines("qoe_against_rate");
  seen.names = document.getElementById("plot-distributions").data.map((trace) => trace.name);
  root.dataset.seen = JSON.stringify(seen);
})();
</script>
"""


def open_page(path, profile):
    """The document after its scripts ran, and what the browser wrote to its console."""
    browser = next((name for name in BROWSERS if shutil.which(name)), None)
    assert browser, f"none of {', '.join(BROWSERS)} is installed"
    done = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={profile}",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--enable-logging=stderr",
            "--virtual-time-budget=20000",
            "--window-size=1200,1000",
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a report on everything."""
    folder = tmp_path_factory.mktemp("browser")
    report([write_everything(folder / "runs")], folder / "out")
    return folder / "out" / "report.html"


def test_all_plots_are_drawn_and_can_be_used(page, tmp_path):
    """No error, five plots; a switch hides a policy everywhere, a menu changes the rate."""
    copy = page.with_name("used.html")
    copy.write_text(page.read_text().replace("</body>", f"{USER}</body>"))
    document, console = open_page(copy, tmp_path)
    assert console == []
    root = re.search(r"<html[^>]*>", document)[0]
    assert "data-errors" not in root
    assert f'data-plots="{SECTIONS}"' in root
    seen = json.loads(unescape(re.search(r'data-seen="([^"]*)"', root)[1]))
    assert len(seen["drawn"]) == SECTIONS
    assert min(seen["drawn"]) > 0
    assert min(seen["heights"]) > 100
    assert seen["buttons"] > 0
    assert seen["uploads"] == 0  # plotly offers to send the data to its makers' server
    assert seen["lines"] == 9  # three policies, three definitions
    assert seen["hidden"] == 6
    assert seen["again"] == 9
    assert seen["options"] == 3
    assert seen["first"].endswith("at 2/s")  # where the baseline falls below 0.9
    assert seen["changed"]
    assert seen["still"] == 10  # two policies, five quantities: what is hidden stays hidden
    assert set(seen["names"]) == {"fcfs", "andes (exact)", "round_robin"}


def test_an_error_would_be_seen(page, tmp_path):
    """The check itself: a broken page and a request to the network both show."""
    copy = page.with_name("broken.html")
    broken = '<script>undefined.x</script><img src="http://example.org/x.png">'
    copy.write_text(page.read_text().replace("</body>", f"{broken}</body>"))
    document, console = open_page(copy, tmp_path)
    assert "data-errors" in re.search(r"<html[^>]*>", document)[0]
    assert any("Content Security Policy" in line for line in console)
