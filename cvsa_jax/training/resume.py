"""How a run begins: from this workdir's newest checkpoint, else from other weights, else from random ones.

Every training starts here, so that each continues, refuses other data and says what it does in the same way.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
from clu import parameter_overview
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cvsa_jax.data.sources.source import difference
from cvsa_jax.runtime.config_files import read_settings, write_settings
from cvsa_jax.runtime.distributed import check_alike, check_shared, is_first, replicated
from cvsa_jax.runtime.errors import UserError, some
from cvsa_jax.runtime.files import AnyPath, absolute, as_path, write_text_atomically
from cvsa_jax.training.checkpoint import Checkpointer
from cvsa_jax.training.state import tree_hash

# A change of these in an existing workdir would change its parameter tree, its data order or what it is trained on, so
# that its config would no longer say what it is. Paths may change: the data set is recognised by its fingerprint.
BOUND = (
    *("batch_size", "data", "init_from", "model", "mode", "saliency.detector", "seed", "views", "optim.name"),
    *("size", "with_procedural", "objective", "contrast", "watch.online_probe", "optim.predictor", "optim.decay"),
    *("align", "augment", "target"),
)
FREE = (
    "data.root",
    "data.fingerprint",
    "data.on_bad_image",
    "data.test_split",
    "model.remat",
    "views.where",
    "views.stored",
    "data.cache",
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A training that begins or goes on: `identity` is what its data are recognised by, `start` the step that it
    has come to, `total` its last one."""

    config: ConfigDict
    workdir: AnyPath
    mesh: Mesh
    state: Any
    checkpoints: Checkpointer
    identity: dict
    start: int
    total: int

    @property
    def steps(self) -> range:
        """Those that are still to be done, counted from 0."""
        return range(self.start, self.total)


def begin(
    config: ConfigDict,
    workdir: AnyPath,
    mesh: Mesh,
    initialize: Callable[[jax.Array], Any],
    *,
    identity: dict,
    total: int,
    about: str,
    start_from: Callable[[Any], tuple[Any, str]] | None = None,
) -> Run:
    """Starts or continues the run in `workdir`, writes its config and its table of parameters, and prints a line.

    Args:
        initialize: random key -> state of random weights at step 0, a flax dataclass with `step` and `params`.
        identity: what tells the data from others, JSON-like; a run on other data is not continued.
        about: the data in words, for the line.
        start_from: state -> the state with other weights in it, and where they come from; for a run that begins.

    Raises:
        UserError: the workdir cannot be used, or holds a run of other data or of a config that does not fit.
    """
    # Where the images and the maps lie may differ from host to host.
    settings = {key: value for key, value in flat_config(config).items() if key not in ("data.root", "saliency.store")}
    check_alike({"config": settings, "data": identity})
    check_shared(workdir)
    checkpoints = Checkpointer(workdir)
    state = jax.jit(initialize, out_shardings=replicated(mesh))(jax.random.key(config.seed))
    origin, changes, begun = "random weights", [], ""
    with contextlib.ExitStack() as refused:
        refused.callback(checkpoints.close)  # which lets others use the workdir
        if checkpoints.latest is not None:
            read_config(str(workdir))  # of this format, or refused
            stored = checkpoints.meta()
            begun = stored["start"]
            same = _same_start(config, workdir, lambda: start_from and tree_hash(start_from(state)[0].params) == begun)
            changes = compare_config(config, workdir, *(["init_from"] if same else []))
            _check_identity(stored, identity, workdir)
            if checkpoints.latest > total:
                raise UserError(
                    f"{workdir} is at step {checkpoints.latest}, beyond the {total} of config.total_steps or "
                    "config.total_epochs: raise it, or take another --workdir"
                )
            state = checkpoints.restore(state, mesh)
            origin = f"{workdir} at step {int(state.step)}"
        elif start_from is not None:
            state, origin = start_from(state)
            begun = tree_hash(state.params)
        start = int(state.step)
        checkpoints.check_room(state, -(-(total - start) // config.checkpoint_steps))
        refused.pop_all()
    if start < total:
        write_config(config, workdir)
        drop_report(workdir)
    table = parameter_overview.get_parameter_overview(state.params, include_stats=False)
    if is_first():
        write_text_atomically(workdir / "parameters.txt", table + "\n")
    print(
        f"{mesh.size} {mesh.devices.flat[0].platform} device(s), {config.model.dtype}; {about}; steps "
        f"{start} to {total}, batches of {config.batch_size}; "
        f"{parameter_overview.count_parameters(state.params) / 1e6:.1f} M parameters from {origin}",
        flush=True,
    )
    left = "" if start < total else ", which is finished and stays as it is"
    for change in changes:
        print(f"changed since {workdir} was last started{left}: {change}")
    if config.log_parameters:
        print(table, flush=True)
    return Run(config, workdir, mesh, state, checkpoints, identity | {"start": begun}, start, total)


def drop_report(workdir: AnyPath) -> None:
    """Removes the figures and the page of an earlier step, in the first process: the weights are about to change."""
    if is_first():
        for name in ("results.json", "index.html"):
            (workdir / "report" / name).unlink(missing_ok=True)


def check_mode(config: ConfigDict, workdir: AnyPath) -> None:
    """UserError where the workdir holds a run of another mode, whose files this one would overwrite."""
    file = workdir / "config.json"
    mode = read_settings(file).get("mode") if file.is_file() else config.mode
    if mode != config.mode:
        raise UserError(
            f"{workdir} holds a run of mode {mode!r}, which one of {config.mode!r} would overwrite: give another "
            "--workdir"
        )


def _same_start(config: ConfigDict, workdir: AnyPath, equal: Callable[[], bool]) -> bool:
    """Whether a run is to go on from what it began with, however that is spelled or wherever it lies now; `equal` reads
    it, and is asked last."""
    before, now = (c.get("init_from", "") for c in (read_config(str(workdir)), config))
    if before == now:
        return True
    places = [os.path.normpath(str(absolute(place))) for place in (before, now) if place]
    return bool(before and now) and (len(set(places)) == 1 or equal())


def compare_config(config: ConfigDict, workdir: AnyPath, *known: str) -> list[str]:
    """The harmless differences between a config and that of the run to be continued in `workdir`; of the keys `known`
    it is known that they are harmless.

    Raises:
        UserError: a difference would change the run's parameter tree or data order.
    """
    before, now = (flat_config(c) for c in (read_config(str(workdir)), config))
    changes = {
        key: f"{key}: {before.get(key, 'absent')} -> {now.get(key, 'absent')}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    }
    if refused := [
        change for key, change in changes.items() if _within(key, BOUND) and not _within(key, (*FREE, *known))
    ]:
        raise UserError(
            f"{workdir} holds a run with another config:\n  " + "\n  ".join(refused) + "\nContinue it with its own "
            "values, or give another --workdir"
        )
    return list(changes.values())


def flat_config(config: ConfigDict) -> dict[str, Any]:
    """Dotted key -> value, lists in the place of tuples, as JSON has them."""
    flat = flatten_dict(config.to_dict(), sep=".")
    return {key: list(value) if isinstance(value, tuple) else value for key, value in flat.items()}


def write_config(config: ConfigDict, workdir: AnyPath) -> None:
    """Writes `workdir/config.json`, in the first process."""
    if is_first():
        write_settings(config, workdir / "config.json")


def read_config(workdir: str) -> ConfigDict:
    """The config of a run; UserError where the folder holds none, or one of another version."""
    file = as_path(workdir) / "config.json"
    if not workdir or not file.is_file():
        why = f"there is no {file}" if not workdir or as_path(workdir).exists() else "there is no such file or folder"
        raise UserError(f"{workdir!r} is not the workdir of a run: {why}")
    return ConfigDict(read_settings(file))


def _check_identity(stored: dict, identity: dict, workdir: AnyPath) -> None:
    there, here = (_flat(values) for values in (stored, identity))
    if different := [key for key in here if there.get(key) != here[key]]:
        there, here = (", ".join(f"{key} {_brief(values.get(key))}" for key in different) for values in (there, here))
        why = f" ({difference(stored['fingerprint'], identity['fingerprint'])})" if "fingerprint" in different else ""
        raise UserError(
            f"{workdir} was trained on other data ({there}; now {here}){why}: restore the data or take another "
            "--workdir"
        )


def _flat(identity: dict) -> dict[str, Any]:
    return flatten_dict(identity, sep=".")


def _brief(value: Any) -> str:
    return f"[{some(value, 3)}]" if isinstance(value, list) else str(value)


def _within(key: str, parents: tuple[str, ...]) -> bool:
    return any(key == parent or key.startswith(f"{parent}.") for parent in parents)
