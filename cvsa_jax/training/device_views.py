"""The views made on the device: it holds all images and maps, split over the mesh, and each step takes what its rows
need. The plan is the host's (`data.plan`); the pixels are matrix products."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cvsa_jax.data import saliency_swap as swap
from cvsa_jax.data.index import Order, position_words
from cvsa_jax.data.plan import plan_views
from cvsa_jax.data.resample import axis_weights, view_masks
from cvsa_jax.data.saliency_maps import Maps, cover_heights, object_integral, object_too_large, saliency_maps
from cvsa_jax.data.sources import Source
from cvsa_jax.data.stored import stored_squares
from cvsa_jax.data.view_spec import ViewSpec
from cvsa_jax.runtime.distributed import AXIS, to_host, to_mesh, together
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.runtime.workers import in_threads

Batch = dict[str, jax.Array]


class Resident(NamedTuple):
    """Of N images, padded to a multiple of the devices, over which they are split: `images` (N, P, P, 3) uint8,
    squeezed to squares; `shapes` (N, 2) float32, their heights and widths before; and where views or loss need maps,
    `cells` and `min_cover_height` of `SaliencyMaps`."""

    images: jax.Array
    shapes: jax.Array
    cells: jax.Array | None = None
    min_cover_height: jax.Array | None = None


def load(source: Source, pool: np.ndarray, saliency: Maps | None, spec: ViewSpec, mesh: Mesh) -> Resident:
    """Puts the pool's images and maps into the devices' memory; the images are decoded once and kept on disk.

    Raises:
        UserError: they do not fit (bytes needed and there are named), or an image cannot be decoded.
    """
    side = spec.square
    each = 3 * side**2 + (0 if saliency is None else saliency.shape[1] * (saliency.shape[1] + 1))
    _check_fits(-(-len(pool) // mesh.size) * each, mesh, side)
    images, shapes = together(lambda: stored_squares(source, pool, side))
    return placed(images, shapes, None if saliency is None else saliency[pool], spec, mesh)


def placed(images: np.ndarray, shapes: np.ndarray, cells: np.ndarray | None, spec: ViewSpec, mesh: Mesh) -> Resident:
    """Arrays as in `Resident`, on the devices."""
    if cells is None:
        return Resident(_split(images, mesh), _split(shapes, mesh))

    def heights_of(k: int) -> np.ndarray:
        return cover_heights(object_integral(cells[k : k + 1], spec.threshold, np)[0], spec.cover)

    min_cover_height = np.zeros(cells.shape[:2], np.uint8)
    if spec.kind == "saliency_swap" and spec.hole == "cover":
        min_cover_height[:] = list(in_threads(heights_of, range(len(cells)), ahead=64))
    return Resident(*(_split(array, mesh) for array in (images, shapes, cells, min_cover_height)))


def device_batches(resident: Resident, count: int, order: Order, labels: np.ndarray | None) -> Iterator[dict]:
    """This process's rows of the batches: `row` (b,) int32, which of the `count` resident images, `position` (b, 2)
    uint32 and with labels, (count,) int32, `label`; and the resident arrays themselves, which stay where they are."""
    lying = {f"resident_{name}": array for name, array in resident._asdict().items() if array is not None}
    for step in order.steps:
        positions = order.positions(step)
        rows = order.examples(np.arange(count), positions).astype(np.int32)
        batch = {"row": rows, "position": position_words(positions)}
        yield batch | ({} if labels is None else {"label": labels[rows].astype(np.int32)}) | lying


def make_views(spec: ViewSpec, seed: int) -> Callable[[Batch], Batch]:
    """A function of the rows of one device, for use within `shard_map`: batches of `device_batches` -> batches as
    `data.pipeline.train_batches` gives them, their masks placed."""

    def make(batch: Batch) -> Batch:
        resident = Resident(*(batch.get(f"resident_{name}") for name in Resident._fields))
        images, shapes, cells, min_cover_height = _fetched(resident, batch["row"])
        b, maps, lent = len(images), None, None
        if spec.kind == "saliency_swap":
            maps = saliency_maps(cells, min_cover_height, spec.threshold, jnp)
            too_large = object_too_large(min_cover_height, spec.paste_area[1], jnp)
            lent = swap.background_indices(batch["row"], too_large, spec, jnp).T.ravel()
        plan = plan_views(seed, batch["position"], shapes, maps, lent, spec, jnp, _search)
        made = {"position": batch["position"]} | ({"label": batch["label"]} if "label" in batch else {})
        images = images.astype(jnp.float32)
        for v in (0, 1):
            part = jax.tree.map(lambda field, v=v: field[v * b : (v + 1) * b], plan)
            view = _resized(images, part.crop, part.target, spec.size)
            if lent is not None:
                whole = jnp.tile(jnp.asarray([[0, 0, spec.size, spec.size]]), (b, 1))
                behind = _resized(images[lent[v * b : (v + 1) * b]], part.window, whole, spec.size)
                view = jnp.where(_within(part.target, spec.size)[..., None], view, behind)
            view = jnp.where(part.flip[:, None, None, None], view[:, :, ::-1], view)
            made[f"view{v + 1}"] = jnp.round(jnp.clip(view, 0, 255)).astype(jnp.uint8)
            if cells is not None:
                made[f"mask{v + 1}"] = view_masks(cells, part.crop, part.target, part.flip, spec.size, jnp)
        if spec.kind == "saliency_swap":
            made["residual"] = plan.residual.reshape(2, b).T
        return made

    return make


def render_views(batch: dict, spec: ViewSpec, seed: int, mesh: Mesh) -> dict[str, np.ndarray]:
    """Renders the views of one of the `device_batches`, to look at."""
    split = PartitionSpec(AXIS)
    made = jax.jit(jax.shard_map(make_views(spec, seed), mesh=mesh, in_specs=split, out_specs=split))
    return to_host(made(to_mesh(batch, mesh)))


def _fetched(resident: Resident, rows: jax.Array) -> Resident:
    """The resident rows (b,) that this device asks for, wherever they lie: each device lays out what it holds of all
    that is asked for, and the sum over the devices, to which only one contributes, brings them home."""
    if jax.lax.axis_size(AXIS) == 1:
        return jax.tree.map(lambda array: array[rows], resident)
    held = len(resident.images)
    asked = jax.lax.all_gather(rows, AXIS, tiled=True) - jax.lax.axis_index(AXIS) * held
    here = (asked >= 0) & (asked < held)

    def fetch(array: jax.Array) -> jax.Array:
        found = jnp.where(here.reshape(-1, *[1] * (array.ndim - 1)), array[jnp.clip(asked, 0, held - 1)], 0)
        return jax.lax.psum_scatter(found, AXIS, tiled=True)

    return jax.tree.map(fetch, resident)


def _resized(images: jax.Array, source: jax.Array, target: jax.Array, size: int) -> jax.Array:
    """(n, P, P, 3) float32 -> (n, size, size, 3), the boxes `source` (fractions) filling the boxes `target` (pixels) of
    what is else 0."""
    down, across = (
        axis_weights(source[:, k], source[:, k + 2], target[:, k], target[:, k + 2], images.shape[1 + k], size, jnp)
        for k in (0, 1)
    )
    lines = jnp.einsum("nih,nhwc->niwc", down, images, precision="high")
    return jnp.einsum("njw,niwc->nijc", across, lines, precision="high")


def _within(target: jax.Array, size: int) -> jax.Array:
    """(n, size, size) bool, true in the boxes."""
    place, low, high = jnp.arange(size), target[:, :2, None], target[:, 2:, None]
    inside = (place >= low) & (place < high)
    return inside[:, 0, :, None] & inside[:, 1, None]


def _search(integral: jax.Array, which: jax.Array, rows: jax.Array, cols: jax.Array, u: jax.Array) -> tuple:
    """The device's `Search`."""
    return _searched(integral[which], rows, cols, u)


@jax.vmap
def _searched(integral: jax.Array, rows: jax.Array, cols: jax.Array, u: jax.Array) -> tuple:
    """All positions, also those where the box would leave the map, which never win."""
    grid = len(integral) - 1
    place = jnp.arange(grid + 1)
    lower = integral[jnp.minimum(place + rows, grid)]
    right = jnp.minimum(place + cols, grid)
    sums = lower[:, right] - lower - integral[:, right] + integral
    sums = jnp.where((place + rows <= grid)[:, None] & (place + cols <= grid), sums, -1)
    count = jnp.cumsum((sums == sums.max()).ravel())
    choice = jnp.minimum((u * count[-1]).astype(jnp.int32), count[-1] - 1)
    return jnp.divmod((count > choice).argmax(), grid + 1)


def _split(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """An array over the mesh by its rows, of which each process reads its devices'; rows of zeros fill it up."""
    shape = (-(-len(array) // mesh.size) * mesh.size, *array.shape[1:])

    def part(index: tuple[slice, ...]) -> np.ndarray:
        found = np.asarray(array[index[0]])
        wanted = len(range(*index[0].indices(shape[0])))
        return np.pad(found, [(0, wanted - len(found))] + [(0, 0)] * (array.ndim - 1))

    return jax.make_array_from_callback(shape, NamedSharding(mesh, PartitionSpec(AXIS)), part)


def available_memory() -> int | None:
    """Bytes of the host's memory that a program can have, with those of the page cache, which give way; None where the
    system does not tell."""
    with contextlib.suppress(OSError):
        told = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        if "MemAvailable" in told:
            return 1024 * int(told["MemAvailable"].split()[0])
    return None


def _check_fits(needed: int, mesh: Mesh, side: int) -> None:
    """UserError where so many bytes do not fit into the memory of a device."""
    device = mesh.local_devices[0]
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        there = stats["bytes_limit"] - stats["bytes_in_use"]
    elif (free := available_memory()) is not None:  # devices of the host share its memory
        there = free // len(mesh.local_devices)
    else:
        return
    if needed > there:
        raise UserError(
            f"config.views.where=device: the images, as squares of {side} px, and their maps need {needed:,} bytes on "
            f"each device, where {there:,} are free: set config.views.stored lower, take more devices, or "
            "config.views.where=host"
        )
