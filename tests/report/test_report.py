import base64
import html.parser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvsa_jax.report import html as pages
from cvsa_jax.report import pictures
from cvsa_jax.report.columns import percent

NASTY = '<script>alert("1 & 2")</script>'


class Page(html.parser.HTMLParser):
    """The tags, the attributes and the text of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data):
        self.text += data + "\n"


@pytest.fixture
def picture(tmp_path) -> pictures.Picture:
    path = tmp_path / "elsewhere.png"
    Image.new("RGB", (3, 2), "red").save(path)
    return pictures.Picture(path, f"A picture. {NASTY}")


@pytest.fixture
def page(tmp_path, picture) -> Path:
    table = pages.Table((NASTY, "top-1"), [("BYOL", "1.0"), (NASTY, "2.0")])
    blocks = [table, f"A note. {NASTY}", f"# Heading {NASTY}", picture, picture]
    return pages.write_page(tmp_path / "index.html", NASTY, blocks)


def test_page_is_self_contained(page, picture):
    parsed, prefix = Page(page), "data:image/png;base64,"
    assert page.name == "index.html"
    assert parsed.tags.count("img") == len(parsed.links) == 2
    for link in parsed.links:
        assert base64.b64decode(link.removeprefix(prefix)) == picture.path.read_bytes()
    source = page.read_text()
    assert not any(word in source for word in ("http:", "https:", "url(", "@import", "file:"))
    assert not {"script", "link", "iframe"} & set(parsed.tags)


def test_page_escapes_text(page):
    parsed = Page(page)
    assert "<script" not in page.read_text()
    assert parsed.text.count(NASTY) == 2 + 2 + 1 + 1 + 2  # title and heading, table, note, heading, captions
    for tag, count in {"h1": 1, "h2": 1, "p": 1, "table": 1, "tr": 3, "th": 2, "td": 4, "figcaption": 2}.items():
        assert parsed.tags.count(tag) == count


def test_table_as_text_is_aligned():
    table = pages.Table(("%", "linear top-1", "kNN"), [("random weights", "9.6", "–"), ("CVSA", "61.5", "100.0")])
    assert table.as_text().split("\n") == [
        "%               linear top-1    kNN",
        "-----------------------------------",
        "random weights           9.6      –",
        "CVSA                    61.5  100.0",
    ]


@pytest.mark.parametrize(("value", "text"), [(0.615, "61.5"), (1.0, "100.0"), (0.12349, "12.3"), (None, "–")])
def test_percent_has_one_decimal(value, text):
    assert percent(value) == text


def test_curves_leave_out_absent_metrics(tmp_path, figures):
    rows = [{"step": 10, "loss": 3.0}, {"step": 20, "loss": 2.0, "align": 0.5}, {"step": 30, "loss": 1.0}]
    panels = {"loss": ("loss", "align", "nowhere"), "empty": ("nowhere",)}
    picture = pictures.curves_picture(tmp_path / "new" / "curves.png", rows, panels, "Curves.")
    (loss,) = figures[0].axes
    assert {line.get_label(): line.get_xydata().tolist() for line in loss.lines} == {
        "loss": [[10, 3], [20, 2], [30, 1]],
        "align": [[20, 0.5]],
    }
    assert loss.get_title() == "loss"
    assert picture.caption == "Curves."
    assert Image.open(picture.path).format == "PNG"


def test_curves_picture_of_a_run_without_metrics(tmp_path):
    assert pictures.curves_picture(tmp_path / "curves.png", [], {"loss": ("loss",)}, "").path.is_file()


@pytest.mark.parametrize("with_masks", [True, False], ids=["masks", "no masks"])
def test_views_and_attention_pictures_outline_masks(tmp_path, figures, with_masks):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 8, 8, 3), np.uint8)
    # One mask with a border, one empty: there is nothing to outline.
    masks = np.zeros((2, 4, 4), np.uint8)
    masks[0, :2, :2] = 255
    views = [(images, masks if with_masks else None)] * 2
    picture = pictures.views_picture(tmp_path / "views.png", views, [images / 255] * 2)
    assert ("border" in picture.caption) == with_masks
    large = masks.repeat(2, 1).repeat(2, 2) > 127
    rows = {"one": images[..., 0] / 255, "two": images[..., 1] / 255}
    pictures.attention_picture(tmp_path / "attention.png", images, rows, large if with_masks else None, "")
    for figure, count in zip(figures, (4, 3), strict=True):
        axes = np.array(figure.axes).reshape(count, 2)
        outlined = [[bool(len(axis.collections)) for axis in row] for row in axes]
        expected = [with_masks, False]
        # The view as the network sees it bears no outline.
        assert outlined == ([expected, [False, False]] * 2 if count == 4 else [expected] * 3)
