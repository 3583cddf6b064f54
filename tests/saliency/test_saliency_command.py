import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from absl import flags

from cvsa_jax.data import sources
from cvsa_jax.data.sources import procedural
from cvsa_jax.report import saliency as pages
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.saliency import __main__ as command
from cvsa_jax.saliency.compute import compute
from cvsa_jax.saliency.detectors.annotation import center, masks
from cvsa_jax.saliency.quality import measure
from cvsa_jax.saliency.registry import DETECTORS, Options, build
from cvsa_jax.saliency.store import SaliencyStore

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def source():
    spec = procedural.Spec(seed=0, classes=3, train_per_class=4, test_per_class=3, size=32)
    return sources.load("procedural", "", spec)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nope", {}, r"--detector='nope' is unknown; take one of masks, boxes"),
        ("unet", {}, r"--detector=unet needs --run=runs/unet"),
        ("folder", {"maps": "."}, r"--detector=folder needs --supervision=human"),
        ("rbd", {"run": "runs/unet", "size": 3}, r"--detector=rbd does not take --run, --size"),
        ("onnx", {"model": "m.onnx", "preset": "u2"}, r"--preset='u2' is unknown; take one of u2net"),
        (
            "onnx",
            {"model": "m.onnx", "preset": "u2net", "size": 9},
            r"--size is for --preset=custom; u2net has its own",
        ),
        ("boxes", {}, r"procedural has no boxes"),
    ],
    ids=["unknown", "needs a run", "needs supervision", "foreign flags", "unknown preset", "preset's size", "no boxes"],
)
def test_flags_that_do_not_fit_the_detector_are_refused(source, name, options, message):
    with pytest.raises(UserError, match=message):
        build(name, source, Options(**options))


def test_every_flag_belongs_to_a_detector():
    taken = {flag for entry in DETECTORS.values() for flag in (*entry.needed, *entry.optional)}
    assert taken == set(Options.__dataclass_fields__)


# The command itself, with files of 8 images and the small procedural set; before one of them it hangs on request.
COMMAND = """
import os, time
from cvsa_jax.saliency import store, compute
store.SHARD_SIZE = compute.SHARD_SIZE = 8
write = compute._write
def hanging(rows, path):
    if path.name == os.environ.get("HANG_BEFORE"):
        time.sleep(600)
    write(rows, path)
compute._write = hanging
from cvsa_jax.runtime import cli
from cvsa_jax.saliency.__main__ import main
cli.run(main)
"""
SMALL_SET = [
    f"--config.data.procedural.{key}={value}"
    for key, value in {"classes": 3, "train_per_class": 15, "test_per_class": 5, "size": 96}.items()
]


def start(folder: Path, *arguments: str, **variables: str) -> subprocess.Popen:
    command = [sys.executable, "-c", COMMAND, "--config=configs/demo.py", *SMALL_SET, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    command.append(f"--config.saliency.store={folder}")
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file() and p.name != "timing.json"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The store of one command alone, and what it printed."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    alone = start(folder, "--detector=rbd")
    printed, _ = alone.communicate(timeout=300)
    assert alone.returncode == 0, printed
    return folder, printed


@pytest.mark.slow
def test_killed_and_sharded_commands_make_the_same_store(tmp_path, whole):
    folder, printed = whole
    shards = [start(tmp_path / "shards", "--detector=rbd", f"--shard={k}/2") for k in (0, 1)]
    killed = start(tmp_path / "killed", "--detector=rbd", HANG_BEFORE="shard-00003.npy")
    third = tmp_path / "killed" / "shard-00002.npy"
    while not third.exists():
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    # Ends only when the workers, which share the pipe, have ended too.
    killed.communicate(timeout=60)
    assert not (tmp_path / "killed" / "manifest.json").exists()
    again, _ = start(tmp_path / "killed", "--detector=rbd").communicate(timeout=300)
    halves = [shard.communicate(timeout=300)[0] for shard in shards]

    expected = content(folder)
    assert sorted(expected) == [
        "identity.json",
        "manifest.json",
        "names.txt",
        *(f"shard-{k:05d}.npy" for k in range(8)),
    ]
    assert content(tmp_path / "killed") == expected
    assert content(tmp_path / "shards") == expected
    assert sum("the store is finished when all are" in half for half in halves) >= 1
    figures = json.loads((folder / "report" / "saliency.json").read_text())
    assert figures.keys() == {
        *("mae", "max_f", "iou", "box_iou", "pointing_game", "ms_per_image", "blank", "full", "fallback")
    }
    assert f"{figures['iou']:.3f}" in printed and f"{figures['iou']:.3f}" in again
    assert (folder / "report" / "saliency.png").stat().st_size > 10_000
    page = (folder / "report" / "saliency.html").read_text()
    assert page.count("png;base64") == 2 and "unsupervised" in page


def test_comparison_of_stores_shows_their_figures(tmp_path, source):
    test = source.split("test")
    stores = {}
    for name, detector in (("masks", masks(source)), ("center", center(source))):
        compute(source, detector, tmp_path / name, threshold=0.5, on_bad_image="stop")
        stores[name] = SaliencyStore(tmp_path / name, source)
    table = pages.write_comparison(stores, source, test, "9 images", tmp_path / "report")
    figures = json.loads((tmp_path / "report" / "saliency.json").read_text())
    assert figures.keys() == {"masks", "center"}
    for name, store in stores.items():
        expected = measure(source, test, store.record, 0.5)
        assert expected.items() <= figures[name].items()
        (row,) = [row for row in table.rows if row[0] == name]
        assert f"{expected['iou']:.3f}" in row and f"{expected['mae']:.3f}" in row
    # Exact masks, but for the grid; the centre has the same map for all.
    assert figures["masks"]["iou"] > 0.95 > figures["center"]["iou"]
    assert figures["masks"]["pointing_game"] == 1
    html = (tmp_path / "report" / "saliency.html").read_text()
    assert html.count("png;base64") == 1 and "masks: human, center: prior" in html


def test_unreadable_images_do_not_count_in_the_figures(tmp_path, source):
    first = int(source.split("test")[0])
    bad = dataclasses.replace(
        source, read=lambda i: b"no image" if i == first else source.read(i), identify=lambda kind: "bad"
    )
    compute(bad, masks(bad), tmp_path, threshold=0.5, on_bad_image="skip")
    store = SaliencyStore(tmp_path, bad)
    expected = measure(source, source.split("test")[1:], store.record, 0.5)
    assert expected.items() <= pages.figures_of(store, bad, bad.split("test")).items()


def test_page_of_a_store_without_truth_and_with_unreadable_images(tmp_path, source):
    blind = dataclasses.replace(
        source, mask=None, read=lambda i: b"no image" if i in (0, 13) else source.read(i), identify=lambda kind: "blind"
    )
    compute(blind, center(blind), tmp_path, threshold=0.5, on_bad_image="skip")
    store = SaliencyStore(tmp_path, blind)
    pages.write_store_page(store, blind, blind.split("test"), "9 images")
    figures = json.loads((tmp_path / "report" / "saliency.json").read_text())
    assert figures.keys() == {"ms_per_image", "blank", "full", "fallback"}
    assert "21 images, 2 of them unreadable" in (tmp_path / "report" / "saliency.html").read_text()


@pytest.mark.parametrize("shard", ["2/2", "1", "-1/2", "a/b"])
def test_wrong_shards_are_refused(shard):
    flags.FLAGS(["saliency", f"--shard={shard}"])
    try:
        with pytest.raises(UserError, match=f"--shard={shard} is not i/n"):
            command._shard()
    finally:
        flags.FLAGS.unparse_flags()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.slow
def test_processes_of_a_cluster_share_the_files(tmp_path, whole):
    port = free_port()
    place = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    both = [start(tmp_path / "both", "--detector=rbd", *place, f"--process_id={k}") for k in (0, 1)]
    printed = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    assert "60 maps by rbd" in printed[0]
    assert "maps by rbd" not in printed[1]  # one speaks
    assert content(tmp_path / "both") == content(whole[0])
    # Each made half of the eight files: the first its own four, from 0 on in twos.
    made = json.loads((tmp_path / "both" / "timing.json").read_text())["images"]
    assert made < json.loads((whole[0] / "timing.json").read_text())["images"]


@pytest.mark.slow
def test_simultaneous_commands_make_the_same_store(tmp_path, whole):
    both = [start(tmp_path / "both", "--detector=rbd") for _ in range(2)]
    printed = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    assert content(tmp_path / "both") == content(whole[0])
