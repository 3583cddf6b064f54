"""Data sets. `load` is the one way to get a `Source`."""

from cvsa_jax.data.sources import cub, folder, procedural
from cvsa_jax.data.sources.source import Source
from cvsa_jax.errors import UserError

KINDS = ("cub", "folder", "procedural")


def load(kind: str, root: str, procedural_spec: procedural.Spec | None = None) -> Source:
    """The data set of one of `KINDS`; `root` is its folder (unused by `procedural`, which takes a `Spec`)."""
    if kind == "cub":
        return cub.load(root)
    if kind == "folder":
        return folder.load(root)
    if kind == "procedural":
        return procedural.load(procedural_spec)
    raise UserError(f"config.data.kind={kind!r} is unknown; take one of {', '.join(KINDS)}")
