"""Figures against masks where some images have none: those of the images that have one."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from cvsa_jax.data.sources.source import Source
from cvsa_jax.evaluation.evaluator import Evaluator, center_prior, chance
from cvsa_jax.evaluation.protocol import EvalSpec
from cvsa_jax.models.siamese import Siamese
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.saliency.detectors.annotation import masks
from cvsa_jax.saliency.quality import measure

MASKS = (np.random.default_rng(0).random((6, 4, 4)) < 0.4).astype(np.uint8) * 255
KNOWN = np.array([0, 2, 3, 5])
MASKED = np.isin(np.arange(6), KNOWN)


def mask_of(i: int) -> np.ndarray:
    assert MASKED[i], "an image without a mask was asked for it"
    return np.kron(MASKS[i], np.ones((4, 4), np.uint8))


SOURCE = Source(
    "partial",
    tuple("abcdef"),
    np.array([0, 1] * 3, np.int32),
    ("x", "y"),
    {},
    lambda i: b"",
    mask_of,
    lambda kind: "f",
    masked=MASKED,
)


def test_localization_chance_and_center_use_masked_images_only(mesh_of, capsys):
    evaluator = Evaluator(Siamese(), mesh_of(1), SOURCE, EvalSpec(16, 16, 4, "others"))
    everything, maps = np.arange(6), np.random.default_rng(1).random((6, 5, 5)).astype(np.float32)
    found = evaluator.masks(everything)
    assert "4 of 6 images have a mask: figures against masks are of these" in capsys.readouterr().out
    assert found[MASKED].any((1, 2)).all() and not found[~MASKED].any()
    whole = evaluator.localization(maps, everything, found)
    some = evaluator.localization(maps[KNOWN], KNOWN, evaluator.masks(KNOWN))
    assert whole.pop("images_with_masks") == 4 and whole == some
    assert chance(SOURCE, everything, found) == chance(SOURCE, KNOWN, found[KNOWN]) | {
        "linear_top1": 0.5,
        "knn_top1": 0.5,
    }
    assert center_prior(SOURCE, everything, found) == center_prior(SOURCE, KNOWN, found[KNOWN])


def test_map_quality_uses_masked_images_only():
    records = np.zeros(6, [("map", np.uint8, (8, 8)), ("box", np.float32, 4)])
    records["map"] = np.random.default_rng(2).integers(0, 256, (6, 8, 8))
    records["box"] = np.linspace((0.1, 0.1, 0.5, 0.9), (0.1, 0.1, 0.8, 0.9), 6)
    whole = measure(SOURCE, np.arange(6), records.__getitem__, 0.5)
    assert whole == measure(SOURCE, KNOWN, records.__getitem__, 0.5) and "iou" in whole


def test_masks_as_maps_need_every_mask():
    with pytest.raises(UserError, match=r"2 of 6 images of partial have no mask: b, e\. Draw them, or take another"):
        masks(SOURCE)
    assert masks(dataclasses.replace(SOURCE, masked=None)).name == "masks"


def test_masks_of_no_image_are_named_when_no_mask_matches(tmp_path):
    from cvsa_jax.data.sources import load

    for name in ("images/1.jpg", "masks/one.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name)
    source = load("folder", str(tmp_path))
    assert source.mask is None
    with pytest.raises(
        UserError, match=r"has no masks .*What lies among the masks belongs to no image: masks/one\.png"
    ):
        masks(source)
