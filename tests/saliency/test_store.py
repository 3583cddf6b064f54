import dataclasses
import gc
import json
import os
import shutil
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from support.small_sources import SWAP
from support.small_store import SHARD, N, detected, make, rectangle, shards, source_of, watched

from cvsa_jax.data import pipeline
from cvsa_jax.data.index import Order
from cvsa_jax.runtime import formats
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.runtime.workers import in_threads
from cvsa_jax.saliency import store as store_module
from cvsa_jax.saliency.detectors.annotation import center, masks, read_map
from cvsa_jax.saliency.store import GRID, SaliencyStore, make_record, store_path

pytestmark = pytest.mark.usefixtures("small_shards")


def on_grid(detector) -> np.ndarray:
    saliency = detected(detector)
    return make_record(saliency, 1.0, 0.5)["map"] / 255


def test_store_returns_the_maps_it_was_made_from(tmp_path):
    source = source_of()
    manifest = make(source, tmp_path / "store")
    store = SaliencyStore(tmp_path / "store", source)
    assert len(store) == N
    assert store.shape == (N, GRID, GRID)
    expected = np.stack([rectangle(i)[::2, ::2] for i in range(N)])
    indices = np.array([9, 0, 3, 4, 4, 7])
    maps = store[indices]
    assert maps.dtype == np.uint8
    np.testing.assert_array_equal(maps, expected[indices])
    np.testing.assert_array_equal(store[np.arange(N)], expected)
    assert store.usable.all()
    assert store.manifest == manifest
    assert sorted(shards(tmp_path / "store")) == ["shard-00000.npy", "shard-00001.npy", "shard-00002.npy"]
    assert not list((tmp_path / "store").glob("*.part"))


def test_store_has_boxes_areas_and_confidences(tmp_path):
    source = source_of()
    make(source, tmp_path)
    store = SaliencyStore(tmp_path, source)
    for i in range(N):
        if i in (3, 4):
            continue
        # 20 × 10 cells from row i and column 2i of 64.
        np.testing.assert_allclose(store.boxes[i], [i / 64, 2 * i / 64, (i + 20) / 64, (2 * i + 10) / 64])
        assert store.areas[i] == pytest.approx(200 / 4096)
        assert store.confidences[i] == 1
    np.testing.assert_array_equal(store.boxes[4], [0, 0, 1, 1])
    assert store.areas[4] == 1
    np.testing.assert_array_equal(store.boxes[3], [0.25, 0.25, 0.75, 0.75])
    assert (store.areas[3], store.confidences[3]) == (0, 0)


def test_manifest_describes_the_store(tmp_path):
    source = source_of()
    manifest = make(source, tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text()) == manifest
    expected = {
        "format": formats.STORE,
        "detector": "masks",
        "settings": {"threshold": 0.5},
        "supervision": "human",
        "source": "memory",
        "fingerprint": source.fingerprint,
        "images": N,
        "unreadable": [],
        "blank": 1,
        "full": 1,
        "fallback": 1,
    }
    assert {key: manifest[key] for key in expected} == expected
    assert manifest["mean_area"] == pytest.approx((8 * 200 / 4096 + 1) / N)
    timing = json.loads((tmp_path / "timing.json").read_text())
    assert timing["images"] == N
    assert timing["ms_per_image"] == pytest.approx(1000 * timing["seconds"] / N)


def test_masks_are_averaged_over_cells():
    # One of the four pixels of each cell is on.
    mask = np.zeros((2 * GRID, 2 * GRID), np.uint8)
    mask[::2, ::2] = 255
    averaged = on_grid(masks(dataclasses.replace(source_of(1), mask=lambda i: mask)))
    np.testing.assert_allclose(averaged, 0.25, atol=0.003)
    # Axes are scaled each on its own: the lower half of a wide mask is the lower half of the map.
    mask = np.zeros((50, 300), np.uint8)
    mask[25:] = 255
    averaged = on_grid(masks(dataclasses.replace(source_of(1), mask=lambda i: mask)))
    assert not averaged[: GRID // 2 - 1].any()
    assert (averaged[GRID // 2 + 1 :] == 1).all()


def test_record_of_a_soft_map():
    saliency = np.zeros((GRID, GRID), np.float32)
    saliency[10:12, 30] = 0.5
    saliency[20, 5] = 0.8
    saliency[40, 60] = 0.499
    record = make_record(saliency, 0.8, 0.5)
    np.testing.assert_allclose(record["box"], np.array([10, 5, 21, 31]) / GRID)
    assert record["area"] == pytest.approx(3 / 4096)
    assert record["confidence"] == pytest.approx(0.8)
    assert record["usable"]
    assert [int(record["map"][p]) for p in [(10, 30), (20, 5), (40, 60), (0, 0)]] == [128, 204, 127, 0]


def test_record_without_a_cell_at_the_threshold_has_the_centre_box():
    record = make_record(np.full((GRID, GRID), 0.4, np.float32), 0.4, 0.5)
    assert record["box"].tolist() == [0.25, 0.25, 0.75, 0.75]
    assert record["area"] == 0
    assert record["confidence"] == pytest.approx(0.4)
    assert (record["map"] == 102).all()


def test_killed_pass_resumes_to_the_same_files(tmp_path):
    source = source_of()
    whole = make(source, tmp_path / "whole")
    dying, _ = watched(source, dies_at=5)
    with pytest.raises(KeyboardInterrupt):
        make(source, tmp_path / "killed", dying)
    before = (tmp_path / "killed/shard-00000.npy").stat()
    assert sorted(shards(tmp_path / "killed")) == ["shard-00000.npy"]
    with pytest.raises(UserError, match=r"killed is unfinished: make it with python -m cvsa_jax\.saliency"):
        SaliencyStore(tmp_path / "killed", source)

    detector, seen = watched(source)
    again = make(source, tmp_path / "killed", detector)
    assert sorted(seen) == list(range(SHARD, N))
    after = (tmp_path / "killed/shard-00000.npy").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert shards(tmp_path / "killed") == shards(tmp_path / "whole")
    assert again == whole
    for name in ("names.txt", "identity.json", "manifest.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_finished_store_is_not_made_again(tmp_path):
    source = source_of()
    manifest = make(source, tmp_path)
    detector, seen = watched(source)
    assert make(source, tmp_path, detector) == manifest
    assert seen == []


def test_half_written_file_is_no_shard(tmp_path):
    source = source_of()
    make(source, tmp_path / "whole")
    dying, _ = watched(source, dies_at=0)
    with pytest.raises(KeyboardInterrupt):
        make(source, tmp_path / "killed", dying)
    unfinished = tmp_path / "killed/shard-00001.npy.0123abcd.part"
    unfinished.write_bytes(b"half")
    make(source, tmp_path / "killed")
    assert unfinished.exists()  # young, so perhaps another's
    unfinished.unlink()
    assert shards(tmp_path / "killed") == shards(tmp_path / "whole")


def test_missing_store_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"nowhere does not exist: .*--detector"):
        SaliencyStore(tmp_path / "nowhere", source_of())


def test_store_of_another_data_set_is_refused(tmp_path):
    make(source_of(), tmp_path)
    other = source_of(name="other")
    other = dataclasses.replace(other, names=tuple(f"x{n}" for n in other.names), identify=lambda kind: "other")
    with pytest.raises(UserError, match=r"maps of image0\.png, image1\.png and 8 more, none of the images of other"):
        SaliencyStore(tmp_path, other)


def test_added_removed_and_changed_images_are_named(tmp_path):
    make(source_of(), tmp_path)
    with pytest.raises(UserError, match=r"2 images have no map: image10\.png, image11\.png\."):
        SaliencyStore(tmp_path, source_of(N + 2))
    with pytest.raises(UserError, match=r"holds maps of 1 images that the data set no longer has: image9\.png\."):
        SaliencyStore(tmp_path, source_of(N - 1))
    with pytest.raises(UserError, match=r"some images have changed\. Make"):
        SaliencyStore(tmp_path, source_of(bad=(2,)))


@pytest.mark.parametrize("file", ["manifest.json", "identity.json"])
def test_store_of_another_version_is_refused(tmp_path, file):
    source = source_of()
    make(source, tmp_path)
    written = json.loads((tmp_path / file).read_text())
    for found, said in (
        (None, "no format version, so a version of cvsa_jax before 1.0 wrote it: make it again, into another"),
        (formats.STORE + 1, r"a newer version of cvsa_jax wrote \(this one reads \d+\): update cvsa_jax, or make it"),
        (formats.STORE - 1, r"an older version of cvsa_jax wrote \(this one reads \d+\): make it again, into another"),
    ):
        (tmp_path / file).write_text(json.dumps(written | {"format": found}))
        with pytest.raises(UserError, match=f"^the saliency store {tmp_path} has.* {said}"):
            SaliencyStore(tmp_path, source) if file == "manifest.json" else make(source, tmp_path)


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "unfinished"])
def test_another_pass_into_the_same_folder_is_refused(tmp_path, finished):
    source = source_of()
    detector, _ = watched(source, dies_at=None if finished else 5)
    if finished:
        make(source, tmp_path, detector)
    else:
        with pytest.raises(KeyboardInterrupt):
            make(source, tmp_path, detector)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=r"another saliency store .*detector: masks there, center now.*Delete it"):
        make(source, tmp_path, center(source))
    with pytest.raises(UserError, match=r"\(settings\.threshold: 0\.5 there, 0\.4 now\)"):
        make(source, tmp_path, threshold=0.4)
    with pytest.raises(UserError, match=r"fingerprint: .*images: 10 there, 11 now"):
        make(source_of(N + 1), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_corrupt_images_are_named_and_leave_the_store_unfinished(tmp_path):
    source = source_of(bad=(2, 7, 8))
    with pytest.raises(UserError, match=r"3 of 10 images .*image2\.png .*image7\.png .*image8\.png .*skip"):
        make(source, tmp_path)
    assert not (tmp_path / "manifest.json").exists()
    # The same folder then takes the pass that skips them.
    assert make(source, tmp_path, on_bad_image="skip")["unreadable"] == ["image2.png", "image7.png", "image8.png"]


def test_shards_without_corrupt_images_are_kept(tmp_path):
    source = source_of(bad=(2,))
    with pytest.raises(UserError, match=r"1 of 10 images .*image2\.png"):
        make(source, tmp_path)
    assert sorted(shards(tmp_path)) == ["shard-00001.npy", "shard-00002.npy"]
    detector, seen = watched(source)
    make(source, tmp_path, detector, on_bad_image="skip")
    assert sorted(seen) == [0, 1, 3]


def test_skipped_images_are_listed_and_not_usable(tmp_path):
    source = source_of(bad=(2, 4, 7))
    manifest = make(source, tmp_path, on_bad_image="skip")
    assert manifest["unreadable"] == ["image2.png", "image4.png", "image7.png"]
    # Counts and means are of the usable images: 4, the full one, is not.
    assert (manifest["images"], manifest["blank"], manifest["full"], manifest["fallback"]) == (N, 1, 0, 1)
    assert manifest["mean_area"] == pytest.approx(6 * 200 / 4096 / 7)
    store = SaliencyStore(tmp_path, source)
    assert np.flatnonzero(~store.usable).tolist() == [2, 4, 7]
    assert not store[np.array([2])].any()
    np.testing.assert_array_equal(store[np.array([8])][0], rectangle(8)[::2, ::2])


def test_mask_detector_needs_masks():
    with pytest.raises(UserError, match=r"memory has no masks .*--detector"):
        masks(dataclasses.replace(source_of(), mask=None))


def test_store_path_is_the_configured_one_or_that_of_set_and_detector():
    assert store_path("", "birds", "masks") == Path("saliency/birds/masks")
    assert store_path("there", "birds", "masks") == Path("there")


def test_missing_file_is_named_at_the_start(tmp_path):
    make(source_of(), tmp_path)
    (tmp_path / "shard-00001.npy").unlink()
    with pytest.raises(UserError, match=r"lacks 1 files: shard-00001\.npy\. Make it again"):
        SaliencyStore(tmp_path, source_of())


def test_store_deleted_in_use_stops_the_batches(tmp_path):
    source = source_of()
    make(source, tmp_path)
    store = SaliencyStore(tmp_path, source)
    first = store[np.arange(SHARD)]
    shutil.rmtree(tmp_path)
    np.testing.assert_array_equal(store[np.arange(SHARD)], first)  # a file in use stays readable
    with pytest.raises(UserError, match=r"was changed while it was in use .*shard-00002\.npy"):
        store.record(2 * SHARD)
    batches = pipeline.train_batches(source, np.arange(N), store, SWAP, Order(3, range(8), seed=0))
    with pytest.raises(UserError, match=r"was changed while it was in use"):
        list(batches)


def test_store_of_more_files_than_may_be_open_is_read(tmp_path, monkeypatch):
    source = source_of()
    make(source, tmp_path)
    expected = SaliencyStore(tmp_path, source)[np.arange(N)]
    monkeypatch.setattr(store_module, "_MAPPED", 1)
    opened = []
    monkeypatch.setattr(np, "load", lambda path, *, load=np.load, **how: opened.append(path.name) or load(path, **how))
    store = SaliencyStore(tmp_path, source)
    assert store.usable.all() and not opened  # the manifest knows it
    gc.collect()  # the store before
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    np.testing.assert_array_equal(store[np.arange(N)], expected)
    assert store.boxes.shape == (N, 4)
    assert len(set(opened)) == len(shards(tmp_path)) > 2
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) <= before + 1


@pytest.fixture
def other_threads_at_once():
    """Collecting garbage, which then is often, lets another thread run, also in the middle of a call."""
    let_run, when = (lambda *_: time.sleep(1e-5)), gc.get_threshold()
    gc.callbacks.append(let_run)
    gc.set_threshold(50)
    yield
    gc.set_threshold(*when)
    gc.callbacks.remove(let_run)


def test_threads_open_files_at_once(tmp_path, monkeypatch, other_threads_at_once):
    """Python's parser reads their headers; that of CPython 3.11 must not be interrupted (others were not tried)."""
    source = source_of()
    make(source, tmp_path)
    monkeypatch.setattr(store_module, "_MAPPED", 1)
    store = SaliencyStore(tmp_path, source)
    expected = store[np.arange(N)]
    images = list(range(N)) * 100
    for i, record in zip(images, in_threads(store.record, images, ahead=8), strict=True):
        np.testing.assert_array_equal(record["map"], expected[i])
    np.save(tmp_path / "map.npy", rectangle(2) / np.float32(255))
    for found in in_threads(read_map, [tmp_path / "map.npy"] * 1000, ahead=8):
        np.testing.assert_array_equal(found, rectangle(2) / np.float32(255))


def test_rate_of_a_pass_counts_the_time_of_its_first_batch(tmp_path, monkeypatch, capsys):
    # A batch takes 10 s and its images come out at once; a clock that began with the first image would see none.
    now = [0.0]
    monkeypatch.setattr("cvsa_jax.runtime.progress.time", types.SimpleNamespace(monotonic=lambda: now[0]))
    detector, _ = watched(source_of())

    def slow(images):
        now[0] += 10.0
        return detector.detect(images)

    make(source_of(), tmp_path / "store", dataclasses.replace(detector, detect=slow, batch_size=N))
    line = capsys.readouterr().out.strip().splitlines()[-1]
    batches = now[0] / 10
    assert line.startswith(f"saliency {N}/{N}  {N / (10 * batches):.1f} images/s"), line
