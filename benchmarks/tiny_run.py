"""A training of seconds as real processes, for what is done to them from outside: kills, signals, full disks."""

import io
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from configs import demo
from cvsa_jax import settings
from cvsa_jax.runtime.distributed import make_mesh
from cvsa_jax.saliency.compute import compute
from cvsa_jax.saliency.detectors.annotation import masks
from cvsa_jax.training import checkpoint
from cvsa_jax.training.log import read_metrics
from cvsa_jax.training.resume import read_config
from cvsa_jax.training.state import init_state

ROOT = Path(__file__).parent.parent
DATA = {"classes": 3, "train_per_class": 7, "test_per_class": 5, "size": 32}
CHECKPOINT_STEPS = 20
FLAGS = {
    **{f"data.procedural.{key}": value for key, value in DATA.items()},
    "views.size": 32,
    "eval.size": 32,
    "eval.resize": 32,
    "eval.batch_size": 8,
    "eval.knn": "()",
    "model.width": 4,
    "model.head_hidden": 16,
    "model.head_out": 8,
    # Plain and slow: sums in another order differ in their last bits, which Adam would blow up.
    "optim.name": "sgd",
    "optim.lr": 0.002,
    "optim.warmup_steps": 2,
    "batch_size": 16,
    "watch.knn_steps": 0,
    "log_steps": 1,
    "checkpoint_steps": CHECKPOINT_STEPS,
}


def make_store(folder: Path) -> None:
    """The saliency store of the run's images."""
    config = demo.get_config()
    config.data.procedural.update(DATA)
    source = settings.load_source(config.data)
    compute(source, masks(source), folder, threshold=0.5, on_bad_image="stop")


def make_folder(folder: Path) -> dict[str, object]:
    """The run's images as JPEG files; the flags, for `start`, of BYOL on them."""
    config = demo.get_config()
    config.data.procedural.update(DATA)
    source = settings.load_source(config.data)
    for i, name in enumerate(source.names):
        split = next(split for split, members in source.splits.items() if i in members)
        path = folder / split / source.classes[source.labels[i]] / f"{Path(name).stem}_{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(io.BytesIO(source.read(i))).save(path)
    return {"data__kind": "folder", "data__root": folder, "views__kind": "random_resized_crop", "align__weight": 0.0}


def start(
    workdirs: list[Path], store: Path, cache: Path, *, devices: int, steps: int, **flags
) -> list[subprocess.Popen]:
    """The run as one process for each workdir (usually the same), with so many simulated devices each.

    Args:
        cache: folder of compiled programs.
        flags: more of the config, with `__` for the dots.
    """
    given = FLAGS | {"total_steps": steps, "saliency.store": store}
    given |= {key.replace("__", "."): value for key, value in flags.items()}
    port, started = _free_port(), []
    for k, workdir in enumerate(workdirs):
        command = ["cvsa_jax.main", "--config=configs/demo.py", f"--workdir={workdir}"]
        command += [f"--config.{key}={value}" for key, value in given.items()]
        if len(workdirs) > 1:
            command += [f"--coordinator=127.0.0.1:{port}", f"--num_processes={len(workdirs)}", f"--process_id={k}"]
        started.append(python(command, cache, devices))
    return started


def python(module_and_flags: list[str], cache: Path, devices: int) -> subprocess.Popen:
    """`python -m …` with output in a pipe, on simulated devices."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    command = [sys.executable, "-u", "-m", *module_and_flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


def ended(processes: list[subprocess.Popen], code: int = 0) -> list[str]:
    """What the processes print; AssertionError unless all end with this exit code."""
    printed = [process.communicate(timeout=300)[0] for process in processes]
    codes = [process.returncode for process in processes]
    assert codes == [code] * len(processes), f"exit codes {codes}, not {code}:\n" + "\n".join(printed)
    return printed


def wait_for_step(workdir: Path, step: int, processes: list[subprocess.Popen]) -> None:
    """Until the run's log has this step."""
    while last_step(workdir) < step:
        assert all(process.poll() is None for process in processes), processes[0].communicate()[0]
        time.sleep(0.002)


def last_step(workdir: Path) -> int:
    """The last step in the run's log, 0 where there is none."""
    return max((row["step"] for row in read_metrics(workdir)), default=0)


def kill(processes: list[subprocess.Popen]) -> None:
    """kill -9 of the first process, and at once of the others, which would wait for it until its heartbeats fail."""
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.communicate()


def final_state(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Path -> values of the newest checkpoint, which must be that of a step."""
    config = read_config(str(workdir))
    optimizer, _ = settings.optimizer(config, DATA["classes"] * DATA["train_per_class"])
    size = config.views.size
    like = init_state(settings.model(config.model), optimizer, size, jax.random.key(9), classes=DATA["classes"])
    checkpoints = checkpoint.Checkpointer(workdir)
    state = checkpoints.restore(like, make_mesh(jax.devices()[:1]))
    checkpoints.close()
    assert int(state.step) == step, f"{workdir} ended with step {int(state.step)}, not {step}"
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(state)}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
