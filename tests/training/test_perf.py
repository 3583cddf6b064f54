import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvsa_jax.runtime import distributed
from cvsa_jax.training import perf
from cvsa_jax.training.perf import GIB, Speed, StepCost, compiled_step, profile


@pytest.fixture
def clock(monkeypatch):
    now = types.SimpleNamespace(seconds=50.0)
    monkeypatch.setattr(perf, "time", types.SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def test_speed_counts_from_the_last_restart(clock):
    speed = Speed(64, 4, StepCost(flops=3e9, peak=12e9, memory=0, summary=""))
    speed.count()
    clock.seconds += 100
    speed.restart()
    for _ in range(5):
        with speed.waiting():
            clock.seconds += 0.5
        clock.seconds += 1.5
        speed.count()
    figures = speed.figures()
    # 5 steps in 10 s, 2.5 of them waiting.
    memory = figures.pop("perf/host_memory_gib")
    assert figures == {
        "perf/images_per_s_per_device": 5 * 64 / 4 / 10,
        "perf/input_wait": 0.25,
        "perf/flops_per_s_per_device": 1.5e9,
        "perf/peak_share": 0.125,
    }
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    assert memory == pytest.approx(peak * 1024 / GIB, rel=0.05)


def test_unknown_figures_are_omitted(clock):
    figures = Speed(64, 4, StepCost(flops=0.0, peak=None, memory=0, summary="")).figures()
    assert figures.keys() == {"perf/images_per_s_per_device", "perf/input_wait", "perf/host_memory_gib"}
    assert "perf/peak_share" not in Speed(64, 4, StepCost(flops=1.0, peak=None, memory=0, summary="")).figures()


def test_step_cost_counts_flops_and_memory_of_a_matrix_product(mesh_of, clock):
    mesh, n = mesh_of(2), 256
    state = jax.device_put(jnp.ones((n, n)), distributed.replicated(mesh))
    batch = distributed.to_mesh({"x": np.ones((2 * n, n), np.float32)}, mesh)
    step, cost = compiled_step(jax.jit(lambda state, batch: (state, batch["x"] @ state)), state, batch, mesh)
    assert cost.flops == pytest.approx(2 * n**3, rel=0.01)  # each device has n of the rows
    # In and out of each device: the state twice, and twice n of the rows.
    assert cost.summary == f"step compiled in 0 s; on each device: 0.0336 GFLOP, {4 * 4 * n * n / GIB:.2f} GiB"
    assert cost.peak is None and cost.memory == pytest.approx(4 * 4 * n * n, rel=0.01)
    np.testing.assert_array_equal(step(state, batch)[1], np.full((2 * n, n), n))


@pytest.mark.parametrize(
    ("start", "total", "steps", "traced"),
    [
        pytest.param(0, 50, 3, (11, 13), id="after the first ten"),
        pytest.param(5, 9, 3, (7, 9), id="the last of a short run"),
        pytest.param(5, 7, 9, (6, 7), id="more than are left"),
    ],
)
def test_profile_traces_the_requested_steps(tmp_path, monkeypatch, start, total, steps, traced):
    calls = []
    monkeypatch.setattr(perf.jax.profiler, "start_trace", lambda folder: calls.append((folder, step)))
    monkeypatch.setattr(perf.jax.profiler, "stop_trace", lambda: calls.append((None, step)))
    trace = profile(tmp_path, start, total, steps)
    for step in range(start, total + 1):
        trace(step, {})
    # Called before the first step, and after each.
    assert calls == [(str(tmp_path / "profile"), traced[0] - 1), (None, traced[1])]


def test_profile_of_zero_steps_traces_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(perf.jax.profiler, "start_trace", None)
    trace = profile(tmp_path, 0, 50, 0)
    for step in range(51):
        trace(step, {})
