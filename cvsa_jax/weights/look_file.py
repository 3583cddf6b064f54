"""A look head as a file: `look.weight` (C,), `look.bias` and `look.power` (1,), alone or beside an exported network."""

import numpy as np

from cvsa_jax.evaluation.look import LookHead
from cvsa_jax.models.siamese import TARGET_PARTS
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.runtime.files import AnyPath, as_path, on_disk, write_atomically
from cvsa_jax.training.state import Network, tree_hash

BACKBONE = "look.backbone"  # in the metadata: the hash of the backbone that the head was fitted to
_PART = TARGET_PARTS[0]  # of a network: the backbone


def tensors_of(head: LookHead) -> dict[str, np.ndarray]:
    """The tensors of the file."""
    rest = {"bias": head.bias, "power": head.power}
    return {"look.weight": np.float32(head.weight)} | {f"look.{key}": np.float32([one]) for key, one in rest.items()}


def write(path: AnyPath, head: LookHead, about: dict[str, str]) -> None:
    """Writes a head with what it is of, texts by name."""
    from safetensors.numpy import save

    content = save(tensors_of(head), about | {"format": "pt"})
    write_atomically(path, lambda file: file.write(content))


def read(path: str) -> tuple[LookHead, dict[str, str]]:
    """The head in a file, and what it is of; UserError where there is none."""
    from safetensors import SafetensorError, safe_open

    if not as_path(path).is_file():
        raise UserError(f"{path}: there is no such file; python -m cvsa_jax.look fit makes a look head")
    try:
        with safe_open(on_disk(as_path(path)), framework="np") as file:
            weight, bias, power = (file.get_tensor(f"look.{name}") for name in ("weight", "bias", "power"))
            about = file.metadata() or {}
    except SafetensorError:
        raise UserError(f"{path} holds no look head, which python -m cvsa_jax.look fit makes") from None
    if (
        weight.ndim != 1
        or bias.size != 1
        or power.size != 1
        or not np.isfinite([*weight, *bias, *power]).all()
        or power.max() <= 0
    ):
        raise UserError(f"{path}: the look head in it is damaged; python -m cvsa_jax.look fit makes it again")
    return LookHead(np.float32(weight), float(bias.ravel()[0]), float(power.ravel()[0])), about


def facts(about: dict[str, str]) -> dict[str, str]:
    """What a file says of its head, to be read by people."""
    own = {name.removeprefix("look."): told for name, told in about.items() if name.startswith("look.")}
    return {name: told for name, told in own.items() if name != "backbone"}


def backbone_hash(network: Network) -> str:
    """What tells a backbone from others, in whatever run or file it is."""
    return tree_hash((network.params[_PART], network.batch_stats[_PART]))


def of_network(path: str, network: Network, origin: str) -> LookHead:
    """The head in a file, for the network from `origin`; UserError where it was fitted to another backbone."""
    head, about = read(path)
    if about.get(BACKBONE, "") != backbone_hash(network):
        raise UserError(
            f"the look head {path} was fitted to {about.get('look.network', 'another network')}, and not to {origin}: "
            f"fit one with python -m cvsa_jax.look fit --weights={origin}"
        )
    return head


def of_patches(path: str, channels: int, origin: str) -> LookHead:
    """The head in a file, for the `patches` in `origin`; UserError where theirs is another number of channels."""
    head, about = read(path)
    if len(head.weight) != channels:
        raise UserError(
            f"the look head {path} was fitted to {len(head.weight)} channels of "
            f"{about.get('look.network', 'another network')}, and the patches in {origin} have {channels}"
        )
    return head
