"""From Python, as README shows it."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.compiling import few_devices
from support.tiny_runs import tiny

import cvsa_jax
from cvsa_jax import api, settings
from cvsa_jax.data.index import Order
from cvsa_jax.data.pipeline import train_batches
from cvsa_jax.data.resample import with_masks
from cvsa_jax.data.sources import load
from cvsa_jax.evaluation.protocol import EvalSpec
from cvsa_jax.runs import pretrain
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.saliency.compute import compute
from cvsa_jax.saliency.detectors.annotation import center

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def small_runs(quick_compilation):
    with few_devices(2, pretrain, api):
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_runs):
    workdir = tmp_path_factory.mktemp("api") / "run"
    cvsa_jax.train(tiny("byol"), str(workdir))
    return workdir


def test_config_of_a_run_continues_the_run(run):
    config = cvsa_jax.load_config(f"{run}/config.json")
    assert config.to_dict() == tiny("byol").to_dict()
    told = json.loads((run / "report" / "results.json").read_text())
    assert cvsa_jax.train(config, str(run)) == told


def images_of(source, indices) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(source.read(int(i)))).convert("RGB")) for i in indices]


def test_features_and_attention_match_the_evaluator(run):
    config = tiny("byol")
    source = cvsa_jax.load_source(config)
    backbone, test = cvsa_jax.load_backbone(str(run)), source.split("test")
    images = images_of(source, test)
    evaluator = cvsa_jax.Evaluator(backbone.model, backbone.mesh, source, EvalSpec(32, 32, 8, "others"))
    np.testing.assert_allclose(backbone.features(images), evaluator.features(backbone.network, test), atol=1e-5)
    maps = evaluator.maps(backbone.network, test)["attention"]
    np.testing.assert_allclose(backbone.attention(np.stack(images)), maps, atol=1e-5)
    # The rows are independent of what else is asked for, and of padding.
    np.testing.assert_allclose(backbone.features(images[:3]), backbone.features(images)[:3], atol=1e-5)


def test_features_of_wide_images_are_of_the_centre_crop(run):
    backbone = cvsa_jax.load_backbone(str(run))
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (32, 32, 3), np.uint8)
    wide = np.concatenate([np.zeros((32, 8, 3), np.uint8), image, np.zeros((32, 8, 3), np.uint8)], 1)
    alone, centre = backbone.features([image])[0], backbone.features([wide])[0]
    np.testing.assert_allclose(centre, alone, atol=1e-5)
    with pytest.raises(UserError, match="at least two images"):
        backbone.attention([image])


def test_backbone_of_a_weights_file_has_features_but_no_attention(tmp_path, small_runs):
    from support.torch_files import torch_weights, write

    file = write(tmp_path / "weights.npz", torch_weights(8, 8, stem=3))
    backbone = cvsa_jax.load_backbone(str(file), size=32)
    features = backbone.features(np.zeros((3, 40, 50, 3), np.uint8))
    assert features.shape == (3, 32) and np.isfinite(features).all()
    with pytest.raises(UserError, match="which weights files lack"):
        backbone.attention(np.zeros((3, 40, 50, 3), np.uint8))


IMAGE = np.zeros((8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([], "there are no images"),
        ([IMAGE, IMAGE[..., 0]], r"number 1 is uint8 \(8, 8\)"),
        ([np.zeros((8, 8, 4), np.uint8)], r"number 0 is uint8 \(8, 8, 4\)"),
        ([IMAGE / 255], r"number 0 is float64 \(8, 8, 3\)"),
    ],
    ids=["none", "grey", "four channels", "float"],
)
def test_invalid_images_are_named(run, images, said):
    backbone = cvsa_jax.load_backbone(str(run))
    with pytest.raises(UserError, match=said):
        backbone.features(images)


def test_train_refuses_invalid_configs(tmp_path, small_runs):
    config = tiny("byol")
    config.batch_size = 0
    with pytest.raises(UserError, match=r"config\.batch_size=0 is out of range"):
        cvsa_jax.train(config, str(tmp_path))
    with pytest.raises(UserError, match="of mode 'pretrain', not 'linear'"):
        cvsa_jax.train(cvsa_jax.load_config(str(ROOT / "configs/folder_linear.py")), str(tmp_path))


def test_load_config_applies_changes_and_names_unknown_keys():
    nested = cvsa_jax.load_config("folder:small", {"data": {"root": "mine"}})
    assert nested.data.root == "mine" and nested.data.on_bad_image == "stop"
    config = cvsa_jax.load_config(str(ROOT / "configs/folder.py:small,moco"), {"data.root": "mine", "batch_size": 8})
    assert (config.objective, config.data.root, config.batch_size, config.views.size) == ("moco", "mine", 8, 48)
    with pytest.raises(UserError, match=r"folder\.py has no key 'batchsize'; did you mean batch_size\?"):
        cvsa_jax.load_config(str(ROOT / "configs/folder.py"), {"batchsize": 8})
    with pytest.raises(UserError, match=r"has no key 'zzz'$"):
        cvsa_jax.load_config(str(ROOT / "configs/folder.py"), {"zzz": 8})
    with pytest.raises(UserError, match=r"there is no config 'nobody\.py'"):
        cvsa_jax.load_config("nobody.py:small")
    with pytest.raises(ValueError, match="unknown option huge"):
        cvsa_jax.load_config(str(ROOT / "configs/folder.py:huge"))


def test_dir_lists_public_api():
    assert set(cvsa_jax.__all__) <= set(dir(cvsa_jax))
    for name in cvsa_jax.__all__:
        assert getattr(cvsa_jax, name) is getattr(api, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        cvsa_jax.nothing  # noqa: B018


def folder_with_maps(root: Path) -> None:
    """`my_images` and `my_maps` of the tiny set."""
    source = cvsa_jax.load_source(tiny())
    for i, image in enumerate(images_of(source, source.split("train"))):
        path = root / "my_images" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    folder = load("folder", str(root / "my_images"))
    compute(folder, center(folder), root / "my_maps", threshold=0.5, on_bad_image="stop")
    (root / "configs").symlink_to(ROOT / "configs")


def test_docs_example_gives_the_views_of_a_training(tmp_path, monkeypatch, capsys):
    folder_with_maps(tmp_path)
    monkeypatch.chdir(tmp_path)
    real, made = api.load_config, []

    def quick_config(file, changes):
        made.append(real(file, changes | {"batch_size": 8, "total_steps": 3, "views.size": 32}))
        return made[-1]

    monkeypatch.setattr(api, "load_config", quick_config)
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "how-to" / "data.md").read_text(), re.DOTALL)
    assert len(example.replace("\n\n", "\n").strip().splitlines()) <= 12
    names = {}
    exec(compile(example, "data.md", "exec"), names)
    assert capsys.readouterr().out.splitlines()[-2:] == ["(8, 32, 32, 3) (8, 8, 8) uint8"] * 2

    # They are those that a training of this config sees, in its order.
    (config,) = made
    source = cvsa_jax.load_source(config)
    store = cvsa_jax.SaliencyStore(tmp_path / "my_maps", source)
    spec, order = settings.view_spec(config, 1), Order(8, range(3), config.seed)
    expected = [with_masks(b, 32, np) for b in train_batches(source, source.split("train"), store, spec, order)]
    found = list(cvsa_jax.views(config).as_numpy_iterator())
    assert len(found) == len(expected) == 3
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == {"view1", "view2", "mask1", "mask2"}
        for name, rows in ours.items():
            np.testing.assert_array_equal(rows, theirs[name])


def test_views_of_crops_need_no_maps_and_include_labels(tmp_path):
    config = tiny("byol")
    config.views.kind = "random_resized_crop"
    (batch,) = cvsa_jax.views(config).take(1).as_numpy_iterator()
    assert batch.keys() == {"view1", "view2", "label"} and batch["label"].shape == (8,)
    assert len(cvsa_jax.views(config)) == 10
    for key, value, said in (("batch_size", 7, "group"), ("seed", -1, "seed"), ("mode", "linear", "'pretrain'")):
        wrong = config.copy_and_resolve_references()
        wrong[key] = value
        with pytest.raises(UserError, match=said):
            cvsa_jax.views(wrong)


@pytest.mark.slow
def test_readme_example_runs(tmp_path, small_runs, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(example.strip().splitlines()) <= 12
    folder_with_maps(tmp_path)
    monkeypatch.chdir(tmp_path)
    store = tmp_path / "saliency" / "my_images" / "rbd"
    store.parent.mkdir(parents=True)
    (tmp_path / "my_maps").rename(store)
    real = api.load_config

    def quick_config(file, changes):
        loaded = real(file, changes)
        loaded.update({"batch_size": 4, "total_steps": 2, "log_steps": 1, "checkpoint_steps": 2})
        loaded.optim.warmup_steps, loaded.views.size = 1, 16
        return loaded

    monkeypatch.setattr(api, "load_config", quick_config)
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    assert (names["features"].shape, names["maps"].shape) == ((16, 128), (16, 8, 8))  # as README's comments say


def test_version_matches_citation():
    assert f"\nversion: {cvsa_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text()
