"""Our host input against PyTorch's DataLoader with Pillow, in turn (A B A B), on all cores of the machine.

    python3 -m venv .venv-peers && .venv-peers/bin/pip install -r benchmarks/requirements-peers.txt
    python -m benchmarks.peers_input --peer=.venv-peers/bin/python
    python -m benchmarks.peers_input --peer=.venv-peers/bin/python --seconds=1 --rounds=1    # to try it

Both read the JPEGs of benchmarks/common.py from a folder, and give batches of 16 images with two views of 224
px each: Random Resized Crops and flips alone, and with all of BYOL's augmentation, which ours does in the jitted step,
here on the CPU as well. Saliency Swap has no peer. Writes benchmarks/results/peers_input.json.
"""

import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import benchmarks.input_pipeline  # noqa: F401  for its flags
from benchmarks.common import photographs, write_results
from configs import common
from cvsa_jax import settings
from cvsa_jax.data.index import Order
from cvsa_jax.data.pipeline import train_batches
from cvsa_jax.data.sources import load
from cvsa_jax.training import photometric

_PEER = flags.DEFINE_string("peer", None, "Python of the environment for PyTorch.", required=True)
# --images, --size, --seconds and --rounds are those of benchmarks/input_pipeline.py.
BATCH = 16


def main(argv: list[str]) -> None:
    del argv
    given = flags.FLAGS
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        for k, file in enumerate(photographs(given.images)):
            (Path(folder) / f"{k:04d}.jpg").write_bytes(file)
        sides = {
            "crops": lambda: ours(folder, full=False),
            "torch_crops": lambda: theirs(folder, "crops", cores),
            "full": lambda: ours(folder, full=True),
            "torch_full": lambda: theirs(folder, "full", cores),
        }
        rates: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(given.rounds):
            for side, measure in sides.items():
                rates[side].append(measure())
    figures = {"cores": cores, "size": given.size}
    for side, values in rates.items():
        figures[f"{side}_images_per_s"] = statistics.median(values)
        figures |= {f"{side}_images_per_s_{end.__name__}": end(values) for end in (min, max)}
        print(f"{side:20} {statistics.median(values):7.1f} images/s ({min(values):.0f} to {max(values):.0f})")
    for ours_, other in (("crops", "torch_crops"), ("full", "torch_full")):
        ratio = statistics.median(a / b for a, b in zip(rates[ours_], rates[other], strict=True))
        figures[f"{ours_}_over_{other}"] = ratio
        print(f"{ours_} ÷ {other}: {ratio:.2f}")
    write_results("peers_input", figures)


def ours(folder: str, *, full: bool) -> float:
    """Images/s of our pipeline, with the photometric augmentation where `full`."""
    config = common.pretrain()
    config.views.update(kind="random_resized_crop", size=flags.FLAGS.size)
    source = load("folder", folder)
    order = Order(BATCH, range(10**6), 0)
    batches = train_batches(source, np.arange(len(source)), None, settings.view_spec(config, 32), order)
    specs = [settings.photometric(config.augment[view]) for view in ("view1", "view2")]

    @jax.jit
    def augmented(batch: dict, key: jax.Array) -> list[jax.Array]:
        keys = jax.random.split(key, (2, BATCH))
        made = zip((batch["view1"], batch["view2"]), keys, specs, strict=True)
        return [photometric.normalize(photometric.augment(view, key, spec)) for view, key, spec in made]

    def work() -> None:
        batch = next(batches)
        if full:
            jax.block_until_ready(augmented({key: jnp.asarray(batch[key]) for key in ("view1", "view2")}, key))

    key = jax.random.key(0)
    for _ in range(8):
        work()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < flags.FLAGS.seconds:
        work()
        count += BATCH
    rate = count / (time.perf_counter() - began)
    batches.close()
    return rate


def theirs(folder: str, kind: str, processes: int) -> float:
    script = str(Path(__file__).with_name("peers_input_torch.py"))
    command = [_PEER.value, script, folder, kind, *map(str, (flags.FLAGS.size, flags.FLAGS.seconds, processes))]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


if __name__ == "__main__":
    app.run(main)
