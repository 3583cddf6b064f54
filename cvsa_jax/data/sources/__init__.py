"""Data sets. `load` is the one way to get a `Source`."""

import dataclasses

from cvsa_jax.data.sources import aircraft, cars, cub, dogs, flowers, folder, food, inat, pets, procedural, tfds
from cvsa_jax.data.sources.source import CONTENTS, TIMES, Source
from cvsa_jax.runtime import checks
from cvsa_jax.runtime.errors import UserError

# Kind -> loader of (root) or, where a colon and more may follow, of (root, what follows).
OFFICIAL = {
    "cub": cub.load,
    "nabirds": cub.nabirds,
    "aircraft": aircraft.load,
    "cars": cars.load,
    "dogs": dogs.load,
    "inat": inat.load,
    "pets": pets.load,
    "flowers": flowers.load,
    "food": food.load,
}
_VARIED = {"aircraft": aircraft.LEVELS, "inat": inat.SETS}
KINDS = ("folder", "procedural", *OFFICIAL, f"{tfds.PREFIX}<name>")


def load(kind: str, root: str, procedural_spec: procedural.Spec | None = None, looks_at: str = CONTENTS) -> Source:
    """The data set of one of `KINDS`; `root` is its folder (unused by `procedural`, which takes a `Spec`). Behind a
    colon, `aircraft` takes one of its levels of classes, and `inat` its year. `looks_at`: see `Source`."""
    checks.choice("config.data.fingerprint", looks_at, (CONTENTS, TIMES))
    return dataclasses.replace(_load(kind, root, procedural_spec), looks_at=looks_at)


def _load(kind: str, root: str, procedural_spec: procedural.Spec | None) -> Source:
    if "://" in root:
        raise UserError(
            f"config.data.root={root}: images are read one by one, from a disk. Copy them to one (gcloud storage rsync "
            "-r), or mount the bucket (gcsfuse)"
        )
    if kind.startswith(tfds.PREFIX):
        return tfds.load(kind.removeprefix(tfds.PREFIX), root)
    if kind == "folder":
        return folder.load(root)
    if kind == "procedural":
        return procedural.load(procedural_spec)
    name, colon, variant = kind.partition(":")
    if name in _VARIED and colon:
        return OFFICIAL[name](root, variant)
    if kind in OFFICIAL:
        return OFFICIAL[kind](root)
    raise UserError(f"config.data.kind={kind!r} is unknown; take one of {', '.join(KINDS)}")
