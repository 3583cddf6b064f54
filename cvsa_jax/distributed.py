"""Devices: the mesh, and how host batches become global arrays on it."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cvsa_jax.errors import UserError

AXIS = "data"


def make_mesh(devices: list | None = None) -> Mesh:
    """A mesh with the one axis `data` over `devices`, by default over all of them."""
    devices = devices or jax.devices()
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def check_batch_size(batch_size: int, group: int, mesh: Mesh) -> None:
    """Raises UserError unless the batch divides over the devices and its swap groups over the processes."""
    if batch_size % mesh.size:
        raise UserError(
            f"config.batch_size={batch_size} does not divide by the {mesh.size} devices: "
            f"take {max(1, batch_size // mesh.size) * mesh.size} or {(batch_size // mesh.size + 1) * mesh.size}"
        )
    share = batch_size // jax.process_count()
    if share % group:
        raise UserError(
            f"config.batch_size={batch_size} gives {share} images to each of {jax.process_count()} processes, "
            f"which does not divide by config.views.group={group}"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def to_mesh(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch -> global arrays, split over the mesh along their first axis."""
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
