"""Export and import by their commands' functions, and what is exported beside the run on one page."""

import dataclasses
import io
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export
from PIL import Image
from safetensors.numpy import load_file
from support.tiny_runs import tiny, tiny_probe
from support.torch_files import torch_weights, write

import cvsa_jax
from cvsa_jax import api, settings
from cvsa_jax.report.card import model_card
from cvsa_jax.runs import compare, linear, weights
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.training import photometric
from cvsa_jax.weights import frozen
from cvsa_jax.weights.export import CONVERTER, onnx, stablehlo

pytestmark = pytest.mark.usefixtures("on_one_device")


def test_exported_weights_reimport_bit_for_bit(tmp_path, run):
    weights.export_run(str(run), tmp_path / "out", ("safetensors", "npz"), "MIT")
    ours = cvsa_jax.load_backbone(str(run))
    images = np.random.default_rng(0).integers(0, 256, (5, 40, 36, 3), np.uint8)
    for name in ("model.safetensors", "model.npz"):
        network = frozen.load(str(tmp_path / "out" / name), ours.mesh)
        for part in ("params", "batch_stats"):
            pairs = (getattr(n, part)["backbone"] for n in (network.network, ours.network))
            jax.tree.map(np.testing.assert_array_equal, *pairs)
        assert (network.spec().size, network.spec().resize) == (32, 32)
        theirs = cvsa_jax.load_backbone(str(tmp_path / "out" / name))
        np.testing.assert_array_equal(theirs.features(images), ours.features(images))
    weights.import_file(str(tmp_path / "out" / "model.npz"), str(tmp_path / "new" / "again.safetensors"))
    network = frozen.load(str(tmp_path / "new" / "again.safetensors"), ours.mesh)
    assert (network.spec().size, network.spec().resize) == (32, 32)
    assert (network.model.stem, network.model.padding) == ("small", ours.model.padding)
    first, again = load_file(tmp_path / "out" / "model.safetensors"), load_file(tmp_path / "new" / "again.safetensors")
    assert first.keys() == again.keys()
    for name, tensor in first.items():
        np.testing.assert_array_equal(tensor, again[name], err_msg=name)
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlicense: MIT\n") and "ResNet-8, width 4, stem small" in card
    assert "Objective: byol on random_resized_crop, batches of 8; no labels" in card and "Saliency" not in card
    assert "21 train" not in card and "procedural, 36 images in 3 classes (train 21, test 15)" in card
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model"]["width"] == 4


def test_model_card_names_maps_labels_and_loaders(run):
    config = tiny()
    config.eval.pooling = "average"
    network = frozen.load(str(run), api.make_mesh())._replace(config=config)
    data = {"name": "birds", "images": 9, "classes": 3, "splits": {"train": 9}, "fingerprint": "f00"}
    told = {"figures": {"knn_top1": 0.125, "other": 1}, "licence": "none", "version": "1"}
    maps = {"saliency": {"detector": "rbd", "supervision": "prior"}}
    card = model_card(network, ["model.npz"], 45, data=data | maps, **told)
    assert "- Saliency maps: rbd, supervision: prior" in card and "| kNN top-1 | 12.5 |" in card and "other" not in card
    assert "timm and torchvision have no such network" in card
    assert "supervision: not recorded" in model_card(network, [], 45, data=data, **told)
    plain = network._replace(model=dataclasses.replace(network.model, depth=50, width=64, stem="imagenet"))
    assert 'timm.create_model("resnet50", num_classes=0)' in model_card(
        plain, ["model.safetensors"], 45, data={}, **told
    )


def test_model_card_omits_figures_of_other_pooling(run):
    config = tiny()
    network = frozen.load(str(run), api.make_mesh())._replace(config=config)
    figures = {"knn_top1": 0.185, "pointing_game": 0.75}
    cards = {}
    for pooling in ("average", "attention"):
        config.eval.pooling = pooling
        cards[pooling] = model_card(network, [], 45, data={}, figures=figures, licence="none", version="1")
    assert "| kNN top-1 | 18.5 |" in cards["average"] and "are not shown" not in cards["average"]
    assert "18.5" not in cards["attention"] and "| pointing game | 75.0 |" in cards["attention"]
    assert "features pooled in another way" in cards["attention"]


def test_model_card_code_loads_the_exported_files(tmp_path, run, capsys):
    weights.export_run(str(run), tmp_path / "out", ("safetensors",), "none")
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'load_backbone("model.safetensors")' in card
    # Another run's file stays there, and the card no longer speaks of it.
    capsys.readouterr()
    weights.export_run(str(run), tmp_path / "out", ("npz", "stablehlo"), "none")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "safetensors" not in card and 'load_backbone("model.npz")' in card
    assert "warning: model.safetensors in" in capsys.readouterr().out
    # The lines for StableHLO do what they say.
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    lines = card.partition("# jax\n")[2].partition("```")[0].replace("model.", f"{tmp_path}/out/model.")
    told = {"jax": jax, "images": images}
    exec(lines, told)
    np.testing.assert_allclose(told["features"], cvsa_jax.load_backbone(str(run)).features(images), atol=1e-5)


def test_model_card_npz_code_gives_the_tensors(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    import numpy

    file = write(tmp_path / "w.npz", torch_weights(18, 64))
    weights.export_run(str(file), tmp_path / "out", ("npz",), "none")
    card = (tmp_path / "out" / "README.md").read_text()
    line = next(line for line in card.splitlines() if line.startswith("net.load_state_dict("))
    state = eval(
        line.removeprefix("net.load_state_dict(")[:-1].replace("model.npz", f"{tmp_path}/out/model.npz"),
        {"torch": torch, "numpy": numpy},
    )
    assert state["conv1.weight"].shape == (64, 3, 7, 7)


def test_preprocess_json_reproduces_the_features(tmp_path):
    file = write(tmp_path / "w.npz", torch_weights(18, 8))
    weights.export_run(str(file), tmp_path / "out", ("safetensors",), "none")
    told = json.loads((tmp_path / "out" / "preprocess.json").read_text())
    assert (told["resize"], told["crop"]) == (256, 224)
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (300, 400, 3), np.uint8))
    scale = told["resize"] / 300
    resized = picture.resize((round(400 * scale), told["resize"]), Image.Resampling.BILINEAR)
    left, top = ((side - told["crop"]) // 2 for side in resized.size)
    crop = np.asarray(resized.crop((left, top, left + 224, top + 224)), np.float32) / 255
    x = (crop - np.array(told["mean"], np.float32)) / np.array(told["std"], np.float32)
    backbone = cvsa_jax.load_backbone(str(tmp_path / "out" / "model.safetensors"))
    expected = backbone.model.apply(backbone.network.variables, jnp.asarray(x[None]), method="features")[1]
    found = backbone.features([np.asarray(picture)])
    np.testing.assert_allclose(found, expected, rtol=0.02, atol=0.01 * float(np.abs(expected).max()))


def test_stablehlo_accepts_any_batch_size(run):
    size = 48  # not that of the run
    network = frozen.load(str(run), api.make_mesh())
    spec = dataclasses.replace(network.spec(), size=size, resize=size)
    read = jax_export.deserialize(bytearray(stablehlo(network, spec)))
    assert set(read.platforms) == {"cpu", "cuda", "tpu"}
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)
    expected = dataclasses.replace(cvsa_jax.load_backbone(str(run)), spec=spec).features(images)
    for count in (1, 3):
        np.testing.assert_allclose(read.call(images[:count]), expected[:count], atol=1e-5)


@pytest.mark.parametrize(
    ("depth", "padding", "dtype", "size"),
    [(18, "symmetric", "float32", 64), (18, "same", "float32", 65), (50, "symmetric", "bfloat16", 64)],
    ids=["ResNet-18", "same padding at an odd size", "ResNet-50 trained in bfloat16"],
)
def test_onnx_accepts_any_batch_size(tmp_path, depth, padding, dtype, size):
    pytest.importorskip("jax2onnx", reason=f"run where the converter is installed: {CONVERTER}")
    onnxruntime = pytest.importorskip("onnxruntime")
    tensors = torch_weights(depth, 8)
    file = write(tmp_path / "w.npz", tensors)
    network = frozen.load(str(file), api.make_mesh())
    model = network.model.clone(padding=padding)
    spec = dataclasses.replace(network.spec(), size=size, resize=size)
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)
    x = jnp.asarray((images / 255 - photometric.MEAN) / photometric.STD, jnp.float32)
    expected = np.asarray(model.apply(network.network.variables, x, method="features")[1])
    content = onnx(network._replace(model=model.clone(dtype=jnp.dtype(dtype))), spec)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for count in (1, 3):
        (found,) = session.run(["features"], {"images": images[:count]})
        np.testing.assert_allclose(found, expected[:count], rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    weights.export_run(str(file), tmp_path / "out", ("onnx",), "none")
    assert (tmp_path / "out" / "model.onnx").stat().st_size > sum(a.nbytes for n, a in tensors.items() if "fc" not in n)


def test_onnx_export_without_converter_is_refused(tmp_path, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(UserError, match=r"needs the converter jax2onnx \(.*\): pip install"):
        weights.export_run(str(run), tmp_path / "out", ("onnx",), "none")
    assert not (tmp_path / "out").exists()


def test_exported_weights_give_equal_features_in_pytorch(tmp_path):
    torch = pytest.importorskip("torch", reason="compared where PyTorch is installed, which nothing else needs")
    from safetensors.torch import load_file as load_torch
    from support.torch_resnet import ResNet

    for depth in (18, 50):
        file = write(tmp_path / f"{depth}.npz", torch_weights(depth, 64))
        weights.export_run(str(file), tmp_path / "out", ("safetensors",), "none")
        module = ResNet(depth)
        module.load_state_dict(load_torch(tmp_path / "out" / "model.safetensors"))  # every name, no other
        network = frozen.load(str(file), api.make_mesh())
        for size in (224, 225, 97):
            x = np.random.default_rng(size).normal(size=(2, size, size, 3)).astype(np.float32)
            with torch.no_grad():
                theirs = module.eval()(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
            ours = np.asarray(network.model.apply(network.network.variables, jnp.asarray(x), method="features")[1])
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize(
    ("run_name", "formats", "said"),
    [
        ("absent", ("npz",), "is not the workdir of a run"),
        (None, ("pth",), "known are safetensors, npz, stablehlo, onnx"),
        (None, (), "known are safetensors, npz, stablehlo, onnx"),
    ],
    ids=["no run", "unknown format", "no format"],
)
def test_invalid_exports_are_refused(tmp_path, run, run_name, formats, said):
    with pytest.raises(UserError, match=said):
        weights.export_run(run_name or str(run), tmp_path / "out", formats, "none")
    assert not (tmp_path / "out").exists()


def test_invalid_imports_are_refused(tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        weights.import_file(str(tmp_path / "absent.pth"), str(tmp_path / "x.safetensors"))
    with pytest.raises(UserError, match=r"it is a folder; of a run: .*weights export --run="):
        weights.import_file(str(tmp_path), str(tmp_path / "x.safetensors"))
    np.savez(tmp_path / "features.npz", names=np.array(["a.png"]), vectors=np.zeros((1, 3), np.float32))
    with pytest.raises(UserError, match="it holds features of images and no weights"):
        weights.import_file(str(tmp_path / "features.npz"), str(tmp_path / "x.safetensors"))
    file = write(tmp_path / "w.npz", torch_weights(18, 8))
    (tmp_path / "d.safetensors").mkdir()
    for out in ("x.npz", "d.safetensors", "d.safetensors/", "new.safetensors/"):
        with pytest.raises(UserError, match=r"must be a file, and end with \.safetensors"):
            weights.import_file(str(file), f"{tmp_path}/{out}")
    with pytest.raises(UserError, match=r"--out: the folder .*w\.npz cannot be made"):
        weights.import_file(str(file), str(file / "x.safetensors"))


def test_weights_of_unknown_depth_are_refused(tmp_path):
    tensors = {n: a for n, a in torch_weights(18, 8).items() if not n.startswith("layer3.1")}
    with pytest.raises(UserError, match=r"looks like depth 16 \(blocks 2, 2, 1, 2\).*not known here"):
        frozen.load(str(write(tmp_path / "w.npz", tensors)), api.make_mesh())


@pytest.mark.slow
def test_run_export_and_feature_file_have_equal_figures(tmp_path, run):
    weights.export_run(str(run), tmp_path / "out", ("safetensors",), "none")
    config = tiny_probe()
    config.eval.pooling = "average"
    source = settings.load_source(config.data)
    images = [np.asarray(Image.open(io.BytesIO(source.read(i)))) for i in range(len(source))]
    vectors = cvsa_jax.load_backbone(str(run)).features(images)
    np.savez(tmp_path / "x.npz", names=np.array(source.names), vectors=vectors)
    entries = [f"ours={run}", f"file={tmp_path / 'out' / 'model.safetensors'}", f"given={tmp_path / 'x.npz'}"]
    figures = compare.compare_runs(config, entries, tmp_path / "page")
    recognition = {k: v for k, v in figures["given"].items() if not k.endswith("_s")}
    for name in ("ours", "file"):
        assert {key: figures[name][key] for key in recognition} == pytest.approx(recognition)
    assert figures["file"]["component_pointing_game"] == figures["ours"]["component_pointing_game"]
    assert "pointing_game" in figures["ours"] and "pointing_game" not in figures["file"]
    assert not any("pointing" in key for key in figures["given"])
    page = (tmp_path / "page" / "report" / "index.html").read_text()
    assert "Of what trains no attention (" in page
    assert "Features of ours, file are averaged over the cells; of given are as their file has them." in page
    assert page.count("Curves of") == 2  # the text beside the picture, and below it
    with pytest.raises(UserError, match="two are called 'ours'"):
        compare.compare_runs(config, [f"ours={run}", f"ours={run}"], tmp_path / "page")
    # Features alone have a page as well.
    figures = compare.compare_runs(config, [f"given={tmp_path / 'x.npz'}"], tmp_path / "alone")
    assert figures["given"]["knn_top1"] == recognition["knn_top1"]
    # The probe's own command takes each of the three.
    for entry in entries:
        config.init_from = entry.partition("=")[2]
        probed = linear.linear_probe(config, tmp_path / "probed")
        for key in ("linear_top1", "knn_top1", "map_at_r"):
            assert probed[key] == pytest.approx(recognition[key])
