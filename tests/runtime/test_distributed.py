import re
import sys
import types

import jax
import numpy as np
import pytest

from cvsa_jax.runtime import distributed
from cvsa_jax.runtime.errors import UserError


@pytest.fixture
def joined(monkeypatch) -> list:
    """What `jax.distributed.initialize` was called with; no launcher is there."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given: calls.append(given))
    for name in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_initialize_joins_nothing_without_flags_or_launcher(joined, capsys):
    distributed.initialize()
    assert joined == [] and capsys.readouterr().out == ""


@pytest.mark.parametrize("launcher", ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"])
def test_initialize_joins_the_processes_of_a_launcher(joined, monkeypatch, launcher):
    monkeypatch.setenv(launcher, "1")
    distributed.initialize()
    assert joined == []
    monkeypatch.setenv(launcher, "4")
    distributed.initialize()
    assert joined == [(None, None, None)]


def test_batch_script_of_slurm_joins_nothing(joined, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")  # there outside of srun too
    distributed.initialize()
    assert joined == []


def test_flags_override_the_launcher_and_the_process_is_announced(joined, monkeypatch, capsys):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    distributed.initialize("host:1234", 3, 2)
    assert joined == [("host:1234", 3, 2)]
    said = capsys.readouterr().out
    assert said.startswith("process 0 of 1 on ") and said.endswith(": 8 of 8 cpu device(s)\n")


@pytest.mark.parametrize(
    "given", [("host:1", None, None), ("host:1", 2, None), (None, None, 0)], ids=["one", "two", "zero"]
)
def test_incomplete_flags_are_refused(joined, given):
    with pytest.raises(UserError, match="--coordinator, --num_processes and --process_id belong together"):
        distributed.initialize(*given)
    assert joined == []


@pytest.mark.parametrize("index", [-1, 2])
def test_process_id_out_of_range_is_refused(joined, index):
    with pytest.raises(UserError, match=rf"--process_id={index} does not lie in 0 … 1 \(--num_processes=2\)"):
        distributed.initialize("host:1", 2, index)
    assert joined == []


def test_unreachable_coordinator_is_one_error(monkeypatch):
    def unreachable(*given):
        raise RuntimeError("DEADLINE_EXCEEDED")

    monkeypatch.setattr(jax.distributed, "initialize", unreachable)
    with pytest.raises(UserError, match=r"could not be reached \(DEADLINE_EXCEEDED\).*--coordinator=host:port"):
        distributed.initialize("host:1", 2, 0)


def test_check_shared_makes_the_workdir(tmp_path):
    distributed.check_shared(tmp_path / "a" / "b")
    assert list((tmp_path / "a").iterdir()) == [tmp_path / "a" / "b"]
    distributed.check_shared(tmp_path / "a" / "b")


def test_batch_size_must_divide_by_devices_micro_batches_and_processes(monkeypatch, mesh_of):
    distributed.check_batch_size(48, 4, mesh_of(4), accumulate=3)
    with pytest.raises(
        UserError, match=r"=20 does not divide by the 4 devices and config\.accumulate_steps=3: take 12 or 24"
    ):
        distributed.check_batch_size(20, 4, mesh_of(4), accumulate=3)
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    distributed.check_batch_size(48, 4, mesh_of(4))
    with pytest.raises(UserError, match=r"gives 10 images to each of 4 processes, .*config\.views\.group=4"):
        distributed.check_batch_size(40, 4, mesh_of(4))


@pytest.mark.parametrize("devices", [2, 3, 4])
@pytest.mark.parametrize("where", ["host", "device"])
def test_advised_batch_sizes_are_valid(mesh_of, devices, where):
    for wrong in range(1, 40):
        try:
            distributed.check_batch_size(wrong, 4, mesh_of(devices), accumulate=2, where=where)
        except UserError as error:
            advised = [int(n) for n in re.search(r"take ([\d or]+)$", str(error))[1].split(" or ")]
            assert min(advised) >= 1 and min(abs(wrong - n) for n in advised) <= 24
            for batch in advised:
                distributed.check_batch_size(batch, 4, mesh_of(devices), accumulate=2, where=where)


def test_rows_on_a_mesh_return_unchanged(mesh_of):
    rows = {"a": np.arange(24).reshape(8, 3), "b": np.arange(8)}
    placed = distributed.to_mesh(rows, mesh_of(4))
    assert [shard.data.shape for shard in placed["a"].addressable_shards] == [(2, 3)] * 4
    back = distributed.to_host(placed)
    assert all(type(back[name]) is np.ndarray for name in rows)
    jax.tree.map(np.testing.assert_array_equal, back, rows)


def test_tpu_is_joined_only_with_libtpu(joined, monkeypatch):
    monkeypatch.setattr(distributed.glob, "glob", lambda pattern: ["/dev/accel0"] if "accel" in pattern else [])
    monkeypatch.setitem(sys.modules, "libtpu", None)  # not installed
    distributed.initialize()
    assert joined == []
    monkeypatch.setitem(sys.modules, "libtpu", types.ModuleType("libtpu"))
    distributed.initialize()
    assert joined == [(None, None, None)]
    monkeypatch.setattr(distributed.glob, "glob", lambda pattern: [])
    distributed.initialize()
    assert joined == [(None, None, None)]
