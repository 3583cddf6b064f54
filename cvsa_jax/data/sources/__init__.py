"""Data sets. `load` is the one way to get a `Source`."""

from cvsa_jax.data.sources import cub, folder, procedural, tfds
from cvsa_jax.data.sources.source import Source
from cvsa_jax.runtime.errors import UserError

KINDS = ("cub", "folder", "procedural", f"{tfds.PREFIX}<name>")


def load(kind: str, root: str, procedural_spec: procedural.Spec | None = None) -> Source:
    """The data set of one of `KINDS`; `root` is its folder (unused by `procedural`, which takes a `Spec`)."""
    if "://" in root:
        raise UserError(
            f"config.data.root={root}: images are read one by one, from a disk. Copy them to one (gcloud storage rsync "
            "-r), or mount the bucket (gcsfuse)"
        )
    if kind.startswith(tfds.PREFIX):
        return tfds.load(kind.removeprefix(tfds.PREFIX), root)
    if kind == "cub":
        return cub.load(root)
    if kind == "folder":
        return folder.load(root)
    if kind == "procedural":
        return procedural.load(procedural_spec)
    raise UserError(f"config.data.kind={kind!r} is unknown; take one of {', '.join(KINDS)}")
