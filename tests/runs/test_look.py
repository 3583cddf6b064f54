"""Look heads by their command's functions, and wherever a head or maps pool the features."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export
from safetensors.numpy import load_file, save_file
from support.comparing import npz
from support.tiny_runs import tiny, tiny_probe

import cvsa_jax
from cvsa_jax import settings
from cvsa_jax.data.reading import load_image
from cvsa_jax.evaluation import look as heads
from cvsa_jax.report.card import LOOK_POOLING
from cvsa_jax.runs import compare, embed, linear, look, pretrain, saliency, search, weights
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.saliency.registry import Options
from cvsa_jax.saliency.store import SaliencyStore
from cvsa_jax.weights import look_file
from cvsa_jax.weights.export import CONVERTER

pytestmark = pytest.mark.usefixtures("on_one_device")


def with_store(store: Path):
    config = tiny()
    config.saliency.store = str(store)
    return config


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("maps") / "store"
    saliency.make_store(with_store(folder), "masks", Options())
    return folder


@pytest.fixture(scope="module")
def head(tmp_path_factory, run, store) -> Path:
    path = tmp_path_factory.mktemp("head") / "look.safetensors"
    look.fit(with_store(store), str(run), "", str(path))
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory, run, head) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    weights.export_run(str(run), folder, ("safetensors", "stablehlo"), "MIT", str(head))
    return folder


def images_of_tests() -> tuple[list[np.ndarray], np.ndarray]:
    source = settings.load_source(tiny().data)
    test = source.split("test")
    return [load_image(source, int(i)) for i in test], test


def test_look_fit_matches_the_head_of_the_train_images(run, store, head):
    source = settings.load_source(tiny().data)
    train = source.split("train")
    backbone = cvsa_jax.load_backbone(str(run))
    squares = np.stack([load_image(source, int(i)) for i in train])  # of 32 px, as the network takes them
    views = (jnp.asarray(squares, jnp.float32) / 255 - jnp.array([0.485, 0.456, 0.406])) / jnp.array(
        [0.229, 0.224, 0.225]
    )
    cells = np.asarray(backbone.model.apply(backbone.network.variables, views, method="features")[0])
    expected = heads.fit([(slice(0, len(train)), cells)], SaliencyStore(store, source), train)
    found, about = look_file.read(str(head))
    np.testing.assert_allclose(found.vector, expected.vector, rtol=1e-3, atol=1e-4)
    assert about["look.detector"] == "masks" and about["look.supervision"] == "human"
    assert about["look.images"] == "21 of procedural" and float(about["look.explained"]) == pytest.approx(
        expected.explained, abs=1e-3
    )


def test_look_fit_draws_a_subset_by_seed(tmp_path, run, store):
    found = {}
    for name, seed, images in (("a", 0, 9), ("again", 0, 9), ("b", 1, 9)):
        config = with_store(store)
        config.seed = seed
        look.fit(config, str(run), "", str(tmp_path / f"{name}.safetensors"), images)
        found[name], about = look_file.read(str(tmp_path / f"{name}.safetensors"))
        assert about["look.images"] == "9 of procedural"
    np.testing.assert_array_equal(found["a"].vector, found["again"].vector)
    assert np.abs(found["a"].weight - found["b"].weight).max() > 1e-4
    with pytest.raises(UserError, match=r"--images=22: procedural has 21 train images"):
        look.fit(with_store(store), str(run), "", str(tmp_path / "c.safetensors"), 22)


def test_look_show_writes_page_and_test_figures(tmp_path, run, head, capsys):
    figures = look.show(tiny(), str(run), str(head), tmp_path / "out")
    page = (tmp_path / "out/report/index.html").read_text()
    assert "look head" in page and "<img" in page and "supervision: human" in page
    assert json.loads((tmp_path / "out/report/results.json").read_text())["look"] == figures
    assert "look head" in capsys.readouterr().out
    images, test = images_of_tests()
    source = settings.load_source(tiny().data)
    maps = cvsa_jax.load_backbone(str(run), look=str(head)).look(images)
    hits = []
    for k, i in enumerate(test):
        upsampled = heads_upsampled(maps[k])
        hits.append((np.asarray(source.mask(int(i))) > 127)[upsampled == upsampled.max()].mean())
    assert figures["pointing_game"] == pytest.approx(np.mean(hits), abs=0.07)


def heads_upsampled(values: np.ndarray) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(values.astype(np.float32), "F").resize((32, 32), Image.Resampling.BILINEAR))


@pytest.mark.slow
def test_compare_accepts_several_poolings_of_one_run(tmp_path, run, store, head):
    config = tiny_probe()
    config.eval.maps = str(store)
    entries = [f"plain={run}@average", f"maps={run}@saliency", f"fitted={run}@head", f"file={run}@{head}", str(run)]
    figures = compare.compare_runs(config, entries, tmp_path / "out")
    assert {"plain", "maps", "fitted", "file", "run"} <= figures.keys()
    # The head that is fitted on the way is that of the file, of the same maps and train images.
    assert figures["fitted"]["look_pixel_ap"] == pytest.approx(figures["file"]["look_pixel_ap"], abs=1e-3)
    assert "look_pixel_ap" not in figures["plain"] and "attention" not in figures["fitted"]
    page = (tmp_path / "out/report/index.html").read_text()
    assert "pooled by the maps" in page and "pooled by a look head" in page and "averaged over the cells" in page
    # Without an `@`, as the config says: the demo pools by attention.
    config = tiny_probe()
    config.eval.pooling, config.init_from = "saliency", str(run)
    config.eval.maps = str(store)
    alone = linear.linear_probe(config, tmp_path / "linear")
    assert alone["knn_top1"] == figures["maps"]["knn_top1"] != figures["run"]["knn_top1"]


def test_pooling_without_its_maps_is_refused(tmp_path, run, store):
    for pooling, said in (("saliency", "config.eval.maps$"), ("head", "config.eval.maps, or give a look head")):
        config = tiny_probe()
        config.eval.pooling, config.init_from = pooling, str(run)
        with pytest.raises(UserError, match=rf"config\.eval\.pooling={pooling} needs saliency maps: .*{said}"):
            linear.linear_probe(config, tmp_path / "linear")
    config = tiny_probe()
    config.eval.maps, config.probe.augmented = str(store), True
    with pytest.raises(UserError, match=r"whose maps are not known: .* than saliency for maps, such as head"):
        compare.compare_runs(config, [f"maps={run}@saliency"], tmp_path / "out")


def test_look_head_of_another_backbone_is_refused(tmp_path, run, head, store):
    about = look_file.read(str(head))[1] | {look_file.BACKBONE: "0" * 16, "look.network": "another.pth"}
    other = tmp_path / "other.safetensors"
    save_file(load_file(head), other, about)
    for use in (
        lambda: cvsa_jax.load_backbone(str(run), look=str(other)),
        lambda: look.show(tiny(), str(run), str(other), tmp_path / "out"),
        lambda: weights.export_run(str(run), tmp_path / "exported", ("stablehlo",), "MIT", str(other)),
        lambda: compare.compare_runs(tiny_probe(), [f"a={run}@{other}"], tmp_path / "out"),
    ):
        with pytest.raises(
            UserError, match=r"other\.safetensors was fitted to another\.pth, and not to .*run: fit one"
        ):
            use()


def test_files_without_a_look_head_are_refused(tmp_path, run, exported):
    plain = {name: tensor for name, tensor in load_file(exported / "model.safetensors").items() if "look" not in name}
    save_file(plain, tmp_path / "plain.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    damaged = load_file(exported / "model.safetensors") | {"look.bias": np.float32([np.nan])}
    save_file(damaged, tmp_path / "nan.safetensors")
    for name, said in (
        ("plain", "holds no look head"),
        ("text", "holds no look head"),
        ("nan", "is damaged"),
        ("none", "there is no such file"),
    ):
        with pytest.raises(UserError, match=said):
            cvsa_jax.load_backbone(str(run), look=str(tmp_path / f"{name}.safetensors"))


def test_exported_files_pool_by_the_look_head(run, head, exported):
    images, _ = images_of_tests()
    backbone = cvsa_jax.load_backbone(str(run), look=str(head))
    expected = backbone.features(images)
    assert np.abs(expected - cvsa_jax.load_backbone(str(run)).features(images)).max() > 1e-3
    file = exported / "model.safetensors"
    np.testing.assert_allclose(cvsa_jax.load_backbone(str(file), look=str(file)).features(images), expected, atol=1e-5)
    called = jax_export.deserialize(bytearray((exported / "model.stablehlo").read_bytes()))
    np.testing.assert_allclose(called.call(np.stack(images)), expected, atol=1e-4)
    card = (exported / "README.md").read_text()
    assert (
        "look head, a linear function of a cell" in card
        and 'look="model.safetensors"' in card
        and "supervision: human" in card
    )
    # The head goes with the backbone from one export to the next, and what is known of it.
    again, about = look_file.read(str(file))
    first, known = look_file.read(str(head))
    np.testing.assert_array_equal(again.vector, first.vector)
    assert (
        look_file.facts(about) == look_file.facts(known)
        and {"detector", "supervision"} <= look_file.facts(about).keys()
    )
    with pytest.raises(UserError, match="leave npz out"):
        weights.export_run(str(run), exported / "other", ("npz",), "MIT", str(head))


def test_onnx_pools_by_the_head(tmp_path, run, head):
    pytest.importorskip("jax2onnx", reason=f"run where the converter is installed: {CONVERTER}")
    onnxruntime = pytest.importorskip("onnxruntime")
    weights.export_run(str(run), tmp_path / "out", ("onnx",), "MIT", str(head))
    images, _ = images_of_tests()
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(["features"], {"images": np.stack(images)})
    expected = cvsa_jax.load_backbone(str(run), look=str(head)).features(images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_pytorch_code_of_the_card_pools_equally(tmp_path, run, head, exported):
    torch = pytest.importorskip("torch")
    scope = {"torch": torch}
    exec(LOOK_POOLING, scope)
    tensors = {name: torch.from_numpy(tensor) for name, tensor in load_file(exported / "model.safetensors").items()}
    images, _ = images_of_tests()
    backbone = cvsa_jax.load_backbone(str(run), look=str(head))
    views = (jnp.asarray(np.stack(images), jnp.float32) / 255 - jnp.array([0.485, 0.456, 0.406])) / jnp.array(
        [0.229, 0.224, 0.225]
    )
    cells = np.asarray(backbone.model.apply(backbone.network.variables, views, method="features")[0])
    found = scope["LookPooling"](tensors)(torch.from_numpy(cells.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(found, backbone.features(images), atol=1e-5)


def test_unused_or_conflicting_pooling_options_are_refused(tmp_path, run, store, head):
    for changes, said in (
        ({"look": str(head)}, r"config\.eval\.look=.* belongs to config\.eval\.pooling=head"),
        ({"maps": str(store)}, r"config\.eval\.maps=.* belongs to config\.eval\.pooling=saliency, or head"),
        ({"maps": str(store), "look": str(head), "pooling": "head"}, "give a head, or maps"),
    ):
        config = tiny_probe()
        config.init_from = str(run)
        config.eval.update(changes)
        for use in (linear.linear_probe, lambda config, out: compare.compare_runs(config, [str(run)], out)):
            with pytest.raises(UserError, match=said):
                use(config, tmp_path / "out")
    with pytest.raises(UserError, match=r"--detector=rbd and config\.saliency\.store=.*: give one"):
        look.fit(with_store(store), str(run), "rbd", str(tmp_path / "x.safetensors"))
    with pytest.raises(
        UserError, match=r"behind @ stands how the cells are pooled, average, attention, head, saliency"
    ):
        compare.compare_runs(tiny_probe(), [f"{run}@haed"], tmp_path / "out")


def test_look_fit_leaves_blank_maps_out(tmp_path, run, store, monkeypatch, capsys):
    source = settings.load_source(tiny().data)
    train = source.split("train")
    blank = {int(i) for i in train[::3]}
    whole = SaliencyStore.__getitem__

    def faded(self, indices):
        maps = whole(self, indices).copy()
        maps[[k for k, i in enumerate(np.asarray(indices)) if int(i) in blank]] //= 64
        return maps

    monkeypatch.setattr(SaliencyStore, "__getitem__", faded)
    look.fit(with_store(store), str(run), "", str(tmp_path / "some.safetensors"))
    assert f"{len(blank)} of 21 maps in {store} are blank, and left out" in capsys.readouterr().out
    found, about = look_file.read(str(tmp_path / "some.safetensors"))
    assert about["look.images"] == f"{21 - len(blank)} of procedural"
    monkeypatch.undo()
    evaluator = look._candidate(
        with_store(store), str(run), source, train, heads.Guide(maps=SaliencyStore(store, source))
    )
    others = np.array([i for i in train if int(i) not in blank])
    np.testing.assert_allclose(found.vector, evaluator.evaluator.fit_head(evaluator.network, others).vector, atol=1e-5)


def test_search_refuses_a_changed_or_missing_look_head(tmp_path, run, folder, head):
    own = shutil.copy(head, tmp_path / "own.safetensors")
    out = tmp_path / "x.npz"
    embed.embed(str(run), str(folder), str(out), embed.Options(pooling=embed.Pooling("head", look=str(own))))
    query = shutil.copy(next(folder.rglob("*.png")), tmp_path / "query.png")
    tensors = load_file(head)
    save_file(tensors | {"look.bias": tensors["look.bias"] + 1}, own, look_file.read(str(head))[1])
    with pytest.raises(UserError, match=r"own\.safetensors has changed since the index was made"):
        search.neighbors(str(out), [str(query)], str(tmp_path / "found.html"), 1)
    own.unlink()
    with pytest.raises(UserError, match=r"pooled by the look head .*own\.safetensors, which is gone"):
        search.neighbors(str(out), [str(query)], str(tmp_path / "found.html"), 1)


def test_embedding_and_search_pool_by_the_look_head(tmp_path, run, folder, head):
    out = tmp_path / "x.npz"
    pooling = embed.Pooling("head", look=str(head))
    embed.embed(str(run), str(folder), str(out), embed.Options(pooling=pooling))
    names = npz(out)["names"].tolist()
    first = np.asarray(load_image(cvsa_jax.load_source(of_folder(folder)), 0))
    expected = cvsa_jax.load_backbone(str(run), look=str(head)).features([first])
    np.testing.assert_allclose(npz(out)["vectors"][:1], expected, atol=1e-4)
    # The same picture from outside finds itself.
    query = shutil.copy(folder / names[0], tmp_path / "query.png")
    search.neighbors(str(out), [str(query)], str(tmp_path / "found.html"), 1)
    (found,) = json.loads((tmp_path / "found.json").read_text())["queries"]
    assert found["neighbors"][0]["name"] == names[0] and found["neighbors"][0]["cosine"] == pytest.approx(1, abs=1e-4)
    with pytest.raises(UserError, match="--look belongs to --pooling=head"):
        embed.embed(str(run), str(folder), str(out), embed.Options(pooling=embed.Pooling("head")))
    with pytest.raises(UserError, match="--maps belongs to --pooling=saliency"):
        embed.embed(str(run), str(folder), str(out), embed.Options(pooling=embed.Pooling("average", maps="rbd")))


def of_folder(folder: Path):
    config = tiny()
    config.data.kind, config.data.root = "folder", str(folder)
    return config


def test_saliency_pooled_index_refuses_new_images(tmp_path, run, folder):
    config = of_folder(folder)
    config.saliency.store = str(tmp_path / "maps")
    saliency.make_store(config, "rbd", Options())
    out, pooling = tmp_path / "x.npz", embed.Pooling("saliency", maps=str(tmp_path / "maps"))
    embed.embed(str(run), str(folder), str(out), embed.Options(pooling=pooling))
    embed.embed(str(run), str(folder), str(tmp_path / "plain.npz"), embed.Options())
    assert np.abs(npz(out)["vectors"] - npz(tmp_path / "plain.npz")["vectors"]).max() > 1e-3
    new = shutil.copy(next(folder.rglob("*.png")), tmp_path / "new.png")
    with pytest.raises(UserError, match=r"pooled by saliency maps, and there are none of .*new\.png"):
        search.neighbors(str(out), [str(new)], str(tmp_path / "found.html"), 1)


@pytest.mark.slow
def test_look_head_fits_patches_of_a_feature_file(tmp_path, store):
    source = settings.load_source(tiny().data)
    patches = np.random.default_rng(0).normal(size=(len(source), 4, 4, 5)).astype(np.float32)
    patches[..., 2] += SaliencyStore(store, source)[np.arange(len(source))].reshape(-1, 4, 16, 4, 16).mean((2, 4)) / 40
    np.savez(tmp_path / "x.npz", names=np.array(source.names), vectors=patches.mean((1, 2)), patches=patches)
    head = look.fit(with_store(store), str(tmp_path / "x.npz"), "", str(tmp_path / "look.safetensors"))
    assert np.abs(head.weight).argmax() == 2
    config = tiny_probe()
    entry = f"x={tmp_path / 'x.npz'}@{tmp_path / 'look.safetensors'}"
    figures = compare.compare_runs(config, [entry], tmp_path / "out")["x"]
    assert figures["look_pointing_game"] > figures["mean_pointing_game"]
    np.savez(tmp_path / "y.npz", names=np.array(source.names), vectors=patches[:, 0, 0], patches=patches[..., :3])
    with pytest.raises(UserError, match=r"fitted to 5 channels of .*x\.npz, and the patches in .*y\.npz have 3"):
        compare.compare_runs(config, [entry.replace("x.npz", "y.npz")], tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(["fit", "--config=folder", "--out=y.safetensors"], "--run is missing", id="run"),
        pytest.param(["fit", "--config=folder", "--run=x"], "--out is missing", id="out"),
        pytest.param(["show", "--config=folder", "--run=x"], "--look is missing", id="look"),
        pytest.param(["show", "--config=folder_linear", "--run=x"], "one of mode 'linear'", id="config of a probe"),
    ],
)
def test_look_command_names_missing_flags(words, said):
    root = Path(__file__).parents[2]
    told = subprocess.run([sys.executable, "-m", "cvsa_jax.look", *words], cwd=root, capture_output=True, text=True)
    assert told.returncode == 2 and said in told.stderr, told.stderr


@pytest.mark.parametrize("pooling", ["head", "saliency"])
def test_pretraining_refuses_pooling_by_head_or_saliency(tmp_path, pooling):
    config = tiny("byol")
    config.eval.pooling = pooling
    with pytest.raises(UserError, match=rf"config\.eval\.pooling of a pre-training='{pooling}' .*average, attention"):
        pretrain.train(config, tmp_path / "run")
