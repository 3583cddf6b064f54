import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.small_sources import write_all, write_image
from support.small_store import detected, source_of

from cvsa_jax.data.inspect import check_annotations
from cvsa_jax.data.sources import Source, load
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.saliency.detectors import annotation
from cvsa_jax.saliency.detectors.annotation import boxes, center, folder
from cvsa_jax.saliency.store import GRID, make_record

# Boxes and the centre.


def boxed(*corners: tuple[float, float, float, float]) -> Source:
    return dataclasses.replace(source_of(len(corners)), box=lambda i: np.array(corners[i], float))


def test_boxes_are_soft_rectangles_with_a_half_on_their_edges():
    # Edges through the centres of cells: 32 rows from 8, 10 columns from 20.
    detector = boxes(boxed((8.5 / 64, 20.5 / 64, 40.5 / 64, 30.5 / 64)))
    saliency = detected(detector)
    assert saliency.shape == (GRID, GRID)
    assert saliency.dtype == np.float32
    for edge in ((8, 25), (40, 25), (24, 20), (24, 30)):
        assert saliency[edge] == pytest.approx(0.5, abs=1e-4)
    for corner in ((8, 20), (8, 30), (40, 20), (40, 30)):
        assert saliency[corner] == pytest.approx(0.25, abs=1e-4)
    assert saliency[24, 25] > 0.999
    assert max(saliency[0].max(), saliency[-1].max(), saliency[:, 0].max(), saliency[:, -1].max()) < 0.1
    # The scale of the edges is 0.05 of the side that they end: one cell inside and one outside.
    for cell, side in (((9, 25), 32), ((39, 25), 32), ((24, 21), 10), ((24, 29), 10)):
        assert saliency[cell] == pytest.approx(1 / (1 + np.exp(-1 / side / 0.05)), abs=1e-4)
    for cell, side in (((7, 25), 32), ((24, 31), 10)):
        assert saliency[cell] == pytest.approx(1 / (1 + np.exp(1 / side / 0.05)), abs=1e-4)
    assert (detector.name, detector.supervision) == ("boxes", "human")


@pytest.mark.parametrize(
    "box",
    [(0, 0, 1, 1), (0.1, 0.2, 0.8, 0.6), (0.013, 0.517, 0.333, 0.999), (0, 0.1, 0.026, 0.9)],
    ids=["whole image", "inside", "nearly at the border", "narrow at the border"],
)
def test_box_is_recovered_from_its_map(box):
    detector = boxes(boxed((0.4, 0.4, 0.6, 0.6), box))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (detection,) = detector.detect([detector.prepare(1, np.zeros((6, 8, 3), np.uint8))])
    record = make_record(detection.saliency, detection.confidence, 0.5)
    np.testing.assert_allclose(record["box"], box, atol=1 / GRID)
    assert detection.confidence == detection.saliency.max()


def test_box_detector_needs_boxes():
    with pytest.raises(UserError, match=r"memory has no boxes .*--detector"):
        boxes(source_of(1))


def test_centre_prior_is_a_gaussian_of_a_quarter_of_the_side():
    detector = center(dataclasses.replace(source_of(2), mask=None))
    rows, cols = (np.mgrid[:GRID, :GRID] + 0.5) / GRID - 0.5
    expected = np.exp(-(rows**2 + cols**2) / (2 * 0.25**2))
    for i in range(2):
        np.testing.assert_allclose(detected(detector, i), expected, atol=1e-6)
    assert (detector.name, detector.supervision, detector.settings) == ("center", "prior", {"sigma": 0.25})


# The user's maps.


def named(*names: str) -> Source:
    return dataclasses.replace(source_of(len(names)), names=names)


def write_map(path: Path, values: np.ndarray):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values) if path.suffix == ".npy" else Image.fromarray(values).save(path)


def shuffled_palette(levels: np.ndarray) -> Image.Image:
    """A palette image whose indices are not its levels."""
    image = Image.fromarray(255 - levels, "L").convert("P")
    image.putpalette(np.repeat(np.arange(255, -1, -1), 3).astype(np.uint8).tobytes())
    return image


FORMATS = {
    "8 bits": (255, lambda path, v: Image.fromarray(v.astype(np.uint8)).save(path)),
    "16 bits": (65535, lambda path, v: Image.fromarray(v.astype(np.uint16)).save(path)),
    "RGB": (255, lambda path, v: Image.fromarray(np.stack([v.astype(np.uint8)] * 3, 2)).save(path)),
    "RGBA": (255, lambda path, v: Image.fromarray(v.astype(np.uint8)).convert("RGBA").save(path)),
    "LA": (255, lambda path, v: Image.fromarray(v.astype(np.uint8)).convert("LA").save(path)),
    "palette": (255, lambda path, v: shuffled_palette(v.astype(np.uint8)).save(path)),
    "1 bit": (1, lambda path, v: Image.fromarray(v > 0).save(path)),
    "npy float64": (1, lambda path, v: np.save(path, v)),
    "npy float32": (1, lambda path, v: np.save(path, v.astype(np.float32))),
    "npy float16": (1, lambda path, v: np.save(path, v.astype(np.float16))),
    "npy uint8": (255, lambda path, v: np.save(path, v.astype(np.uint8))),
    "npy bool": (1, lambda path, v: np.save(path, v > 0)),
}


@pytest.mark.parametrize("form", FORMATS)
def test_maps_of_every_format_are_read(tmp_path, form):
    full, save = FORMATS[form]
    values = np.random.default_rng(0).uniform(0, full, (5, 7))
    # Its ends, and, in 16 bits, what 8 bits would lose.
    values.flat[:3] = [full, 0, 0.3 * full]
    values = values if "float" in form else (values > full / 2 if full == 1 else np.round(values)).astype(float)
    save(tmp_path / ("image0.npy" if "npy" in form else "image0.png"), values)
    saliency = detected(folder(source_of(1), tmp_path, "human"))
    assert saliency.dtype == np.float32
    tolerance = 1e-3 if form == "npy float16" else 1e-6
    np.testing.assert_allclose(saliency, values / full, atol=tolerance)


def test_folders_of_maps_mirror_those_of_the_images(tmp_path):
    source = named("owl/a.jpg", "wren/a.png", "b.jpeg", "c.d.jpg")
    for k, name in enumerate(("owl/a.png", "wren/a.npy", "b.png", "c.d.png")):
        write_map(tmp_path / name, np.full((2, 3), 10 * k, np.uint8))
    write_map(tmp_path / "a.png", np.full((2, 3), 200, np.uint8))
    detector = folder(source, tmp_path, "unsupervised")
    levels = [detected(detector, i) * 255 for i in range(4)]
    np.testing.assert_allclose(levels, np.repeat([0, 10, 20, 30], 6).reshape(4, 2, 3), atol=1e-4)
    assert (detector.name, detector.supervision) == ("folder", "unsupervised")
    (detection,) = detector.detect([np.array([[0.2, 0.6]], np.float32)])
    assert detection.confidence == pytest.approx(0.6)


def test_images_without_a_map_are_named(tmp_path):
    write_map(tmp_path / "owl/b.png", np.zeros((2, 3), np.uint8))
    write_map(tmp_path / "a.png", np.zeros((2, 3), np.uint8))
    with pytest.raises(UserError, match=r"no map .* of 3 of 4 images: owl/a\.jpg, wren/b\.jpg, d\.png$"):
        folder(named("owl/a.jpg", "owl/b.jpg", "wren/b.jpg", "d.png"), tmp_path, "human")
    with pytest.raises(UserError, match=r"12 of 12 images: .*image4\.png and 7 more$"):
        folder(source_of(12), tmp_path, "human")
    with pytest.raises(UserError, match=r"--maps=.*nowhere is not a folder"):
        folder(source_of(1), tmp_path / "nowhere", "human")
    with pytest.raises(UserError, match=r"--maps=.*a\.png is not a folder"):
        folder(source_of(1), tmp_path / "a.png", "human")


@pytest.mark.parametrize(
    "ending, content, message",
    [
        ("npy", np.zeros((4, 5, 3)), r"has shape \(4, 5, 3\); it must be \(height, width\)"),
        ("npy", np.zeros((0, 4)), r"has shape \(0, 4\)"),
        ("npy", np.array([[0.5, np.nan]]), r"values from nan to nan; they must lie in \[0, 1\]"),
        ("npy", np.array([[0.5, 255.0]]), r"values from 0\.5 to 255"),
        ("npy", np.array([[-0.25, 1.0]], np.float32), r"values from -0\.25 to 1;"),
        ("npy", np.array([["a"]], object), "cannot read the saliency map"),
        ("png", b"no image", "cannot read the saliency map"),
        ("png", "cut", "cannot read the saliency map"),
        ("npy", "cut", "cannot read the saliency map"),
        ("npy", np.array([[0, 255]]), "of type int64; it must be float"),
        ("png", np.full((2, 2, 3), [255, 0, 0], np.uint8), r"has shape \(2, 2, 3\)"),
    ],
    ids=[
        *("channels", "no pixel", "NaN", "above 1", "negative", "pickled", "no PNG", "half a PNG", "half an array"),
        *("integers", "colours"),
    ],
)
def test_files_that_are_no_maps_are_refused(tmp_path, ending, content, message):
    path = tmp_path / f"image0.{ending}"
    if isinstance(content, np.ndarray):
        write_map(path, content)
    elif content == "cut":
        write_map(path, np.random.default_rng(0).integers(0, 255, (50, 60)).astype(np.uint8))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_bytes(content)
    detector = folder(source_of(1), tmp_path, "human")
    with pytest.raises(UserError, match=message) as caught:
        detected(detector)
    assert f"saliency map {path}" in str(caught.value)


def test_settings_change_with_the_maps(tmp_path):
    def settings(below: str) -> dict:
        return folder(source_of(2), tmp_path / below, "human").settings

    for below in ("here", "there"):
        for i in range(2):
            write_map(tmp_path / below / f"image{i}.npy", np.zeros((4, 5), np.float32))
    first = settings("here")
    assert settings("here") == settings("there") == first
    # Another size; the other image's; another ending.
    write_map(tmp_path / "there/image0.npy", np.zeros((4, 6), np.float32))
    found = [first, settings("there")]
    (tmp_path / "there/image0.npy").rename(tmp_path / "there/kept")
    write_map(tmp_path / "there/image0.npy", np.zeros((4, 5), np.float32))
    (tmp_path / "there/kept").rename(tmp_path / "there/image1.npy")
    found.append(settings("there"))
    (tmp_path / "here/image0.npy").rename(tmp_path / "here/image0.png")
    found.append(settings("here"))
    assert all(a != b for k, a in enumerate(found) for b in found[:k])
    # What belongs to no image does not count.
    write_map(tmp_path / "there/image7.npy", np.zeros((4, 5)))
    assert settings("there") == found[2]


def test_box_narrower_than_a_cell_is_kept():
    record = make_record(detected(boxes(boxed((0.2, 0.311, 0.8, 0.312)))), 1.0, 0.5)
    assert record["area"] > 0
    # 0.311 is in the 20th of 64 columns.
    assert 19 / 64 <= record["box"][1] < record["box"][3] <= 21 / 64


def test_images_of_one_stem_have_maps_of_their_own(tmp_path):
    write_all(tmp_path / "set", "a.jpg", "a.png", "b.png")
    source, maps = load("folder", str(tmp_path / "set")), tmp_path / "maps"
    maps.mkdir()
    for name, value in (("a", 0.9), ("a.jpg", 0.1), ("a.png", 0.2), ("b", 0.3)):
        np.save(maps / f"{name}.npy", np.full((4, 4), value, np.float32))
    detector = annotation.folder(source, maps, "human")
    values = [float(detector.prepare(i, None).max()) for i in range(3)]
    assert values == pytest.approx([0.1, 0.2, 0.3])
    (maps / "a.png.npy").unlink()
    with pytest.raises(UserError, match=r"no map .* of 1 of 3 images: a\.png\. .*a\.jpg\.npy"):
        annotation.folder(source, maps, "human")


def test_graded_masks_are_graded_maps_and_reported(tmp_path, capsys):
    for name in ("1", "2"):
        write_image(tmp_path / f"images/owl/{name}.png", 64, 64)
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
    for name, mask in (("1", ramp), ("2", np.where(ramp > 99, 255, 0).astype(np.uint8))):
        path = tmp_path / f"masks/owl/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
    source = load("folder", str(tmp_path))
    detector = annotation.masks(source)
    (graded,) = detector.detect([detector.prepare(0, np.zeros((64, 64, 3), np.uint8))])
    np.testing.assert_allclose(make_record(graded.saliency, graded.confidence, 0.5)["map"], ramp, atol=1)
    check_annotations(source, np.arange(2))
    assert "1 of 2 masks are of degrees: figures count levels above 127 of 255" in capsys.readouterr().out
    check_annotations(source, np.array([1]))
    assert capsys.readouterr().out == ""
