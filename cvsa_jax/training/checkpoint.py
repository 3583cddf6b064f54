"""Orbax checkpoints of a run: `workdir/ckpt/<step>/`, where each field of the state is restorable on its own.

The state is a flax dataclass with a field `step`: `TrainState` or another of that kind; what is None in it is
not stored.
"""

import contextlib
import dataclasses
import logging
import re
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from cvsa_jax.models.siamese import TARGET_PARTS
from cvsa_jax.runtime.distributed import first_alone, replicated
from cvsa_jax.runtime.errors import UserError, some
from cvsa_jax.runtime.files import AnyPath, absolute, check_room, is_local
from cvsa_jax.runtime.lock import Lock
from cvsa_jax.training.state import Network

# What any of the states stores beside its step.
ITEMS = ("online", "target", "opt_state", "queue", "probe", "balance", "params", "network")
KEPT = 2  # newest checkpoints that stay on disk
# Orbax warns of every checkpoint that is only read.
logging.getLogger("absl").addFilter(lambda record: not re.search("read[ _]only", record.getMessage()))


class Checkpointer:
    """Saves and restores the training state of one workdir, which no other process may use meanwhile; saving is
    asynchronous and atomic. UserError where the workdir is in use or cannot be used."""

    def __init__(self, workdir: AnyPath):
        self._lock = first_alone(lambda: Lock(workdir))
        self.workdir, self.manager = workdir, _manager(workdir, create=True)

    @property
    def latest(self) -> int | None:
        return self.manager.latest_step()

    def check_room(self, state: Any, saves: int) -> None:
        """UserError, in every process, where the disk is too small for so many more checkpoints of such a state; the
        oldest of those kept goes when a new one is whole."""
        if not is_local(self.workdir):
            return
        each = sum(leaf.nbytes for name in _items(state) for leaf in jax.tree.leaves(getattr(state, name)))
        count = min(KEPT + 1 - len(self.manager.all_steps()), saves)
        advice = "make room there, or name a --workdir on another disk"
        first_alone(lambda: check_room(self.workdir, count * each, f"{count} checkpoint(s)", advice))

    def save(self, state: Any, meta: dict) -> None:
        """Starts to save; returns when the state's arrays may be changed. `meta` is small and JSON-like. UserError
        where this save, or the one before, cannot be written."""
        items = {name: ocp.args.StandardSave(getattr(state, name)) for name in _items(state)}
        with self._writing():
            self.manager.save(int(state.step), args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **items))

    def meta(self) -> dict:
        """What was saved with the newest state; UserError where it cannot be read."""
        with _reading(self.manager, self.latest):
            return self.manager.restore(self.latest, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]

    def restore(self, like: Any, mesh: Mesh) -> Any:
        """The newest state, in the shapes of `like` and replicated over `mesh`, whatever devices wrote it. UserError
        where it cannot be read."""
        step = self.latest
        items = {name: ocp.args.StandardRestore(_abstract(getattr(like, name), mesh)) for name in _items(like)}
        with _reading(self.manager, step):
            restored = self.manager.restore(step, args=ocp.args.Composite(**items))
        done = jax.device_put(jax.numpy.asarray(step, like.step.dtype), replicated(mesh))
        return like.replace(step=done, **{name: restored[name] for name in items})

    def wait(self) -> None:
        """Until saves under way are finished; UserError where they cannot be."""
        with self._writing():
            self.manager.wait_until_finished()

    def close(self) -> None:
        """`wait`, and no more saves."""
        try:
            self.wait()
        finally:
            self.manager.close()
            if self._lock is not None:
                self._lock.release()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever the storage libraries raise
            kept = (
                "no checkpoint was finished" if self.latest is None else f"the newest whole one is step {self.latest}"
            )
            raise UserError(
                f"a checkpoint cannot be written to {self.manager.directory} ({_brief(error)}); {kept}. Make room or "
                "correct the permissions, and give the same command again"
            ) from error


def restore_online(workdir: AnyPath, like: Network, mesh: Mesh) -> tuple[Network, int]:
    """`restore_item` of the online network."""
    return restore_item(workdir, "online", like, mesh)


def restore_item(workdir: AnyPath, item: str, like: Any, mesh: Mesh) -> tuple[Any, int]:
    """One field of the state of a run's newest checkpoint, and its step.

    Raises:
        UserError: there is no checkpoint, or its tensors are not those of `like` (they are named).
    """
    with _manager(workdir) as manager:
        step = _newest(manager, workdir)
        stored = manager.item_metadata(step).get(item)
        if stored is None:
            raise UserError(f"{workdir}/ckpt/{step} holds no {item!r}: it is a run of another kind")
        _check_tensors(_shapes(stored), _shapes(like), workdir, step)
        target = ocp.args.Composite(**{item: ocp.args.StandardRestore(_abstract(like, mesh))})
        with _reading(manager, step):
            return manager.restore(step, args=target)[item], step


def backbone_tensors(network: Network) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every tensor of the backbone, parameters and batch statistics."""
    return {path: shape for path, shape in _shapes(network).items() if f"/{TARGET_PARTS[0]}/" in path}


def _manager(workdir: AnyPath, create: bool = False) -> ocp.CheckpointManager:
    folder = absolute(workdir) / "ckpt"
    if not create and not folder.is_dir():
        raise UserError(f"{workdir} holds no checkpoint (there is no folder {folder}): give the workdir of a run")
    options = ocp.CheckpointManagerOptions(
        max_to_keep=KEPT,
        enable_async_checkpointing=create,
        create=create,
        read_only=not create,
        cleanup_tmp_directories=create,  # what a killed save had begun
    )
    # The reader of each item is known beforehand, whether this manager writes or only reads.
    handlers = {name: ocp.StandardCheckpointHandler() for name in ITEMS}
    handlers["meta"] = ocp.JsonCheckpointHandler()
    try:
        return ocp.CheckpointManager(folder, options=options, item_handlers=handlers)
    except ImportError as error:
        if is_local(workdir):
            raise
        raise UserError(f"checkpoints in a bucket need pip install -e '.[gcs]' ({error})") from error
    except OSError as error:
        raise UserError(f"the folder of checkpoints {folder} cannot be used ({_brief(error)})") from error


@contextlib.contextmanager
def _reading(manager: ocp.CheckpointManager, step: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever the storage libraries raise
        older = [s for s in manager.all_steps() if s < step]
        instead = f"go on from step {max(older)}" if older else "begin anew"
        advice = f"Delete this folder, and the same command will {instead}"
        if "structures do not match" in str(error):
            advice = "It is whole, but of another config: give that of the run's config.json, or another --workdir"
        raise UserError(
            f"the checkpoint {manager.directory / str(step)} cannot be read ({_brief(error)}). {advice}"
        ) from error


def _brief(error: Exception) -> str:
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line if len(line) <= 200 else f"{line[:80]} … {line[-100:]}"  # the reason stands at the end


def _items(state: Any) -> list[str]:
    names = [field.name for field in dataclasses.fields(state) if field.name != "step"]
    return [name for name in names if getattr(state, name) is not None]


def _newest(manager: ocp.CheckpointManager, workdir: AnyPath) -> int:
    step = manager.latest_step()
    if step is None:
        raise UserError(f"{workdir}/ckpt holds no finished checkpoint")
    return step


def _abstract(tree, mesh: Mesh):
    # Shardings are always given: without them Orbax refuses to restore on other devices than wrote the checkpoint.
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), tree)


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def _check_tensors(stored: dict, wanted: dict, workdir: AnyPath, step: int) -> None:
    if stored == wanted:
        return
    problems = [f"{p} is missing" for p in wanted.keys() - stored.keys()]
    problems += [f"{p} is not in the model" for p in stored.keys() - wanted.keys()]
    both = stored.keys() & wanted.keys()
    problems += [f"{p} is {stored[p]}, the model's is {wanted[p]}" for p in both if stored[p] != wanted[p]]
    raise UserError(
        f"the checkpoint {workdir}/ckpt/{step} has another architecture than config.model: "
        f"{some(sorted(problems), 3)}. Give the config.model of {workdir}/config.json"
    )
