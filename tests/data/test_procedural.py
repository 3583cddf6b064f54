import io
import itertools

import numpy as np
import pytest
from PIL import Image

from cvsa_jax.data.sources import load, procedural
from cvsa_jax.runtime.errors import UserError

SPEC = procedural.Spec(seed=3, classes=4, train_per_class=3, test_per_class=2, size=48)


SPEC_64 = procedural.Spec(seed=0, classes=4, train_per_class=1, test_per_class=1, size=64)


def fresh(spec: procedural.Spec):
    procedural.load.cache_clear()
    return load("procedural", "", spec)


def draw(code: dict, number: int):
    return procedural.draw(procedural.draw_bird, code, np.random.default_rng(number), SPEC_64, None)


def changed(**values) -> procedural.Source:
    return fresh(procedural.Spec(**(vars(SPEC) | values)))


def pixels(source: procedural.Source, i: int) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(source.read(i))), np.float64)


def test_procedural_counts_labels_and_splits():
    source = fresh(SPEC)
    assert len(source) == 4 * (3 + 2)
    assert len(set(source.names)) == len(source)
    assert source.classes == ("class_00", "class_01", "class_02", "class_03")
    for split, count in (("train", 3), ("test", 2)):
        members = source.splits[split]
        assert np.bincount(source.labels[members]).tolist() == [count] * 4
        assert all(source.names[i].startswith(f"{split}/class_{source.labels[i]:02d}/") for i in members)
    assert sorted(np.concatenate(list(source.splits.values()))) == list(range(len(source)))


def test_procedural_images_are_a_function_of_the_spec():
    first = [fresh(SPEC).read(i) for i in range(20)]
    source = fresh(SPEC)
    # Whatever the order of the reads.
    again = {i: source.read(i) for i in reversed(range(20))}
    assert first == [again[i] for i in range(20)]
    assert len(set(first)) == 20
    other = fresh(procedural.Spec(**(vars(SPEC) | {"seed": 4})))
    assert not set(first) & {other.read(i) for i in range(20)}
    assert other.fingerprint != source.fingerprint


def test_procedural_images_do_not_depend_on_the_number_of_images():
    more = fresh(procedural.Spec(**(vars(SPEC) | {"train_per_class": 5})))
    images = {name: more.read(i) for i, name in enumerate(more.names)}
    source = fresh(SPEC)
    assert all(images[name] == source.read(i) for i, name in enumerate(source.names))


def test_procedural_masks_are_exact(monkeypatch):
    # The same birds before two plain backgrounds: what differs is background. A pixel has nine samples and no half, so
    # the mask must be exact.
    background = procedural._background
    code = procedural.class_codes(4, 0)[0]

    def before(level: int, number: int):
        monkeypatch.setattr(
            procedural,
            "_background",
            lambda rng, big, theme: Image.new("RGB", background(rng, big, theme).size, (level, level, level)),
        )
        return draw(code, number)

    for number in range(8):
        (dark, mask), (bright, same_mask) = before(30, number), before(120, number)
        difference = np.asarray(bright, float).sum(2) - np.asarray(dark, float).sum(2)
        np.testing.assert_array_equal(mask, same_mask)
        np.testing.assert_array_equal(mask, np.where(difference < 0.5 * np.median(difference), 255, 0))


def test_procedural_masks_are_those_of_the_images():
    source = fresh(SPEC)
    shares = []
    for i in range(len(source)):
        mask = source.mask(i)
        assert mask.shape == (48, 48)
        assert set(np.unique(mask)) == {0, 255}
        shares.append((mask > 0).mean())
        # The whole bird is in the picture.
        assert not any(edge.any() for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))
    assert min(shares) > 0.05
    assert max(shares) < 0.3


@pytest.mark.parametrize("classes, seed", [(2, 0), (20, 0), (20, 1), (60, 2)])
def test_procedural_classes_differ_visibly(classes, seed):
    codes = procedural.class_codes(classes, seed)
    assert len(codes) == classes
    assert codes == procedural.class_codes(classes, seed)
    assert all(code[name] in values for code in codes for name, values in procedural.ATTRIBUTES.items())
    for a, b in itertools.combinations(codes, 2):
        both_barred = a["wing_bars"] and b["wing_bars"]
        visible = [name for name in a if name != "bar_colour" or both_barred]
        assert sum(a[name] != b[name] for name in visible) >= procedural.MIN_DIFFERENCES


def test_procedural_attributes_change_the_bird_alone():
    # Each attribute changes pixels of the bird, and nothing but the bird.
    code = {
        "crown": "red",
        "breast": "blue",
        "wing_bars": 1,
        "bar_colour": "yellow",
        "tail_tip": "white",
        "beak": "short",
    }
    image, mask = draw(code, 0)
    for name, values in procedural.ATTRIBUTES.items():
        changed = code | {name: next(v for v in values if v != code[name])}
        other, other_mask = draw(changed, 0)
        different = (np.asarray(image) != np.asarray(other)).any(2)
        assert different.sum() >= 8
        # A pixel partly covered may be outside both masks.
        near = (mask | other_mask) > 0
        near[1:] |= near[:-1].copy()
        near[:-1] |= near[1:].copy()
        near[:, 1:] |= near[:, :-1].copy()
        near[:, :-1] |= near[:, 1:].copy()
        # A beak's thin tip covers less than half of its pixels, so the mask ends before it.
        assert name == "beak" or not different[~near].any()


def test_procedural_fingerprint_is_stable_and_covers_every_choice():
    # As runs and stores of 9bb1e73 and before know them.
    assert load("procedural", "", procedural.Spec(0, 8, 40, 10, 64)).fingerprint == "5305ff5217cd6954"
    prints = {changed(**{key: value}).fingerprint for key, value in LATER.items()} | {fresh(SPEC).fingerprint}
    assert len(prints) == 1 + len(LATER)


LATER = {"scale": (0.1, 0.1), "bodies": "different", "background": "telling"}


def test_procedural_scale_is_that_of_the_bird():
    small, large = changed(scale=(0.1, 0.1)), changed(scale=(0.2, 0.2))
    shares = [[(source.mask(i) > 0).mean() for i in range(20)] for source in (small, large)]
    np.testing.assert_allclose(np.divide(*shares[::-1]), 4, rtol=0.25)  # four times the area, but for the pixels' edges


def test_telling_backgrounds_predict_the_class_in_the_train_split_alone():
    spec = {"classes": 6, "train_per_class": 20, "test_per_class": 20, "background": "telling"}
    # The class of the nearest mean colour of the border, which the birds never touch.
    right = {}
    for name, source in (("telling", changed(**spec)), ("plain", changed(**(spec | {"background": "plain"})))):
        border = np.array([pixels(source, i)[:2].mean((0, 1)) for i in range(len(source))])
        train, test = source.splits["train"], source.splits["test"]
        means = np.array([border[train[source.labels[train] == label]].mean(0) for label in range(6)])
        nearest = np.square(border[:, None] - means).sum(-1).argmin(-1)
        right[name] = [(nearest[split] == source.labels[split]).mean() for split in (train, test)]
    assert right["telling"][0] > 0.7 and right["telling"][1] < 0.35
    assert max(right["plain"]) < 0.4


def test_procedural_bodies_differ_in_shape():
    source = changed(bodies="different", train_per_class=8)
    assert all(0.02 < (source.mask(i) > 0).mean() < 0.3 for i in range(len(source)))
    assert len({str(body) for body in procedural.class_bodies(12, 0)}) == 12
    same = [
        np.array(procedural.draw(procedural.draw_body, body, np.random.default_rng(0), SPEC_64, None)[1])
        for body in procedural.class_bodies(4, 0)
    ]
    for a, b in itertools.combinations(same, 2):
        assert ((a > 0) ^ (b > 0)).sum() > 0.1 * (a > 0).sum()


@pytest.mark.parametrize(
    "values",
    [{"scale": (0.3, 0.2)}, {"bodies": "other"}, {"background": "blue"}],
    ids=["scale", "bodies", "background"],
)
def test_wrong_procedural_choices_are_refused(values):
    with pytest.raises(UserError, match="config.data.procedural." + next(iter(values))):
        changed(**values)
