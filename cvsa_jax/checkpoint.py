"""Orbax checkpoints of a run: `workdir/ckpt/<step>/{online,target,optimizer,meta}`, each restorable on its own."""

from pathlib import Path

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from cvsa_jax.distributed import replicated
from cvsa_jax.errors import UserError, some
from cvsa_jax.models.siamese import TARGET_PARTS
from cvsa_jax.state import Network, TrainState, initial_target

KEPT = 2  # newest checkpoints that stay on disk


class Checkpointer:
    """Saves and restores the training state of one workdir; saving is asynchronous and atomic."""

    def __init__(self, workdir: Path):
        self.manager = _manager(workdir, create=True)

    @property
    def latest(self) -> int | None:
        return self.manager.latest_step()

    def save(self, state: TrainState, meta: dict) -> None:
        """Starts to save; returns when the state's arrays may be changed. `meta` is small and JSON-like."""
        self.manager.save(
            int(state.step),
            args=ocp.args.Composite(
                online=ocp.args.StandardSave(state.online),
                target=ocp.args.StandardSave(state.target),
                optimizer=ocp.args.StandardSave(state.opt_state),
                meta=ocp.args.JsonSave(meta),
            ),
        )

    def restore(self, like: TrainState, mesh: Mesh) -> tuple[TrainState, dict]:
        """The newest state, in the shapes of `like` and replicated over `mesh`, whatever devices wrote it."""
        step = self.latest
        restored = self.manager.restore(
            step,
            args=ocp.args.Composite(
                online=ocp.args.StandardRestore(_abstract(like.online, mesh)),
                target=ocp.args.StandardRestore(_abstract(like.target, mesh)),
                optimizer=ocp.args.StandardRestore(_abstract(like.opt_state, mesh)),
                meta=ocp.args.JsonRestore(),
            ),
        )
        done = jax.device_put(jax.numpy.asarray(step, like.step.dtype), replicated(mesh))
        return TrainState(done, restored["online"], restored["target"], restored["optimizer"]), restored["meta"]

    def close(self) -> None:
        """Waits for saves under way."""
        self.manager.wait_until_finished()
        self.manager.close()


def read_meta(workdir: Path) -> dict:
    """The `meta` of a run's newest checkpoint."""
    with _manager(workdir) as manager:
        return manager.restore(_newest(manager, workdir), args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]


def init_from(workdir: Path, like: TrainState, mesh: Mesh) -> tuple[TrainState, int]:
    """Stage 2's start: `like` with the online network of another run's newest checkpoint, and its step there.

    The target starts as a copy of the online network; optimiser and step start anew.
    """
    online, step = restore_online(workdir, like.online, mesh)
    return like.replace(online=online, target=jax.device_put(initial_target(online), replicated(mesh))), step


def restore_online(workdir: Path, like: Network, mesh: Mesh) -> tuple[Network, int]:
    """The online network of a run's newest checkpoint and its step.

    Raises:
        UserError: there is no checkpoint, or its tensors are not those of `like` (they are named).
    """
    with _manager(workdir) as manager:
        step = _newest(manager, workdir)
        stored = manager.item_metadata(step)["online"]
        _check_tensors(_shapes(stored), _shapes(like), workdir, step)
        target = ocp.args.Composite(online=ocp.args.StandardRestore(_abstract(like, mesh)))
        return manager.restore(step, args=target)["online"], step


def backbone_tensors(network: Network) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every tensor of the backbone, parameters and batch statistics."""
    return {path: shape for path, shape in _shapes(network).items() if f"/{TARGET_PARTS[0]}/" in path}


def _manager(workdir: Path, create: bool = False) -> ocp.CheckpointManager:
    folder = Path(workdir).absolute() / "ckpt"
    if not create and not folder.is_dir():
        raise UserError(f"{workdir} holds no checkpoint (there is no folder {folder}): give the workdir of a run")
    options = ocp.CheckpointManagerOptions(
        max_to_keep=KEPT, enable_async_checkpointing=create, create=create, read_only=not create
    )
    handlers = {"online": ocp.StandardCheckpointHandler(), "target": ocp.StandardCheckpointHandler()}
    handlers |= {"optimizer": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(folder, options=options, item_names=None if handlers else (), item_handlers=handlers)


def _newest(manager: ocp.CheckpointManager, workdir: Path) -> int:
    step = manager.latest_step()
    if step is None:
        raise UserError(f"{workdir}/ckpt holds no finished checkpoint")
    return step


def _abstract(tree, mesh: Mesh):
    # Shardings are always given: without them Orbax refuses to restore on other devices than wrote the checkpoint.
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), tree)


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    name = lambda path: "/".join(str(getattr(k, "key", getattr(k, "name", k))) for k in path)  # noqa: E731
    return {name(path): tuple(leaf.shape) for path, leaf in leaves}


def _check_tensors(stored: dict, wanted: dict, workdir: Path, step: int) -> None:
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
