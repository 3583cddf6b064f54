import errno
import json
from pathlib import Path

import pytest

from cvsa_jax.runtime.errors import UserError
from cvsa_jax.runtime.files import absolute, cache_folder, write_atomically, write_json_atomically


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "full"), OSError(errno.EIO, "broken"), KeyboardInterrupt()],
    ids=["disk full", "disk error", "ctrl-c"],
)
def test_file_is_replaced_whole_or_not_at_all(tmp_path, error):
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"first"))

    def half(file):
        file.write(b"sec")
        file.flush()
        assert path.read_bytes() == b"first"
        raise error

    expected = UserError if error.args[:1] == (errno.ENOSPC,) else type(error)
    with pytest.raises(expected):
        write_atomically(path, half)
    assert path.read_bytes() == b"first"
    write_atomically(path, lambda file: file.write(b"second"))
    assert path.read_bytes() == b"second"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_concurrent_writers_of_one_file_do_not_mix(tmp_path):
    path = tmp_path / "file"

    def slow(file):
        file.write(b"later")
        write_atomically(path, lambda other: other.write(b"sooner"))
        assert path.read_bytes() == b"sooner"

    write_atomically(path, slow)
    assert path.read_bytes() == b"later"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_write_json_makes_the_folder(tmp_path):
    path = tmp_path / "new" / "report" / "results.json"
    figures = {"cvsa": {"linear_top1": 0.5}, "chance": {}}
    write_json_atomically(path, figures)
    assert json.loads(path.read_text()) == figures


@pytest.mark.parametrize("variable", ["", None], ids=["empty", "unset"])
def test_cache_folder_is_in_the_home_by_default(monkeypatch, variable):
    monkeypatch.setenv("HOME", "/home/me")
    if variable is None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", variable)
    assert cache_folder() == Path("/home/me/.cache/cvsa_jax")


def test_absolute_resolves_local_paths_and_keeps_buckets(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    places = [str(absolute(place)) for place in ("runs/x", "~/x", "/x", "gs://bucket/x")]
    assert places == [f"{tmp_path}/runs/x", "/home/me/x", "/x", "gs://bucket/x"]
