"""The page in headless Chromium with networking off: plots show, light and dark, and a phone's width is enough."""

import re
import shutil
import subprocess

import pytest
from gap_report_cases import page_of
from PIL import Image

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; `apt-get install chromium` brings it")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
         "--host-resolver-rules=MAP * ~NOTFOUND", "--allow-file-access-from-files"]
LIGHT, DARK = 1, 0
FRAME = """<body style="margin:0"><iframe id="f" src="gap.html" style="border:0;width:390px;height:9000px"></iframe>
<script>onload = () => { const root = document.getElementById("f").contentDocument.documentElement;
document.title = root.scrollWidth + " of " + root.clientWidth; };</script>"""


def chromium(folder, page, *options) -> str:
    """Open folder/page in a new profile and return what Chromium prints."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", *options, (folder / page).as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def colours(folder, scheme) -> dict:
    """Return the number of pixels of each colour of a screenshot at 1280 wide."""
    chromium(folder, "gap.html", "--window-size=1280,5000", f"--screenshot={folder / 'page.png'}",
             f"--blink-settings=preferredColorScheme={scheme}")
    image = Image.open(folder / "page.png").convert("RGB")
    assert image.width == 1280
    return {"#{:02x}{:02x}{:02x}".format(*colour): count for count, colour in image.getcolors(1 << 24)}


@pytest.mark.parametrize(("scheme", "paper", "bars"), [
    (LIGHT, "#ffffff", ("#1f5fd0", "#b9480e", "#6a55c9")), (DARK, "#14171b", ("#7aa9ff", "#ff9d5c", "#ab9dff"))])
def test_bars_of_both_chips_and_of_the_gap_show_in_light_and_dark(tmp_path, scheme, paper, bars):
    (tmp_path / "gap.html").write_text(page_of("departs"), encoding="utf-8")
    found = colours(tmp_path, scheme)
    assert max(found, key=found.__getitem__) == paper
    assert all(found.get(colour, 0) > 2000 for colour in bars)


@pytest.mark.parametrize("case", ["departs", "broken"])
def test_page_needs_no_sideways_scrolling_on_a_phone(tmp_path, case):
    (tmp_path / "gap.html").write_text(page_of(case), encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME, encoding="utf-8")
    document = chromium(tmp_path, "frame.html", "--window-size=800,1000", "--dump-dom")
    assert re.search(r"<title>(.*)</title>", document).group(1) == "390 of 390"
