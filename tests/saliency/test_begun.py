"""A pass of a detector that is interrupted in the middle of a file resumes at the next image."""

import dataclasses

import numpy as np
import pytest
from support.small_store import SHARD, N, make, source_of, watched

from cvsa_jax.runtime.errors import Interrupted
from cvsa_jax.saliency import compute as compute_module

AT = SHARD + 2  # an image in the middle of the second file

pytestmark = pytest.mark.usefixtures("small_shards")


def stopped(folder, error: BaseException) -> None:
    detector, _ = watched(source_of(), dies_at=AT, error=error)
    with pytest.raises(type(error)):
        make(source_of(), folder, dataclasses.replace(detector, batch_size=1))


def maps(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("shard-*")}


def test_interrupted_pass_resumes_at_its_image(tmp_path):
    make(source_of(), tmp_path / "whole")
    stopped(tmp_path / "run", Interrupted("now", 130))
    assert len(np.load(tmp_path / "run" / "shard-00001.begun")) == AT - SHARD
    detector, seen = watched(source_of())
    make(source_of(), tmp_path / "run", detector)
    assert sorted(seen) == list(range(AT, N))
    assert maps(tmp_path / "run") == maps(tmp_path / "whole")


def test_killed_pass_resumes_after_its_last_write(tmp_path, monkeypatch):
    make(source_of(), tmp_path / "whole")
    stopped(tmp_path / "late", KeyboardInterrupt())
    assert not list((tmp_path / "late").glob("*.begun"))
    monkeypatch.setattr(compute_module, "KEEP_SECONDS", 0.0)
    stopped(tmp_path / "run", KeyboardInterrupt())
    detector, seen = watched(source_of())
    make(source_of(), tmp_path / "run", detector)
    assert sorted(seen) == list(range(AT, N))
    assert maps(tmp_path / "run") == maps(tmp_path / "whole")


@pytest.mark.parametrize("content", ["empty", "cut", "longer", "of another type"])
def test_damaged_unfinished_file_is_made_again(tmp_path, content):
    make(source_of(), tmp_path / "whole")
    stopped(tmp_path / "run", Interrupted("now", 130))
    begun = tmp_path / "run" / "shard-00001.begun"
    if content == "longer":
        longer = np.repeat(np.load(begun), SHARD)
        np.save(begun.open("wb"), longer)
    elif content == "of another type":
        np.save(begun.open("wb"), np.zeros(2, np.float32))
    else:
        begun.write_bytes(begun.read_bytes()[:-10] if content == "cut" else b"")
    detector, seen = watched(source_of())
    make(source_of(), tmp_path / "run", detector)
    assert sorted(seen) == list(range(SHARD, N))
    assert maps(tmp_path / "run") == maps(tmp_path / "whole")


def test_unfinished_file_with_all_records_is_finished(tmp_path):
    make(source_of(), tmp_path / "whole")
    stopped(tmp_path / "run", Interrupted("now", 130))
    np.save(tmp_path / "run" / "shard-00001", np.load(tmp_path / "whole" / "shard-00001.npy"))
    (tmp_path / "run" / "shard-00001.npy").rename(tmp_path / "run" / "shard-00001.begun")
    detector, seen = watched(source_of())
    make(source_of(), tmp_path / "run", detector)
    assert sorted(seen) == list(range(2 * SHARD, N))
    assert maps(tmp_path / "run") == maps(tmp_path / "whole")
    assert not list((tmp_path / "run").glob("*.begun"))


def test_records_before_an_unreadable_image_are_kept(tmp_path):
    source = source_of(bad=(SHARD + 1,))
    detector, _ = watched(source, dies_at=AT, error=Interrupted("now", 130))
    with pytest.raises(Interrupted):
        make(source, tmp_path, dataclasses.replace(detector, batch_size=1), on_bad_image="skip")
    assert len(np.load(tmp_path / "shard-00001.begun")) == 1
    detector, seen = watched(source)
    make(source, tmp_path, detector, on_bad_image="skip")
    assert sorted(seen) == list(range(AT, N))  # image SHARD + 1 is not decoded, so not asked for
    whole = tmp_path / "whole"
    make(source, whole, on_bad_image="skip")
    assert maps(tmp_path) == maps(whole)
