import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from cvsa_jax.report import pictures


def shown(axis) -> np.ndarray:
    (image,) = axis.images
    return np.asarray(image.get_array())


def noise(count: int, size: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def assert_texts_are_apart_and_inside(figure) -> None:
    """No text is cut off by the picture's border or lies on another."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    boxes = [text.get_window_extent(renderer) for text in texts]
    width, height = canvas.get_width_height()
    for text, box in zip(texts, boxes, strict=True):
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
        assert inside, f"{text.get_text()!r} is cut off"
    for i, box in enumerate(boxes):
        for j in range(i):
            assert not box.padded(-1).overlaps(boxes[j].padded(-1)), (texts[i].get_text(), texts[j].get_text())


def test_confusion_picture_shows_wrong_and_right_examples(tmp_path, figures):
    wrong, right = noise(5), noise(2, seed=1)
    long = "Black_legged_Kittiwake_of_the_northern_islands, 14 of 50 taken for Glaucous_winged_Gull_of_the_coast" * 2
    rows = [(long, wrong, right), ("tern, 1 of 3 taken for skua", wrong[:1], right[:0])]
    picture = pictures.confusion_picture(tmp_path / "new" / "confusion.png", rows, "What it confuses.")
    assert picture.caption == "What it confuses."
    assert Image.open(picture.path).format == "PNG"
    axes = np.array(figures[0].axes).reshape(2, 2 * pictures.PER_CLASS + 1)
    # Up to three on either side of an arrow, from the left.
    assert [[len(axis.images) for axis in line] for line in axes] == [[1, 1, 1, 0, 1, 1, 0], [1, 0, 0, 0, 0, 0, 0]]
    for place, image in zip((0, 1, 2, 4, 5), (*wrong[:3], *right), strict=True):
        np.testing.assert_array_equal(shown(axes[0, place]), image)
    assert [part.get_suptitle().replace("\n", " ").split() for part in figures[0].subfigs] == [
        title.split() for title, *_ in rows
    ]
    assert_texts_are_apart_and_inside(figures[0])
    for line in axes:
        assert [text.get_text() for text in line[3].texts] == ["→"]
    assert not any(axis.axison for axis in axes.flat)


@pytest.mark.parametrize("classes", [1, 12, 13])
def test_scatter_picture_has_a_legend_up_to_12_classes(tmp_path, figures, classes):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, 60)
    labels[labels == classes // 2] = 0  # a class without images
    panels = {"Run a": rng.normal(0, 1, (60, 2)), "Run b": rng.normal(0, 1, (60, 2))}
    names = tuple(f"class {k}" for k in range(classes))
    picture = pictures.scatter_picture(tmp_path / "new" / "points.png", panels, labels, names, "Points.")
    assert Image.open(picture.path).format == "PNG"
    (figure,) = figures
    assert [axis.get_title() for axis in figure.axes] == ["Run a", "Run b"]
    for axis, points in zip(figure.axes, panels.values(), strict=True):
        assert len(axis.collections) == classes
        for label, drawn in enumerate(axis.collections):
            np.testing.assert_array_equal(drawn.get_offsets(), points[labels == label])
        assert len({tuple(drawn.get_facecolor()[0]) for drawn in axis.collections}) == classes
    # A class has one colour in all panels.
    first, second = ([tuple(drawn.get_facecolor()[0]) for drawn in axis.collections] for axis in figure.axes)
    assert first == second
    legends = [[text.get_text() for text in legend.get_texts()] for legend in figure.legends]
    assert legends == ([list(names)] if classes <= 12 else [])


def test_background_picture_shows_examples_and_bars(tmp_path, figures):
    examples = {"as it is": noise(4), "background alone": noise(4, seed=1)}
    bars = {"Run a": {"as it is": 0.75, "background alone": 0.25}, "Run b": {"as it is": 0.5}, "chance": {}}
    bars["chance"] = {"as it is": 0.1, "background alone": 0.1}
    picture = pictures.background_picture(tmp_path / "new" / "background.png", examples, bars, "Backgrounds.")
    assert picture.caption == "Backgrounds."
    assert Image.open(picture.path).format == "PNG"
    *grid, chart = figures[0].axes
    for axes, (title, images) in zip(np.array(grid).reshape(2, 4), examples.items(), strict=True):
        for axis, image in zip(axes, images, strict=True):
            np.testing.assert_array_equal(shown(axis), image)
        assert axes[0].get_ylabel().split() == title.split()
    assert [label.get_text() for label in chart.get_yticklabels()] == list(examples)
    assert [text.get_text() for text in chart.get_legend().get_texts()] == list(bars)
    widths = [[bar.get_width() for bar in container] for container in chart.containers]
    # What was not measured has no length.
    assert widths == [[75, 25], [50, 0], [pytest.approx(10)] * 2]
    # Each change's bars stand about its tick, the first run's on top, without covering each other.
    middles = np.array([[bar.get_y() + bar.get_height() / 2 for bar in container] for container in chart.containers])
    np.testing.assert_allclose(middles.mean(0), chart.get_yticks(), atol=1e-9)
    assert chart.yaxis_inverted()
    heights = {round(bar.get_height(), 9) for container in chart.containers for bar in container}
    np.testing.assert_allclose(np.diff(middles, axis=0), heights.pop())
    assert not heights
