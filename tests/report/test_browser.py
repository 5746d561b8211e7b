"""The pages in a real browser: nothing is fetched, nothing fails, nothing is wider than a telephone, light and dark."""

import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vesselgan.config.compose import compose
from vesselgan.report.page import report
from vesselgan.tools.benchmark import acceptance
from vesselgan.viz.palette import COLOURS

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.soak, pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome here")]

OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--allow-file-access-from-files")
OPTIONS += ("--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom")
WIDTHS = (1280, 400)
POLICY = "script-src 'unsafe-inline'; default-src"
# In the copy of a page: what happens while it loads, and how it lies then.
PROBE = """<script>
const found = {blocked: [], errors: []};
addEventListener("error", event => found.errors.push(event.message || event.target.outerHTML), true);
document.addEventListener("securitypolicyviolation", event => found.blocked.push(event.blockedURI));
addEventListener("load", () => {
  const root = document.documentElement, answer = document.querySelector(".answer");
  found.fetched = performance.getEntriesByType("resource").map(e => e.name).filter(name => !name.startsWith("data:"));
  found.overflow = root.scrollWidth - innerWidth;
  found.bottom = answer ? answer.getBoundingClientRect().bottom : 0;
  found.paper = getComputedStyle(document.body).backgroundColor;
  parent.postMessage([name, JSON.stringify(found)], "*");
});
</script>"""
FRAMES = """<pre></pre><script>addEventListener("message", event => {
  document.querySelector("pre").textContent += event.data.join(" ") + "\\n"; });</script>"""


def look(folder: Path, pages: dict[str, Path], *, is_dark: bool) -> tuple[dict[str, dict], str]:
    """`<page> <width>` -> what its probe found, and the browser's console."""
    frames = FRAMES
    for name, path in pages.items():
        text = path.read_text(encoding="utf-8")
        assert text.count("default-src 'none'") == 1
        copy = folder / f"{name}.html"
        copy.write_text(
            text.replace("default-src", POLICY, 1).replace("<title>", f"{PROBE}<title>", 1), encoding="utf-8"
        )
        for width in WIDTHS:
            frames += f'<iframe name="{name}/{width}" src="{copy.name}" width="{width}" height="800"></iframe>'
    (folder / "frames.html").write_text(frames)
    scheme = f"--blink-settings=preferredColorScheme={0 if is_dark else 1}"
    command = [BROWSER, *OPTIONS, scheme, f"--user-data-dir={folder / 'profile'}", (folder / "frames.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    lines = html.unescape(re.search(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)[1]).splitlines()
    found = {name: json.loads(text) for name, text in (line.split(" ", 1) for line in lines)}
    return found, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def quality_page(folder: Path) -> Path:
    settings = [f"work_dir='{folder}'"]
    phantom = ["phantom.shape=[48,48,24]", "phantom.spacing_mm=[2.5,3,3.2]", "phantom.num_subjects=3"]
    for command in (["data_prep.make_phantom", *phantom], ["data_prep.check", "data.prepare.split.validation=1"]):
        subprocess.run([sys.executable, "-m", *command, *settings], check=False, capture_output=True)
    return folder / "phantom/qc.html"


def acceptance_page(folder: Path) -> Path:
    check = {"name": "a very long name of a difference", "value": 1e-3, "limit": 2e-3, "passed": True}
    part = {"name": "step", "group": "speed", "status": "passed", "message": "", "seconds": 1.0}
    part |= {"facts": {"wall_ms": 59.0}, "checks": [check]}
    values = {"device": "cpu", "packages": {"torch": "2.13.0"}, "parts": [part], "precision": "fp32", "time": "now"}
    (folder / "acceptance.html").write_text(acceptance.page(values))
    return folder / "acceptance.html"


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
def test_pages_hold_in_a_browser(road, tmp_path, drawn_charts, is_dark):
    pages = {
        "report": report(compose("report", [f"work_dir='{road}'", f"runs=['{road}/runs/demo-gan']"])),
        "quality": quality_page(tmp_path / "quality"),
        "acceptance": acceptance_page(tmp_path),
    }
    found, console = look(tmp_path, pages, is_dark=is_dark)
    assert set(found) == {f"{name}/{width}" for name in pages for width in WIDTHS} and console == ""
    red, green, blue = (int(COLOURS["paper"][is_dark][k : k + 2], 16) for k in (1, 3, 5))
    for name, page in found.items():
        assert page["fetched"] == page["blocked"] == page["errors"] == [], name
        assert page["overflow"] <= 0, name
        assert page["paper"] == f"rgb({red}, {green}, {blue})", name
    assert all(0 < found[f"report/{width}"]["bottom"] < 600 for width in WIDTHS)


def test_the_browser_notices_what_is_forbidden(tmp_path):
    rules = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    policy = f'<meta http-equiv="Content-Security-Policy" content="{rules}">'
    body = '<p class="answer">a</p><img src="https://example.invalid/x.png"><div style="width: 900px">b</div>'
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/page.html").write_text(f"<head>{policy}<title>t</title></head><body>{body}</body>")
    found, console = look(tmp_path, {"bad": tmp_path / "bad/page.html"}, is_dark=False)
    assert found["bad/400"]["blocked"] and found["bad/400"]["errors"] and found["bad/400"]["overflow"] > 0
    assert "example.invalid" in console
