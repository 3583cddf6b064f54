"""Paths of a bucket, which TensorFlow's file system in memory stands for."""

import base64
import gc
import json
import re

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from clu import metric_writers
from etils.epath import backend
from ml_collections import ConfigDict
from support.small_store import N, make, shards, source_of

from cvsa_jax.report import html, pictures
from cvsa_jax.runtime.distributed import check_shared
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.runtime.files import AnyPath, LocalCopy, as_path, is_local, write_atomically, write_json_atomically
from cvsa_jax.saliency.store import SaliencyStore, store_path
from cvsa_jax.training import log
from cvsa_jax.training.checkpoint import Checkpointer
from cvsa_jax.training.log import read_metrics, run_log
from cvsa_jax.training.perf import profile
from cvsa_jax.training.resume import read_config, write_config

pytestmark = pytest.mark.usefixtures("small_shards")


class InMemory:
    """The file functions of TensorFlow, for `gs://` in `ram://`."""

    def __init__(self, functions, root: str):
        self.functions, self.root = functions, root

    def __getattr__(self, name):
        def called(*args, **kwargs):
            args = [a.replace("gs://", self.root) if isinstance(a, str) else a for a in args]
            if name == "open" and args[1].startswith("w") and self.functions.exists(args[0]):
                self.functions.remove(args[0])  # the file system in memory would append
            return getattr(self.functions, name)(*args, **kwargs)

        return called


@pytest.fixture
def bucket(monkeypatch, request) -> AnyPath:
    root = "ram://" + re.sub(r"\W", "_", request.node.name)
    monkeypatch.setattr(backend, "tf_backend", InMemory(backend.tf_backend, f"{root}/"))
    folder = as_path("gs://bucket")
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def no_board(monkeypatch):
    class Board(log._Scalars):
        def __init__(self, folder: str):
            assert folder.startswith("gs://bucket/")

        def write_scalars(self, step, scalars): ...
        def close(self): ...

    monkeypatch.setattr(metric_writers, "SummaryWriter", Board)


@pytest.mark.parametrize(
    ("location", "local"),
    [
        pytest.param("runs/a", True, id="relative"),
        pytest.param("/runs/a", True, id="absolute"),
        pytest.param("gs://bucket/runs/a", False, id="bucket"),
        pytest.param(as_path("gs://bucket/runs/a"), False, id="bucket as a path"),
    ],
)
def test_is_local_tells_bucket_paths_from_disk_paths(location, local):
    path = as_path(location)
    assert is_local(path) == local
    assert str(path) == str(location)
    assert str(path / "b") == f"{location}/b"


def test_object_is_written_whole_or_not_at_all(bucket):
    path = bucket / "file"
    write_atomically(path, lambda file: file.write(b"first"))

    def half(file):
        file.write(b"sec")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, half)
    assert path.read_bytes() == b"first"
    write_atomically(path, lambda file: file.write(b"second"))
    assert path.read_bytes() == b"second"
    assert [p.name for p in bucket.iterdir()] == ["file"]


def test_log_is_continued(bucket, no_board):
    workdir = bucket / "run"
    with run_log(workdir, 0) as writer:
        for step in range(1, 5):
            writer.write_scalars(step, {"loss": 1 / step})
            writer.flush()
            assert read_metrics(workdir)[-1] == {"step": step, "loss": 1 / step}  # readable while the run goes on
    with run_log(workdir, 2) as writer:
        writer.write_scalars(3, {"loss": 0.0})
    assert read_metrics(workdir) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": 0.0}]


def test_config_is_written_and_read(bucket):
    config = ConfigDict({"mode": "pretrain", "seed": 3})
    write_config(config, bucket / "run")
    assert read_config("gs://bucket/run").to_dict() == config.to_dict()
    with pytest.raises(UserError, match=r"'gs://bucket/other' is not the workdir of a run"):
        read_config("gs://bucket/other")


def test_report_page_embeds_its_picture(bucket):
    folder = bucket / "run" / "report"
    drawn = pictures.histograms_picture(folder / "areas.png", {"area": np.arange(4.0)}, "Areas.")
    write_json_atomically(folder / "results.json", {"iou": 0.5})
    page = html.write_page(folder / "index.html", "A run", [drawn])
    picture = (folder / "areas.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert base64.b64encode(picture).decode() in page.read_text()
    assert json.loads((folder / "results.json").read_text()) == {"iou": 0.5}


def test_store_is_read_through_a_temporary_copy(bucket, tmp_path):
    source = source_of()
    make(source, tmp_path)
    folder = store_path("gs://bucket/maps", source.name, "masks")
    folder.mkdir(parents=True)
    (folder / "report").mkdir()
    for path in tmp_path.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    store, local = SaliencyStore(folder, source), SaliencyStore(tmp_path, source)
    np.testing.assert_array_equal(store[np.arange(N)], local[np.arange(N)])
    copy = LocalCopy(folder)
    assert shards(copy.path) == shards(tmp_path)
    kept = copy.path
    del copy
    gc.collect()
    assert not kept.exists()
    assert LocalCopy(tmp_path).path == tmp_path


def test_store_cannot_be_made_in_a_bucket(bucket):
    with pytest.raises(UserError, match=r"gs://bucket/maps must be made on a disk"):
        make(source_of(), bucket / "maps")


def test_folder_that_cannot_be_made_is_an_error(bucket, monkeypatch):
    def refused(*args, **kwargs):
        raise PermissionError("403: no access to the bucket")

    monkeypatch.setattr(backend.tf_backend, "makedirs", refused, raising=False)
    monkeypatch.setattr(backend.tf_backend, "mkdir", refused, raising=False)
    with pytest.raises(UserError, match=r"gs://bucket/run cannot be made \(403: no access"):
        check_shared(bucket / "run")


def test_checkpoints_need_the_gcs_library(bucket, monkeypatch):
    def manager(*args, **kwargs):
        raise ImportError("cannot import name 'storage' from 'google.cloud'")

    monkeypatch.setattr(ocp, "CheckpointManager", manager)
    with pytest.raises(UserError, match=r"need pip install -e '\.\[gcs\]'"):
        Checkpointer(bucket / "run")


def test_traces_are_written_to_the_local_disk(bucket, monkeypatch, capsys):
    folders = []
    monkeypatch.setattr(jax.profiler, "start_trace", folders.append)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: None)
    trace = profile(bucket / "run", 0, 2, 2)
    for step in range(3):
        trace(step, {})
    (folder,) = folders
    assert is_local(as_path(folder)) and folder in capsys.readouterr().out
