import jax
import pytest

from benchmarks.scaling import MACHINES, Machine, efficiency, latency_seconds, sum_seconds, traced
from cvsa_jax.models.siamese import TARGET_PARTS, Siamese
from cvsa_jax.training.state import empty_network

SMALL = Machine(domain=4, chips_per_host=4, link=100.0, network=10.0, latency=1.0, network_latency=5.0)


def test_sum_and_latency_times_by_hand():
    # Alone nothing is sent; four chips send 2 · 3/4 of the bytes; eight are two domains, in which each chip sums a
    # quarter of the bytes with one other: 2 · 1/2 · 50 bytes over the network.
    assert sum_seconds(200, 1, SMALL) == 0
    assert sum_seconds(200, 4, SMALL) == pytest.approx(2 * 3 / 4 * 200 / 100)
    assert sum_seconds(200, 8, SMALL) == pytest.approx(2 * 3 / 4 * 200 / 100 + 2 * 1 / 2 * 50 / 10)
    assert [latency_seconds(chips, SMALL) for chips in (1, 4, 8, 16)] == [0, 1, 1 + 2 * 5, 1 + 2 * 2 * 5]


def test_efficiency_by_hand():
    # 4 chips at 10 images/s share 120 images: 3 s; the sums take 3 s, and two small ones 1 s each.
    assert efficiency(4, SMALL, 10.0, 120, 200, 2) == pytest.approx(3 / (3 + 3 + 2))
    assert efficiency(1, SMALL, 10.0, 120, 200, 2) == 1


def test_efficiency_never_rises_with_more_chips():
    for machine in MACHINES.values():
        shares = [efficiency(2**k, machine, 1000.0, 4096, 93e6, 280) for k in range(10)]
        assert shares == sorted(shares, reverse=True) and 0 < shares[-1] < shares[0] == 1


def is_scale(leaf) -> bool:
    return getattr(leaf[0][-1], "key", "") == "scale"


def test_traced_step_counts_gradient_bytes_and_sums():
    size, rounds = traced(18, 64)
    params = empty_network(Siamese(18)).params
    kernels = sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim > 1)
    # Every kernel's gradient once, in float32 though the network is bfloat16; BatchNorm's layers each have a sum
    # forwards and one backwards, and those of the target network one forwards.
    assert size == pytest.approx(4 * kernels, rel=0.05)
    layers = [part for part, tree in params.items() for path in jax.tree.leaves_with_path(tree) if is_scale(path)]
    in_target = [part for part in layers if part in TARGET_PARTS]
    assert rounds >= 2 * len(layers) + len(in_target)
