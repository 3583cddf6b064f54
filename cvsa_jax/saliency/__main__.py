"""`python -m cvsa_jax.saliency`: makes the saliency store of a data set, or compares stores.

python -m cvsa_jax.saliency --config=configs/folder.py --config.data.root=my_images --detector=rbd
python -m cvsa_jax.saliency --config=configs/folder.py --config.data.root=my_images --compare=rbd,center
"""

import dataclasses
import re

from absl import flags

from cvsa_jax.runtime import cli
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.saliency.detector import SUPERVISIONS
from cvsa_jax.saliency.registry import DETECTORS, Options

flags.adopt_module_key_flags(cli)
_DETECTOR = flags.DEFINE_enum("detector", None, list(DETECTORS), "Default: config.saliency.detector.")
_SHARD = flags.DEFINE_string("shard", None, "i/n: make every n-th file of the store from the i-th, counted from 0.")
_COMPARE = flags.DEFINE_list("compare", None, "Names of detectors, or folders of stores, to put side by side.")
flags.DEFINE_string("maps", None, "folder: your maps, in folders that mirror the images.")
flags.DEFINE_enum("supervision", None, list(SUPERVISIONS), "folder: how your maps were made.")
flags.DEFINE_string("run", None, "unet, encoder: workdir of the trained run.")
flags.DEFINE_string("encoder_map", None, "encoder: what is read from the feature map, mean or component.")
flags.DEFINE_string("model", None, "onnx: the model file; rembg: the model's name.")
flags.DEFINE_string("preset", None, "onnx: what the model expects: u2net, u2netp, isnet, birefnet, basnet or custom.")
flags.DEFINE_integer("size", None, "onnx, custom: side of the input, px.")
flags.DEFINE_list("mean", None, "onnx, custom: mean of each channel, of images in [0, 1].")
flags.DEFINE_list("std", None, "onnx, custom: standard deviation of each channel.")
flags.DEFINE_bool("sigmoid", None, "onnx, custom: the output is logits.")


def main() -> None:
    config = cli.config()
    if config.mode != "pretrain":
        raise UserError(f"--config is one of mode {config.mode!r}: give the config of the pre-training run")
    shard = _shard()
    options = Options(**{field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(Options)})

    # Now that the command line is right, what takes seconds to import.
    from cvsa_jax.runs import saliency

    cli.join_cluster()
    if _COMPARE.value:
        saliency.compare_stores(config, _COMPARE.value)
    else:
        saliency.make_store(config, _DETECTOR.value or config.saliency.detector, options, shard)


def _shard() -> tuple[int, int] | None:
    """This process's share of the files, as `--shard` says; None: by its place in the cluster."""
    if _SHARD.value is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", _SHARD.value)
    if not match or not int(match[1]) < int(match[2]):
        raise UserError(f"--shard={_SHARD.value} is not i/n with 0 ≤ i < n, e.g. --shard=0/4")
    return int(match[1]), int(match[2])


def command() -> None:
    """The console command `cvsa-saliency`."""
    cli.run(main)


if __name__ == "__main__":
    command()
