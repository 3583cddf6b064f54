"""Where a backbone comes from: the run of a pre-training, or a file of weights."""

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cvsa_jax import settings
from cvsa_jax.models.siamese import TARGET_PARTS, Siamese
from cvsa_jax.runtime.distributed import replicated
from cvsa_jax.runtime.errors import UserError, some
from cvsa_jax.runtime.files import AnyPath, as_path
from cvsa_jax.training import checkpoint
from cvsa_jax.training.resume import read_config
from cvsa_jax.training.state import Network, empty_network
from cvsa_jax.weights import files, torchvision
from cvsa_jax.weights.nets import architecture

_BACKBONE = TARGET_PARTS[0]


def load(init_from: str, model: ConfigDict, mesh: Mesh) -> tuple[ConfigDict, Network | None, str]:
    """The architecture, the backbone alone (None: random weights), and in words where it comes from.

    Args:
        init_from: a workdir, a file of weights, or nothing.
        model: `config.model`, the architecture where `init_from` is no workdir.
    """
    if not init_from:
        return model, None, "random weights"
    if as_path(init_from).is_file():
        return model, load_file(as_path(init_from), settings.model(model), mesh), init_from
    run, _, network, step = load_run(init_from, mesh)
    parts = ({_BACKBONE: tree[_BACKBONE]} for tree in (network.params, network.batch_stats))
    shape = run.model.copy_and_resolve_references()
    shape.dtype, shape.remat = model.dtype, model.remat  # how it is computed is not the run's to say
    return shape, Network(*parts), f"{init_from} at step {step}"


def online_start(init_from: str, model: Siamese, mesh: Mesh) -> tuple[Network, str]:
    """What stage 2 starts its online network from, and in words what it is: the parts that a run trained, or the
    backbone of a file of weights. A part that the run's losses never reached holds nothing worth loading, and after an
    optimiser that decayed it, nothing that could still learn.

    Raises:
        UserError: it is neither, or of another architecture.
    """
    if as_path(init_from).is_file():
        network = load_file(as_path(init_from), model, mesh)
        return network, f"{init_from} (the backbone alone)"
    run = read_config(init_from)
    if run.mode != "pretrain":
        raise UserError(f"{init_from} is a run of mode {run.mode!r}: a pre-training run is needed")
    online, step = checkpoint.restore_online(as_path(init_from), empty_network(model), mesh)
    network = online.only(settings.trained_parts(run))
    fresh = settings.untrained_parts(run)
    left = f" ({', '.join(fresh)} from random weights, which it did not train)" if fresh else ""
    return network, f"{init_from} at step {step}{left}"


def load_run(workdir: str, mesh: Mesh) -> tuple[ConfigDict, Siamese, Network, int]:
    """Config, model, online network and step of a pre-training run. Prints how many of the backbone's tensors were
    loaded.

    Raises:
        UserError: there is no such run, or it does not hold the whole backbone.
    """
    run = read_config(workdir)
    if run.mode != "pretrain":
        raise UserError(f"{workdir} is a run of mode {run.mode!r}: a pre-training run is needed")
    model = settings.model(run.model)
    network, step = checkpoint.restore_online(as_path(workdir), empty_network(model), mesh)
    _check(network, empty_network(model), f"{workdir}, step {step}")
    return run, model, network, step


def load_file(path: AnyPath, model: Siamese, mesh: Mesh) -> Network:
    """The backbone of a weights file, on the mesh; prints which network of the file it is, what was left out, and how
    many tensors were loaded.

    Raises:
        UserError: it cannot be read, or is of another architecture than the model (the tensors are named).
    """
    weights = files.read(path)
    if weights.padding not in (None, model.padding):
        raise UserError(f"{path} is of a network whose padding is {weights.padding!r}: set config.model.padding to it")
    return jax.device_put(network_of(weights, empty_network(model), str(path)), replicated(mesh))


def network_of(weights: files.Weights, like: Network, origin: str) -> Network:
    """The weights as a network of the backbone alone, which must be that of `like`; prints what was loaded."""
    print(f"{origin}: {weights.about}", flush=True)
    trees = torchvision.to_backbone(weights.tensors)
    network = Network({_BACKBONE: trees["params"]}, {_BACKBONE: trees["batch_stats"]})
    _check(network, like, origin, f"It looks like {architecture(weights.tensors).in_words}. ")
    return network


def _check(network: Network, like: Network, origin: str, looks_like: str = "") -> None:
    wanted, present = (checkpoint.backbone_tensors(n) for n in (like, network))
    matching = [path for path, shape in wanted.items() if present.get(path) == shape]
    print(f"loaded {len(matching)}/{len(wanted)} backbone tensors of {origin}", flush=True)
    if len(matching) < len(wanted) or len(present) > len(wanted):
        different = sorted(set(wanted) - set(matching) | set(present) - set(wanted))
        raise UserError(
            f"{origin} is not of the architecture of config.model: {some(different, 3)} is missing there, or of "
            f"another shape, or too much. {looks_like}Set config.model.depth, width and stem to those of the weights"
        )
