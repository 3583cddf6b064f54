"""The training step on paper: operations, bytes, collectives, and what a pod would make of it. Nothing is measured.

    python -m benchmarks.scaling                                              # the tables of docs/scaling.md
    python -m benchmarks.scaling --hardware=v5e-256 --chips=64 --mfu=0.2 --batch_size=1024 --json=scaling.json
    python -m benchmarks.scaling --hardware=h100-64 --hbm_gbs=4800 --hbm_gb=141 --chips=8          # one of your own

Bytes and seconds are plain bytes and seconds, in powers of ten. docs/scaling.md explains the formulas and says what to
conclude; what a step asks for is in workload.py, the machines are in machines.py.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import app, flags

from benchmarks.common import commit
from benchmarks.machines import PRESETS, Hardware, all_reduce_seconds, latency_seconds
from benchmarks.workload import (
    ITEMSIZE,
    RECIPE_BATCH,
    Workload,
    activation_bytes,
    batch_norm,
    checkpoint_bytes,
    fixed_memory_bytes,
    gradient_bytes,
    input_bytes,
    operations,
    parameters,
    traffic_bytes,
    update_bytes,
)
from cvsa_jax.models.resnet import STAGE_SIZES, STEMS, stride

MFUS = (0.1, 0.3)  # assumed shares of the peak, low and high
HALF = 0.5  # overhead above this share of the computation counts as no longer scaling
POWERS = tuple(2**k for k in range(13))  # chips, or images per chip, among which limits are looked for
STRONG_CHIPS, WEAK_CHIPS, WEAK_SHARE = (16, 32, 64, 128, 256, 512, 1024), (1, 4, 16, 64, 256, 1024), 64


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
