import contextlib
import dataclasses
import gc
import io
import weakref
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from support.small_sources import CROP, SWAP, memory_source

from cvsa_jax.data import headers, pictures, pipeline
from cvsa_jax.data.index import Order, example_order
from cvsa_jax.data.pipeline import Input, crop_batches, image_batches, train_batches
from cvsa_jax.data.reading import load_image, readable, readable_splits
from cvsa_jax.data.resample import with_masks
from cvsa_jax.data.sources import Source, load
from cvsa_jax.data.views import WholeImages
from cvsa_jax.runtime import workers
from cvsa_jax.runtime.errors import UserError

N, BATCH, SEED = 13, 6, 5
POOL = np.arange(2, N)
COLOURS = np.stack([np.arange(N) * 19, 255 - np.arange(N) * 19, np.arange(N) % 3 * 100], -1).astype(np.uint8)


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def coloured() -> list[bytes]:
    return [png(np.broadcast_to(COLOURS[i], (12 + i, 30 - i, 3)).copy()) for i in range(N)]


def textured() -> list[bytes]:
    rng = np.random.default_rng(0)
    return [png(rng.integers(0, 256, (12 + i, 30 - i, 3)).astype(np.uint8)) for i in range(N)]


MAPS = np.random.default_rng(1).integers(0, 256, (N, 64, 64)).astype(np.uint8)


def batches(encoded, spec, steps, saliency=None, pool=POOL, **processes) -> list[dict[str, np.ndarray]]:
    made = train_batches(memory_source(encoded), pool, saliency, spec, Order(BATCH, steps, SEED, **processes))
    return [with_masks(batch, spec.size, np) for batch in made]


def assert_same(a: list[dict], b: list[dict]):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_array_equal(x[name], y[name])


def test_batches_do_not_depend_on_processes_and_first_step():
    whole = batches(textured(), CROP, range(5), MAPS)
    assert whole[0].keys() == {"view1", "view2", "mask1", "mask2", "position"}
    assert whole[0]["view1"].shape == (BATCH, 16, 16, 3)
    assert whole[0]["mask2"].shape == (BATCH, 4, 4)
    shares = [batches(textured(), CROP, range(3, 5), MAPS, process_index=p, process_count=2) for p in range(2)]
    assert_same(whole[3:], [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*shares, strict=True)])


def test_swapped_batches_do_not_depend_on_processes_and_first_step():
    spec = dataclasses.replace(SWAP, swapped_views=1)
    whole = batches(textured(), spec, range(5), MAPS)
    share = batches(textured(), spec, range(3, 5), MAPS, process_index=1, process_count=2)
    assert_same([{name: rows[BATCH // 2 :] for name, rows in batch.items()} for batch in whole[3:]], share)


def test_epoch_holds_each_example_of_the_pool_once():
    # A crop of an image of one colour has that colour, so the views tell which examples they are.
    encoded = coloured()
    encoded[0] = b"no image, but outside the pool"
    found = batches(encoded, CROP, range(len(POOL)))
    rows = {name: np.concatenate([batch[name] for batch in found]) for name in found[0]}
    assert rows.keys() == {"view1", "view2", "position"}
    assert rows["position"].dtype == np.uint32
    np.testing.assert_array_equal(rows["position"], [[0, p] for p in range(BATCH * len(POOL))])
    for name in ("view1", "view2"):
        pixels = rows[name].reshape(BATCH * len(POOL), -1, 3)
        assert (pixels == pixels[:, :1]).all()
        examples = [int(np.flatnonzero((colour == COLOURS).all(1))[0]) for colour in pixels[:, 0]]
        epochs = np.array(examples).reshape(BATCH, len(POOL))
        np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(POOL, (BATCH, 1)))
        assert len({tuple(epoch) for epoch in epochs}) == BATCH


def test_maps_belong_to_their_images():
    # Each image is a grey of its map's one level, so the mask of a crop is the view's colour.
    levels = (np.arange(N) * 19).astype(np.uint8)
    encoded = [png(np.full((20, 24, 3), level, np.uint8)) for level in levels]
    maps = np.broadcast_to(levels[:, None, None], (N, 64, 64))
    for batch in batches(encoded, CROP, range(3), maps):
        for v in ("1", "2"):
            np.testing.assert_array_equal(batch["mask" + v][:, 0, 0], batch["view" + v][:, 0, 0, 0])
            assert np.ptp(batch["mask" + v]) > 0


def test_pool_smaller_than_the_group_is_an_error():
    with pytest.raises(UserError, match=r"memory: 2 images .*group=3"):
        batches(coloured(), CROP, range(1), pool=np.arange(2))


def test_undecodable_images_are_named():
    encoded = textured()
    encoded[7] = encoded[7][: len(encoded[7]) // 2]
    with pytest.raises(UserError, match=r"1 of 13 images of memory cannot be decoded: image7\.png") as caught:
        batches(encoded, CROP, range(2))
    assert "on_bad_image=skip" in str(caught.value)
    encoded[3] = b""
    with pytest.raises(UserError, match=r"2 of 13 .*image3\.png .*image7\.png"):
        list(image_batches(memory_source(encoded), np.arange(N), resize=0, size=8, batch_size=4))


@pytest.mark.parametrize("batch_size", [5, 13, 64])
def test_image_batches_yield_each_image_once_in_order(batch_size):
    indices = np.array([*range(5, N), *range(5)])
    found = list(image_batches(memory_source(coloured()), indices, resize=10, size=8, batch_size=batch_size))
    assert all(images.shape == (batch_size, 8, 8, 3) and images.dtype == np.uint8 for images, _ in found)
    full, rest = divmod(N, batch_size)
    assert [count for _, count in found] == [batch_size] * full + [rest] * (rest > 0)
    rows = np.concatenate([images[:count] for images, count in found])
    np.testing.assert_array_equal(rows, np.broadcast_to(COLOURS[indices][:, None, None], (N, 8, 8, 3)))
    last, count = found[-1]
    assert not last[count:].any()


def wavy_image(height: int, width: int) -> Image.Image:
    """Smooth waves, and noise that only an antialiased resize averages away."""
    y, x = np.mgrid[:height, :width] / [[[height]], [[width]]]
    waves = np.stack([np.sin(5 * x + 2 * y), np.cos(4 * y - x), np.sin(3 * x * y + 1)], -1)
    noise = np.random.default_rng(0).uniform(-1, 1, waves.shape)
    return Image.fromarray((127 + 80 * waves + 40 * noise).astype(np.uint8))


@pytest.mark.parametrize("width, height", [(90, 60), (60, 96)])
def test_centre_crop_against_pil(width, height):
    image = wavy_image(height, width)
    ((images, count),) = image_batches(
        memory_source([png(np.asarray(image))]), np.array([0]), resize=40, size=32, batch_size=1
    )
    assert count == 1
    scale = 40 / min(width, height)
    scaled = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
    x, y = (scaled.width - 32) // 2, (scaled.height - 32) // 2
    expected = np.asarray(scaled.crop((x, y, x + 32, y + 32)), int)
    assert np.abs(images[0].astype(int) - expected).max() <= 2


@pytest.mark.parametrize("width, height", [(90, 60), (30, 45)])
def test_resize_zero_squeezes_the_whole_image(width, height):
    image = wavy_image(height, width)
    ((images, _),) = image_batches(
        memory_source([png(np.asarray(image))]), np.array([0]), resize=0, size=32, batch_size=1
    )
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR), int)
    assert np.abs(images[0].astype(int) - expected).max() <= 2


def with_two_bad() -> Source:
    encoded = coloured()
    encoded[4], encoded[9] = b"", b"no image"
    return memory_source(encoded)


def test_readable_skip_leaves_bad_images_out_and_prints_them(capsys):
    kept = readable(with_two_bad(), np.arange(3, N), "skip")
    np.testing.assert_array_equal(kept, [i for i in range(3, N) if i not in (4, 9)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "image4.png" in lines[0]
    assert "the file is empty" in lines[0]
    assert "image9.png" in lines[1]


def test_readable_trusts_an_earlier_pass(capsys):
    usable = np.ones(N, bool)
    usable[[1, 5]] = False
    source = dataclasses.replace(
        memory_source([]), names=tuple(f"image{i}.png" for i in range(N)), read=lambda i: pytest.fail("read")
    )
    np.testing.assert_array_equal(readable(source, np.arange(4, N), "skip", usable), [4, *range(6, N)])
    printed = capsys.readouterr().out
    assert "image5.png" in printed
    assert "image1.png" not in printed
    with pytest.raises(UserError, match=r"image5\.png") as caught:
        readable(source, np.arange(4, N), "stop", usable)
    assert "image1.png" not in str(caught.value)
    np.testing.assert_array_equal(readable(source, np.arange(6, N), "stop", usable), np.arange(6, N))


def test_readable_stop_without_an_earlier_pass_reads_nothing():
    source = dataclasses.replace(with_two_bad(), read=lambda i: pytest.fail("read"))
    np.testing.assert_array_equal(readable(source, POOL, "stop"), POOL)


LABELS = (np.arange(N) * 7 % 5).astype(np.int32)


@pytest.mark.parametrize("labels", [LABELS, np.zeros(N, np.int32)], ids=["five classes", "one class"])
def test_train_images_of_one_class_are_warned_of(labels, capsys):
    source = dataclasses.replace(memory_source(coloured()), labels=labels, classes=tuple("abcde"))
    source = dataclasses.replace(source, splits={"train": np.arange(4), "test": np.arange(4, N)})
    readable_splits(source, ConfigDict({"train_split": "train", "test_split": "test", "on_bad_image": "stop"}))
    assert ("all 4 train images are of one class" in capsys.readouterr().out) == (not labels.any())


def crops(encoded, steps, *, pool=POOL, area=(0.2, 1.0), size=16, batch_size=BATCH, seed=SEED, **processes):
    source = memory_source(encoded, LABELS)
    return list(crop_batches(source, pool, Order(batch_size, steps, seed, **processes), area=area, size=size))


def test_crops_come_in_the_data_order_with_their_labels():
    encoded = coloured()
    encoded[0] = b"no image, but outside the pool"
    found = crops(encoded, range(len(POOL)))
    assert all(batch.keys() == {"image", "label"} for batch in found)
    assert all((batch["image"].shape, batch["image"].dtype) == ((BATCH, 16, 16, 3), np.uint8) for batch in found)
    images, labels = (np.concatenate([batch[name] for batch in found]) for name in ("image", "label"))
    pixels = images.reshape(len(images), -1, 3)
    assert (pixels == pixels[:, :1]).all()
    examples = np.array([int(np.flatnonzero((colour == COLOURS).all(1))[0]) for colour in pixels[:, 0]])
    order = example_order(np.arange(BATCH * len(POOL)), len(POOL), SEED)
    np.testing.assert_array_equal(examples, POOL[order])
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, LABELS[examples])


def test_crops_do_not_depend_on_processes_and_first_step():
    whole = crops(textured(), range(5))
    shares = [crops(textured(), range(3, 5), process_index=p, process_count=2) for p in range(2)]
    assert_same(whole[3:], [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*shares, strict=True)])
    assert_same(whole[4:], crops(textured(), range(4, 5)))


def test_crops_differ_between_positions_and_seeds():
    # One square image for all: only the crops differ.
    one = textured()[9:10] * N
    first, other = (np.concatenate([batch["image"] for batch in crops(one, range(3), seed=s)]) for s in (1, 2))
    every = np.concatenate([first, other]).reshape(6 * BATCH, -1)
    assert len(np.unique(every, axis=0)) == len(every)


def gradients(size: int = 128) -> list[bytes]:
    """Red tells the column, green the row."""
    level = np.arange(size) * 255 // (size - 1)
    image = np.zeros((size, size, 3), np.uint8)
    image[..., 0], image[..., 1] = level[None], level[:, None]
    return [png(image)] * N


def crop_boxes(area) -> np.ndarray:
    """(k, 4) left and right, above and below in fractions of the image, as the crops' colours show them; the left is on
    the right where the crop is mirrored."""
    images = np.concatenate([batch["image"] for batch in crops(gradients(), range(20), area=area)]).astype(float) / 255
    ends = []
    for channel, axis in ((0, 1), (1, 2)):
        line = images[..., channel].mean(axis)
        # The middles of the pixels, without those at the ends, which are resized with less around them.
        slope = (line[:, -3] - line[:, 2]) / 11
        middle = (line[:, -3] + line[:, 2]) / 2
        ends += [middle - 8 * slope, middle + 8 * slope]
    return np.stack(ends, 1)


@pytest.mark.parametrize("area", [(0.08, 0.2), (0.4, 0.5)], ids=["small", "large"])
def test_crops_keep_the_ranges_of_area_and_aspect(area):
    boxes = crop_boxes(area)
    width, height = np.abs(boxes[:, 1] - boxes[:, 0]), boxes[:, 3] - boxes[:, 2]
    shares = width * height
    assert area[0] - 0.01 < shares.min() < area[0] + 0.2 * (area[1] - area[0])
    assert area[1] - 0.2 * (area[1] - area[0]) < shares.max() < area[1] + 0.01
    aspects = width / height
    assert 0.74 < aspects.min() < 0.85
    assert 1.2 < aspects.max() < 1.36
    assert boxes.min() > -0.02
    assert boxes.max() < 1.02
    # They lie anywhere.
    slack = boxes[:, 2] / (1 - height)
    assert slack.min() < 0.1
    assert slack.max() > 0.9


def test_half_of_the_crops_are_mirrored_whatever_their_box():
    boxes = crop_boxes((0.2, 0.4))
    mirrored = boxes[:, 1] < boxes[:, 0]
    assert len(mirrored) == 120
    # Three standard deviations.
    assert abs(mirrored.sum() - 60) < 3 * 120**0.5 / 2
    # And whatever the crop: its area, aspect and place.
    width, height = np.abs(boxes[:, 1] - boxes[:, 0]), boxes[:, 3] - boxes[:, 2]
    for drawn in (width * height, width / height, boxes[:, :2].min(1), boxes[:, 2]):
        assert abs(np.corrcoef(mirrored, drawn)[0, 1]) < 0.3


def test_trivial_crops_of_squares_are_the_images_or_their_mirror_images():
    rng = np.random.default_rng(2)
    images = rng.integers(0, 256, (N, 16, 16, 3), np.uint8)
    found = np.concatenate([b["image"] for b in crops([png(i) for i in images], range(4), area=(1.0, 1.0))])
    known = {image.tobytes(): False for image in images} | {image[:, ::-1].tobytes(): True for image in images}
    flips = [known[image.tobytes()] for image in found]
    assert 4 < sum(flips) < 20


def in_files(folder: Path, encoded: dict[str, bytes]) -> Source:
    for name, content in encoded.items():
        (folder / name).write_bytes(content)
    return load("folder", str(folder))


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def of_all_kinds() -> dict[str, bytes]:
    """The same picture in whatever the saliency pass accepts."""
    picture, exif = wavy_image(60, 90), Image.Exif()
    exif[0x0112] = 6
    clear = picture.copy()
    clear.putalpha(Image.linear_gradient("L").resize(picture.size))
    deep = (np.asarray(picture.convert("L")).astype(np.uint16) * 257).astype(np.uint16)
    return {
        "a.jpg": saved(picture, "JPEG"),
        "turned.jpg": saved(picture, "JPEG", exif=exif),
        "turned.png": saved(picture, "PNG", exif=exif),
        "grey.jpg": saved(picture.convert("L"), "JPEG"),
        "cmyk.jpg": saved(picture.convert("CMYK"), "JPEG"),
        "progressive.jpg": saved(picture, "JPEG", progressive=True),
        "clear.png": saved(clear, "PNG"),
        "clear.webp": saved(clear, "WEBP", lossless=True),
        "deep.png": saved(Image.fromarray(deep), "PNG"),
        "few.gif": saved(picture, "GIF"),
        "tagged.tif": saved(picture, "TIFF"),
        "really a png.jpg": saved(picture, "PNG"),
    }


@pytest.mark.parametrize("cut", [0, 7], ids=["whole", "cut"])
def test_every_kind_of_file_is_read_as_by_the_saliency_pass(tmp_path, cut):
    source = dataclasses.replace(in_files(tmp_path, of_all_kinds()), cut=cut, identify=lambda kind: f"kinds {cut}")
    everything = np.arange(len(source))
    ((found, _),) = image_batches(source, everything, resize=0, size=40, batch_size=len(source))
    for i, ours in zip(everything, found, strict=True):
        whole = Image.fromarray(load_image(source, int(i)))
        expected = np.asarray(whole.resize((40, 40), Image.Resampling.BILINEAR), int)
        assert np.abs(ours - expected).max() <= 1, source.names[i]


def test_jpeg_that_tensorflow_cannot_read_is_decoded_by_pillow(tmp_path, monkeypatch, capfd):
    files = [saved(wavy_image(40, 40), "JPEG")] * 3 + [saved(wavy_image(40, 40), "WEBP")] + coloured()[:3]
    source = memory_source(files)
    expected = [images for images, _ in image_batches(source, np.arange(7), resize=0, size=16, batch_size=2)]
    told, asked = headers._told, []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # where nothing is known

    def mistaken(source, i, file):
        asked.append(i)
        shape, turn = told(source, i, file)
        return shape, 1 if i == 3 else turn

    monkeypatch.setattr(headers, "_told", mistaken)
    monkeypatch.setattr(pipeline.time, "sleep", lambda seconds: pytest.fail("it waited"))
    found = [images for images, _ in image_batches(source, np.arange(7), resize=0, size=16, batch_size=2)]
    np.testing.assert_array_equal(found, expected)
    assert 3 in asked
    assert "DecodeJpeg" not in capfd.readouterr().err


@pytest.mark.parametrize("spec", [CROP, SWAP], ids=lambda spec: spec.kind)
def test_batches_do_not_depend_on_the_number_of_threads(spec, monkeypatch):
    found = []
    for threads in (1, 8):
        monkeypatch.setattr(workers, "CORES", threads)
        found.append(batches(textured(), spec, range(4), MAPS))
    assert_same(*found)


def test_file_missing_for_a_moment_is_read_later(tmp_path, monkeypatch):
    source = in_files(tmp_path, {f"{k}.png": content for k, content in enumerate(coloured())})
    expected = list(image_batches(source, np.arange(N), resize=10, size=8, batch_size=4))
    away = tmp_path / "away"
    (tmp_path / "7.png").rename(away)
    waits = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        away.rename(tmp_path / "7.png")

    monkeypatch.setattr(pipeline.time, "sleep", sleep)
    monkeypatch.setattr(pictures.Files, "mend", lambda self, examples: False)  # it was there when we looked
    found = list(image_batches(source, np.arange(N), resize=10, size=8, batch_size=4))
    assert len(waits) == 1
    for (ours, _), (theirs, _) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_missing_and_truncated_files_are_named_in_one_line(tmp_path):
    source = in_files(tmp_path, {f"{k}.jpg": saved(wavy_image(20, 20), "JPEG") for k in range(6)})
    (tmp_path / "2.jpg").unlink()
    (tmp_path / "4.jpg").write_bytes((tmp_path / "3.jpg").read_bytes()[:-40])
    with pytest.raises(UserError, match=r"2 of 6 .*2\.jpg \(.*No such file.*4\.jpg \(") as caught:
        list(train_batches(source, np.arange(6), None, CROP, Order(3, range(2), SEED)))
    assert "{{" not in str(caught.value) and "node" not in str(caught.value)


def test_error_of_the_maps_is_raised_unchanged():
    class Broken:
        shape = MAPS.shape

        def __getitem__(self, examples):
            raise UserError("maps-0001.npz is damaged")

    with pytest.raises(UserError, match=r"^maps-0001\.npz is damaged$"):
        batches(textured(), SWAP, range(1), Broken())


def test_error_is_raised_after_the_batches_before_it():
    order = Order(BATCH, range(9), SEED)
    third = order.examples(POOL, order.positions(2))

    class Broken:
        shape = MAPS.shape

        def __getitem__(self, examples):
            if np.array_equal(examples, third):
                raise UserError("maps-0001.npz is damaged")
            return MAPS[examples]

    found = []
    with pytest.raises(UserError, match=r"^maps-0001\.npz is damaged$"):
        for batch in train_batches(memory_source(textured()), POOL, Broken(), SWAP, order):
            found.append(batch)
    assert len(found) == 2


def test_first_of_two_errors_in_the_order_is_raised(monkeypatch):
    # The plan of the second step fails before an image of the first one is decoded.
    encoded, order = textured(), Order(BATCH, range(2), SEED)
    first, second = (order.examples(POOL, order.positions(step)) for step in range(2))
    encoded[first[0]] = encoded[first[0]][:-30]
    dataset, planned = Input.dataset, []

    class Broken:
        shape = MAPS.shape

        def __getitem__(self, examples):
            if np.array_equal(examples, second):
                planned.append(1)
                raise UserError("maps-0001.npz is damaged")
            return MAPS[examples]

    def ahead(self, steps, held=None):
        with contextlib.suppress(UserError):
            self._plan(1)
        assert planned
        return dataset(self, steps, held)

    monkeypatch.setattr(Input, "dataset", ahead)
    source = memory_source(encoded)
    monkeypatch.setattr(pictures.Headers, "look", lambda self, *args: (np.full((BATCH, 2), 12), np.zeros(BATCH, int)))
    with pytest.raises(UserError, match=rf"image{first[0]}\.png"):
        list(train_batches(source, POOL, Broken(), SWAP, order))


def test_replaced_file_is_read_at_its_new_size(tmp_path):
    source = in_files(tmp_path, {f"{k}.jpg": saved(wavy_image(60, 80), "JPEG") for k in range(3)})
    list(image_batches(source, np.arange(3), resize=0, size=16, batch_size=3))
    for other in (wavy_image(300, 400), wavy_image(20, 30)):
        (tmp_path / "1.jpg").write_bytes(saved(other, "JPEG"))
        ((found, _),) = image_batches(source, np.arange(3), resize=0, size=16, batch_size=3)
        expected = np.asarray(Image.fromarray(load_image(source, 1)).resize((16, 16), Image.Resampling.BILINEAR), int)
        assert np.abs(found[1] - expected).max() <= 1


def test_ended_pipelines_are_collected():
    source = memory_source(textured())
    inputs = [Input(source, POOL, lambda step: (POOL[:4], np.arange(4)), WholeImages(0, 8)) for _ in range(3)]
    left = [weakref.ref(one) for one in inputs]
    for one in inputs[:2]:
        assert len(list(one.batches(range(2)))) == 2
    endless = inputs[2].batches(range(10**9))
    next(endless)
    endless.close()
    del one, inputs, endless
    gc.collect()
    assert [ref() for ref in left] == [None] * 3
