"""The pages in a real browser: nothing is asked for from elsewhere, every picture has its size, nothing overlaps."""

import html
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvsa_jax.report import html as pages
from cvsa_jax.report import pictures
from cvsa_jax.report.columns import RECOGNITION, table

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt install chromium")

# What the page tells of itself, once it is laid out.
MEASURE = """
<script>
addEventListener("load", () => {
  const box = e => { const r = e.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
  const all = selector => [...document.querySelectorAll(selector)];
  const found = {
    width: [document.documentElement.scrollWidth, document.documentElement.clientWidth],
    images: all("img").map(i => [i.complete && i.naturalWidth, i.clientWidth, i.clientHeight, i.naturalHeight]),
    blocks: all("h1, h2, p, table, img, figcaption").map(e => [e.tagName, box(e)]),
    cells: all("th, td").map(e => [e.textContent, e.scrollWidth > e.clientWidth + 1]),
    requests: performance.getEntriesByType("resource").map(r => r.name).filter(n => !n.startsWith("data:")),
  };
  const pre = document.createElement("pre");
  pre.id = "measured";
  pre.textContent = JSON.stringify(found);
  document.body.append(pre);
});
</script>
"""


def measured(page: Path, width: int) -> dict:
    """What the browser lays out at a width in px."""
    watched = page.with_name(f"watched-{width}.html")
    watched.write_text(page.read_text().replace("</html>", f"{MEASURE}</html>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", "--disable-quic", f"--window-size={width},2000"]
    command = [CHROMIUM, *flags, f"--user-data-dir={page.parent / 'profile'}", "--dump-dom", watched.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    (found,) = re.findall(r'<pre id="measured">(.*?)</pre>', dom, re.DOTALL)
    return json.loads(html.unescape(found))


def assert_fine(page: Path) -> None:
    for width in (600, 1200):
        found = measured(page, width)
        assert found["requests"] == []
        scroll, client = found["width"]
        assert scroll <= client, "the page is wider than its window"
        for natural_width, shown_width, shown_height, natural_height in found["images"]:
            assert natural_width and shown_width and shown_height
            assert shown_width / shown_height == pytest.approx(natural_width / natural_height, rel=0.02)
        blocks = sorted((box for _, box in found["blocks"]), key=lambda box: box[1])
        assert blocks
        for above, below in itertools.pairwise(blocks):
            assert above[3] <= below[1] + 1, "one block lies on another"
        assert not [text for text, cut in found["cells"] if cut]


@pytest.fixture
def page(tmp_path) -> Path:
    names = [f"a run with a name that is rather long, number {k}" for k in range(3)]
    rows = [(name, dict.fromkeys(RECOGNITION, 0.123) | {"linear_top1_std": 0.01}) for name in names]
    Image.new("RGB", (1500, 400), "red").save(tmp_path / "wide.png")
    drawn = [pictures.Picture(tmp_path / "wide.png", "A picture that is wider than the page. " * 4)]
    points = {name: np.random.default_rng(0).normal(size=(30, 2)) for name in names[:2]}
    labels = np.arange(30) % 3
    drawn.append(pictures.scatter_picture(tmp_path / "p.png", points, labels, ("a", "b", "c"), "Points."))
    blocks = ["# Where each network looks", drawn[0], table(rows, RECOGNITION), "A note. " * 60, "# Features", drawn[1]]
    return pages.write_page(tmp_path / "index.html", "Runs on birds", blocks)


def test_page_lays_out_without_overlaps_or_requests(page):
    assert_fine(page)


def test_layout_check_detects_requests_and_overlaps(page):
    source = page.read_text()
    for wrong in ('<img src="https://example.org/x.png">', '<p style="position: relative; top: -200px">over</p>'):
        page.write_text(source.replace("</html>", f"{wrong}</html>"))
        with pytest.raises(AssertionError):
            assert_fine(page)
