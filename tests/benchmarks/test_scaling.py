"""The formulas of docs/scaling.md against published counts, hand-worked values and the traced step."""

import collections
import dataclasses
import functools
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.extend
import jax.numpy as jnp
import pytest

from benchmarks import machines, scaling, workload
from cvsa_jax import losses
from cvsa_jax.models.siamese import Siamese
from cvsa_jax.runtime.distributed import make_mesh
from cvsa_jax.training import optim
from cvsa_jax.training import step as steps
from cvsa_jax.training.photometric import Photometric
from cvsa_jax.training.state import init_state

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "scaling.md"
SMALL = workload.Workload(depth=8, stem="small", size=48, dtype="float32")
PLAIN = dataclasses.replace(SMALL, dtype="bfloat16", align=False)
FULL = workload.Workload()  # ResNet-50, 224 px, bfloat16, alignment
BATCH = 4
# Round numbers, so that a step can be worked out by hand.
MACHINE = machines.Hardware(
    chips=4,
    chips_per_host=2,
    cores_per_host=10,
    peak_bfloat16=1e12,
    peak_float32=1e11,
    hbm=1e9,
    hbm_bandwidth=1e10,
    domain=8,
    link=1e9,
    network=1e8,
    torus=0,
    wraps=1,
    launch=3e-6,
    hop=1e-6,
    network_hop=10e-6,
    price=2.0,
    decode=50.0,
)


@functools.cache
def traced(work: workload.Workload) -> jax.stages.Traced:
    """The real training step on one device, traced without values."""
    model = Siamese(work.depth, stem=work.stem, dtype=jnp.dtype(work.dtype), axis_name="data")
    optimizer = optim.make_optimizer("lars", lambda step: 0.1, 1e-6, 0.9)
    photometric = Photometric(0.4, 0.4, 0.2, 0.1, 0.8, 0.2, 0.5, 0.1)
    step = steps.make_train_step(
        model,
        optimizer,
        make_mesh(jax.devices()[:1]),
        objective=losses.OBJECTIVES["byol"],
        temperature=0.2,
        tau=lambda step: jnp.float32(0.99),
        augment1=photometric,
        augment2=photometric,
        align_form="kl",
        align_weight=float(work.align),
        seed=0,
    )
    state = jax.eval_shape(lambda: init_state(model, optimizer, work.size, jax.random.key(0)))
    image = lambda *shape: jax.ShapeDtypeStruct((BATCH, *shape), jnp.uint8)  # noqa: E731
    batch = {name: image(work.size, work.size, 3) for name in ("view1", "view2")}
    if work.align:
        batch |= {name: image(work.size // 4, work.size // 4) for name in ("mask1", "mask2")}
    return step.trace(state, batch | {"position": jax.ShapeDtypeStruct((BATCH, 2), jnp.uint32)})


def inner_jaxprs(equation):
    """The programs that an equation calls."""
    for value in equation.params.values():
        for one in value if isinstance(value, tuple | list) else [value]:
            one = getattr(one, "jaxpr", one)
            if hasattr(one, "eqns"):
                yield one


def equations(jaxpr):
    """All equations, also of the programs called."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in inner_jaxprs(equation):
            yield from equations(inner)


def reduced(work: workload.Workload) -> list[tuple[tuple[int, ...], jnp.dtype]]:
    """Shape and type of all that the step sums over the devices."""
    found = [e for e in equations(traced(work).jaxpr.jaxpr) if e.primitive.name.startswith("psum")]
    return [(v.aval.shape, v.aval.dtype) for e in found for v in e.invars]


def is_norm(shape: tuple[int, ...]) -> bool:
    """Whether a sum is one of BatchNorm's: (2, C) forward, C with ones before it backward. Those of the heads' biases
    have BatchNorm's shape and D = 256 channels; they are counted apart, by their number."""
    return (len(shape) == 2 and shape[0] == 2) or (len(shape) in (2, 4) and set(shape[:-1]) == {1})


@pytest.mark.parametrize(
    ("depth", "gmacs", "parameters"), [(18, 1.814, 11_689_512), (34, 3.664, 21_797_672), (50, 4.089, 25_557_032)]
)
def test_multiply_adds_and_parameters_are_those_published(depth, gmacs, parameters):
    """torchvision's table of models, which counts the classifier too."""
    layers = workload.backbone(depth, "imagenet", 224)
    classifier = (2048 if depth == 50 else 512) * 1000
    assert (sum(layer.macs for layer in layers) + classifier) / 1e9 == pytest.approx(gmacs, abs=6e-4)
    norms = 2 * sum(layer.outputs for layer in layers)
    assert sum(layer.parameters for layer in layers) + norms + classifier + 1000 == parameters


def test_activations_of_resnet50_are_those_published():
    """11.1 M elements written by its convolutions (Radosavovic et al. 2020, arXiv 2003.13678, table of ResNets)."""
    assert sum(layer.written for layer in workload.backbone(50, "imagenet", 224)) / 1e6 == pytest.approx(11.1, abs=0.05)


@pytest.mark.parametrize("method", ["__call__", "project"])
@pytest.mark.parametrize(
    "work",
    [SMALL, PLAIN, FULL, workload.Workload(depth=18, size=96), workload.Workload(depth=14, stem="small", size=40)],
    ids=lambda work: f"{work.depth}-{work.stem}-{work.size}-{work.align}",
)
def test_multiply_adds_are_those_of_the_traced_network(work, method):
    model = Siamese(work.depth, stem=work.stem)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, work.size, work.size, 3)), False))
    images = jax.ShapeDtypeStruct((1, work.size, work.size, 3), jnp.float32)
    apply = lambda v, x: model.apply(v, x, train=False, maps=work.align, method=method)  # noqa: E731
    macs = 0
    for equation in equations(jax.make_jaxpr(apply)(variables, images).jaxpr):
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            # Both kinds of kernel have their outputs last: each output sums over the rest.
            kernel = equation.invars[1].aval
            macs += equation.outvars[0].aval.size * kernel.size // kernel.shape[-1]
    online, target = workload.networks(work)
    assert macs == sum(layer.macs for layer in (online if method == "__call__" else target))


@pytest.mark.parametrize(("work", "tolerance"), [(SMALL, 0.03), pytest.param(FULL, 0.02, marks=pytest.mark.slow)])
def test_operations_of_the_step_are_those_that_xla_counts(work, tolerance):
    """XLA leaves out the padding and counts the elementwise operations; the formula does neither."""
    counted = traced(work).lower().cost_analysis()["flops"] / BATCH
    assert sum(workload.operations(work).values()) == pytest.approx(counted, rel=tolerance)


def test_attention_is_negligible_and_as_counted_by_hand():
    # 49 × 49 pairs of cells, 256 channels, two directions, each forward and backward to one side.
    assert workload.operations(FULL)["attention"] == 2 * 49 * 49 * 256 * 2 * 2
    assert workload.operations(dataclasses.replace(FULL, align=False))["attention"] == 0


def test_blur_is_two_products_of_square_matrices_for_each_channel():
    products = [
        e
        for e in equations(traced(SMALL).jaxpr.jaxpr)
        if e.primitive.name == "dot_general" and all(v.aval.shape[1:] == (48, 48) for v in (*e.invars, *e.outvars))
    ]
    macs = sum(e.outvars[0].aval.size * 48 for e in products) / BATCH
    assert workload.operations(SMALL)["blur"] == 2 * macs


@pytest.mark.parametrize("work", [SMALL, PLAIN, FULL])
def test_batch_norm_and_gradient_bytes_are_those_that_the_step_reduces(work):
    online, _ = workload.networks(work)
    biases = sum(not layer.normalised for layer in online)
    sums = reduced(work)
    norms = [(shape, dtype) for shape, dtype in sums if is_norm(shape)]
    figures = workload.batch_norm(work)
    assert figures["reductions"] == len(norms) - biases
    size = lambda sums: sum(int(jnp.prod(jnp.array(shape))) * dtype.itemsize for shape, dtype in sums)  # noqa: E731
    bias_bytes = biases * 256 * workload.ITEMSIZE[work.dtype]
    assert figures["bytes"] == size(norms) - bias_bytes
    # Metrics are scalars, (256,) and (256, 256).
    kernels = [(shape, dtype) for shape, dtype in sums if len(shape) > 1 and not is_norm(shape) and shape != (256, 256)]
    assert workload.gradient_bytes(work) == size(kernels) + bias_bytes


@pytest.mark.parametrize("work", [SMALL, PLAIN, FULL])
def test_rounds_are_the_longest_chain_of_reductions_in_the_step(work):
    """Each counts one more than the latest of those whose results it needs; the gradients' own is one more round."""

    def chain(jaxpr, inputs: list[int]) -> list[int]:
        after = dict(zip(jaxpr.invars, inputs, strict=True))
        at = lambda v: after.get(v, 0) if isinstance(v, jax.extend.core.Var) else 0  # noqa: E731
        for equation in jaxpr.eqns:
            before = [at(v) for v in equation.invars]
            inner = list(inner_jaxprs(equation))
            if len(inner) == 1 and len(inner[0].invars) == len(before):
                outputs = chain(inner[0], before)
            else:
                outputs = [max(before, default=0)] * len(equation.outvars)
            more = equation.primitive.name.startswith("psum")
            after |= {v: k + more for v, k in zip(equation.outvars, outputs, strict=True)}
        return [at(v) for v in jaxpr.outvars]

    program = traced(work).jaxpr.jaxpr
    assert max(chain(program, [0] * len(program.invars))) == workload.batch_norm(work)["rounds"] + 1


def test_activations_by_hand():
    """ResNet-8 with the small stem at 8 px: maps of 4, 4, 2 and 1 cells a side, 64, 64, 128 and 256 channels."""
    work = workload.Workload(depth=8, stem="small", size=8, dtype="float32", align=False)
    stem, first, second, third, head = 64 * 16, 64 * 16, 128 * 4, 256, 4096
    normalised = stem + 2 * first + 3 * second + 3 * third + 2 * head
    inputs = 3 * 64 + stem + first + first + second + second + third + 2 * (256 + head)
    assert workload.activation_bytes(work) == 2 * 4 * (normalised + inputs)
    written = stem + 2 * first + 3 * second + 3 * third
    read = 3 * 64 + stem + first + 2 * first + second + 2 * second + third
    online = 11 * (written + 2 * (head + 256)) + 3 * (read + 2 * (256 + head))
    target = 4 * (written + head + 256) + read + 256 + head
    assert workload.traffic_bytes(work) == 2 * 4 * (online + target)


def test_imagenet_stem_also_keeps_the_input_of_the_max_pool():
    # 64 px: 32² cells after the stem, 16² after the pool, then as without the pool.
    elements = lambda stem, size: workload.activation_bytes(workload.Workload(8, stem, size, "float32", False)) / 8  # noqa: E731
    stem, pooled, views = 64 * 32**2, 64 * 16**2, 3 * (64**2 - 32**2)
    # Instead of the small stem's output: the large one's, and its normalised form, which the pool reads.
    assert elements("imagenet", 64) - elements("small", 32) == views + 2 * stem - pooled


@pytest.mark.slow
def test_activations_are_a_lower_bound_of_what_the_cpu_keeps():
    """XLA's plan for one network on the CPU, which recomputes little, keeps about twice as much per view."""
    model = Siamese(SMALL.depth, stem=SMALL.stem)
    variables = workload.state(SMALL.depth, SMALL.stem).online.variables

    def loss(params, stats, images):
        out, _ = model.apply({"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"])
        return (out.prediction**2).mean() + (out.prediction_map**2).mean()

    planned = []
    for views in (16, 32):
        images = jax.ShapeDtypeStruct((views, SMALL.size, SMALL.size, 3), jnp.float32)
        lowered = jax.jit(jax.grad(loss)).lower(variables["params"], variables["batch_stats"], images)
        compiled = lowered.compile({"xla_backend_optimization_level": 0})
        planned.append(compiled.memory_analysis().temp_size_in_bytes)
    per_view = (planned[1] - planned[0]) / 16
    assert 1 <= per_view / (workload.activation_bytes(SMALL) / 2) <= 2.5


def test_state_and_update_of_resnet50_by_hand():
    backbone, head_of = 23_508_032, lambda inputs: inputs * 4096 + 2 * 4096 + 4096 * 256 + 256
    target = backbone + 2 * head_of(2048)
    online = target + 2 * head_of(256)
    assert workload.parameters(FULL) == (online, target)
    # Running mean and variance: 26,560 channels of the backbone (torchvision), 4096 of each head.
    statistics = 2 * (2 * 26_560 + (4 + 2) * 4096)
    counters = workload.checkpoint_bytes(FULL) - 4 * (2 * online + target + statistics)
    assert counters in range(4, 33, 4)  # the step, and what the optimiser counts
    assert workload.update_bytes(FULL) == 4 * (7 * online + 3 * target)
    assert workload.fixed_memory_bytes(FULL) == workload.checkpoint_bytes(FULL) + 4 * online


def test_input_bytes_are_those_of_the_batch():
    for work in (SMALL, PLAIN, FULL):
        rows = traced(work).in_avals[0][1]
        assert workload.input_bytes(work) * BATCH == sum(x.size * x.dtype.itemsize for x in rows.values())


@pytest.mark.parametrize("chips", [1, 2, 5, 8])
def test_ring_all_reduce_sends_what_its_simulation_sends(chips):
    """Each chip passes one of n parts on to the next, n − 1 times to sum and n − 1 times to share the sums."""
    parts = [[{(chip, part)} for part in range(chips)] for chip in range(chips)]
    sent = 0
    for turn in range(2 * (chips - 1)):
        moving = [(chip, (chip - turn) % chips) for chip in range(chips)]
        received = {((chip + 1) % chips, part): parts[chip][part] for chip, part in moving}
        for (chip, part), what in received.items():
            parts[chip][part] = parts[chip][part] | what
        sent += 1 / chips
    assert all(parts[chip][part] == {(k, part) for k in range(chips)} for chip in range(chips) for part in range(chips))
    machine = dataclasses.replace(MACHINE, domain=8)
    assert machines.all_reduce_seconds(4e9, chips, machine) == pytest.approx(sent * 4e9 / 1e9)


def test_all_reduce_across_domains_by_hand():
    # 16 chips in 2 domains of 8. Within: 2 · 7/8 · 8 GB at 1 GB/s. Between: each chip's eighth, 2 · 1/2 · 1 GB at .1.
    assert machines.all_reduce_seconds(8e9, 16, MACHINE) == pytest.approx(14 + 10)


def test_slice_without_wrap_around_has_half_of_the_links():
    machine = dataclasses.replace(MACHINE, wraps=8)
    assert machines.all_reduce_seconds(8e9, 4, machine) == pytest.approx(2 * 3 / 4 * 8 / 0.5)
    assert machines.all_reduce_seconds(8e9, 8, machine) == pytest.approx(2 * 7 / 8 * 8 / 1.0)


@pytest.mark.parametrize(("torus", "side", "wrapped"), [(2, 4, True), (2, 4, False), (3, 4, True), (3, 2, False)])
def test_latency_is_to_the_farthest_chip_and_back(torus, side, wrapped):
    reached, queue = {(0,) * torus: 0}, collections.deque([(0,) * torus])
    while queue:
        place = queue.popleft()
        for axis, move in itertools.product(range(torus), (-1, 1)):
            there = list(place)
            there[axis] += move
            if wrapped:
                there[axis] %= side
            if 0 <= there[axis] < side and tuple(there) not in reached:
                reached[tuple(there)] = reached[place] + 1
                queue.append(tuple(there))
    chips = side**torus
    assert len(reached) == chips
    machine = dataclasses.replace(MACHINE, torus=torus, domain=chips, wraps=chips if wrapped else chips + 1)
    assert machines.latency_seconds(chips, machine) == pytest.approx(3e-6 + 2 * max(reached.values()) * 1e-6)


def test_latency_through_switches_by_hand():
    assert machines.latency_seconds(1, MACHINE) == 0
    assert machines.latency_seconds(8, MACHINE) == pytest.approx(3e-6 + 2 * 3e-6)
    assert machines.latency_seconds(32, MACHINE) == pytest.approx(3e-6 + 2 * (3e-6 + 2 * 10e-6))


def test_step_by_hand(monkeypatch):
    for name, value in {
        "operations": lambda work: {"one": 1e9, "two": 1e9},
        "traffic_bytes": lambda work: 1e8,
        "update_bytes": lambda work: 1e8,
        "gradient_bytes": lambda work: 2e8,
        "batch_norm": lambda work: {"rounds": 100},
        "activation_bytes": lambda work: 1e6,
        "input_bytes": lambda work: 1000,
        "fixed_memory_bytes": lambda work: 5e8,
    }.items():
        monkeypatch.setattr(scaling, name, value)
    work = workload.Workload(batch_size=40, train_images=7_200_000)
    figures = scaling.step(work, MACHINE, 0.25)
    assert figures["images_per_chip"] == 10
    assert figures["arithmetic_s"] == pytest.approx(10 * 2e9 / 0.25e12)  # 80 ms
    assert figures["memory_s"] == pytest.approx(10 * 1e8 / 1e10)  # 100 ms
    assert figures["compute_s"] == pytest.approx(0.1)
    assert figures["update_s"] == pytest.approx(0.01)
    assert figures["all_reduce_s"] == pytest.approx(1.5 * 0.2)  # 300 ms
    assert figures["batch_norm_s"] == pytest.approx(100 * 7e-6)
    assert figures["overhead_s"] == pytest.approx(0.3107)
    assert figures["step_s"] == pytest.approx(0.4107)
    assert figures["efficiency"] == pytest.approx(0.1 / 0.4107)
    rate = 40 / 0.4107
    assert figures["images_per_s"] == pytest.approx(rate)
    assert figures["decode_per_core"] == pytest.approx(rate / 20)  # 2 hosts of 10 cores
    assert figures["decode_share"] == pytest.approx(rate / 20 / 50)
    assert figures["input_bytes_per_s_and_host"] == pytest.approx(rate / 2 * 1000)
    assert figures["memory_bytes"] == pytest.approx(5e8 + 10 * 1e6)
    assert figures["hours"] == pytest.approx(7_200_000 / rate / 3600)
    assert figures["dollars"] == pytest.approx(7_200_000 / rate / 3600 * 4 * 2)
    # At a lower share of the peak the arithmetic decides; in float32 the peak is another.
    assert scaling.step(work, MACHINE, 0.1)["compute_s"] == pytest.approx(0.2)
    in_float32 = dataclasses.replace(work, dtype="float32")
    assert scaling.step(in_float32, MACHINE, 0.25)["compute_s"] == pytest.approx(0.8)


@pytest.mark.parametrize("mfu", scaling.MFUS)
@pytest.mark.parametrize("name", machines.PRESETS)
def test_limits_are_where_the_overhead_passes_half_of_the_computation(name, mfu):
    machine, found = machines.PRESETS[name], scaling.limits(FULL, machines.PRESETS[name], mfu)

    def share(chips: int, images_per_chip: float) -> float:
        work = dataclasses.replace(FULL, batch_size=round(chips * images_per_chip))
        figures = scaling.step(work, dataclasses.replace(machine, chips=chips), mfu)
        return (figures["step_s"] - figures["compute_s"]) / figures["compute_s"]

    chips = found["strong_chips"]
    assert share(chips, 4096 / chips) <= 0.5 < share(2 * chips, 4096 / chips / 2)
    images = found["weak_images_per_chip"]
    assert share(machine.chips, images) <= 0.5 < share(machine.chips, images / 2)
    most = found["memory_images_per_chip"]
    bytes_of = lambda n: scaling.step(  # noqa: E731
        dataclasses.replace(FULL, batch_size=n * machine.chips), machine, mfu
    )["memory_bytes"]
    assert bytes_of(most) <= machine.hbm < bytes_of(most + 1)


def test_numbers_have_three_digits_and_no_exponent():
    written = {0.00492: "0.00492", 0.5407: "0.541", 16: "16", 4096: "4096", 23.16: "23.2", 153_730.2: "154,000"}
    assert {x: scaling.number(x) for x in written} == written
    assert scaling.number(1813.9) == "1,810"
    assert scaling.number(float("inf")) == "none"


def test_document_holds_the_tables_as_they_are_computed():
    found = dict(re.findall(r"<!-- table: (\w+) -->\n(.*?)\n<!-- end -->", DOCUMENT.read_text(), re.DOTALL))
    assert found == scaling.tables(FULL, machines.PRESETS, scaling.MFUS), "paste what benchmarks.scaling prints"


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks.scaling", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)


def test_command_takes_the_readers_own_numbers(tmp_path):
    path = tmp_path / "figures.json"
    own = ["--hardware=h100-64", "--chips=8", "--peak_tflops=500", "--hbm_gbs=4800", "--price=3", "--mfu=0.2"]
    done = run(*own, "--batch_size=512", "--size=448", "--noalign", f"--json={path}")
    assert done.returncode == 0, done.stderr
    work = workload.Workload(size=448, align=False, batch_size=512)
    machine = dataclasses.replace(
        machines.PRESETS["h100-64"], chips=8, peak_bfloat16=500e12, hbm_bandwidth=4800e9, price=3.0
    )
    for name, table in scaling.tables(work, {"h100-64": machine}, (0.2,)).items():
        assert scaling.marked(name, table) in done.stdout
    figures = json.loads(path.read_text())
    assert figures["h100_64_mfu20_step_s"] == pytest.approx(scaling.step(work, machine, 0.2)["step_s"])
    assert figures["checkpoint_bytes"] == workload.checkpoint_bytes(work)
    assert "not measured" in figures["kind"]
    assert all(isinstance(value, int | float | str) for value in figures.values())


@pytest.mark.parametrize(("argument", "said"), [("--size=200", "stride 32"), ("--hardware=v9", "v9 is unknown")])
def test_command_refuses_what_cannot_be(argument, said):
    done = run(argument)
    assert done.returncode != 0
    assert said in done.stdout + done.stderr
