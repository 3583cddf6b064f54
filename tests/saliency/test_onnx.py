import dataclasses
import hashlib
import json
import re
import sys

import numpy as np
import pytest
from PIL import Image

from cvsa_jax.runtime.errors import UserError
from cvsa_jax.saliency.detectors.onnx import PRESETS, Preset, choose_preset, onnx

build = pytest.importorskip("onnx", reason="the tests make their models with onnx")
runtime = pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
FLOAT, FLOAT16, DOUBLE, INT64 = (getattr(build.TensorProto, name) for name in ("FLOAT", "FLOAT16", "DOUBLE", "INT64"))
ANY = ("b", 3, "h", "w")
WEIGHTS, BIAS = (0.9, -0.6, 0.3), -0.2  # different for each channel, so that their order shows
POOL = 16

# From the projects' own code: size, mean, std, divided by the maximum, logits.
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EXPECTED = {
    "u2net": (320, *IMAGENET, True, False),
    "u2netp": (320, *IMAGENET, True, False),
    "isnet": (1024, (0.5, 0.5, 0.5), (1, 1, 1), False, False),
    "birefnet": (1024, *IMAGENET, False, True),
    "basnet": (256, *IMAGENET, True, False),
    "custom": (96, (0.1, 0.2, 0.7), (0.5, 0.25, 2), False, False),
}


def custom_preset(size, mean, std, sigmoid) -> Preset:
    return choose_preset("custom", {"size": size, "mean": mean, "std": std, "sigmoid": sigmoid})


SMALL = custom_preset(32, ["0", "0.25", "0.5"], ["1", "0.5", "2"], False)


def preset_of(name):
    size, mean, std, _, sigmoid = EXPECTED[name]
    return PRESETS.get(name) or custom_preset(size, [str(m) for m in mean], [str(s) for s in std], sigmoid)


def colourful(height=500, width=700, peak=180, seed=0):
    """Smooth colours up to `peak`, with single pixels of 255 that a reduction dims."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, peak, (5, 7, 3), np.uint8))
    image = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC)).clip(0, peak)
    image[rng.integers(height, size=4), rng.integers(width, size=4)] = 255
    return image


def node(kind, *inputs, output, **attributes):
    return build.helper.make_node(kind, list(inputs), [output], **attributes)


def constant(name, values, kind=FLOAT):
    dtype = build.helper.tensor_dtype_to_np_dtype(kind)
    return build.numpy_helper.from_array(np.asarray(values, dtype), name)


def save(path, *nodes, constants=(), takes=ANY, gives=("map",), kind=FLOAT, out_kind=None, more=()):
    """A model of the input `image`, of the shape `takes`."""
    info = build.helper.make_tensor_value_info
    graph = build.helper.make_graph(
        list(nodes),
        "test",
        [info("image", kind, takes), *(info(name, kind, takes) for name in more)],
        [info(name, kind if out_kind is None else out_kind, None) for name in gives],
        list(constants),
    )
    model = build.helper.make_model(graph, opset_imports=[build.helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def network(path, *extra, sigmoid=True, pool=POOL, bias=BIAS, weights=WEIGHTS, kind=FLOAT, constants=(), **options):
    """The channels' weighted sum, a sigmoid of it if asked for, averages of pool x pool px; then the nodes `extra`."""
    return save(
        path,
        node("Conv", "image", "weights", "bias", output="sum"),
        node("Sigmoid" if sigmoid else "Identity", "sum", output="values"),
        node("AveragePool", "values", output="map", kernel_shape=[pool, pool], strides=[pool, pool]),
        *extra,
        constants=[
            constant("weights", np.reshape(weights, (-1, 3, 1, 1)), kind),
            constant("bias", np.ravel(bias), kind),
            *constants,
        ],
        kind=kind,
        **options,
    )


def reference(image, size, mean, std, by_maximum, logits):
    """What the detector should make of the model of `network`, in float64."""
    pixels = np.float64(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
    pixels /= max(pixels.max(), 1) if by_maximum else 255
    values = BIAS + sum(WEIGHTS[c] * (pixels[..., c] - mean[c]) / std[c] for c in range(3))

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def pooled(x):
        return x.reshape(size // POOL, POOL, size // POOL, POOL).mean(axis=(1, 3))

    return sigmoid(pooled(values)) if logits else pooled(sigmoid(values))


def detected(detector, *images):
    return detector.detect([detector.prepare(i, image) for i, image in enumerate(images)])


def small_images(n):
    return [colourful(40, 50, peak=60 + 20 * seed, seed=seed) for seed in range(n)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.onnx"


@pytest.mark.parametrize("name", EXPECTED)
def test_preset_prepares_images_as_its_project_does(name, path):
    size, *_, logits = EXPECTED[name]
    detector = onnx(network(path, sigmoid=not logits, takes=(1, 3, size, size)), name, preset_of(name))
    image = colourful()
    prepared = detector.prepare(0, image)
    assert prepared.dtype == np.uint8 and prepared.shape == (size, size, 3)
    (saliency, confidence), dark = detected(detector, image, np.zeros_like(image))
    expected = reference(image, *EXPECTED[name])
    assert np.ptp(expected) > 0.1
    assert saliency.dtype == np.float32 and saliency.shape == expected.shape
    np.testing.assert_allclose(saliency, expected, atol=2e-5)
    np.testing.assert_allclose(dark.saliency, reference(np.zeros_like(image), *EXPECTED[name]), atol=2e-5)
    assert type(confidence) is float and confidence == saliency.max()


@pytest.mark.parametrize(
    ("fixed", "batch_size"), [(None, 8), (1, 8), (3, 6), (11, 11)], ids=["any batch", "1", "3", "11"]
)
def test_batch_gives_the_maps_of_single_images(fixed, batch_size, path):
    preset = dataclasses.replace(SMALL, divide_by="max")
    takes = ANY if fixed is None else (fixed, 3, 32, 32)
    detector = onnx(network(path, takes=takes), "custom", preset)
    images = small_images(7)
    assert detector.batch_size == batch_size
    together = detected(detector, *images)
    assert len(together) == len(images)
    for image, found in zip(images, together, strict=True):
        (alone,) = detected(detector, image)
        np.testing.assert_allclose(found.saliency, alone.saliency, atol=1e-6)
        np.testing.assert_allclose(found.confidence, alone.confidence, atol=1e-6)
        np.testing.assert_allclose(found.saliency, reference(image, 32, SMALL.mean, SMALL.std, True, False), atol=1e-5)


@pytest.mark.parametrize(("name", "batch_size"), [("u2net", 8), ("basnet", 8), ("isnet", 2)])
def test_large_images_come_in_small_batches(name, batch_size, path):
    assert onnx(network(path), name, PRESETS[name]).batch_size == batch_size


def test_first_output_is_the_map(path):
    inverted = node("Sub", "one", "map", output="inverted")
    network(path, inverted, gives=("map", "inverted", "sum"), constants=[constant("one", 1)])
    image = colourful()
    (found,) = detected(onnx(path, "u2net", PRESETS["u2net"]), image)
    np.testing.assert_allclose(found.saliency, reference(image, *EXPECTED["u2net"]), atol=2e-5)


def test_map_without_a_channel_axis_is_read(path):
    squeeze = node("Squeeze", "map", "axis", output="flat")
    network(path, squeeze, gives=("flat",), constants=[constant("axis", [1], INT64)])
    image = colourful()
    (found,) = detected(onnx(path, "u2net", PRESETS["u2net"]), image)
    np.testing.assert_allclose(found.saliency, reference(image, *EXPECTED["u2net"]), atol=2e-5)


@pytest.mark.parametrize("name", ["u2net", "birefnet"])
def test_float16_model_gives_float32_maps(name, path):
    network(path, kind=FLOAT16, sigmoid=name == "u2net")
    image = colourful()
    (found,) = detected(onnx(path, name, PRESETS[name]), image)
    assert found.saliency.dtype == np.float32
    np.testing.assert_allclose(found.saliency, reference(image, *EXPECTED[name]), atol=4e-3)


def test_values_just_above_one_are_clipped(path):
    detector = onnx(network(path, sigmoid=False, weights=(0, 0, 0), bias=1.0005), "custom", SMALL)
    (found,) = detected(detector, *small_images(1))
    assert (found.saliency == 1).all() and found.confidence == 1


def test_large_logits_do_not_overflow(path):
    preset = dataclasses.replace(SMALL, sigmoid=True)
    detector = onnx(network(path, sigmoid=False, weights=(0, 0, 0), bias=-1e4), "custom", preset)
    (found,) = detected(detector, *small_images(1))
    assert (found.saliency == 0).all()


def test_settings_and_printed_line_describe_the_model(path, capsys):
    detector = onnx(network(path, takes=(1, 3, 320, 320)), "u2net", PRESETS["u2net"])
    assert (detector.name, detector.supervision) == ("onnx", "supervised")
    assert detector.settings == {
        "preset": "u2net",
        "size": 320,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "divide_by": "max",
        "sigmoid": False,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest()[:16],
    }
    assert json.loads(json.dumps(detector.settings)) == detector.settings
    (line,) = capsys.readouterr().out.splitlines()
    preset = PRESETS["u2net"]
    for part in ("model.onnx (preset u2net, 320 px) on CPUExecutionProvider", preset.page, preset.licence):
        assert part in line


@pytest.mark.parametrize(
    ("available", "providers"),
    [
        (["AzureExecutionProvider", "CPUExecutionProvider"], ["CPUExecutionProvider"]),
        (
            ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
            ["CUDAExecutionProvider", "CPUExecutionProvider"],
        ),
        (["CPUExecutionProvider", "ROCMExecutionProvider"], ["ROCMExecutionProvider", "CPUExecutionProvider"]),
    ],
    ids=["CPU", "CUDA before TensorRT", "ROCm"],
)
def test_best_available_provider_is_used(available, providers, path, monkeypatch, capsys):
    opened, session = [], runtime.InferenceSession

    def on_the_cpu(file, options, providers):
        opened.append((providers, options.log_severity_level))
        return session(file, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(runtime, "get_available_providers", lambda: available)
    monkeypatch.setattr(runtime, "InferenceSession", on_the_cpu)
    onnx(network(path), "custom", SMALL)
    assert opened == [(providers, 3)]
    failed = f" ({providers[0]} could not be started)" if len(providers) == 2 else ""
    assert f"px) on CPUExecutionProvider{failed}; model page" in capsys.readouterr().out


def fails(message, path, preset="custom"):
    """The detector, or its first detection, raises UserError with all of `message`, and names the file."""
    with pytest.raises(UserError) as caught:
        detected(onnx(path, preset, PRESETS.get(preset, SMALL)), *small_images(2))
    text = str(caught.value)
    assert str(path) in text
    for part in message:
        assert part in text, text


def test_missing_onnxruntime_is_reported(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"onnxruntime.*: pip install onnxruntime$"):
        onnx(network(path), "custom", SMALL)


def test_missing_model_file_is_refused(path, tmp_path):
    fails(["is no file"], path)
    fails(["is no file"], tmp_path)


@pytest.mark.parametrize("content", ["a page", "half a model"])
def test_file_that_is_no_onnx_model_is_refused(content, path):
    whole = network(path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content == "half a model" else b"<html>Not found</html>" * 20)
    fails(["cannot be opened as an ONNX model", "export it again"], path)


@pytest.mark.parametrize(
    ("takes", "kind", "message"),
    [
        ((1, 32, 32, 3), FLOAT, ["(1, 32, 32, 3)", "channels first"]),
        ((3, 32, 32), FLOAT, ["tensor(float) of shape (3, 32, 32)", "(batch, 3, height, width)"]),
        ((None, 1, 32, 32), FLOAT, ["1, 32, 32)", "(batch, 3, height, width)"]),
        (ANY, DOUBLE, ["tensor(double)", "float32 or float16"]),
    ],
    ids=["channels last", "no batch", "one channel", "double"],
)
def test_model_of_another_input_is_refused(takes, kind, message, path):
    fails(message, save(path, node("Identity", "image", output="map"), takes=takes, kind=kind))


def test_model_of_two_inputs_is_refused(path):
    fails(
        ["of shape", "; tensor(float) of shape", "not only images"],
        save(path, node("Add", "image", "point", output="map"), more=["point"]),
    )


@pytest.mark.parametrize(
    ("height", "width", "preset", "message"),
    [
        (1024, 1024, "u2net", ["takes 1024×1024 px, preset u2net gives 320", "(isnet, birefnet)", "--size (square)"]),
        ("h", 48, "custom", ["takes h×48 px, preset custom gives 32", "(there is none)", "--preset=custom"]),
    ],
    ids=["larger", "one side dynamic"],
)
def test_model_of_another_size_is_refused(height, width, preset, message, path):
    fails(message, network(path, takes=("b", 3, height, width)), preset)


def test_dynamic_side_has_the_size_of_the_preset(path):
    assert detected(onnx(network(path, takes=("b", 3, "h", 32)), "custom", SMALL), *small_images(1))


@pytest.mark.parametrize(
    ("extra", "shape"),
    [
        (node("Flatten", "map", output="out"), "(2, 4)"),
        (node("Concat", "map", "map", output="out", axis=1), "(2, 2, 2, 2)"),
        (node("ReduceMean", "map", output="out", axes=[0]), "(1, 1, 2, 2)"),
    ],
    ids=["flat", "two channels", "one for all"],
)
def test_output_that_is_no_map_is_refused(extra, shape, path):
    fails([f"shape {shape} for 2 images"], network(path, extra, gives=("out",)))


def test_output_of_integers_is_refused(path):
    cast = node("Cast", "map", output="out", to=INT64)
    fails(["tensor(int64)"], network(path, cast, gives=("out",), out_kind=INT64))


def test_failing_model_is_reported_with_its_batch(path):
    add = node("Add", "map", "grid", output="out")
    message = ["could not run", "2 images of 32 px"]
    fails(message, network(path, add, gives=("out",), constants=[constant("grid", np.ones((1, 1, 7, 7)))]))


def test_non_finite_output_is_refused(path):
    fails(["not finite"], network(path, node("Log", "map", output="out"), sigmoid=False, bias=-9, gives=("out",)))


@pytest.mark.parametrize("bias", [3, -3], ids=["above one", "below zero"])
def test_logits_without_sigmoid_are_recognised(bias, path):
    flags = "--preset=custom --size=32 --mean=0.0,0.25,0.5 --std=1.0,0.5,2.0 --sigmoid"
    fails(["look like logits", flags], network(path, sigmoid=False, bias=bias))


def test_custom_preset_divides_by_255():
    preset = custom_preset(512, ["0.5", " 0.25", "0"], ["1", "2", "1e-1"], True)
    assert (preset.size, preset.mean, preset.std) == (512, (0.5, 0.25, 0.0), (1.0, 2.0, 0.1))
    assert (preset.divide_by, preset.sigmoid) == ("255", True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": None}, "needs --size; .* --size=320 "),
        ({"sigmoid": None, "std": None}, "needs --std, --sigmoid; "),
        ({"size": 0}, "--size=0"),
        ({"mean": ["0.5"]}, "--mean=0.5: give three numbers"),
        ({"std": ["1", "1", "one"]}, "--std=1,1,one: give three numbers, as in --std=0.229,"),
        ({"std": ["1", "1", "nan"]}, "--std=1,1,nan: "),
        ({"std": ["1", "0", "1"]}, "--std=.*above 0"),
        ({"mean": ["123.7", "116.3", "103.5"]}, "--mean=.*by 255"),
    ],
    ids=["no size", "no std and sigmoid", "size 0", "one mean", "no number", "NaN", "std of 0", "mean of 255 levels"],
)
def test_wrong_custom_flags_are_refused(changed, message):
    flags = {"size": 32, "mean": ["0.5"] * 3, "std": ["1"] * 3, "sigmoid": False} | changed
    with pytest.raises(UserError) as caught:
        custom_preset(**flags)
    assert re.search(message, str(caught.value)), caught.value
