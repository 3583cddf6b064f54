import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.compiling import few_devices
from support.running import Step

from configs import common, demo
from configs import saliency_unet as unet_config
from cvsa_jax import settings
from cvsa_jax.data.reading import load_image
from cvsa_jax.models.activation import READOUTS, channel_mean, first_component
from cvsa_jax.runs import feed, linear, pretrain, saliency_unet
from cvsa_jax.runtime.distributed import make_mesh
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.saliency.compute import compute
from cvsa_jax.saliency.detector import Detection
from cvsa_jax.saliency.detectors import encoder, unet
from cvsa_jax.saliency.detectors.annotation import center
from cvsa_jax.saliency.detectors.rbd import reduced, robust_background
from cvsa_jax.saliency.registry import Options, build
from cvsa_jax.saliency.store import SaliencyStore, make_record, open_store
from cvsa_jax.training import checkpoint
from cvsa_jax.training.log import read_metrics
from cvsa_jax.training.photometric import MEAN, STD
from cvsa_jax.training.state import empty_network, tree_hash

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def small_runs(quick_compilation):
    with few_devices(2, saliency_unet, unet, encoder, pretrain, linear):
        yield


def tiny_unet():
    """The detector's config on a budget of seconds."""
    config = unet_config.get_config()
    config.data.kind = "procedural"
    config.data.procedural.update(classes=3, train_per_class=4, test_per_class=3, size=32)
    config.with_procedural = False
    config.size, config.model.channels = 32, (8, 16)
    config.batch_size, config.total_steps, config.optim.warmup_epochs = 4, 6, 0.0
    config.log_steps, config.checkpoint_steps = 1, 2
    return config


def tiny_pretrain():
    config = demo.get_config("byol")
    config.data.procedural.update(tiny_unet().data.procedural)
    config.views.size = config.eval.size = config.eval.resize = 32
    config.model.update(width=4, head_hidden=16, head_out=8)
    config.batch_size, config.total_steps, config.optim.warmup_steps = 8, 2, 1
    return config


@pytest.fixture(scope="module")
def source():
    return settings.load_source(tiny_unet().data)


@pytest.fixture(scope="module")
def unet_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unet") / "run"
    saliency_unet.train_unet(tiny_unet(), workdir)
    return workdir


@pytest.fixture(scope="module")
def byol_run(tmp_path_factory):
    """A pre-training whose network stays as it begins: its step would take most of the time to compile."""
    workdir = tmp_path_factory.mktemp("byol") / "run"

    def count(state, batch):
        return dataclasses.replace(state, step=state.step + 1), dict.fromkeys(("loss", "grad_norm"), jnp.zeros(()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "make_train_step", lambda *args, **kwargs: Step(count))
        patch.setattr(pretrain, "report_run", lambda *args, **kwargs: {})
        pretrain.train(tiny_pretrain(), workdir)
    return workdir


def detect(detector, source, indices):
    return detector.detect([detector.prepare(i, load_image(source, int(i))) for i in indices])


def parameters(workdir):
    model = settings.unet(tiny_unet().model)
    like = unet.empty_params(model)
    return checkpoint.restore_item(workdir, "params", like, make_mesh(jax.devices()[:1]))[0]


@pytest.mark.slow
def test_killed_unet_run_resumes_to_the_same_parameters(tmp_path, unet_run, monkeypatch):
    real = saliency_unet.make_unet_step

    def dying(*args, **kwargs):
        step = real(*args, **kwargs)

        def run(state, batch):
            if int(state.step) == 3:
                raise KeyboardInterrupt
            return step(state, batch)

        return Step(run)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(saliency_unet, "make_unet_step", dying)
        saliency_unet.train_unet(tiny_unet(), tmp_path)
    saliency_unet.train_unet(tiny_unet(), tmp_path)
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, 7))
    for once, resumed in zip(*(jax.tree.leaves(parameters(w)) for w in (unet_run, tmp_path)), strict=True):
        np.testing.assert_array_equal(once, resumed)


def test_unet_run_reports_its_figures(unet_run, source):
    figures = json.loads((unet_run / "report" / "results.json").read_text())
    assert figures.keys() == {"mae", "iou", "box_iou", "pointing_game", "max_f"}
    detector = unet.unet(unet_run)
    test = source.split("test")
    errors = []
    for i, found in zip(test, detect(detector, source, test), strict=True):
        # The picture has twice the resolution of the map, and the stored grid twice that again.
        stored = make_record(found.saliency, 1.0, 0.5)["map"].astype(float) / 255
        errors.append(np.abs(stored.reshape(32, 2, 32, 2).mean((1, 3)) - source.mask(int(i)) / 255).mean())
    assert figures["mae"] == pytest.approx(np.mean(errors), abs=0.01)
    assert "png;base64" in (unet_run / "report" / "index.html").read_text()


def test_unet_trains_on_the_procedural_set_too(tmp_path, capsys):
    config = tiny_unet()
    config.with_procedural = True
    saliency_unet.train_unet(config, tmp_path)
    # The set is procedural itself, so its 12 images come twice.
    assert "24 images with masks" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 30}, r"config\.size=30 is not a multiple of the detector's stride 4"),
        ({"model.channels": (8, 12)}, r"config\.model\.channels=\(8, 12\): .*multiple of 8"),
        ({"augment.side": (0.5, 1.4)}, r"config\.augment\.side=\(0\.5, 1\.4\) must be a range"),
        ({"augment.composite_prob": 1.5}, r"composite_prob=1\.5 does not lie in \[0, 1\]"),
        ({"data.kind": "folder"}, r"config\.data\.root is not set"),
    ],
    ids=["size", "channels", "range of sides", "probability", "no data"],
)
def test_impossible_unet_settings_are_refused(tmp_path, change, message):
    config = tiny_unet()
    config.update_from_flattened_dict(change)
    with pytest.raises(UserError, match=message):
        saliency_unet.train_unet(config, tmp_path)


def test_unet_workdir_of_another_size_is_refused(unet_run):
    config = tiny_unet()
    config.size = 64
    with pytest.raises(UserError, match=r"size: 32 -> 64"):
        saliency_unet.train_unet(config, unet_run)


def test_unet_detector_gives_the_probabilities_of_its_run(unet_run, source):
    detector = unet.unet(unet_run)
    assert (detector.name, detector.supervision) == ("unet", "supervised")
    found = detect(detector, source, range(3))
    model = settings.unet(tiny_unet().model)
    for i in range(3):
        pixels = (load_image(source, i) / 255.0 - np.array(MEAN)) / np.array(STD)
        logits = model.apply({"params": parameters(unet_run)}, jnp.asarray(pixels[None], jnp.float32))[0]
        expected = 1 / (1 + np.exp(-np.asarray(logits[0], float)))
        np.testing.assert_allclose(found[i].saliency, expected, atol=1e-4)
        assert found[i].confidence == pytest.approx(expected.max(), abs=1e-4)
        (alone,) = detect(detector, source, [i])
        np.testing.assert_allclose(alone.saliency, found[i].saliency, atol=1e-6)


def test_first_component_against_svd():
    rng = np.random.default_rng(0)
    features = rng.normal(0, 1, (2, 5, 6, 7)).astype(np.float32)
    features[0, 1:4, 1:5] += 4  # the middle of image 0 differs
    features[1, 1:4, 1:5] -= 4
    components, shares = first_component(jnp.asarray(features))
    for k in range(2):
        cells = features[k].reshape(30, 7).astype(float)
        u, s, _ = np.linalg.svd(cells - cells.mean(0))
        expected = u[:, 0].reshape(5, 6)
        border = np.r_[expected[0], expected[-1], expected[1:-1, 0], expected[1:-1, -1]]
        expected *= -np.sign(border.sum())
        np.testing.assert_allclose(components[k], expected, atol=1e-3)
        assert components[k][1:4, 1:5].mean() > components[k][0].mean()
        assert float(shares[k]) == pytest.approx(s[0] ** 2 / (s**2).sum(), rel=1e-3)


def test_channel_mean_and_its_contrast():
    features = np.random.default_rng(0).random((2, 3, 4, 5)).astype(np.float32)
    mean, contrast = channel_mean(jnp.asarray(features))
    expected = features.mean(-1)
    np.testing.assert_allclose(mean, expected, rtol=1e-5)
    np.testing.assert_allclose(contrast, [1 - m.min() / m.max() for m in expected], rtol=1e-4)


@pytest.mark.parametrize("kind", list(READOUTS))
def test_encoder_detector_reads_the_backbone_of_its_run(byol_run, source, kind):
    detector = encoder.encoder(byol_run, kind)
    assert (detector.supervision, detector.settings["size"], detector.settings["map"]) == ("unsupervised", 64, kind)
    found = detect(detector, source, range(2))
    assert [f.saliency.shape for f in found] == [(8, 8)] * 2
    for detection in found:
        assert (detection.saliency.min(), detection.saliency.max()) == (0, 1)
        assert 0 < detection.confidence <= 1
    model = settings.model(tiny_pretrain().model)
    online, _ = checkpoint.restore_online(byol_run, empty_network(model), make_mesh(jax.devices()[:1]))
    pixels = (detector.prepare(0, load_image(source, 0)) / 255.0 - np.array(MEAN)) / np.array(STD)
    single = model.clone(axis_name=None)
    feature_map, _ = single.apply(online.variables, jnp.asarray(pixels[None], jnp.float32), method="features")
    raw = np.asarray(READOUTS[kind](feature_map)[0][0])
    np.testing.assert_allclose(found[0].saliency, (raw - raw.min()) / np.ptp(raw), atol=1e-3)


def test_detectors_refuse_runs_of_another_kind(unet_run, byol_run, tmp_path):
    with pytest.raises(UserError, match=r"mode 'pretrain'; --detector=unet needs one of 'saliency_unet'"):
        unet.unet(byol_run)
    with pytest.raises(UserError, match=r"mode 'saliency_unet'; --detector=encoder needs a pre-training run"):
        encoder.encoder(unet_run, "mean")
    with pytest.raises(UserError, match=r"is not the workdir of a run"):
        unet.unet(tmp_path)


def test_other_commands_refuse_a_detectors_run(unet_run, tmp_path):
    config = tiny_pretrain()
    config.init_from = str(unet_run)
    with pytest.raises(UserError, match=r"a pre-training run is needed"):
        pretrain.train(config, tmp_path / "run")
    config = common.linear()
    config.data.update(tiny_pretrain().data)
    config.init_from = str(unet_run)
    with pytest.raises(UserError, match=r"mode 'saliency_unet': a pre-training run is needed"):
        linear.linear_probe(config, tmp_path / "linear")


def test_tree_hash_changes_with_any_value():
    tree = {"a": np.arange(4.0), "b": np.zeros(2)}
    before = tree_hash(tree)
    assert tree_hash({"a": np.arange(4.0), "b": np.zeros(2)}) == before
    tree["b"][1] = 1e-9
    assert tree_hash(tree) != before


def test_rbd_detector_reads_the_reduced_image(source):
    detector = build("rbd", source, Options())
    found = detect(detector, source, range(5))
    for i, detection in enumerate(found):
        expected = robust_background(reduced(load_image(source, i)))
        # Another number of threads of linear algebra rounds otherwise.
        np.testing.assert_allclose(detection.saliency, expected.saliency, atol=1e-6)
        assert detection.confidence == pytest.approx(expected.confidence)


@pytest.mark.parametrize(("area", "warned"), [(0.9, True), (0.7, False)], ids=["nine tenths", "seven tenths"])
def test_maps_that_are_mostly_object_are_warned_of(tmp_path, source, capsys, area, warned):
    side = round(64 * area**0.5)
    map_of = np.pad(np.ones((side, side), np.float32), (0, 64 - side))
    drawn = dataclasses.replace(center(source), detect=lambda maps: [Detection(map_of, 1.0) for _ in maps])
    compute(source, drawn, tmp_path / "store", threshold=0.5, on_bad_image="stop")
    open_store(str(tmp_path / "store"), source, "center", 1.0)
    assert ("of the image: are they inverted?" in capsys.readouterr().out) == warned


def test_training_warns_of_more_fallbacks_than_configured(tmp_path, source, capsys):
    config = tiny_pretrain()
    config.views.kind, config.saliency.threshold = "saliency_swap", 2.0
    config.saliency.store = str(tmp_path)
    # Nothing of a map whose maximum is about 1 reaches 2.
    compute(source, center(source), tmp_path, threshold=2.0, on_bad_image="stop")
    assert SaliencyStore(tmp_path, source).fallback_share == 1
    feed.maps_of(config, source)
    assert "warning: 100% of the maps" in capsys.readouterr().out
    config.saliency.warn_fallback = 1.0
    feed.maps_of(config, source)
    assert "of the maps" not in capsys.readouterr().out
