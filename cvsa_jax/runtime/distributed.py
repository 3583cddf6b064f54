"""Processes and devices: who belongs to the run, the mesh, and how host batches become global arrays on it and back."""

import glob
import hashlib
import json
import math
import os
import socket
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cvsa_jax.runtime.errors import UserError
from cvsa_jax.runtime.files import AnyPath

AXIS = "data"
# The number of processes, as `srun` and `mpirun` tell it to each of them.
_LAUNCHED = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
_TPU_DEVICES = ("/dev/accel*", "/dev/vfio/*")


def initialize(coordinator: str | None = None, processes: int | None = None, index: int | None = None) -> None:
    """Joins the other processes of the run, before the first use of a device. Without arguments: those that Slurm's
    `srun`, Open MPI's `mpirun` or a Cloud TPU started, and none elsewhere.

    Args:
        coordinator: `host:port` of process 0.
        processes: how many there are.
        index: which one this is.

    Raises:
        UserError: some of the three are missing, or the others could not be reached.
    """
    place = (coordinator, processes, index)
    if any(value is None for value in place) and any(value is not None for value in place):
        raise UserError("--coordinator, --num_processes and --process_id belong together: give all three, or none")
    if coordinator is not None and not 0 <= index < processes:
        raise UserError(f"--process_id={index} does not lie in 0 … {processes - 1} (--num_processes={processes})")
    if coordinator is None and not _launched():
        return
    try:
        jax.distributed.initialize(coordinator, processes, index)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the other processes of the run could not be reached ({error}). Where the launcher cannot be asked, give "
            "--coordinator=host:port, --num_processes and --process_id to each process"
        ) from error
    here, everywhere = jax.local_device_count(), jax.device_count()
    print(
        f"process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}: {here} of {everywhere} "
        f"{jax.devices()[0].platform} device(s)",
        flush=True,
    )


def device_copies(params: Any) -> Any:
    """Replicated parameters as each device's own, so that gradients by them are its own shares, in float32 whatever
    dtype a layer casts a kernel to. Vectors stay as they are: BatchNorm's sum their own."""
    return jax.tree.map(lambda p: jax.lax.pcast(p, AXIS, to="varying") if p.ndim > 1 else p, params)


def sum_of_copies(grads: Any) -> Any:
    """Over the mesh, of gradients by `device_copies`."""
    return jax.tree.map(lambda g: jax.lax.psum(g, AXIS) if g.ndim > 1 else g, grads)


def is_first() -> bool:
    """True in the one process that speaks and writes for all."""
    return jax.process_index() == 0


def together(work: Callable[[], Any]) -> Any:
    """What `work` gives in this process; where it raises a UserError in one process, all raise one, so that none waits
    for it."""
    if jax.process_count() == 1:
        return work()
    result = refusal = None
    try:
        result = work()
    except UserError as error:
        refusal = error
    refused = np.flatnonzero(multihost_utils.process_allgather(np.array(refusal is not None)))
    if len(refused):
        raise refusal or UserError(f"process {refused[0]} cannot begin, for the reason that it gives")
    return result


def first_alone(work: Callable[[], Any]) -> Any:
    """What `work` gives in the first process, None in the others; a UserError is raised by all."""
    return together(lambda: work() if is_first() else None)


def check_alike(told: dict[str, Any]) -> None:
    """UserError, in every process, where what they are told, name -> JSON-like, is not the same in all: else they would
    train together on different data or at different rates, and nothing would notice."""
    if jax.process_count() == 1:
        return
    hashes = [
        hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).digest() for value in told.values()
    ]
    numbers = np.frombuffer(b"".join(hashes), np.uint32).reshape(len(told), -1)
    everywhere = multihost_utils.process_allgather(numbers)
    for k, name in enumerate(told):
        others = np.flatnonzero((everywhere[:, k] != everywhere[0, k]).any(1))
        if len(others):
            raise UserError(
                f"the {name} of process {others[0]} is not that of process 0: give all processes the same command, the "
                "same config files and the same images"
            )


def check_shared(folder: AnyPath) -> None:
    """Makes the folder.

    Raises:
        UserError: it cannot be made, or not every process sees what the first one writes there.
    """
    if jax.process_count() == 1:
        _make(folder)
        return
    token = int(multihost_utils.broadcast_one_to_all(np.frombuffer(os.urandom(4), np.uint32)[0]))
    mark = folder / f".visible-{token:08x}"
    if is_first():
        _make(folder)
        mark.touch()
    multihost_utils.sync_global_devices(f"marked {token}")
    visible = multihost_utils.process_allgather(np.array(mark.exists()))
    if is_first():
        mark.unlink()
    if not visible.all():
        blind = ", ".join(str(k) for k in np.flatnonzero(~visible))
        raise UserError(
            f"{folder} of process 0 is not seen by process {blind} of {len(visible)}: all processes need the same "
            "folder, on a network file system or a mounted bucket"
        )


def _make(folder: AnyPath) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except Exception as error:  # a bucket's are none of Python's
        why = "correct its permissions" if not folder.exists() else "a file is there: move it"
        raise UserError(f"the folder {folder} cannot be made ({error}): {why}, or take another") from None


def make_mesh(devices: list | None = None) -> Mesh:
    """A mesh with the one axis `data` over `devices`, by default over all of them."""
    devices = devices or jax.devices()
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def check_batch_size(batch_size: int, group: int, mesh: Mesh, accumulate: int = 1, where: str = "host") -> None:
    """Raises UserError unless the batch divides over the devices and their micro-batches, and its swap groups over the
    processes, or, where the views are made on the `device`, over the devices."""
    parts = mesh.size * accumulate
    count, owners = (mesh.size, "devices") if where == "device" else (jax.process_count(), "processes")
    fits = math.lcm(parts, count * group)
    below, above = batch_size // fits * fits, (batch_size // fits + 1) * fits
    advice = f"take {below} or {above}" if below else f"take {above}"
    if batch_size % parts:
        micro = f" and config.accumulate_steps={accumulate}" if accumulate > 1 else ""
        raise UserError(f"config.batch_size={batch_size} does not divide by the {mesh.size} devices{micro}: {advice}")
    if batch_size // count % group:
        raise UserError(
            f"config.batch_size={batch_size} gives {batch_size // count} images to each of {count} {owners}, "
            f"which does not divide by config.views.group={group}: {advice}"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def to_mesh(batch: Any, mesh: Mesh) -> Any:
    """This process's rows of a batch, a tree of arrays -> global arrays, split over the mesh along their first axis;
    what is one already stays where it lies."""
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))

    def placed(rows: np.ndarray | jax.Array) -> jax.Array:
        return rows if isinstance(rows, jax.Array) else jax.make_array_from_process_local_data(sharding, rows)

    return jax.tree.map(placed, batch)


def to_host(rows: Any) -> Any:
    """Global arrays -> NumPy arrays of all their rows, in every process."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, rows)
    return multihost_utils.process_allgather(rows, tiled=True)


def _launched() -> bool:
    if any(int(os.environ.get(count, 1)) > 1 for count in _LAUNCHED):
        return True
    try:
        import libtpu  # noqa: F401
    except ImportError:
        return False
    return any(glob.glob(pattern) for pattern in _TPU_DEVICES)
