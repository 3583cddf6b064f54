"""What is lost where the gradients of many devices are summed in bfloat16 instead of float32.

    python -m benchmarks.gradient_sums

BYOL's gradient on random images, of a network that computes in bfloat16, at random weights, of each simulated device's
own images. These are summed in float64; in float32, as the step does; and in bfloat16, around a ring (one device after
the other) and by halves. Beside them the gradient of the same network that computes in float32: what bfloat16 costs
anyway. Writes benchmarks/results/gradient_sums.json.
"""

import argparse
import functools
import os

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
from jax.sharding import PartitionSpec

from benchmarks.common import write_results
from cvsa_jax import losses
from cvsa_jax.models.siamese import Siamese
from cvsa_jax.runtime.distributed import AXIS, make_mesh
from cvsa_jax.training.state import init_state


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--devices", type=int, default=32, help="simulated, a power of two")
    asked.add_argument("--rows", type=int, default=4, help="pairs of views of each")
    asked.add_argument("--depth", type=int, default=18, help="of the ResNet")
    asked.add_argument("--size", type=int, default=64, help="of the views, px")
    asked.add_argument("--seeds", type=int, default=3, help="of weights and images")
    args = asked.parse_args()
    if args.devices & (args.devices - 1):
        asked.error(f"--devices={args.devices} is no power of two")
    # JAX has not looked for its devices yet.
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={args.devices}"
    jax.config.update("jax_platforms", "cpu")
    found = [errors(args, seed) for seed in range(args.seeds)]
    for name in found[0]:
        values = [100 * each[name] for each in found]
        print(f"{name:>28} {np.mean(values):8.4f} % ({min(values):.4f} to {max(values):.4f})")
    write_results("gradient_sums", vars(args) | {"relative_errors": found})


def errors(args: argparse.Namespace, seed: int) -> dict[str, float]:
    """Name of a way to sum -> norm of its difference to the exact sum over the norm of that, of all kernels."""
    shape = (2, args.devices * args.rows, args.size, args.size, 3)
    images = np.random.default_rng(seed).uniform(-2, 2, shape).astype(np.float32)
    local = gradients(args, seed, jnp.bfloat16, images)
    exact = [kernel.sum(0, dtype=np.float64) for kernel in local]
    in_float32 = [kernel.sum(0, dtype=np.float32) for kernel in local]
    wide = [kernel.sum(0, dtype=np.float64) for kernel in gradients(args, seed, jnp.float32, images)]
    sums = {"float32": in_float32, "bfloat16, ring": [ring(kernel) for kernel in local]}
    sums |= {"bfloat16, halves": [halves(kernel) for kernel in local]}
    return {name: difference(kernels, exact) for name, kernels in sums.items()} | {
        "computing in bfloat16 at all": difference(exact, wide)
    }


def gradients(args: argparse.Namespace, seed: int, dtype, images: np.ndarray) -> list[np.ndarray]:
    """Of each kernel (devices, ...): the share that each device's images have in the gradient."""
    mesh = make_mesh(jax.devices()[: args.devices])
    model = Siamese(args.depth, head_hidden=512, head_out=128, dtype=dtype, axis_name=AXIS)
    state = init_state(model, optax.identity(), args.size, jax.random.key(seed))
    # Each device has its own copy of the kernels; BatchNorm's vectors are common, as in the step.
    copies = jax.tree.map(lambda p: jnp.stack([p] * args.devices) if p.ndim > 1 else p, state.online.params)
    specs = jax.tree.map(lambda p: PartitionSpec(AXIS) if p.ndim > 1 else PartitionSpec(), state.online.params)

    def loss(copies, view1, view2):
        params = jax.tree.map(lambda p: p[0] if p.ndim > 1 else p, copies)
        variables = {"params": params, "batch_stats": state.online.batch_stats}
        out, _ = model.apply(variables, jnp.concatenate([view1, view2]), True, maps=False, mutable=["batch_stats"])
        keys = jax.lax.stop_gradient(jnp.roll(out.projection, len(view1), 0))
        return jax.lax.pmean(losses.regression(out.prediction, keys).mean(), AXIS)

    rows = PartitionSpec(AXIS)
    of_all = jax.shard_map(loss, mesh=mesh, in_specs=(specs, rows, rows), out_specs=PartitionSpec())
    found = jax.jit(jax.grad(of_all))(copies, *images)
    return [np.asarray(kernel) for kernel in jax.tree.leaves(found) if kernel.ndim > 1]


def add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """In float32, rounded to bfloat16."""
    return (a + b).astype(ml_dtypes.bfloat16).astype(np.float32)


def ring(kernel: np.ndarray) -> np.ndarray:
    return functools.reduce(add, kernel)


def halves(kernel: np.ndarray) -> np.ndarray:
    while len(kernel) > 1:
        kernel = add(kernel[0::2], kernel[1::2])
    return kernel[0]


def difference(kernels: list[np.ndarray], reference: list[np.ndarray]) -> float:
    norms = [
        np.linalg.norm(np.concatenate([k.ravel() for k in each]))
        for each in ([a - b for a, b in zip(kernels, reference, strict=True)], reference)
    ]
    return float(norms[0] / norms[1])


if __name__ == "__main__":
    main()
