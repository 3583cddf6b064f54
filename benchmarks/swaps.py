"""What Saliency Swap leaves of the background's object, and how much it distorts, by each of its rules.

    python -m benchmarks.swaps --sets=procedural,butterflies=data/butterflies

Over every train image as a source and exact masks as maps: the share of the background's object that stays visible
(`residual`), and the distortion of what is pasted. Needs masks. Writes benchmarks/results/swaps.json.
"""

import dataclasses

import numpy as np
from absl import app, flags

from benchmarks.common import write_results
from configs import common
from cvsa_jax import settings
from cvsa_jax.data.index import position_words
from cvsa_jax.data.plan import plan_views
from cvsa_jax.data.reading import open_image
from cvsa_jax.data.saliency_maps import MapReader, object_too_large, saliency_maps, search
from cvsa_jax.data.saliency_swap import background_indices
from cvsa_jax.saliency.detectors.annotation import masks
from cvsa_jax.saliency.store import make_record

_SETS = flags.DEFINE_list("sets", ["procedural"], "Of name or name=folder.")
_SPLIT = flags.DEFINE_string("split", "train", "Of each set.")
RULES = {
    "size, stretch (before)": {"hole": "size", "paste": "stretch"},
    "cover, stretch": {"hole": "cover", "paste": "stretch"},
    "cover, bounded (default)": {"hole": "cover", "paste": "bounded"},
    "cover, keep_aspect": {"hole": "cover", "paste": "keep_aspect"},
}


def main(argv: list[str]) -> None:
    del argv
    results = {}
    for entry in _SETS.value:
        name, _, root = entry.partition("=")
        config = common.pretrain()
        config.data.kind, config.data.root = ("procedural", "") if name == "procedural" else ("folder", root)
        source = settings.load_source(config.data)
        pool = source.split(_SPLIT.value)
        pool = pool[: len(pool) // 4 * 4]
        detector = masks(source)
        found = [detector.detect([detector.prepare(int(i), None)])[0] for i in pool]
        cells = np.stack([make_record(one.saliency, 1.0, 0.5)["map"] for one in found])
        shapes = np.array([open_image(source, int(i)).size[::-1] for i in pool], np.float32)
        for rule, changes in RULES.items():
            spec = dataclasses.replace(settings.view_spec(config, 32), **changes)
            figures = measure(cells, shapes, spec)
            results |= {f"{name}, {rule}, {key}": value for key, value in figures.items()}
            print(f"{name:14} {rule:26}", ", ".join(f"{key} {value:.3f}" for key, value in figures.items()), flush=True)
    write_results("swaps", results)


def measure(cells: np.ndarray, shapes: np.ndarray, spec) -> dict[str, float]:
    """Of two views of each image: median residual and share above .2; share of views distorted by more than 4/3 and by
    more than 1.5."""
    n = len(cells)
    order = np.random.default_rng(0).permutation(n)  # neighbours of a class lend less well
    cells, shapes = cells[order], shapes[order]
    maps = saliency_maps(cells, MapReader(cells, spec).min_cover_height(np.arange(n), cells), spec.threshold, np)
    too_large = object_too_large(maps.min_cover_height, spec.paste_area[1], np)
    lent = background_indices(np.arange(n), too_large, spec, np).T.ravel()
    own = np.tile(np.arange(n), 2)
    made = plan_views(0, position_words(np.arange(n)), shapes, maps, lent, spec, np, search)
    cut = (made.crop[:, 2:] - made.crop[:, :2]) * shapes[own]
    put = made.target[:, 2:] - made.target[:, :2]
    distortion = np.exp(np.abs(np.log(put[:, 1] / put[:, 0] * cut[:, 0] / cut[:, 1])))
    # A pasted side is a whole number of pixels.
    rounded = 1 + 1 / put.min(1)
    return {
        "residual_median": float(np.median(made.residual)),
        "residual_above_0.2": float((made.residual > 0.2).mean()),
        "distorted_above_4/3": float((distortion > 4 / 3 * rounded).mean()),
        "distorted_above_1.5": float((distortion > 1.5 * rounded).mean()),
    }


if __name__ == "__main__":
    app.run(main)
