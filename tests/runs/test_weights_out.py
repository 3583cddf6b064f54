"""Export, import, embedding and search by their commands' functions."""

import csv
import dataclasses
import io
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import few_devices
from jax import export as jax_export
from PIL import Image
from safetensors.numpy import load_file, save_file
from tiny_runs import tiny, tiny_probe
from torch_files import torch_weights, write

import cvsa_jax
from cvsa_jax import api, settings
from cvsa_jax.data.sources import load
from cvsa_jax.report.card import model_card
from cvsa_jax.runs import compare, embed, linear, pretrain, search, weights
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.weights import files, frozen
from cvsa_jax.weights.export import stablehlo

OPTIONS = embed.Options()


@pytest.fixture(scope="module", autouse=True)
def small(quick_compilation):
    with few_devices(1, pretrain, api, embed, search, weights, compare):
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("pretrained") / "run"
    pretrain.train(tiny("byol"), workdir)
    return workdir


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Fourteen labelled images, of which two are equal and one name has a comma."""
    root, rng = tmp_path_factory.mktemp("images") / "birds", np.random.default_rng(0)
    for k in range(14):
        place = root / ("gull" if k % 2 else "tern") / f"a,{k:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (34 + k, 40, 3), np.uint8)).save(place)
    (root / "tern" / "copy.png").write_bytes((root / "gull" / "a,03.png").read_bytes())
    return root


def in_memory(root: Path) -> tuple[list[str], list[np.ndarray]]:
    source = load("folder", str(root))
    return list(source.names), [np.asarray(Image.open(io.BytesIO(source.read(i)))) for i in range(len(source))]


def npz(path: Path) -> dict:
    with np.load(path) as arrays:
        return dict(arrays)


# Export and import.


def test_what_is_exported_is_imported_bit_by_bit(tmp_path, run):
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
    assert (network.spec().size, network.spec().resize, network.model.stem) == (32, 32, "small")
    first, again = load_file(tmp_path / "out" / "model.safetensors"), load_file(tmp_path / "new" / "again.safetensors")
    assert first.keys() == again.keys()
    for name, tensor in first.items():
        np.testing.assert_array_equal(tensor, again[name], err_msg=name)
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlicense: MIT\n") and "ResNet-8, width 4, stem small" in card
    assert "Objective: byol on random_resized_crop, batches of 8; no labels" in card and "Saliency" not in card
    assert "21 train" not in card and "procedural, 36 images in 3 classes (train 21, test 15)" in card
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model"]["width"] == 4


def test_the_card_says_where_maps_and_labels_came_from(run):
    config = tiny()
    network = frozen.load(str(run), api.make_mesh())._replace(config=config)
    data = {"name": "birds", "images": 9, "classes": 3, "splits": {"train": 9}, "fingerprint": "f00"}
    told = {"figures": {"knn_top1": 0.125, "other": 1}, "licence": "none", "version": "1"}
    maps = {"saliency": {"detector": "rbd", "supervision": "prior"}}
    card = model_card(network, ["model.npz"], 45, data=data | maps, **told)
    assert "- Saliency maps: rbd, supervision: prior" in card and "| kNN top-1 | 12.5 |" in card and "other" not in card
    assert "timm and torchvision have no such network" in card
    assert "supervision: not recorded" in model_card(network, [], 45, data=data, **told)
    plain = network._replace(model=dataclasses.replace(network.model, depth=50, width=64, stem="imagenet"))
    assert 'timm.create_model("resnet50", num_classes=0)' in model_card(plain, [], 45, data={}, **told)


def test_preprocess_is_what_the_network_sees(tmp_path):
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


@pytest.mark.parametrize("size", [32, 48])
def test_stablehlo_takes_any_batch(tmp_path, run, size):
    network = frozen.load(str(run), api.make_mesh())
    spec = dataclasses.replace(network.spec(), size=size, resize=size)
    read = jax_export.deserialize(bytearray(stablehlo(network, spec)))
    assert set(read.platforms) == {"cpu", "cuda", "tpu"}
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)
    expected = dataclasses.replace(cvsa_jax.load_backbone(str(run)), spec=spec).features(images)
    for count in (1, 3):
        np.testing.assert_allclose(read.call(images[:count]), expected[:count], atol=1e-5)


def test_pytorch_has_the_same_features(tmp_path):
    torch = pytest.importorskip("torch", reason="compared where PyTorch is installed, which nothing else needs")
    from safetensors.torch import load_file as load_torch
    from torch_resnet import ResNet

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
        (None, ("onnx",), "no converter from JAX to ONNX"),
        (None, ("pth",), "known are safetensors, npz, stablehlo"),
        (None, (), "known are safetensors, npz, stablehlo"),
    ],
)
def test_exports_that_cannot_be(tmp_path, run, run_name, formats, said):
    with pytest.raises(UserError, match=said):
        weights.export_run(run_name or str(run), tmp_path / "out", formats, "none")
    assert not (tmp_path / "out").exists()


def test_imports_that_cannot_be(tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        weights.import_file(str(tmp_path / "absent.pth"), str(tmp_path / "x.safetensors"))
    file = write(tmp_path / "w.npz", torch_weights(18, 8))
    (tmp_path / "d.safetensors").mkdir()
    for out in ("x.npz", "d.safetensors", "d.safetensors/", "new.safetensors/"):
        with pytest.raises(UserError, match=r"must be a file, and end with \.safetensors"):
            weights.import_file(str(file), f"{tmp_path}/{out}")
    with pytest.raises(UserError, match=r"--out: the folder .*w\.npz cannot be made"):
        weights.import_file(str(file), str(file / "x.safetensors"))


def test_a_file_of_an_unknown_depth_is_refused(tmp_path):
    tensors = {n: a for n, a in torch_weights(18, 8).items() if not n.startswith("layer3.1")}
    with pytest.raises(UserError, match=r"looks like depth 16 \(blocks 2, 2, 1, 2\).*not known here"):
        frozen.load(str(write(tmp_path / "w.npz", tensors)), api.make_mesh())


# Embedding.


@pytest.mark.parametrize("kind", ["npz", "csv"])
def test_features_of_a_folder(tmp_path, run, folder, kind):
    out = tmp_path / f"x.{kind}"
    embed.embed(str(run), str(folder), str(out), OPTIONS)
    names, images = in_memory(folder)
    expected = cvsa_jax.load_backbone(str(run)).features(images)
    if kind == "npz":
        found = npz(out)
        assert found["names"].tolist() == names and found["labels"].tolist() == [n.split("/")[0] for n in names]
        np.testing.assert_allclose(found["vectors"], expected, atol=1e-5)
        assert json.loads(str(found["about"]))["run"] == str(run.absolute())
    else:
        rows = list(csv.DictReader(out.open()))
        assert [row["name"] for row in rows] == names and len(rows[0]) == 2 + expected.shape[1]
        np.testing.assert_allclose([float(row["v_3"]) for row in rows], expected[:, 3], atol=1e-5)
    assert not (tmp_path / f"{out.name}.parts").exists()


def test_vectors_of_length_one_and_attention(tmp_path, run, folder):
    for name, options in (("unit", {"vectors": "unit"}), ("plain", {}), ("attended", {"pooling": "attention"})):
        embed.embed(str(run), str(folder), str(tmp_path / f"{name}.npz"), embed.Options(**options))
    unit, plain, attended = (npz(tmp_path / f"{name}.npz")["vectors"] for name in ("unit", "plain", "attended"))
    np.testing.assert_allclose(unit, plain / np.linalg.norm(plain, axis=1, keepdims=True), rtol=1e-5)
    assert attended.shape == plain.shape and np.abs(attended - plain).max() > 1e-3


def test_an_interrupted_embedding_goes_on(tmp_path, run, folder, monkeypatch):
    monkeypatch.setattr(embed, "PART", 4)
    embed.embed(str(run), str(folder), str(tmp_path / "whole.npz"), OPTIONS)
    done, real = [], embed.Evaluator.features

    def features(self, network, indices, key=None, source=None):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(list(indices))
        return real(self, network, indices, key, source)

    monkeypatch.setattr(embed.Evaluator, "features", features)
    with pytest.raises(KeyboardInterrupt):
        embed.embed(str(run), str(folder), str(tmp_path / "x.npz"), OPTIONS)
    assert not (tmp_path / "x.npz").exists()
    with pytest.raises(UserError, match=r"parts of another embedding \(pooling differ\)"):
        embed.embed(str(run), str(folder), str(tmp_path / "x.npz"), embed.Options(pooling="attention"))
    done.clear()
    embed.embed(str(run), str(folder), str(tmp_path / "x.npz"), OPTIONS)
    assert done == [[8, 9, 10, 11], [12, 13, 14]]
    np.testing.assert_array_equal(npz(tmp_path / "x.npz")["vectors"], npz(tmp_path / "whole.npz")["vectors"])


def test_processes_share_the_parts(tmp_path, run, folder, monkeypatch, capsys):
    monkeypatch.setattr(embed, "PART", 4)
    embed.embed(str(run), str(folder), str(tmp_path / "one.npz"), OPTIONS)
    embed.embed(str(run), str(folder), str(tmp_path / "two.npz"), embed.Options(shard="1/2"))
    assert "2 of 4 parts are another process's" in capsys.readouterr().out
    assert not (tmp_path / "two.npz").exists()
    embed.embed(str(run), str(folder), str(tmp_path / "two.npz"), embed.Options(shard="0/2"))
    # One that comes late makes nothing anew.
    embed.embed(str(run), str(folder), str(tmp_path / "two.npz"), embed.Options(shard="1/2"))
    assert "is there already" in capsys.readouterr().out and not (tmp_path / "two.npz.parts").exists()
    for name in ("names", "vectors"):
        np.testing.assert_array_equal(npz(tmp_path / "one.npz")[name], npz(tmp_path / "two.npz")[name])


@pytest.mark.parametrize(
    ("out", "options", "said"),
    [
        ("x.txt", {}, r"end with \.npz or \.csv or \.parquet"),
        ("x.npz", {"shard": "2/2"}, "give i/n"),
        ("x.npz", {"shard": "a"}, "give i/n"),
        ("x.npz", {"predict": 3}, "has no classifier; give a fine-tuned run"),
    ],
)
def test_embeddings_that_cannot_be(tmp_path, run, folder, out, options, said):
    with pytest.raises(UserError, match=said):
        embed.embed(str(run), str(folder), str(tmp_path / out), embed.Options(**options))


def test_unreadable_images_are_named_or_left_out(tmp_path, run, folder):
    shutil.copytree(folder, tmp_path / "birds")
    (tmp_path / "birds" / "tern" / "b.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"tern/b\.png"):
        embed.embed(str(run), str(tmp_path / "birds"), str(tmp_path / "x.npz"), OPTIONS)
    embed.embed(str(run), str(tmp_path / "birds"), str(tmp_path / "y.npz"), embed.Options(skip=True))
    assert "tern/b.png" not in npz(tmp_path / "y.npz")["names"] and len(npz(tmp_path / "y.npz")["names"]) == 15


# Search.


@pytest.fixture(scope="module")
def index(tmp_path_factory, run, folder) -> Path:
    out = tmp_path_factory.mktemp("index") / "x.npz"
    embed.embed(str(run), str(folder), str(out), OPTIONS)
    return out


def test_neighbors_are_those_of_all_cosines(tmp_path, index, folder):
    known = npz(index)
    names, x = known["names"].tolist(), known["vectors"].astype(np.float64)
    cosines = (x @ x.T) / np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(x, axis=1))
    file = folder / names[5]
    search.neighbors(str(index), [names[2], str(file)], str(tmp_path / "page.html"), 4)
    inside, outside = json.loads((tmp_path / "page.json").read_text())["queries"]
    order = [i for i in np.argsort(-cosines[2], kind="stable") if i != 2][:4]
    assert [hit["name"] for hit in inside["neighbors"]] == [names[i] for i in order]
    np.testing.assert_allclose([hit["cosine"] for hit in inside["neighbors"]], cosines[2][order], atol=1e-6)
    # A file is not in the index, even where its picture is: the picture itself is its nearest neighbour.
    assert outside["neighbors"][0] == {"name": names[5], "cosine": pytest.approx(1, abs=1e-6)}
    page = (tmp_path / "page.html").read_text()
    assert page.count("<figure>") == 2 and names[2] in page


@pytest.mark.parametrize("cosine", [0.9999, 0.995, 0.9, -1.0])
def test_duplicates_are_all_pairs(tmp_path, index, cosine):
    known = npz(index)
    names, x = known["names"].tolist(), known["vectors"].astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    pairs = {(a, b) for a in range(len(x)) for b in range(a + 1, len(x)) if x[a] @ x[b] >= cosine}
    search.duplicates(str(index), cosine, str(tmp_path / "page.html"))
    found = json.loads((tmp_path / "page.json").read_text())
    assert {(names.index(pair["a"]), names.index(pair["b"])) for pair in found["pairs"]} == pairs
    if cosine == 0.9999:
        assert found["groups"] == [["gull/a,03.png", "tern/copy.png"]]
    if cosine == -1:
        assert [sorted(group) for group in found["groups"]] == [sorted(names)]


def test_searches_that_cannot_be(tmp_path, index, folder):
    page = str(tmp_path / "page.html")
    with pytest.raises(UserError, match=r"nobody\.jpg is neither a file nor a name in the index"):
        search.neighbors(str(index), ["nobody.jpg"], page, 3)
    with pytest.raises(UserError, match=r"end with \.html"):
        search.duplicates(str(index), 0.9, str(tmp_path / "page.htm"))
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(UserError, match=r"other\.npz is no \.npz of python -m cvsa_jax\.embed"):
        search.duplicates(str(tmp_path / "other.npz"), 0.9, page)
    arrays = npz(index)
    arrays["names"][0] = "gull/gone.png"
    np.savez(tmp_path / "old.npz", **arrays)
    with pytest.raises(UserError, match=r"no longer has 1 images of the index: gull/gone\.png"):
        search.duplicates(str(tmp_path / "old.npz"), 0.9, page)


def test_an_index_of_other_images_or_weights_is_outdated(tmp_path, run, folder):
    weights.export_run(str(run), tmp_path / "out", ("safetensors",), "none")
    file, birds = tmp_path / "out" / "model.safetensors", tmp_path / "birds"
    shutil.copytree(folder, birds)
    (birds / "tern" / "b.png").write_bytes(b"nothing")
    options = embed.Options(pooling="attention", skip=True)
    embed.embed(str(file), str(birds), str(tmp_path / "x.npz"), options)
    picture = tmp_path / "picture.png"
    shutil.copy(birds / "gull" / "a,05.png", picture)

    def nearest() -> dict:
        search.neighbors(str(tmp_path / "x.npz"), [str(picture)], str(tmp_path / "page.html"), 1)
        return json.loads((tmp_path / "page.json").read_text())["queries"][0]["neighbors"][0]

    assert nearest() == {"name": "gull/a,05.png", "cosine": pytest.approx(1, abs=1e-5)}
    other = {name: tensor + 0.1 for name, tensor in load_file(file).items()}
    save_file(other, file, {"stem": "small", "size": "32", "resize": "32"})
    with pytest.raises(UserError, match=r"model\.safetensors has changed since the index was made"):
        nearest()
    shutil.copy(birds / "gull" / "a,07.png", birds / "gull" / "a,09.png")
    with pytest.raises(UserError, match=r"the images in .* have changed since the index was made"):
        nearest()


# Side by side.


def test_a_run_its_export_and_its_features_have_the_same_figures(tmp_path, run):
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
    assert "Of what has no heads for it (file), the first component" in page
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


def test_files_are_read_once_more(tmp_path, run):
    weights.export_run(str(run), tmp_path / "out", ("safetensors",), "none")
    read = files.read(tmp_path / "out" / "model.safetensors")
    assert (read.padding, read.size, read.resize) == ("symmetric", 32, 32)
