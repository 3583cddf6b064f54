"""Checkpoints on a disk that is full, cut off, or left by a kill."""

import collections
import contextlib
import dataclasses
import os
import shutil
import subprocess
import time

import flax.struct
import jax.numpy as jnp
import numpy as np
import pytest

from cvsa_jax.runtime.errors import UserError
from cvsa_jax.training import checkpoint
from cvsa_jax.training.checkpoint import Checkpointer
from cvsa_jax.training.state import TrainState


@flax.struct.dataclass
class State:
    step: jnp.ndarray
    params: dict


def state(step: int, size: int = 1000) -> State:
    values = np.random.default_rng(step).standard_normal(size).astype(np.float32)  # which does not compress
    return State(jnp.array(step), {"w": jnp.asarray(values)})


@pytest.fixture
def workdir(tmp_path):
    """With checkpoints of steps 3 and 7."""
    checkpoints = Checkpointer(tmp_path / "run")
    for step in (3, 7):
        checkpoints.save(state(step), {"at": step})
    checkpoints.close()
    return tmp_path / "run"


@contextlib.contextmanager
def opened(workdir):
    checkpoints = Checkpointer(workdir)
    yield checkpoints
    checkpoints.close()


def test_checkpoint_items_cover_every_train_state_field():
    fields = {field.name for field in dataclasses.fields(TrainState)} - {"step"}
    assert fields <= set(checkpoint.ITEMS)


def cut_off(folder) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            path.write_bytes(path.read_bytes()[:500])


def test_unfinished_save_is_ignored_and_removed(workdir, mesh_of):
    unfinished = workdir / "ckpt" / "9.orbax-checkpoint-tmp"
    shutil.copytree(workdir / "ckpt" / "7", unfinished)
    with opened(workdir) as checkpoints:
        assert checkpoints.latest == 7
        restored, meta = checkpoints.restore(state(0), mesh_of(1)), checkpoints.meta()
    assert int(restored.step) == 7 and meta == {"at": 7}
    np.testing.assert_array_equal(restored.params["w"], state(7).params["w"])
    # Orbax removes it in a thread of its own.
    failsafe = time.monotonic() + 60
    while unfinished.exists() and time.monotonic() < failsafe:
        time.sleep(0.01)
    assert not unfinished.exists()


def test_truncated_checkpoint_error_names_path_and_remedy(workdir, mesh_of):
    cut_off(workdir / "ckpt" / "7" / "params")
    with (
        opened(workdir) as checkpoints,
        pytest.raises(UserError, match=r"the checkpoint .*run/ckpt/7 cannot be read \(.+\)\. Delete this") as error,
    ):
        checkpoints.restore(state(0), mesh_of(1))
    assert str(error.value).endswith("and the same command will go on from step 3")
    with pytest.raises(UserError, match=r"ckpt/7 cannot be read"):
        checkpoint.restore_item(workdir, "params", state(0).params, mesh_of(1))
    shutil.rmtree(workdir / "ckpt" / "7")
    with opened(workdir) as checkpoints:
        assert int(checkpoints.restore(state(0), mesh_of(1)).step) == 3
    cut_off(workdir / "ckpt" / "3" / "params")
    with opened(workdir) as checkpoints, pytest.raises(UserError, match="the same command will begin anew"):
        checkpoints.restore(state(0), mesh_of(1))


def test_checkpoint_of_another_tree_is_refused_without_advice_to_delete(workdir, mesh_of):
    other = state(0).replace(params={"w": state(0).params["w"], "b": jnp.zeros(3)})
    with opened(workdir) as checkpoints, pytest.raises(UserError, match="of another config: give that of") as error:
        checkpoints.restore(other, mesh_of(1))
    assert "Delete" not in str(error.value)


def test_truncated_meta_is_refused(workdir):
    (file,) = (p for p in (workdir / "ckpt" / "7" / "meta").rglob("*") if p.is_file() and "metadata" in p.name)
    file.write_text(file.read_text()[:3])
    with opened(workdir) as checkpoints, pytest.raises(UserError, match=r"ckpt/7 cannot be read"):
        checkpoints.meta()


@contextlib.contextmanager
def tmpfs(folder, options: str):
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a file system can be mounted by root on Linux only")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_full_disk_keeps_the_previous_checkpoint(tmp_path, mesh_of):
    size = 2**18  # 1 MiB
    with tmpfs(tmp_path / "small", "size=1600k") as folder:
        checkpoints = Checkpointer(folder)
        checkpoints.save(state(1, size), {})
        checkpoints.wait()
        message = r"cannot be written to .*small/ckpt \(.*No space left.*\); the newest whole one is step 1\. Make room"
        with pytest.raises(UserError, match=message):
            checkpoints.save(state(2, size), {})
            checkpoints.wait()
        with contextlib.suppress(UserError):
            checkpoints.close()
        subprocess.run(["mount", "-o", "remount,size=8m", folder], check=True)
        with opened(folder) as checkpoints:
            assert checkpoints.latest == 1
            restored = checkpoints.restore(state(0, size), mesh_of(1))
            np.testing.assert_array_equal(restored.params["w"], state(1, size).params["w"])
            checkpoints.save(state(2, size), {})
            checkpoints.wait()
            assert checkpoints.latest == 2


def test_check_room_refuses_a_disk_too_small_for_coming_checkpoints(tmp_path, workdir, monkeypatch):
    free = []
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: collections.namedtuple("usage", "free")(free[-1]))
    # Of 4,000 bytes each: two are kept, and the oldest goes when a third is whole; of a short run there are fewer.
    for folder, saves, count in ((tmp_path / "new", 9, 3), (workdir, 9, 1), (tmp_path / "short", 2, 2)):
        with opened(folder) as checkpoints:
            free.append(count * 4000)
            checkpoints.check_room(state(0), saves)
            free.append(count * 4000 - 1)
            needed = rf"{count} checkpoint\(s\) need {count * 4},000 bytes, and {count * 4 - 1},999 are free there"
            with pytest.raises(UserError, match=needed):
                checkpoints.check_room(state(0), saves)


def test_unwritable_checkpoint_folder_is_refused(tmp_path):
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o500)
        locked = contextlib.nullcontext(tmp_path / "locked")
    else:  # root may write where permissions forbid it
        locked = tmpfs(tmp_path / "locked", "ro")
    message = r"the folder of checkpoints .*locked/ckpt cannot be used \(.*([Rr]ead-only|denied)"
    with locked as folder, pytest.raises(UserError, match=message):
        Checkpointer(folder)
