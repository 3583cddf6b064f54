"""`python -m cvsa_jax.search`: nearest neighbours among embedded images, as a page of pictures.

python -m cvsa_jax.search --index=my_images.npz --query=photo.jpg,another.jpg --out=found.html
python -m cvsa_jax.search --index=my_images.npz --duplicates=0.95 --out=duplicates.html
"""

from absl import flags

from cvsa_jax.runtime import cli
from cvsa_jax.runtime.errors import UserError

_INDEX = flags.DEFINE_string("index", None, "An .npz of `python -m cvsa_jax.embed`.")
_QUERY = flags.DEFINE_list("query", [], "Images to look for: files, or names in the index, comma-separated.")
_DUPLICATES = flags.DEFINE_float("duplicates", None, "Pairs of images of the index of at least this cosine.")
_OUT = flags.DEFINE_string("out", None, "The page.")
_K = flags.DEFINE_integer("k", 7, "Neighbours of each query.", lower_bound=1)


def main() -> None:
    for flag, example in ((_INDEX, "x.npz"), (_OUT, "page.html")):
        if not flag.value:
            raise UserError(f"--{flag.name} is missing, e.g. --{flag.name}={example}")
    if bool(_QUERY.value) == (_DUPLICATES.value is not None):
        raise UserError("give either --query=photo.jpg or --duplicates=0.95")
    if _DUPLICATES.value is not None and not -1 <= _DUPLICATES.value <= 1:
        raise UserError(f"--duplicates={_DUPLICATES.value:g}: a cosine lies in [-1, 1]")

    # Now that the command line is right, what takes seconds to import.
    from cvsa_jax.runs import search

    if _QUERY.value:
        search.neighbors(_INDEX.value, _QUERY.value, _OUT.value, _K.value)
    else:
        search.duplicates(_INDEX.value, _DUPLICATES.value, _OUT.value)


def command() -> None:
    """The console command `cvsa-search`."""
    cli.run(main)


if __name__ == "__main__":
    command()
