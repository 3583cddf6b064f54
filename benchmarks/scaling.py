"""What more chips would bring, on paper, from a rate that you measured on one. Nothing here is measured on a pod.

    python -m benchmarks.train_step --batch_sizes=64                    # on one chip: images/s
    python -m benchmarks.scaling --machine=v5e --images_per_s=900      # and what 2, 4, … chips would do with it

The step is traced on this machine for the bytes of its gradients and the number of its reductions; how long these take
follows from the machine's links. Decoding must keep up as well: the last column is the images/s that a host must feed.
"""

import argparse
import dataclasses
import functools
import math

import jax
import jax.extend as jex
import jax.numpy as jnp

from benchmarks.common import synthetic_batch
from cvsa_jax import losses
from cvsa_jax.models.siamese import Siamese
from cvsa_jax.runtime.distributed import AXIS, make_mesh
from cvsa_jax.training import optim
from cvsa_jax.training.photometric import Photometric
from cvsa_jax.training.state import init_state
from cvsa_jax.training.step import Alignment, StepSpec, make_train_step

_CHIPS = (1, 4, 8, 16, 32, 64, 128, 256)


@dataclasses.dataclass(frozen=True)
class Machine:
    """Bytes/s that a chip sends to others of its domain of so many chips (`link`) and beyond it (`network`), and the
    seconds that a sum of a few bytes takes within and between domains. docs/measurements/scaling.md has the sources;
    latencies are assumptions."""

    domain: int
    chips_per_host: int
    link: float
    network: float
    latency: float
    network_latency: float


MACHINES = {
    "v4": Machine(domain=4096, chips_per_host=4, link=270e9, network=6.25e9, latency=11e-6, network_latency=50e-6),
    "v5e": Machine(domain=256, chips_per_host=4, link=200e9, network=3.1e9, latency=34e-6, network_latency=50e-6),
    "h100": Machine(domain=8, chips_per_host=8, link=450e9, network=50e9, latency=14e-6, network_latency=8e-6),
}


def sum_seconds(size: float, chips: int, machine: Machine) -> float:
    """Time to sum `size` bytes over the chips by rings, 2(n − 1)/n · size / bandwidth; across domains each chip sums
    its share of the bytes with its like in the others between."""
    inside, outside = min(chips, machine.domain), -(-chips // machine.domain)
    within = 2 * (inside - 1) / inside * size / machine.link
    return within + 2 * (outside - 1) / outside * (size / inside) / machine.network


def latency_seconds(chips: int, machine: Machine) -> float:
    """Time to sum a few bytes over the chips."""
    if chips == 1:
        return 0.0
    domains = -(-chips // machine.domain)
    return machine.latency + 2 * math.log2(domains) * machine.network_latency


def efficiency(chips: int, machine: Machine, rate: float, batch_size: int, gradient_bytes: float, rounds: int) -> float:
    """Share of `chips` times the rate of one that is left when a step's sums are paid for; nothing overlaps."""
    compute = batch_size / chips / rate
    paid = sum_seconds(gradient_bytes, chips, machine) + rounds * latency_seconds(chips, machine)
    return compute / (compute + paid)


def traced(depth: int, size: int, devices: int = 2) -> tuple[float, int]:
    """Bytes of the gradients of a CVSA step, and its sums over the mesh besides, which mostly wait for each other.
    BatchNorm's are nearly all of them."""
    mesh = make_mesh(jax.devices()[:devices])
    model = Siamese(depth, dtype=jnp.bfloat16, axis_name=AXIS)
    optimizer = optim.make_optimizer(optim.learning_rate(0.45, 256, 10, 1000), optim.OptimizerSpec("lars", 1e-6, 0.9))
    strengths = Photometric(0.4, 0.4, 0.2, 0.1, 0.8, 0.2, 0.5, 0.1)
    align, tau = Alignment(1.0, "kl", 0.2), optim.target_decay(0.99, 1000, True)
    spec = StepSpec(losses.OBJECTIVES["byol"], 0.2, align, (strengths, strengths), tau, seed=0)
    step = make_train_step(model, optimizer, mesh, spec)
    initialize = functools.partial(init_state, model, optimizer, size)
    state = jax.eval_shape(initialize, jax.random.key(0))
    jaxpr = jax.make_jaxpr(step)(state, synthetic_batch(2 * devices, size))
    sums = list(_sums(jaxpr.jaxpr))
    kernels = {leaf.size for leaf in jax.tree.leaves(state.online.params) if leaf.ndim > 1}
    # BatchNorm sums pairs of values for each channel, of which some are as many as a small kernel has.
    gradients = [s for s in sums if s.size in kernels and s.ndim > 1 and s.shape[0] != 2]
    return float(sum(s.size * s.dtype.itemsize for s in gradients)), len(sums) - len(gradients)


def _sums(jaxpr) -> list:
    """The values that are summed over the mesh, in a jaxpr and all inside of it."""
    for equation in jaxpr.eqns:
        if equation.primitive.name.startswith("psum"):
            yield from (variable.aval for variable in equation.invars)
        for inner in jex.core.jaxprs_in_params(equation.params):
            yield from _sums(inner)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--machine", choices=MACHINES, default="v5e", help="whose links are assumed")
    parser.add_argument("--images_per_s", type=float, required=True, help="of one chip, as you measured it")
    parser.add_argument("--batch_size", type=int, default=4096, help="over all chips")
    parser.add_argument("--depth", type=int, default=50, help="of the ResNet")
    parser.add_argument("--size", type=int, default=224, help="side of the views in px")
    flags = parser.parse_args()
    machine = MACHINES[flags.machine]
    size, rounds = traced(flags.depth, flags.size)
    print(f"ResNet-{flags.depth}: {size / 1e6:.0f} MB of gradients, {rounds} small sums in a step; {flags.machine}")
    print(f"{'chips':>6} {'images/s':>10} {'efficiency':>11} {'images/s a host':>16}")
    for chips in _CHIPS:
        share = efficiency(chips, machine, flags.images_per_s, flags.batch_size, size, rounds)
        total = share * chips * flags.images_per_s
        host = total * min(chips, machine.chips_per_host) / chips
        print(f"{chips:>6} {total:>10.0f} {share:>11.0%} {host:>16.0f}")


if __name__ == "__main__":
    main()
