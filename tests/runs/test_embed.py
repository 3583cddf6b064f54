"""Embedding by its command's function."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.comparing import npz

import cvsa_jax
from cvsa_jax.data.sources import load
from cvsa_jax.runs import embed
from cvsa_jax.runtime.errors import UserError

OPTIONS = embed.Options()

pytestmark = pytest.mark.usefixtures("on_one_device")


def in_memory(root: Path) -> tuple[list[str], list[np.ndarray]]:
    source = load("folder", str(root))
    return list(source.names), [np.asarray(Image.open(io.BytesIO(source.read(i)))) for i in range(len(source))]


@pytest.mark.parametrize("kind", ["npz", "csv"])
def test_embed_writes_features_of_a_folder(tmp_path, run, folder, kind):
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


def test_embed_unit_vectors_and_attention_pooling(tmp_path, run, folder):
    for name, options in (
        ("unit", {"vectors": "unit"}),
        ("plain", {}),
        ("attended", {"pooling": embed.Pooling("attention")}),
    ):
        embed.embed(str(run), str(folder), str(tmp_path / f"{name}.npz"), embed.Options(**options))
    unit, plain, attended = (npz(tmp_path / f"{name}.npz")["vectors"] for name in ("unit", "plain", "attended"))
    np.testing.assert_allclose(unit, plain / np.linalg.norm(plain, axis=1, keepdims=True), rtol=1e-5)
    assert attended.shape == plain.shape and np.abs(attended - plain).max() > 1e-3


def test_interrupted_embedding_resumes(tmp_path, run, folder, monkeypatch):
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
        embed.embed(str(run), str(folder), str(tmp_path / "x.npz"), embed.Options(pooling=embed.Pooling("attention")))
    done.clear()
    embed.embed(str(run), str(folder), str(tmp_path / "x.npz"), OPTIONS)
    assert done == [[8, 9, 10, 11], [12, 13, 14]]
    np.testing.assert_array_equal(npz(tmp_path / "x.npz")["vectors"], npz(tmp_path / "whole.npz")["vectors"])


def test_embedding_shards_combine_to_one_file(tmp_path, run, folder, monkeypatch, capsys):
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
    ids=["type of file", "shard beyond the last", "shard of letters", "classes of no classifier"],
)
def test_invalid_embed_options_are_refused(tmp_path, run, folder, out, options, said):
    with pytest.raises(UserError, match=said):
        embed.embed(str(run), str(folder), str(tmp_path / out), embed.Options(**options))


def test_embed_names_or_skips_unreadable_images(tmp_path, run, folder):
    shutil.copytree(folder, tmp_path / "birds")
    (tmp_path / "birds" / "tern" / "b.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"tern/b\.png") as error:
        embed.embed(str(run), str(tmp_path / "birds"), str(tmp_path / "x.npz"), OPTIONS)
    assert "of embed: --skip_bad_images" in str(error.value)
    embed.embed(str(run), str(tmp_path / "birds"), str(tmp_path / "y.npz"), embed.Options(skip=True))
    assert "tern/b.png" not in npz(tmp_path / "y.npz")["names"] and len(npz(tmp_path / "y.npz")["names"]) == 15
    for file in (tmp_path / "birds").rglob("*.png"):
        file.write_bytes(b"nothing")
    with pytest.raises(UserError, match="16 of 16 images of birds cannot be decoded"):
        embed.embed(str(run), str(tmp_path / "birds"), str(tmp_path / "z.npz"), embed.Options(skip=True))


def test_embed_expands_home_in_data_path(tmp_path, run, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    embed.embed(str(run), f"~/{folder.name}", str(tmp_path / "x.npz"), OPTIONS)
    assert json.loads(str(npz(tmp_path / "x.npz")["about"]))["data"] == str(folder)
