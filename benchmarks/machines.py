"""Machines for docs/scaling.md, and how long their collectives take; bytes and seconds."""

import dataclasses
import math

from cvsa_jax.training.perf import PEAK_FLOPS


@dataclasses.dataclass(frozen=True)
class Hardware:
    """A machine. Sources and dates: docs/scaling.md; what has none there is an assumption.

    `domain` chips share the fast interconnect, within which a chip sends `link` bytes/s; beyond it `network` bytes/s.
    `torus`: dimensions of the interconnect's torus, 0 for a switch. A slice of fewer than `wraps` chips has no
    wrap-around links: its corner chips have half of the links, and the way across is twice as long.
    """

    chips: int
    chips_per_host: int
    cores_per_host: int
    peak_bfloat16: float  # operations/s of a chip, dense
    peak_float32: float  # as XLA multiplies float32 by default: bfloat16 on a TPU, TF32 on a GPU
    hbm: float  # bytes of a chip
    hbm_bandwidth: float  # bytes/s
    domain: int
    link: float
    network: float
    torus: int
    wraps: int
    launch: float  # s of a collective besides the way
    hop: float  # s, within the domain
    network_hop: float  # s, beyond it
    price: float  # $ per chip and hour
    decode: float = 400.0  # images/s of a core: decoding and two views


PRESETS = {
    "v4-32": Hardware(  # 32 TensorCores, 16 chips
        chips=16,
        chips_per_host=4,
        cores_per_host=120,
        peak_bfloat16=PEAK_FLOPS["TPU v4"],
        peak_float32=PEAK_FLOPS["TPU v4"],
        hbm=32 * 2**30,
        hbm_bandwidth=1200e9,
        domain=4096,
        link=6 * 45e9,
        network=6.25e9,
        torus=3,
        wraps=64,
        launch=2e-6,
        hop=1e-6,
        network_hop=50e-6,
        price=3.22,
    ),
    "v5e-256": Hardware(
        chips=256,
        chips_per_host=4,
        cores_per_host=56,
        peak_bfloat16=PEAK_FLOPS["TPU v5 lite"],
        peak_float32=PEAK_FLOPS["TPU v5 lite"],
        hbm=16e9,
        hbm_bandwidth=819e9,
        domain=256,
        link=4 * 50e9,
        network=3.1e9,
        torus=2,
        wraps=256,
        launch=2e-6,
        hop=1e-6,
        network_hop=50e-6,
        price=1.20,
    ),
    "h100-64": Hardware(
        chips=64,
        chips_per_host=8,
        cores_per_host=112,
        peak_bfloat16=PEAK_FLOPS["NVIDIA H100 80GB HBM3"],
        peak_float32=PEAK_FLOPS["NVIDIA H100 80GB HBM3"] / 2,
        hbm=80e9,
        hbm_bandwidth=3350e9,
        domain=8,
        link=450e9,
        network=50e9,
        torus=0,
        wraps=1,
        launch=8e-6,
        hop=1e-6,
        network_hop=4e-6,
        price=11.06,
    ),
}


def all_reduce_seconds(size: float, chips: int, hardware: Hardware) -> float:
    """Time to sum `size` bytes over `chips`, latency aside: bandwidth-optimal rings, 2(n − 1)/n · size / bandwidth.
    Across domains: halved, each chip of a domain sums its share of the bytes with its like in the others between."""
    inside = min(chips, hardware.domain)
    outside = -(-chips // hardware.domain)
    link = hardware.link * (1.0 if chips >= hardware.wraps else 0.5)
    seconds = 2 * (inside - 1) / inside * size / link
    return seconds + 2 * (outside - 1) / outside * (size / inside) / hardware.network


def latency_seconds(chips: int, hardware: Hardware) -> float:
    """Time to sum a few bytes over `chips`: to the farthest chip and back, hop by hop. Along a torus's dimension half
    of its side with wrap-around and all of it without; through a switch a binary tree."""
    if chips == 1:
        return 0.0
    inside, outside = min(chips, hardware.domain), -(-chips // hardware.domain)
    if hardware.torus:
        side = inside ** (1 / hardware.torus)
        hops = hardware.torus * (side / 2 if chips >= hardware.wraps else side - 1)
    else:
        hops = math.log2(inside)
    return hardware.launch + 2 * (hops * hardware.hop + math.log2(outside) * hardware.network_hop)
