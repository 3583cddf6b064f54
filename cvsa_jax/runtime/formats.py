"""The versions of what this program writes and reads again, in `config.json` of a run and `manifest.json` of a store.

Raise one where the same files would be read wrongly, or a training that goes on would not be the one that began.
"""

from collections.abc import Mapping

from cvsa_jax.runtime.errors import UserError

KEY = "format"
RUN = 1  # a workdir: its config, its checkpoints, and the order in which it takes the images
STORE = 1  # a saliency store: its records, and the fingerprint of its images


def check(place: str, content: Mapping, known: int, advice: str) -> None:
    """UserError, with this advice, where `content`, read from `place`, is not of the format that is known here."""
    found = content.get(KEY)
    if type(found) is not int:
        raise UserError(f"{place} has no format version, so a version of cvsa_jax before 1.0 wrote it: {advice}")
    if found == known:
        return
    if found > known:
        raise UserError(
            f"{place} has format {found}, which a newer version of cvsa_jax wrote (this one reads {known}): update "
            f"cvsa_jax, or {advice}"
        )
    raise UserError(
        f"{place} has format {found}, which an older version of cvsa_jax wrote (this one reads {known}): {advice}"
    )
