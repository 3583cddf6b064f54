"""Images per second of the training step alone, from batches that lie on the device: ResNet-50, 224 px, bfloat16.

    python -m benchmarks.train_step
    python -m benchmarks.train_step --batch_sizes=8 --depth=8 --stem=small --size=48 --rounds=2   # to try it on a CPU
    python -m benchmarks.train_step --variants=cvsa,cvsa_remat,cvsa_micro2 --name=memory
    for v in cvsa cvsa_remat cvsa_micro2; do    # the peak is that of the process, so each in its own
        python -m benchmarks.train_step --variants=$v --batch_sizes=256 --rounds=1 --name=peak_$v; done

The variants run in turn in one process (A B A B …), so that the ratios to the first hold where the machine's speed
drifts. Writes benchmarks/results/<name>.json.
"""

import functools
import statistics
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
from absl import app, flags

from benchmarks.common import synthetic_batch, write_results
from cvsa_jax import losses
from cvsa_jax.models.siamese import Siamese
from cvsa_jax.runtime.distributed import make_mesh, replicated, to_mesh
from cvsa_jax.training import optim
from cvsa_jax.training.perf import GIB, compiled_step
from cvsa_jax.training.photometric import Photometric
from cvsa_jax.training.state import init_state
from cvsa_jax.training.step import Alignment, StepSpec, make_train_step

_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["64", "128", "256", "512"], "Global batch sizes, in images.")
_DEPTH = flags.DEFINE_integer("depth", 50, "Of the ResNet.")
_STEM = flags.DEFINE_enum("stem", "imagenet", ["imagenet", "small"], "Of the ResNet.")
_SIZE = flags.DEFINE_integer("size", 224, "Side of the views, px.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed rounds of each method.")
_STEPS = flags.DEFINE_integer("steps", 10, "Steps in a round.")
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Of the convolutions.")


class Variant(NamedTuple):
    align_weight: float
    remat: bool = False
    accumulate: int = 1


VARIANTS = {
    "byol": Variant(0.0),
    "cvsa": Variant(1.0),
    "cvsa_remat": Variant(1.0, remat=True),
    "cvsa_micro2": Variant(1.0, accumulate=2),
    "cvsa_micro8": Variant(1.0, accumulate=8),
}
_VARIANTS = flags.DEFINE_list("variants", ["byol", "cvsa"], f"Of {', '.join(VARIANTS)}.")
_NAME = flags.DEFINE_string("name", "train_step", "Of the file of results.")


def main(argv: list[str]) -> None:
    del argv
    mesh = make_mesh()
    model = Siamese(_DEPTH.value, 64, _STEM.value, dtype=jnp.dtype(_DTYPE.value), axis_name="data")
    results = {
        "device": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "model": f"ResNet-{_DEPTH.value}, {_SIZE.value} px, {_DTYPE.value}, LARS",
        "rounds": _ROUNDS.value,
        "steps_per_round": _STEPS.value,
    }
    for batch_size in map(int, _BATCH_SIZES.value):
        try:
            results |= measure(model, mesh, batch_size)
        except jax.errors.JaxRuntimeError as error:
            # A batch that does not fit is a finding, and larger ones will not fit either.
            results[f"batch_{batch_size}_error"] = str(error).splitlines()[0][:120]
            print(f"batch {batch_size}: {results[f'batch_{batch_size}_error']}")
            break
    write_results(_NAME.value, results)


def measure(model: Siamese, mesh, batch_size: int) -> dict[str, float]:
    """Of each variant the median, minimum and maximum images/s, the median of the rounds' ratios to the first, and the
    memory that the compiler planned; and the peak of the process."""
    optimizer = optim.make_optimizer(
        optim.learning_rate(0.45, batch_size, 10, 1000), optim.OptimizerSpec("lars", 1e-6, 0.9)
    )
    batch = to_mesh(synthetic_batch(batch_size, _SIZE.value), mesh)
    photometric = Photometric(0.4, 0.4, 0.2, 0.1, 0.8, 0.2, 0.5, 0.1)
    runs, planned = {}, {}
    for name in _VARIANTS.value:
        variant = VARIANTS[name]
        spec = StepSpec(
            objective=losses.OBJECTIVES["byol"],
            temperature=0.2,
            align=Alignment(variant.align_weight, "kl", 0.2),
            augment=(photometric, photometric),
            tau=optim.target_decay(0.99, 1000, True),
            seed=0,
            accumulate=variant.accumulate,
        )
        train_step = make_train_step(model.clone(remat=variant.remat), optimizer, mesh, spec)
        initialize = functools.partial(init_state, model, optimizer, _SIZE.value)
        state = jax.jit(initialize, out_shardings=replicated(mesh))(jax.random.key(0))
        step, cost = compiled_step(train_step, state, batch, mesh, variant.accumulate)
        state, _ = jax.block_until_ready(step(state, batch))
        runs[name] = [step, state]
        planned[f"batch_{batch_size}_{name}_planned_gib"] = cost.memory / GIB
        print(f"batch {batch_size}, {name}: {cost.summary}", flush=True)
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(_ROUNDS.value):
        for name, run in runs.items():
            step, state = run
            began = time.perf_counter()
            for _ in range(_STEPS.value):
                state, _ = step(state, batch)
            jax.block_until_ready(state)
            rates[name].append(batch_size * _STEPS.value / (time.perf_counter() - began))
            run[1] = state
    figures = planned
    for name, values in rates.items():
        prefix = f"batch_{batch_size}_{name}_images_per_s"
        figures |= {prefix: statistics.median(values), f"{prefix}_min": min(values), f"{prefix}_max": max(values)}
        print(f"batch {batch_size}, {name}: {figures[prefix]:.1f} images/s ({min(values):.1f} to {max(values):.1f})")
    first, *others = rates
    for name in others:
        ratios = [rate / base for base, rate in zip(rates[first], rates[name], strict=True)]
        figures[f"batch_{batch_size}_{name}_over_{first}"] = statistics.median(ratios)
    if (stats := mesh.devices.flat[0].memory_stats()) and "peak_bytes_in_use" in stats:
        figures[f"batch_{batch_size}_peak_gib_so_far"] = stats["peak_bytes_in_use"] / GIB
    return figures


if __name__ == "__main__":
    app.run(main)
