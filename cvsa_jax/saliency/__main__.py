"""`python -m cvsa_jax.saliency`: makes the saliency store of a data set, or compares stores.

python -m cvsa_jax.saliency --config=configs/folder.py --config.data.root=my_images --detector=rbd
python -m cvsa_jax.saliency --config=configs/folder.py --config.data.root=my_images --compare=rbd,center
"""

import dataclasses
import re

import jax
import numpy as np
from absl import flags

from cvsa_jax import settings
from cvsa_jax.data.sources import Source
from cvsa_jax.models.activation import READOUTS
from cvsa_jax.report import saliency as page
from cvsa_jax.runtime import cli
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.saliency.compute import compute
from cvsa_jax.saliency.detector import SUPERVISIONS
from cvsa_jax.saliency.detectors.onnx import PRESETS
from cvsa_jax.saliency.registry import DETECTORS, Options, build
from cvsa_jax.saliency.store import REPORT_PAGE, SaliencyStore, store_path

_DETECTOR = flags.DEFINE_enum("detector", None, list(DETECTORS), "Default: config.saliency.detector.")
_SHARD = flags.DEFINE_string("shard", None, "i/n: make every n-th file of the store from the i-th, counted from 0.")
_COMPARE = flags.DEFINE_list("compare", None, "Names of detectors, or folders of stores, to put side by side.")
flags.DEFINE_string("maps", None, "folder: your maps, in folders that mirror the images.")
flags.DEFINE_enum("supervision", None, list(SUPERVISIONS), "folder: where your maps' knowledge of objects comes from.")
flags.DEFINE_string("run", None, "unet, encoder: workdir of the trained run.")
flags.DEFINE_enum("encoder_map", None, list(READOUTS), "encoder: what is read from the feature map.")
flags.DEFINE_string("model", None, "onnx: the model file.")
flags.DEFINE_enum("preset", None, [*PRESETS, "custom"], "onnx: what the model expects.")
flags.DEFINE_integer("size", None, "onnx, custom: side of the input, px.")
flags.DEFINE_list("mean", None, "onnx, custom: mean of each channel, of images in [0, 1].")
flags.DEFINE_list("std", None, "onnx, custom: standard deviation of each channel.")
flags.DEFINE_bool("sigmoid", None, "onnx, custom: the output are logits.")


def main() -> None:
    config = cli.config()
    if config.mode != "pretrain":
        raise UserError(f"--config is one of mode {config.mode!r}: give the config of the pre-training run")
    source = settings.load_source(config.data)
    measured, said = _measured(source, config.data.test_split)
    if _COMPARE.value:
        _compare(source, measured, said)
        return
    name = _DETECTOR.value or config.saliency.detector
    options = Options(**{field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(Options)})
    folder = store_path(config.saliency.store, source.name, name)
    shard = _shard()
    manifest = compute(
        source,
        build(name, source, options),
        folder,
        threshold=config.saliency.threshold,
        on_bad_image=config.data.on_bad_image,
        shard=shard,
    )
    if manifest is None:
        print(f"{folder}: share {shard[0]} of {shard[1]} is done; the store is finished when the others are")
        return
    table = page.write_store_page(SaliencyStore(folder, source), source, measured, said)
    print(
        f"{folder}: {manifest['images']} maps by {name} (supervision: {manifest['supervision']}), mean area "
        f"{manifest['mean_area']:.0%}, {len(manifest['unreadable'])} unreadable\n\n{table.as_text()}\n\n"
        f"on {said}; report: {folder / REPORT_PAGE}"
    )


def _measured(source: Source, test_split: str) -> tuple[np.ndarray, str]:
    """The images with which maps are compared with the truth, and what they are."""
    if test_split in source.splits or test_split == "all":
        indices = source.split(test_split)
        return indices, f"{len(indices)} images of split {test_split!r}"
    return source.split("all"), f"all {len(source)} images"


def _compare(source: Source, measured: np.ndarray, said: str) -> None:
    is_name = lambda entry: entry in DETECTORS  # noqa: E731
    folders = {e: store_path("" if is_name(e) else e, source.name, e) for e in _COMPARE.value}
    stores = {entry: SaliencyStore(folder, source) for entry, folder in folders.items()}
    report = store_path("", source.name, "report")
    table = page.write_comparison(stores, source, measured, said, report)
    print(f"{table.as_text()}\n\non {said}; report: {report / REPORT_PAGE.name}")


def _shard() -> tuple[int, int]:
    """This process's share of the files: as `--shard` says, else by its place in the cluster."""
    if _SHARD.value is None:
        return jax.process_index(), jax.process_count()
    match = re.fullmatch(r"(\d+)/(\d+)", _SHARD.value)
    if not match or not int(match[1]) < int(match[2]):
        raise UserError(f"--shard={_SHARD.value} is not i/n with 0 ≤ i < n, e.g. --shard=0/4")
    return int(match[1]), int(match[2])


if __name__ == "__main__":
    cli.run(main)
