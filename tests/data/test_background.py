import dataclasses
import io

import flax.linen as nn
import numpy as np
import pytest
from PIL import Image

from cvsa_jax.data import background, reading
from cvsa_jax.data.pipeline import image_batches
from cvsa_jax.data.sources import Source, load
from cvsa_jax.evaluation.evaluator import Evaluator, Recognition
from cvsa_jax.evaluation.protocol import EvalSpec
from cvsa_jax.models.classifier import Classifier
from cvsa_jax.training.state import Network

REACH = 5  # px beyond which a border's softness does not reach
Y, X = np.mgrid[:40, :40]


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def source_of(images: list[np.ndarray], masks: list[np.ndarray], labels) -> Source:
    encoded = [png(image) for image in images]
    return Source(
        name="memory",
        names=tuple(f"image{i}.png" for i in range(len(images))),
        labels=np.array(labels, np.int32),
        classes=tuple(f"class{i}" for i in range(max(labels) + 1)),
        splits={"test": np.arange(len(images))},
        read=lambda i: encoded[i],
        mask=lambda i: masks[i],
        identify=lambda kind: "0",
    )


def shown(source: Source, i) -> np.ndarray:
    return reading.load_image(source, int(i))


def disc(y: float, x: float, radius: float) -> np.ndarray:
    return np.where((Y - y) ** 2 + (X - x) ** 2 < radius**2, 255, 0).astype(np.uint8)


def plain(labels, masks=None) -> Source:
    """Image i: grey level 10 + 4·i behind an object of level 250 − 4·i, both in red; green tells object from not."""
    masks = masks or [disc(15 + i % 10, 24 - i % 9, 9) for i in range(len(labels))]
    images = []
    for i, mask in enumerate(masks):
        on = mask[..., None] > 0
        images.append(np.where(on, [250 - 4 * i, 255, 0], [10 + 4 * i, 0, 0]).astype(np.uint8))
    return source_of(images, masks, labels)


LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [8, 5, 4]))


def lenders_seen(source: Source, indices: np.ndarray, seed: int, same_class: bool) -> np.ndarray:
    """Whose background the images of a `plain` source show, by its level; nothing else of the lender may be there."""
    found, changed = [], background.replaced(source, indices, seed, same_class=same_class)
    for i in indices:
        far = ~grown(source.mask(i) > 0, REACH)
        pixels = shown(changed, i)[far]
        assert (pixels == pixels[0]).all()
        assert pixels[0, 1] == pixels[0, 2] == 0
        found.append((int(pixels[0, 0]) - 10) // 4)
    return np.array(found)


def grown(mask: np.ndarray, radius: int) -> np.ndarray:
    """By definition: all within `radius` of the mask, in the largest of the two directions."""
    padded = np.pad(mask, radius)
    h, w = mask.shape
    shifts = [(y, x) for y in range(2 * radius + 1) for x in range(2 * radius + 1)]
    return np.any([padded[y : y + h, x : x + w] for y, x in shifts], 0)


def test_lenders_are_other_images_of_the_requested_class():
    source, every = plain(LABELS), np.arange(len(LABELS))
    same = lenders_seen(source, every, 0, same_class=True)
    other = lenders_seen(source, every, 0, same_class=False)
    assert (LABELS[same] == LABELS).all()
    assert (same != every).all()
    assert (LABELS[other] != LABELS).all()


def test_lenders_are_among_the_selected_images():
    source, some = plain(LABELS), np.array([1, 3, 4, 9, 12, 15])
    for same_class in (True, False):
        seen = lenders_seen(source, some, 0, same_class)
        assert set(seen) <= set(some)
        assert (seen != some).all()


def test_every_allowed_lender_is_drawn():
    draws = np.stack([background._lenders(LABELS, seed, False) for seed in range(80)])
    for row, label in enumerate(LABELS):
        assert set(draws[:, row]) == set(np.flatnonzero(label != LABELS))
    draws = np.stack([background._lenders(LABELS, seed, True) for seed in range(80)])
    for row, label in enumerate(LABELS):
        assert set(draws[:, row]) == set(np.flatnonzero(label == LABELS)) - {row}


def test_lender_is_any_other_image_where_the_class_has_none():
    # Image 2 is the only one of its class.
    source = plain([0, 0, 1])
    assert lenders_seen(source, np.arange(3), 0, same_class=True)[2] in (0, 1)
    # All are of one class.
    seen = lenders_seen(plain([0, 0, 0]), np.arange(3), 0, same_class=False)
    assert (seen != np.arange(3)).all()


def test_single_image_is_its_own_lender():
    source = plain([0])
    changed = background.replaced(source, np.array([0]), 0, same_class=False)
    mask = source.mask(0) > 0
    for away in (~grown(mask, REACH), ~grown(~mask, REACH)):
        np.testing.assert_array_equal(shown(changed, 0)[away], shown(source, 0)[away])


def test_backgrounds_depend_on_the_seed_alone():
    source, every = plain(LABELS), np.arange(len(LABELS))
    # What an image becomes does not depend on which were read before.
    first, again = (background.replaced(source, every, 1, same_class=False) for _ in range(2))
    in_turn = [first.read(i) for i in range(len(every))]
    assert in_turn == [again.read(i) for i in reversed(range(len(every)))][::-1]
    assert in_turn == [first.read(i) for i in range(len(every))]
    other = background.replaced(source, every, 2, same_class=False)
    assert in_turn != [other.read(i) for i in range(len(every))]


def noisy(labels=(0, 1, 0, 1), sizes=((40, 40), (30, 52), (64, 36), (40, 40))) -> Source:
    rng = np.random.default_rng(5)
    images, masks = [], []
    for height, width in sizes:
        y, x = np.mgrid[:height, :width]
        mask = ((y - height / 2) / (height / 3)) ** 2 + ((x - width / 2.5) / (width / 4)) ** 2 < 1
        images.append(rng.integers(0, 256, (height, width, 3), np.uint8))
        masks.append(np.where(mask, 255, 0).astype(np.uint8))
    return source_of(images, masks, labels)


def test_object_keeps_its_pixels():
    source, every = noisy(), np.arange(4)
    for same_class in (True, False):
        changed = background.replaced(source, every, 0, same_class=same_class)
        for i in every:
            inner = ~grown(source.mask(i) == 0, REACH)
            assert inner.sum() > 50
            image, original = shown(changed, i), shown(source, i)
            assert image.shape == original.shape
            assert np.abs(image[inner].astype(int) - original[inner]).max() <= 1


def test_background_is_the_lender_without_its_object():
    for sizes in (((40, 40), (30, 52)), ((64, 36), (40, 40))):
        source = noisy((0, 1), sizes)
        changed = background.replaced(source, np.arange(2), 0, same_class=False)
        for i in (0, 1):
            lender = shown(source, 1 - i)
            behind = background.without_object(lender, source.mask(1 - i) > 0)
            mask = source.mask(i) > 0
            squeezed = np.asarray(Image.fromarray(behind).resize(mask.shape[::-1], Image.Resampling.BILINEAR), int)
            far = ~grown(mask, REACH)
            assert far.sum() > 300
            assert np.abs(shown(changed, i)[far] - squeezed[far]).max() <= 1


def test_lender_of_equal_size_is_not_resampled():
    source = plain([0, 1])
    changed = background.replaced(source, np.arange(2), 0, same_class=False)
    untouched = ~grown((source.mask(0) > 0) | (source.mask(1) > 0), REACH)
    np.testing.assert_array_equal(shown(changed, 0)[untouched], shown(source, 1)[untouched])


def test_border_of_the_object_is_gaussian():
    # Of a half plane, alpha across the border is the sum of a Gaussian of 1 px up to there, cut off at 4 px.
    weights = np.exp(-(np.arange(-4, 5) ** 2) / 2)
    expected = np.cumsum(weights / weights.sum())
    mask, black = np.zeros((8, 30), bool), np.zeros((8, 30, 3), np.uint8)
    mask[:, 15:] = True
    across = background.laid_over(np.full_like(black, 200), mask, black)[4, 10:20, 0]
    np.testing.assert_allclose(across, np.round(200 * np.concatenate([[0], expected])), atol=1)
    assert (np.diff(across.astype(int)) >= 0).all()


def test_image_batches_show_the_changed_backgrounds(tmp_path):
    # Of files that their EXIF data turn, and without a banner, which are looked up by their paths otherwise.
    exif, labels, rng = Image.Exif(), np.array([0, 0, 1, 1]), np.random.default_rng(0)
    exif[0x0112] = 6
    for i in range(4):
        path = tmp_path / "images" / str(labels[i]) / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).save(path, exif=exif)
    mask = np.zeros((34, 30), np.uint8)
    mask[10:20, 8:16] = 255
    source = load("folder", str(tmp_path))
    source = dataclasses.replace(source, mask=lambda i: mask, cut=6, identify=lambda kind: "cut")
    list(image_batches(source, np.arange(4), resize=0, size=20, batch_size=4))  # so that its own headers are known
    for changed in (background.removed(source), background.replaced(source, np.arange(4), 0, same_class=False)):
        ((found, _),) = image_batches(changed, np.arange(4), resize=0, size=20, batch_size=4)
        for i in range(4):
            expected = Image.fromarray(shown(changed, i)).resize((20, 20), Image.Resampling.BILINEAR)
            assert np.abs(found[i].astype(int) - np.asarray(expected)).max() <= 1
        assert (shown(changed, 3) != shown(source, 3)).any()


def test_changed_source_keeps_all_other_fields():
    source = plain(LABELS)
    for changed in (background.replaced(source, np.arange(3), 0, same_class=True), background.removed(source)):
        for field in dataclasses.fields(Source):
            if field.name not in ("read", "identify"):
                assert getattr(changed, field.name) is getattr(source, field.name)


def test_fill_ignores_the_pixels_of_the_hole():
    rng = np.random.default_rng(1)
    image, other = rng.integers(0, 256, (2, 40, 40, 3), np.uint8)
    for hole in (disc(20, 20, 12) > 0, disc(0, 0, 25) > 0, rng.random((40, 40)) < 0.7, X > 3):
        changed = np.where(hole[..., None], other, image)
        found = background.filled(image, hole)
        np.testing.assert_array_equal(found, background.filled(changed, hole))
        np.testing.assert_array_equal(found[~hole], image[~hole])
        assert (found[hole] != image[hole]).any()


def test_fill_takes_the_nearest_colours():
    # Between a red and a blue side, red up to the middle and blue from there, with a smooth passage.
    image = np.zeros((20, 60, 3), np.uint8)
    image[:, :30, 0] = image[:, 30:, 2] = 200
    hole = np.zeros((20, 60), bool)
    hole[:, 4:56] = True
    image[hole] = 77
    found = background.filled(image, hole)
    np.testing.assert_array_equal(found[:, :12], np.broadcast_to([200, 0, 0], (20, 12, 3)))
    np.testing.assert_array_equal(found[:, 48:], np.broadcast_to([0, 0, 200], (20, 12, 3)))
    assert (np.diff(found[:, :, 2].astype(int), axis=1) >= 0).all()
    assert np.abs(found[:, 29:31].astype(int) - [100, 0, 100]).max() <= 12
    assert (found[..., 1] == 0).all()


def test_fill_has_no_streaks():
    # Noise beside the hole would go on as streaks across it: along the border, neighbours differ little.
    image = np.random.default_rng(2).integers(0, 256, (60, 60, 3), np.uint8)
    hole = np.zeros((60, 60), bool)
    hole[10:50, 10:50] = True
    inside = background.filled(image, hole)[20:40, 12:20].astype(float)
    assert np.abs(np.diff(inside, axis=0)).mean() < 8 < np.abs(np.diff(image.astype(float), axis=0)).mean() / 8


def test_fill_of_empty_and_full_holes():
    image = np.random.default_rng(3).integers(0, 256, (12, 20, 3), np.uint8)
    np.testing.assert_array_equal(background.filled(image, np.zeros((12, 20), bool)), image)
    np.testing.assert_array_equal(background.filled(image, np.ones((12, 20), bool)), np.full((12, 20, 3), 128))


def test_without_object_takes_out_a_narrow_halo():
    # A halo of two pixels, such as a blurred border leaves, goes with the object; what is farther off stays.
    mask = disc(20, 20, 9) > 0
    halo = disc(20, 20, 10.2) > 0
    image = np.where(halo[..., None], [250, 250, 250], [20, 60, 100]).astype(np.uint8)
    assert (background.without_object(image, mask) == [20, 60, 100]).all()
    noise = np.random.default_rng(4).integers(0, 256, (40, 40, 3), np.uint8)
    far = ~grown(mask, 3)
    np.testing.assert_array_equal(background.without_object(noise, mask)[far], noise[far])


def with_object(source: Source, i: int, change) -> Source:
    """The source with another image i, `change` of the old one."""
    images = [shown(source, k) for k in range(len(source))]
    images[i] = change(images[i].copy())
    return source_of(images, [source.mask(k) for k in range(len(source))], source.labels.tolist())


def box_of(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(mask)
    box = np.zeros(mask.shape, bool)
    box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    return box


def test_removed_erases_the_whole_box():
    source = noisy()
    for i in range(4):
        box = box_of(source.mask(i))
        other = with_object(source, i, lambda image, box=box: np.where(box[..., None], 255 - image, image))
        found = shown(background.removed(source), i)
        np.testing.assert_array_equal(found, shown(background.removed(other), i))
        far = ~grown(box, 3)
        assert far.sum() > 100
        np.testing.assert_array_equal(found[far], shown(source, i)[far])
        # All of the box has changed, and not only the object.
        assert (found[box] != shown(source, i)[box]).any(-1).mean() > 0.9


def test_removed_erases_the_border_of_the_object():
    # A square whose border covers 45 % of the pixels around it, which do not count as the object.
    inner, outer = np.zeros((2, 40, 40), bool)
    inner[12:28, 12:28] = outer[11:29, 11:29] = True
    image = np.zeros((40, 40, 3), np.uint8)
    image[outer], image[inner] = 110, 245
    source = source_of([image], [np.where(inner, 255, 0).astype(np.uint8)], [0])
    assert shown(background.removed(source), 0).max() < 15


def test_removed_hides_the_shape_of_the_object():
    # Of one box: a disc, the square around it, and two of its opposite corners.
    image = np.random.default_rng(6).integers(0, 256, (40, 40, 3), np.uint8)
    round_, square, corners = disc(20, 20, 10), np.zeros((40, 40), np.uint8), np.zeros((40, 40), np.uint8)
    square[11:30, 11:30] = 255
    corners[11:14, 11:14] = corners[27:30, 27:30] = 255
    removed = background.removed(source_of([image] * 3, [round_, square, corners], [0, 0, 0]))
    assert removed.read(0) == removed.read(1) == removed.read(2)


def test_masks_of_another_size_are_resized_to_the_image():
    full = [disc(14, 20, 10), disc(24, 22, 12)]
    small = [mask[::2, ::2] for mask in full]
    large = [mask.repeat(2, 0).repeat(2, 1) for mask in small]
    expected = plain([0, 1], large)
    source = dataclasses.replace(expected, mask=lambda i: small[i])
    for change in (lambda s: background.replaced(s, np.arange(2), 0, same_class=False), background.removed):
        for i in (0, 1):
            assert change(source).read(i) == change(expected).read(i) != source.read(i)


def test_image_with_an_empty_mask_becomes_the_lender():
    nothing = np.zeros((40, 40), np.uint8)
    source = plain([0, 1], [nothing, disc(20, 20, 9)])
    changed = background.replaced(source, np.arange(2), 0, same_class=False)
    # Nothing is kept of the image, and of the lender its background.
    assert (shown(changed, 0) == [14, 0, 0]).all()
    np.testing.assert_array_equal(shown(background.removed(source), 0), shown(source, 0))


def test_image_with_a_full_mask_keeps_its_pixels():
    whole = np.full((40, 40), 255, np.uint8)
    source = plain([0, 1], [whole, disc(20, 20, 9)])
    changed = background.replaced(source, np.arange(2), 0, same_class=False)
    np.testing.assert_array_equal(shown(changed, 0), shown(source, 0))
    assert (shown(changed, 1)[0] == 128).all()  # there is no background to lend
    assert (shown(background.removed(source), 0) == 128).all()


class Part(Classifier):
    """Its features are the mean colour of the corners, or of the middle, of the image."""

    corners: bool = False

    def setup(self):
        pass

    @nn.nowrap
    def features(self, images):
        part = images[:, :3, :3] if self.corners else images[:, 19:21, 19:21]
        return images, part.mean((1, 2))


def class_colours() -> Source:
    """Discs of class k's colour in the middle, on the colour of class k + 1."""
    labels = LABELS.tolist()
    mask = disc(19.5, 19.5, 12)
    colours = 200 * np.eye(3)
    images = [np.where(mask[..., None] > 0, colours[k], colours[(k + 1) % 3]).astype(np.uint8) for k in labels]
    return source_of(images, [mask] * len(labels), labels)


def background_figures(mesh, source: Source, corners: bool) -> dict[str, float]:
    evaluator = Evaluator(Part(3, corners=corners), mesh, source, EvalSpec(40, 40, 8, "others"))
    # The class of the largest colour; the corners of class k have the colour of the next one.
    weights = np.zeros((4, 3))
    weights[:3] = np.roll(np.eye(3), -1, 1) if corners else np.eye(3)
    network, images = Network({}, {}), np.arange(len(source))
    found = Recognition({}, evaluator.features(network, images), weights, None)
    return evaluator.background(network, found, images, seed=0)


KINDS = ("as_it_is", "same_background", "other_background", "background_only")


def test_background_gap_is_one_for_a_classifier_of_the_background(mesh_of):
    figures = background_figures(mesh_of(1), class_colours(), corners=True)
    assert figures.pop("background_gap") == 1
    assert figures == {f"{kind}_top1": kind != "other_background" for kind in KINDS}


def test_background_gap_is_zero_for_a_classifier_of_the_object(mesh_of):
    # Without the object it sees the background's colour, that of the next class.
    figures = background_figures(mesh_of(1), class_colours(), corners=False)
    assert figures.pop("background_gap") == 0
    assert figures == {f"{kind}_top1": kind != "background_only" for kind in KINDS}


def test_background_figures_leave_out_images_without_a_mask(mesh_of):
    # The only images that the classifier has wrong are those without a mask.
    source, masked = class_colours(), np.arange(len(LABELS)) % 3 > 0
    wrong = np.where(masked, source.labels, (source.labels + 1) % 3)
    figures = background_figures(mesh_of(1), dataclasses.replace(source, labels=wrong, masked=masked), corners=False)
    assert figures["as_it_is_top1"] == figures["same_background_top1"] == 1


def test_background_figures_need_masks(mesh_of):
    assert background_figures(mesh_of(1), dataclasses.replace(class_colours(), mask=None), corners=True) == {}


def test_background_figures_leave_out_images_with_an_empty_mask(monkeypatch):
    masks = [disc(20, 20, 8), np.zeros((40, 40), np.uint8), disc(15, 20, 6), disc(20, 12, 7)]
    images = [np.full((40, 40, 3), 30 * k, np.uint8) for k in range(4)]
    source = source_of(images, masks, [0, 0, 1, 1])
    evaluator, asked = Evaluator.__new__(Evaluator), []
    evaluator.source = source
    monkeypatch.setattr(evaluator, "features", lambda network, test, key, changed: asked.append(test) or found[test])
    found = np.eye(4)[:, :2]
    recognition = Recognition({}, found, np.zeros((3, 2)))
    figures = evaluator.background(Network({}, {}), recognition, np.arange(4), 0)
    assert all(test.tolist() == [0, 2, 3] for test in asked) and len(asked) == 3
    assert figures["as_it_is_top1"] == pytest.approx(1 / 3)
