"""Training of the U-Net detector on an accelerator from decoded arrays, and its figures.

    python -m benchmarks.unet --data=my_images --arrays=arrays --size=256        # makes the arrays
    python -m benchmarks.unet --arrays=arrays                                    # trains and measures

The recipe is that of configs/saliency_unet.py, but for the size and without the procedural images. IoU at 0.5 and MAE
are means over the held-out images at half of the input's resolution, the map's own. Writes
benchmarks/results/unet.json.
"""

import functools
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks.common import write_results
from cvsa_jax.models.unet import UNet
from cvsa_jax.runtime.distributed import make_mesh, replicated, to_mesh
from cvsa_jax.saliency.unet import step as unet_step
from cvsa_jax.saliency.unet.pairs import make_pairs, pair_batches
from cvsa_jax.training import optim
from cvsa_jax.training.photometric import Photometric, normalize, to_float

_ARRAYS = flags.DEFINE_string("arrays", None, "Folder of the arrays.", required=True)
_DATA = flags.DEFINE_string("data", None, "Folder of images with masks and a test split, from which they are made.")
_SIZE = flags.DEFINE_integer("size", 256, "Side of the images when the arrays are made, px.")
_STEPS = flags.DEFINE_integer("steps", None, "Steps; as the recipe says where not given.")
SPLITS = ("train", "test")


def main(argv: list[str]) -> None:
    del argv
    folder = Path(_ARRAYS.value)
    if _DATA.value:
        prepare(folder)
    else:
        train(folder)


def prepare(folder: Path) -> None:
    """Decodes both splits, and writes the recipe as JSON beside them."""
    from configs import saliency_unet
    from cvsa_jax.data import sources

    source = sources.load("folder", _DATA.value)
    for split in SPLITS:
        make_pairs([(source, source.split(split))], _SIZE.value, folder / split)
    (folder / "recipe.json").write_text(saliency_unet.get_config().to_json())
    print(f"arrays: {folder}")


def train(folder: Path) -> None:
    """Trains from the arrays and writes the figures."""
    recipe = json.loads((folder / "recipe.json").read_text())
    pairs, held_out = ([np.load(folder / split / f"{kind}.npy") for kind in ("images", "masks")] for split in SPLITS)
    batch_size, mesh = recipe["batch_size"], make_mesh()
    steps = _STEPS.value or round(recipe["total_epochs"] * len(pairs[0]) / batch_size)
    warmup = min(round(recipe["optim"]["warmup_epochs"] * len(pairs[0]) / batch_size), steps // 2)
    schedule = optim.learning_rate(recipe["optim"]["lr"], batch_size, warmup, steps)
    optimizer = optim.make_optimizer(schedule, optim.OptimizerSpec("adam", recipe["optim"]["weight_decay"], 0.9))
    model = UNet(tuple(recipe["model"]["channels"]))
    augment = recipe["augment"]
    step = unet_step.make_unet_step(
        model,
        optimizer,
        mesh,
        geometry=unet_step.Geometry(tuple(augment["side"]), augment["aspect"], augment["composite_prob"]),
        colour=Photometric(**augment["colour"]),
        seed=recipe["seed"],
    )
    initialize = functools.partial(unet_step.init_state, model, optimizer)
    state = jax.jit(initialize, out_shardings=replicated(mesh))(jax.random.key(recipe["seed"]))
    began = 0.0
    for k, batch in enumerate(pair_batches(pairs, batch_size, range(steps), recipe["seed"])):
        state, metrics = step(state, to_mesh(batch, mesh))
        if k == 0:  # it compiles
            jax.block_until_ready(state)
            began = time.perf_counter()
        if k % 200 == 0 or k == steps - 1:
            print(f"step {k + 1}/{steps}: loss {float(metrics['loss']):.3f}", flush=True)
    seconds = time.perf_counter() - began
    results = {
        "device": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "size": pairs[0].shape[1],
        "train_images": len(pairs[0]),
        "test_images": len(held_out[0]),
        "steps": steps,
        "images_per_s": batch_size * (steps - 1) / seconds,
    }
    results |= figures(model, state.params, *held_out)
    print(json.dumps(results, indent=2))
    write_results("unet", results)


def figures(model: UNet, params: dict, images: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """Mean IoU at 0.5 and MAE of the maps of (N, S, S, 3) images against their (N, S, S) masks, both uint8."""
    predict = jax.jit(lambda x: jax.nn.sigmoid(model.apply({"params": params}, normalize(to_float(x)))[0]))
    maps = np.concatenate([np.asarray(predict(jnp.asarray(images[k : k + 1]))) for k in range(len(images))])
    true = np.asarray(unet_step.reduced(jnp.asarray(masks / np.float32(255)), maps.shape[1]))
    on, object_cells = maps >= 0.5, true >= 0.5
    union = np.maximum((on | object_cells).sum((1, 2)), 1)
    return {"iou": float(((on & object_cells).sum((1, 2)) / union).mean()), "mae": float(np.abs(maps - true).mean())}


if __name__ == "__main__":
    app.run(main)
