"""What a training step costs, and how fast the steps go."""

import contextlib
import dataclasses
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from cvsa_jax.runtime.files import AnyPath, is_local

GIB = 2**30
# Dense bfloat16 operations per second of a device, by the start of the name that JAX gives it; the first that fits
# counts. TPU: Google Cloud's page on each version, read in November 2026. NVIDIA: data sheets of the SXM modules, as
# others quote them.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,  # v5p
    "TPU v6": 918e12,  # v6e, which is also called lite
    "NVIDIA A100": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,  # the cards for PCIe, which do less, have another name
    "NVIDIA H200": 989e12,
}
_SKIPPED = 10  # steps at the start, which are not like the others


@dataclasses.dataclass(frozen=True)
class StepCost:
    """Of one step on one device: `flops`, floating-point operations (0: not known); `peak`, the device's operations per
    second, or None; `memory`, bytes of the state, the batch and what is between (0: not known); `summary`, a line for
    the user."""

    flops: float
    peak: float | None
    memory: int
    summary: str


def compiled_step(
    train_step: Callable, state: Any, batch: dict, mesh: Mesh, micro_batches: int = 1
) -> tuple[Callable, StepCost]:
    """The jitted step compiled for such arguments, and its cost as the compiler counts it: the body of a loop once, so
    its operations are multiplied by the `micro_batches`."""
    began = time.monotonic()
    compiled = train_step.lower(state, batch).compile()
    device = mesh.local_devices[0]
    flops = micro_batches * (compiled.cost_analysis() or {}).get("flops", 0.0)
    peak = next((peak for kind, peak in PEAK_FLOPS.items() if device.device_kind.startswith(kind)), None)
    parts = [f"step compiled in {time.monotonic() - began:.0f} s"]
    if flops:
        parts.append(f"{flops / 1e9:.3g} GFLOP")
    memory = 0
    if (plan := compiled.memory_analysis()) is not None:
        memory = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
        memory += plan.temp_size_in_bytes
        limit = (device.memory_stats() or {}).get("bytes_limit")
        of = f" of {limit / GIB:.1f}" if limit else ""
        parts.append(f"{memory / GIB:.2f}{of} GiB")
    summary = "; on each device: ".join(filter(None, (parts[0], ", ".join(parts[1:]))))
    return compiled, StepCost(flops, peak, memory, summary)


class Speed:
    """Images per second and the share of the time in which the device had to wait for them, since `restart`."""

    def __init__(self, images: int, devices: int, cost: StepCost):
        """`images`: of a global batch."""
        self.images, self.devices, self.cost = images, devices, cost
        self.restart()

    def restart(self) -> None:
        self.began, self.steps, self.waited = time.monotonic(), 0, 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for the input."""
        began = time.monotonic()
        yield
        self.waited += time.monotonic() - began

    def count(self) -> None:
        """One step more."""
        self.steps += 1

    def figures(self) -> dict[str, float]:
        """`perf/…`: images/s per device, share of the time spent waiting for input, peak host memory of this process in
        GiB, and where known the step's operations per second and device, and their share of the device's peak."""
        seconds = max(time.monotonic() - self.began, 1e-9)
        figures = {
            "perf/images_per_s_per_device": self.steps * self.images / self.devices / seconds,
            "perf/input_wait": self.waited / seconds,
            "perf/host_memory_gib": _peak_host_bytes() / GIB,
        }
        if self.cost.flops:
            figures["perf/flops_per_s_per_device"] = self.steps * self.cost.flops / seconds
            if self.cost.peak:
                figures["perf/peak_share"] = figures["perf/flops_per_s_per_device"] / self.cost.peak
        return figures


def profile(workdir: AnyPath, start: int, total: int, steps: int) -> Callable[[int, Any], None]:
    """What is called before the first and after every step, with the step's number and metrics: of a run from step
    `start` to `total` it writes a trace of `steps` steps into `workdir/profile`, for TensorBoard's profile plug-in or
    Perfetto; none of 0 steps. The profiler writes to disks only: of a workdir in a bucket the trace stays here."""
    steps = min(steps, total - start)
    if steps <= 0:
        return lambda step, metrics: None
    from clu import periodic_actions  # imports TensorFlow

    folder = workdir / "profile" if is_local(workdir) else Path(tempfile.gettempdir()) / "profile"
    before = min(start + _SKIPPED, total - steps)
    action = periodic_actions.Profile(
        logdir=folder, num_profile_steps=steps, profile_duration_ms=None, first_profile=before, every_secs=None
    )

    def after(step: int, metrics: Any) -> None:
        if step == before + steps:
            jax.block_until_ready(metrics)  # clu's action does not wait for the device
            print(f"profile of steps {before + 1} to {step}: {folder}", flush=True)
        action(step)

    return after


def _peak_host_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
