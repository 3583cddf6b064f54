"""Search by its command's function."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.comparing import npz

from cvsa_jax.runs import embed, search, weights
from cvsa_jax.runtime.errors import UserError

OPTIONS = embed.Options()

pytestmark = pytest.mark.usefixtures("on_one_device")


@pytest.fixture(scope="module")
def index(tmp_path_factory, run, folder) -> Path:
    out = tmp_path_factory.mktemp("index") / "x.npz"
    embed.embed(str(run), str(folder), str(out), OPTIONS)
    return out


def test_neighbors_equal_brute_force_cosine_ranking(tmp_path, index, folder):
    known = npz(index)
    names, x = known["names"].tolist(), known["vectors"].astype(np.float64)
    cosines = (x @ x.T) / np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(x, axis=1))
    file = shutil.copy(folder / names[5], tmp_path / "x.png")
    queries = [names[2], str(file), str(folder / "gull" / ".." / names[2])]
    search.neighbors(str(index), queries, str(tmp_path / "page.html"), 4)
    inside, outside, by_path = json.loads((tmp_path / "page.json").read_text())["queries"]
    assert by_path == inside and inside["query"] == names[2]
    order = [i for i in np.argsort(-cosines[2], kind="stable") if i != 2][:4]
    assert [hit["name"] for hit in inside["neighbors"]] == [names[i] for i in order]
    np.testing.assert_allclose([hit["cosine"] for hit in inside["neighbors"]], cosines[2][order], atol=1e-6)
    # A file is not in the index, even where its picture is: the picture itself is its nearest neighbour.
    assert outside["neighbors"][0] == {"name": names[5], "cosine": pytest.approx(1, abs=1e-6)}
    page = (tmp_path / "page.html").read_text()
    assert page.count("<figure>") == 3 and names[2] in page


@pytest.mark.parametrize("cosine", [0.9999, 0.9, -1.0], ids=["equal images", "some pairs", "all pairs"])
def test_duplicates_equal_brute_force_pairs(tmp_path, index, cosine):
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


def test_invalid_searches_are_refused(tmp_path, index, folder):
    page = str(tmp_path / "page.html")
    with pytest.raises(UserError, match=r"nobody\.jpg is neither a file nor a name in the index"):
        search.neighbors(str(index), ["nobody.jpg"], page, 3)
    with pytest.raises(UserError, match=r"end with \.html"):
        search.duplicates(str(index), 0.9, str(tmp_path / "page.htm"))
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(UserError, match=r"other\.npz is no \.npz that python -m cvsa_jax\.embed wrote"):
        search.duplicates(str(tmp_path / "other.npz"), 0.9, page)
    arrays = npz(index)
    arrays["names"][0] = "gull/gone.png"
    np.savez(tmp_path / "old.npz", **arrays)
    with pytest.raises(UserError, match=r"no longer has 1 images of the index: gull/gone\.png"):
        search.duplicates(str(tmp_path / "old.npz"), 0.9, page)


def test_search_refuses_an_outdated_index(tmp_path, run, folder):
    weights.export_run(str(run), tmp_path / "out", ("safetensors",), "none")
    file, birds = tmp_path / "out" / "model.safetensors", tmp_path / "birds"
    shutil.copytree(folder, birds)
    (birds / "tern" / "b.png").write_bytes(b"nothing")
    options = embed.Options(pooling=embed.Pooling("attention"), skip=True)
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
