"""`python -m cvsa_jax.embed`: features of a folder of images, by any network.

python -m cvsa_jax.embed --run=runs/cvsa --data=my_images --out=my_images.npz
python -m cvsa_jax.embed --run=resnet50.pth --data=my_images --out=my_images.csv --vectors=unit
python -m cvsa_jax.embed --run=resnet50.pth --data=my_images --out=my_images.npz --pooling=head --look=look.safetensors
python -m cvsa_jax.embed --run=runs/finetuned --data=new_images --out=predictions.csv --predict=5
"""

from absl import flags

from cvsa_jax.runtime import cli
from cvsa_jax.runtime.errors import UserError

_RUN = flags.DEFINE_string("run", None, "Workdir of a pre-training or fine-tuned run, or a file of weights.")
_DATA = flags.DEFINE_string("data", None, "Folder of images, as configs/folder.py takes it.")
_OUT = flags.DEFINE_string("out", None, "File of the features: .npz, .csv or, with pyarrow, .parquet.")
_VECTORS = flags.DEFINE_enum("vectors", "raw", ["raw", "unit", "none"], "As they are, of length 1, or left out.")
_POOLING = flags.DEFINE_enum(
    "pooling", "average", ["average", "attention", "head", "saliency"], "Of the cells of the feature map."
)
_LOOK = flags.DEFINE_string("look", "", "Of --pooling=head: the file that `python -m cvsa_jax.look fit` wrote.")
_MAPS = flags.DEFINE_string("maps", "", "Of --pooling=saliency: detector, or folder, of the images' saliency store.")
_PREDICT = flags.DEFINE_integer(
    "predict", 0, "Of a fine-tuned run: this many classes with their probabilities.", lower_bound=0
)
_SHARD = flags.DEFINE_string("shard", "0/1", "i/n: of n processes on the same --out this is the i-th, from 0.")
_SKIP = flags.DEFINE_bool("skip_bad_images", False, "Leave unreadable images out, and say which.")


def main() -> None:
    for flag, example in ((_RUN, "runs/cvsa"), (_DATA, "my_images"), (_OUT, "x.npz")):
        if not flag.value:
            raise UserError(f"--{flag.name} is missing, e.g. --{flag.name}={example}")

    # Now that the command line is right, what takes seconds to import.
    from cvsa_jax.runs import embed

    pooling = embed.Pooling(_POOLING.value, _LOOK.value, _MAPS.value)
    options = embed.Options(_VECTORS.value, pooling, _PREDICT.value, _SHARD.value, _SKIP.value)
    embed.embed(_RUN.value, _DATA.value, _OUT.value, options)


def command() -> None:
    """The console command `cvsa-embed`."""
    cli.run(main)


if __name__ == "__main__":
    command()
