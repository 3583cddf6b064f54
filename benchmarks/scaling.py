"""The training step on paper: operations, bytes, collectives, and what a pod would make of it. Nothing is measured.

    python -m benchmarks.scaling                                              # the tables of docs/scaling.md
    python -m benchmarks.scaling --hardware=v5e-256 --chips=64 --mfu=0.2 --batch_size=1024 --json=scaling.json
    python -m benchmarks.scaling --hardware=h100-64 --hbm_gbs=4800 --hbm_gb=141 --chips=8          # one of your own

Bytes and seconds are plain bytes and seconds, in powers of ten. docs/scaling.md explains the formulas and says what to
conclude. Only the exact size of the state needs JAX, which computes shapes and no values.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from absl import app, flags

from benchmarks.common import commit
from cvsa_jax import optim
from cvsa_jax.models.resnet import BOTTLENECK_DEPTH, STAGE_SIZES, STEMS, channels, parameter_count, stride
from cvsa_jax.models.siamese import Siamese
from cvsa_jax.perf import PEAK_FLOPS
from cvsa_jax.state import TrainState, init_state

VIEWS = 2
WIDTH, HIDDEN, OUT = 64, 4096, 256  # of configs/common.py
MASK_STRIDE = 4  # of data/views.py, which needs TensorFlow
ITEMSIZE = {"bfloat16": 2, "float32": 4}
PARAMETER_BYTES = 4  # float32, whatever the convolutions compute in
RECIPE_BATCH = 4096  # the largest of BYOL's recipe (arXiv 2006.07733)
HALF = 0.5  # overhead above this share of the computation counts as no longer scaling
POWERS = tuple(2**k for k in range(13))  # chips, or images per chip, among which limits are looked for
STRONG_CHIPS, WEAK_CHIPS, WEAK_SHARE = (16, 32, 64, 128, 256, 512, 1024), (1, 4, 16, 64, 256, 1024), 64


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is trained. `align`: with the alignment loss, and so with the conv heads."""

    depth: int = 50
    stem: str = "imagenet"
    size: int = 224  # px of a view
    dtype: str = "bfloat16"
    align: bool = True
    batch_size: int = RECIPE_BATCH  # global
    train_images: int = 100 * 1_281_167  # of the whole run: 100 epochs of ImageNet-1k
    checkpoint_gbs: float = 1.0  # GB/s of the file system; an assumption


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
MFUS = (0.1, 0.3)  # assumed shares of the peak, low and high


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution, or a dense layer on every cell of a map, for one view.

    `normalised`: BatchNorm follows. `shared`: another layer reads the same input (the downsampling convolutions).
    """

    kernel: int
    inputs: int  # channels
    outputs: int  # channels
    input_side: int
    output_side: int
    normalised: bool = True
    shared: bool = False

    @property
    def macs(self) -> int:
        """Multiply-adds, zeros of the padding included, as published counts do."""
        return self.parameters * self.output_side**2

    @property
    def parameters(self) -> int:
        """Of the kernel alone."""
        return self.kernel**2 * self.inputs * self.outputs

    @property
    def read(self) -> int:
        """Elements of its input."""
        return self.inputs * self.input_side**2

    @property
    def written(self) -> int:
        """Elements of its output."""
        return self.outputs * self.output_side**2


def backbone(depth: int, stem: str, size: int, width: int = WIDTH) -> list[Layer]:
    """The layers of `models.resnet.ResNet`, in order, for views of `size` px."""
    side = -(-size // 2)
    layers = [Layer(7 if stem == "imagenet" else 3, 3, width, size, side)]
    if stem == "imagenet":
        side = -(-side // 2)  # max-pool
    before, bottleneck = width, depth >= BOTTLENECK_DEPTH
    for stage, blocks in enumerate(STAGE_SIZES[depth]):
        inner = width * 2**stage
        after = inner * (4 if bottleneck else 1)
        for block in range(blocks):
            out = -(-side // 2) if stage > 0 and block == 0 else side
            if bottleneck:
                layers += [Layer(1, before, inner, side, side), Layer(3, inner, inner, side, out)]
                layers += [Layer(1, inner, after, out, out)]
            else:
                layers += [Layer(3, before, inner, side, out), Layer(3, inner, inner, out, out)]
            if before != after or out != side:
                layers += [Layer(1, before, after, side, out, shared=True)]
            before, side = after, out
    return layers


def head(inputs: int, side: int) -> list[Layer]:
    """The two layers of `models.heads.Head` on side × side cells."""
    return [Layer(1, inputs, HIDDEN, side, side), Layer(1, HIDDEN, OUT, side, side, normalised=False)]


def networks(work: Workload) -> tuple[list[Layer], list[Layer]]:
    """The layers that a step runs: of the online network, and of the target network, which has no predictors."""
    features, cells = channels(work.depth, WIDTH), side_of_map(work)
    target = backbone(work.depth, work.stem, work.size) + head(features, 1)
    online = target + head(OUT, 1)
    if work.align:
        target, online = target + head(features, cells), online + head(features, cells) + head(OUT, cells)
    return online, target


def side_of_map(work: Workload) -> int:
    """Cells along a side of the feature map."""
    return work.size // stride(work.depth, work.stem)


def operations(work: Workload) -> dict[str, float]:
    """Floating-point operations per image (both views) by part; a multiply-add is two.

    The backward pass costs twice the forward pass, but for the first layer, whose input needs no gradient. Attention:
    two directions, forward, and backward to the queries alone. Augmentation: the blur, two S × S matrices on each
    channel of every view; the rest of it is a few operations per pixel.
    """
    online, target = networks(work)
    forward = sum(layer.macs for layer in online)
    attention = 4 * side_of_map(work) ** 4 * OUT if work.align else 0
    return {
        "online_forward": 2.0 * VIEWS * forward,
        "online_backward": 2.0 * VIEWS * (2 * forward - online[0].macs),
        "target_forward": 2.0 * VIEWS * sum(layer.macs for layer in target),
        "attention": 2.0 * attention,
        "blur": 2.0 * VIEWS * 3 * 2 * work.size**3,
    }


def activation_bytes(work: Workload) -> float:
    """Bytes per image (both views) that the online network keeps for its backward pass: what BatchNorm normalised and
    the input of each layer, in the compute dtype. The target network keeps nothing."""
    online, _ = networks(work)
    elements = sum(layer.written * layer.normalised + layer.read * (not layer.shared) for layer in online)
    if work.stem == "imagenet":
        elements += online[0].written  # the max-pool's input
    return float(VIEWS * elements * ITEMSIZE[work.dtype])


def traffic_bytes(work: Workload) -> float:
    """Bytes per image (both views) through the chip's memory for the activations, where every layer reads and writes
    them there. Passes over a normalised output: written, read for the statistics, read and written by the
    normalisation; backward 2 read for its sums, 2 read and 1 written by its gradient, 2 read by the layer's gradients.
    Over an input: 1 read forward; backward 1 read and 1 written."""
    online, target = networks(work)
    passes = lambda layer, out, inside: out * layer.written + inside * layer.read  # noqa: E731
    elements = sum(passes(layer, 4 + 7, 1 + 2) for layer in online) + sum(passes(layer, 4, 1) for layer in target)
    return float(VIEWS * elements * ITEMSIZE[work.dtype])


def gradient_bytes(work: Workload) -> int:
    """Bytes of the gradients that are summed over the chips: kernels and the heads' last biases, in the compute dtype,
    because parameters are cast to it before they meet a chip's own data."""
    online, _ = networks(work)
    biases = sum(layer.outputs for layer in online if not layer.normalised)
    return (sum(layer.parameters for layer in online) + biases) * ITEMSIZE[work.dtype]


def batch_norm(work: Workload) -> dict[str, int]:
    """Synchronous BatchNorm, per step: `reductions` in the program, `rounds` of them that wait for each other (and are
    all there is, once the compiler has merged what does not), and their `bytes`, which do not depend on the batch.

    Forward one reduction of 2 × channels float32 for each layer of both networks; backward, online, three of the
    channels: of the mean, the scale and the bias. Side by side go the networks, the downsampling and the layer beside
    it, and the MLP and the conv heads; one after the other the layers of the backbone, projector and predictor.
    """
    online, target = ([layer for layer in layers if layer.normalised] for layers in networks(work))
    backbone_chain = sum(not layer.shared for layer in backbone(work.depth, work.stem, work.size))
    count = lambda layers: sum(layer.outputs for layer in layers)  # noqa: E731
    return {
        "reductions": len(online) + len(target) + 3 * len(online),
        "rounds": 2 * (backbone_chain + 2),
        "bytes": PARAMETER_BYTES * (2 * count(online) + 2 * count(target) + 3 * count(online)),
    }


def input_bytes(work: Workload) -> int:
    """Bytes per image from host to chip: two uint8 views, their masks, and the place in the data order."""
    masks = (work.size // MASK_STRIDE) ** 2 if work.align else 0
    return VIEWS * (3 * work.size**2 + masks) + 8


@functools.cache
def state(depth: int, stem: str) -> TrainState:
    """Shapes of what a run keeps and checkpoints: both networks and LARS's momentum, float32."""
    model = Siamese(depth, WIDTH, stem, HIDDEN, OUT)
    optimizer = optim.make_optimizer("lars", lambda step: 0.0, 1e-6, 0.9)
    # The key is made inside, so that no device is looked for.
    return jax.eval_shape(lambda: init_state(model, optimizer, 2 * model.stride, jax.random.key(0)))


def parameters(work: Workload) -> tuple[int, int]:
    """Of the online and of the target network."""
    whole = state(work.depth, work.stem)
    return parameter_count(whole.online.params), parameter_count(whole.target.params)


def checkpoint_bytes(work: Workload) -> int:
    """Bytes of a checkpoint before compression."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state(work.depth, work.stem)))


def update_bytes(work: Workload) -> int:
    """Bytes per step and chip through memory for LARS (norms: parameters and gradients read; update: both and the
    momentum read, parameters and momentum written) and for the moving average (two read, one written)."""
    online, target = parameters(work)
    return PARAMETER_BYTES * (7 * online + 3 * target)


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


def step(work: Workload, hardware: Hardware, mfu: float) -> dict[str, float]:
    """Figures of one step of `hardware.chips` chips, in seconds, bytes, images and dollars; nothing overlaps.

    `compute` is the slower of the operations at `mfu` of the peak and of the activations' way through memory; it
    shrinks with more chips. `overhead` – the update, the gradients' all-reduce and BatchNorm's latency – does not.
    """
    images = work.batch_size / hardware.chips
    peak = hardware.peak_bfloat16 if work.dtype == "bfloat16" else hardware.peak_float32
    flops = sum(operations(work).values())
    figures = {
        "images_per_chip": images,
        "arithmetic_s": images * flops / (peak * mfu),
        "memory_s": images * traffic_bytes(work) / hardware.hbm_bandwidth,
        "update_s": update_bytes(work) / hardware.hbm_bandwidth,
        "all_reduce_s": all_reduce_seconds(gradient_bytes(work), hardware.chips, hardware),
        "batch_norm_s": batch_norm(work)["rounds"] * latency_seconds(hardware.chips, hardware),
    }
    compute = max(figures["arithmetic_s"], figures["memory_s"])
    overhead = figures["update_s"] + figures["all_reduce_s"] + figures["batch_norm_s"]
    rate = work.batch_size / (compute + overhead)
    hosts = -(-hardware.chips // hardware.chips_per_host)
    hours = work.train_images / rate / 3600
    return figures | {
        "compute_s": compute,
        "overhead_s": overhead,
        "step_s": compute + overhead,
        "efficiency": compute / (compute + overhead),
        "images_per_s": rate,
        "decode_per_core": rate / hosts / hardware.cores_per_host,
        "decode_share": rate / hosts / hardware.cores_per_host / hardware.decode,
        "input_bytes_per_s_and_host": rate / hosts * input_bytes(work),
        "memory_bytes": fixed_memory_bytes(work) + images * activation_bytes(work),
        "hours": hours,
        "dollars": hours * hardware.chips * hardware.price,
    }


def fixed_memory_bytes(work: Workload) -> int:
    """Bytes on each chip whatever its share of the batch: the state and a float32 gradient."""
    return checkpoint_bytes(work) + PARAMETER_BYTES * parameters(work)[0]


def limits(work: Workload, hardware: Hardware, mfu: float) -> dict[str, float]:
    """Where scaling stops, among powers of two: `strong_chips`, the most that share the batch, an image or more each,
    with overhead of at most half of the computation; `weak_images_per_chip`, the fewest with which that holds on this
    machine; and `memory_images_per_chip`, the most that fit into a chip's memory."""

    def scales(work: Workload, hardware: Hardware) -> bool:
        figures = step(work, hardware, mfu)
        return figures["overhead_s"] <= HALF * figures["compute_s"]

    on = lambda chips: dataclasses.replace(hardware, chips=chips)  # noqa: E731
    with_share = lambda images: dataclasses.replace(work, batch_size=images * hardware.chips)  # noqa: E731
    room = hardware.hbm - fixed_memory_bytes(work)
    return {
        "strong_chips": max((n for n in POWERS if n <= work.batch_size and scales(work, on(n))), default=0),
        "weak_images_per_chip": min((n for n in POWERS if scales(with_share(n), hardware)), default=math.inf),
        "memory_images_per_chip": max(0, int(room // activation_bytes(work))),
    }


Machines = dict[str, Hardware]


def workload_table(work: Workload) -> str:
    """What the step needs, whatever the machine."""
    norm, parts = batch_norm(work), operations(work)
    rows = [[f"GFLOP per image: {name.replace('_', ' ')}", number(flops / 1e9)] for name, flops in parts.items()]
    rows += [
        ["GFLOP per image, all", number(sum(parts.values()) / 1e9)],
        ["TFLOP per step", number(work.batch_size * sum(parts.values()) / 1e12)],
        ["activations through memory, MB per image", number(traffic_bytes(work) / 1e6)],
        ["activations kept, MB per image", number(activation_bytes(work) / 1e6)],
        ["host to chip, kB per image", number(input_bytes(work) / 1e3)],
        ["parameters, online and target, M", " + ".join(number(n / 1e6) for n in parameters(work))],
        ["gradients summed over the chips, MB per step", number(gradient_bytes(work) / 1e6)],
        ["BatchNorm: reductions, of which wait for each other", f"{norm['reductions']}, {norm['rounds']}"],
        ["BatchNorm: MB per step", number(norm["bytes"] / 1e6)],
        ["update and moving average through memory, MB per step", number(update_bytes(work) / 1e6)],
        ["checkpoint, MB", number(checkpoint_bytes(work) / 1e6)],
        [f"checkpoint, s at {work.checkpoint_gbs:g} GB/s", number(checkpoint_bytes(work) / work.checkpoint_gbs / 1e9)],
    ]
    return markdown(["", f"ResNet-{work.depth}, {work.size} px, {work.dtype}, batch {work.batch_size}"], rows)


def hardware_table(machines: Machines) -> str:
    """The inputs."""
    labels: dict[str, Callable[[Hardware], float]] = {
        "chips": lambda h: h.chips,
        "chips per host": lambda h: h.chips_per_host,
        "cores per host": lambda h: h.cores_per_host,
        "peak, TFLOP/s, bfloat16": lambda h: h.peak_bfloat16 / 1e12,
        "memory, GB": lambda h: h.hbm / 1e9,
        "memory, GB/s": lambda h: h.hbm_bandwidth / 1e9,
        "chips that share the fast links": lambda h: h.domain,
        "fast links, GB/s sent per chip": lambda h: h.link / 1e9,
        "network beyond, GB/s per chip": lambda h: h.network / 1e9,
        "small all-reduce, µs": lambda h: latency_seconds(h.chips, h) * 1e6,
        "decoding, images/s per core": lambda h: h.decode,
        "$ per chip and hour": lambda h: h.price,
    }
    rows = [[label, *(number(value(h)) for h in machines.values())] for label, value in labels.items()]
    return markdown(["", *machines], rows)


def machines_table(work: Workload, machines: Machines, mfus: tuple[float, ...]) -> str:
    """One step, and the whole run, on each machine."""
    labels = {
        "images per chip": ("images_per_chip", 1),
        "arithmetic at this share of the peak, ms": ("arithmetic_s", 1e3),
        "activations through memory, ms": ("memory_s", 1e3),
        "update, ms": ("update_s", 1e3),
        "gradients' all-reduce, ms": ("all_reduce_s", 1e3),
        "BatchNorm's latency, ms": ("batch_norm_s", 1e3),
        "**step, ms**": ("step_s", 1e3),
        "efficiency, %": ("efficiency", 100),
        "images/s": ("images_per_s", 1),
        "images/s to decode, per core": ("decode_per_core", 1),
        "share of the hosts' decoding, %": ("decode_share", 100),
        "host to chips, GB/s per host": ("input_bytes_per_s_and_host", 1e-9),
        "memory used per chip, GB": ("memory_bytes", 1e-9),
        "hours": ("hours", 1),
        "$": ("dollars", 1),
    }
    cases = [(name, mfu, step(work, hardware, mfu)) for name, hardware in machines.items() for mfu in mfus]
    rows = [
        [label, *(number(figures[figure] * unit) for _, _, figures in cases)]
        for label, (figure, unit) in labels.items()
    ]
    return markdown(["share of the peak", *(f"{name}, {percent(mfu)}" for name, mfu, _ in cases)], rows)


def strong_table(work: Workload, machines: Machines, mfus: tuple[float, ...]) -> str:
    """The same batch on more and more chips."""
    rows = [
        [str(chips), number(work.batch_size / chips), *_ms_and_efficiency(work, chips, machines, mfus)]
        for chips in STRONG_CHIPS
        if chips <= work.batch_size
    ]
    return markdown(["chips", "images per chip", *_cases(machines, mfus)], rows)


def weak_table(work: Workload, machines: Machines, mfus: tuple[float, ...]) -> str:
    """As many images per chip on more and more chips."""
    batches = [(chips, chips * WEAK_SHARE) for chips in WEAK_CHIPS]
    rows = [
        [
            str(chips),
            f"{batch}{' (beyond the recipe)' if batch > RECIPE_BATCH else ''}",
            *_ms_and_efficiency(dataclasses.replace(work, batch_size=batch), chips, machines, mfus),
        ]
        for chips, batch in batches
    ]
    return markdown(["chips", "global batch", *_cases(machines, mfus)], rows)


def limits_table(work: Workload, machines: Machines, mfus: tuple[float, ...]) -> str:
    """Where each stops."""
    rows = []
    for name, hardware in machines.items():
        for mfu in mfus:
            found, share = limits(work, hardware, mfu), step(work, hardware, mfu)["decode_share"]
            rows.append(
                [
                    f"{name}, {percent(mfu)}",
                    str(found["strong_chips"]),
                    number(found["weak_images_per_chip"]),
                    number(found["memory_images_per_chip"]),
                    f"{number(share * hardware.cores_per_host)} of {hardware.cores_per_host}",
                    number(RECIPE_BATCH / hardware.chips),
                ]
            )
    header = [
        "",
        f"most chips for a batch of {work.batch_size}",
        "fewest images per chip",
        "most images per chip, by memory",
        "cores of a host that decode",
        f"images per chip at the recipe's {RECIPE_BATCH}",
    ]
    return markdown(header, rows)


def tables(work: Workload, machines: Machines, mfus: tuple[float, ...]) -> dict[str, str]:
    """Name -> Markdown of all the tables of docs/scaling.md."""
    return {
        "workload": workload_table(work),
        "hardware": hardware_table(machines),
        "machines": machines_table(work, machines, mfus),
        "strong": strong_table(work, machines, mfus),
        "weak": weak_table(work, machines, mfus),
        "limits": limits_table(work, machines, mfus),
    }


def flat(work: Workload, machines: Machines, mfus: tuple[float, ...]) -> dict[str, float]:
    """Flat names -> numbers, in the units of the functions above."""
    figures = {f"flops_per_image_{part}": flops for part, flops in operations(work).items()}
    figures |= {f"batch_norm_{name}": value for name, value in batch_norm(work).items()}
    for function in (activation_bytes, traffic_bytes, gradient_bytes, input_bytes, update_bytes, checkpoint_bytes):
        figures[function.__name__] = function(work)
    figures["checkpoint_s"] = checkpoint_bytes(work) / work.checkpoint_gbs / 1e9
    for name, hardware in machines.items():
        for mfu in mfus:
            case = step(work, hardware, mfu) | limits(work, hardware, mfu)
            prefix = f"{name.replace('-', '_')}_mfu{100 * mfu:g}"
            figures |= {f"{prefix}_{figure}": value for figure, value in case.items()}
    return figures


def marked(name: str, table: str) -> str:
    """A table between the marks by which docs/scaling.md holds it."""
    return f"<!-- table: {name} -->\n{table}\n<!-- end -->"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def number(x: float) -> str:
    """Three significant digits, without an exponent; whole numbers below 10,000 in full."""
    if x == math.inf:
        return "none"
    if x == round(x) and x < 10_000:
        return f"{x:.0f}"
    digits = 2 - math.floor(math.log10(x))
    return f"{round(x, digits):,.{max(digits, 0)}f}"


def percent(share: float) -> str:
    return f"{100 * share:g} %"


def _cases(machines: Machines, mfus: tuple[float, ...]) -> Iterator[str]:
    return (f"{name}, {percent(mfu)}" for name in machines for mfu in mfus)


def _ms_and_efficiency(work: Workload, chips: int, machines: Machines, mfus: tuple[float, ...]) -> Iterator[str]:
    for hardware in machines.values():
        for mfu in mfus:
            figures = step(work, dataclasses.replace(hardware, chips=chips), mfu)
            yield f"{number(1e3 * figures['step_s'])} ms, {100 * figures['efficiency']:.0f} %"


# flag -> field of Hardware, its unit, what it is
OVERRIDES = {
    "chips": ("chips", 1, "Chips."),
    "chips_per_host": ("chips_per_host", 1, "Chips of a host."),
    "cores_per_host": ("cores_per_host", 1, "Cores of a host."),
    "hbm_gb": ("hbm", 1e9, "Memory of a chip, GB."),
    "hbm_gbs": ("hbm_bandwidth", 1e9, "Memory bandwidth of a chip, GB/s."),
    "domain": ("domain", 1, "Chips that share the fast links."),
    "link_gbs": ("link", 1e9, "What a chip can send over the fast links, GB/s."),
    "network_gbs": ("network", 1e9, "What a chip can send beyond the domain, GB/s."),
    "launch_us": ("launch", 1e-6, "Time of a collective besides the way, µs."),
    "hop_us": ("hop", 1e-6, "Time of a hop within the domain, µs."),
    "network_hop_us": ("network_hop", 1e-6, "Time of a hop beyond the domain, µs."),
    "decode_per_core": ("decode", 1, "Images/s that a core decodes and makes two views of."),
    "price": ("price", 1, "$ per chip and hour."),
}


def define_flags() -> None:
    """Not at import: other benchmarks have flags of the same names."""
    work = Workload()
    flags.DEFINE_list("hardware", list(PRESETS), f"Of {', '.join(PRESETS)}; what else is given changes each of them.")
    flags.DEFINE_list("mfu", [str(mfu) for mfu in MFUS], "Assumed shares of the peak.")
    flags.DEFINE_string("json", None, "File for the figures.")
    flags.DEFINE_float("peak_tflops", None, "Peak of a chip in the compute dtype, TFLOP/s.")
    for name, (field, _, what) in OVERRIDES.items():
        define = flags.DEFINE_integer if Hardware.__annotations__[field] is int else flags.DEFINE_float
        define(name, None, what)
    flags.DEFINE_enum("depth", str(work.depth), [str(depth) for depth in STAGE_SIZES], "Of the ResNet.")
    flags.DEFINE_enum("stem", work.stem, STEMS, "Of the ResNet.")
    flags.DEFINE_integer("size", work.size, "Side of the views, px.")
    flags.DEFINE_enum("dtype", work.dtype, list(ITEMSIZE), "Of the convolutions.")
    flags.DEFINE_boolean("align", work.align, "With the alignment loss.")
    flags.DEFINE_integer("batch_size", work.batch_size, "Global, in images.")
    flags.DEFINE_integer("train_images", work.train_images, "Of the whole run.")
    flags.DEFINE_float("checkpoint_gbs", work.checkpoint_gbs, "Bandwidth of the file system, GB/s.")


def main(argv: list[str]) -> None:
    del argv
    given = flags.FLAGS
    names = [field.name for field in dataclasses.fields(Workload)]
    work = Workload(**{name: given[name].value for name in names} | {"depth": int(given.depth)})
    if work.size % stride(work.depth, work.stem):
        raise app.UsageError(f"--size={work.size} is not a multiple of the stride {stride(work.depth, work.stem)}")
    if unknown := set(given.hardware) - set(PRESETS):
        raise app.UsageError(f"--hardware={', '.join(unknown)} is unknown; take some of {', '.join(PRESETS)}")
    changes = {
        field: given[flag].value * unit for flag, (field, unit, _) in OVERRIDES.items() if given[flag].value is not None
    }
    if given.peak_tflops is not None:
        changes[f"peak_{work.dtype}"] = given.peak_tflops * 1e12
    machines = {name: dataclasses.replace(PRESETS[name], **changes) for name in given.hardware}
    mfus = tuple(map(float, given.mfu))
    print("Estimates on paper; nothing here is measured.\n")
    print("\n\n".join(marked(name, table) for name, table in tables(work, machines, mfus).items()))
    if given.json:
        about = {"kind": "estimates on paper, not measured", "commit": commit()} | dataclasses.asdict(work)
        Path(given.json).write_text(json.dumps(about | flat(work, machines, mfus), indent=2) + "\n")


if __name__ == "__main__":
    define_flags()
    app.run(main)
