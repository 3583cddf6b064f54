"""The official data sets, and the three kinds of config that each has: pre-training, linear probe, fine-tuning.

`configs/<set>.py` is stage 2 with ResNet-50 at 224 px (BYOL's 100-epoch recipe), `configs/<set>_linear.py` and
`configs/<set>_finetune.py` are the protocols. Their options are those of the same config of a folder, and the set's.
"""

import dataclasses
from collections.abc import Callable

from ml_collections import ConfigDict

from configs import folder, folder_finetune, folder_linear


@dataclasses.dataclass(frozen=True)
class Set:
    """Where a set lies, the images of its train split, the detector of its maps, its splits, and option -> (kind, root)
    of its variants."""

    kind: str
    root: str
    images: int
    detector: str
    train_split: str = "train"
    test_split: str = "test"
    variants: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)


SETS = {
    "cub": Set("cub", "data/CUB_200_2011", 5994, "masks"),
    "aircraft": Set(
        "aircraft",
        "data/fgvc-aircraft-2013b",
        6667,
        "boxes",
        "trainval",
        variants={level: (f"aircraft:{level}", "data/fgvc-aircraft-2013b") for level in ("family", "manufacturer")},
    ),
    "cars": Set("cars", "data/stanford_cars", 8144, "boxes"),
    "nabirds": Set("nabirds", "data/nabirds", 23_929, "boxes"),
    "dogs": Set("dogs", "data/stanford_dogs", 12_000, "boxes"),
    "inat": Set(
        "inat",
        "data/inat2018",
        437_513,
        "rbd",
        test_split="val",
        variants={year: (f"inat:{year}", "data/inat2021") for year in ("2021", "mini")},
    ),
    "pets": Set("pets", "data/oxford-iiit-pet", 3680, "masks"),
    "flowers": Set("flowers", "data/flowers-102", 2040, "masks", "trainval"),
    "food": Set("food", "data/food-101", 75_750, "rbd"),
}
SMALL = 100_000  # images, below which the batches of a pod make too few steps


def pretrain(name: str, arg: str) -> ConfigDict:
    """Stage 2, or with the option of an objective stage 1, on a set."""
    if "tpu_v4_32" in arg.split(",") and SETS[name].images < SMALL:
        raise ValueError(
            f"option tpu_v4_32 has batches of 4096 of the {SETS[name].images:,} images: leave it out, and set "
            "--config.model.dtype=bfloat16 and a --config.batch_size of 256 to 512"
        )
    config = _on_set(folder.get_config, name, arg)
    config.saliency.detector = SETS[name].detector
    return config


def linear(name: str, arg: str) -> ConfigDict:
    """The linear probe on a set."""
    return _on_set(folder_linear.get_config, name, arg)


def finetune(name: str, arg: str) -> ConfigDict:
    """Fine-tuning on a set."""
    return _on_set(folder_finetune.get_config, name, arg)


def _on_set(get_config: Callable[[str], ConfigDict], name: str, arg: str) -> ConfigDict:
    """The config of a folder with the options that are not the set's own, on the set."""
    chosen = SETS[name]
    given = [option for option in arg.split(",") if option]
    own = [option for option in given if option in chosen.variants]
    if len(own) > 1:
        raise ValueError(f"options {', '.join(own)}: one at a time")
    config = get_config(",".join(option for option in given if option not in own))
    config.data.kind, config.data.root = chosen.variants[own[0]] if own else (chosen.kind, chosen.root)
    config.data.train_split, config.data.test_split = chosen.train_split, chosen.test_split
    return config
