"""All the launch scripts, and those for one machine: local.sh and gpu.sh."""

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.launch_site import (
    GCLOUD,
    GKE,
    KUBECTL,
    NVIDIA_SMI,
    ROOT,
    SCRIPTS,
    SHELL_FILES,
    SRUN,
    TPU,
    TRAIN,
    TRAINING,
    UV,
    UV_GPU,
    until,
)


def test_shellcheck_finds_nothing():
    files = [f"launch/{name}" for name in SHELL_FILES]
    shellcheck = Path(sys.executable).parent / "shellcheck"
    checked = subprocess.run((shellcheck, "-x", *files), cwd=ROOT, capture_output=True, text=True)
    assert checked.stdout == ""
    assert checked.returncode == 0


@pytest.mark.parametrize("extra", ("gpu", "tpu"))
def test_accelerator_requirements_add_to_the_pinned_ones(extra):
    lines = (ROOT / f"launch/requirements-{extra}.txt").read_text().splitlines()
    assert "-r ../requirements.txt" in lines
    assert {"gpu": "jax[cuda13]", "tpu": "jax[tpu]"}[extra] in lines
    assert re.search(r"^jax==\S+$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)


# Every script: help and errors


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_runs_nothing(site, script):
    shown = site.run(script, "--name=x", "--help") if script == "tpu_pod.sh" else site.run(script, "--help")
    assert shown.returncode == 0
    assert shown.stdout.startswith("usage: ")
    assert "--dry-run" in shown.stdout
    assert shown.stderr == ""
    assert site.record() == []


WRONG = {
    "unknown option": ("local.sh", (*TRAIN, "--procs=2"), "unknown option --procs=2"),
    "unknown switch": ("gpu.sh", (*TRAIN, "--spot"), "unknown option --spot"),
    "switch with a value": ("gpu.sh", (*TRAIN, "--dry-run=1"), "unknown option --dry-run=1"),
    "no value": ("local.sh", (*TRAIN, "--processes"), "--processes needs a value: --processes=…"),
    "no value of the training": ("local.sh", (*TRAIN, "--config"), "--config needs a value: --config=…"),
    "word": ("gke.sh", (*TRAIN, "--pods", "2"), "--pods needs a value: --pods=…"),
    "word without dashes": (
        "gpu.sh",
        ("folder.py",),
        "unexpected argument folder.py: options are written --name=value",
    ),
    "no config": ("local.sh", TRAIN[1:], "--config is missing, e.g. --config=configs/folder.py"),
    "no workdir": ("slurm.sbatch", TRAIN[:1], "--workdir is missing, e.g. --workdir=runs/mine"),
    "octal": ("local.sh", (*TRAIN, "--processes=08"), "--processes=08 is not a whole number from 1"),
    "port": ("local.sh", (*TRAIN, "--port=70000"), "--port=70000 is not a whole number from 1 to 65535"),
    "gpus": ("gpu.sh", (*TRAIN, "--gpus=9"), "--gpus=9 is not a whole number from 1 to 8"),
    "no job": ("slurm.sbatch", TRAIN, "this is not a Slurm job: submit it with sbatch"),
    "no name": ("tpu_pod.sh", TRAIN, "--name and --zone are needed"),
    "no image": ("gke.sh", TRAIN, "--image and --bucket are needed"),
    "half a TPU": (
        "tpu_pod.sh",
        (*TRAIN, *TPU, "--type=v6e-8"),
        "--type and --runtime belong together: give both to create a TPU",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_give_usage_and_one_error(site, name):
    script, arguments, message = WRONG[name]
    site.stand_in(nvidia_smi=NVIDIA_SMI, gcloud=GCLOUD, kubectl=KUBECTL, srun=SRUN)
    answer = site.run(script, *arguments)
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert answer.stderr.startswith("usage: ")
    assert answer.stderr.endswith(f"\nerror: {message}\n")
    assert site.record() == []


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    (
        ("local.sh", TRAIN, ".venv/bin/python is not there: run make setup"),
        ("gpu.sh", TRAIN, "nvidia-smi is not on PATH: this needs an NVIDIA GPU and its driver"),
        ("tpu_pod.sh", (*TRAIN, *TPU), "gcloud is not on PATH: install the Google Cloud CLI"),
        ("gke.sh", (*TRAIN, *GKE), "kubectl is not on PATH: install it"),
        ("tpu_pod.sh", (*TRAIN, *TPU, "--data=nowhere"), "--data: nowhere does not exist"),
    ),
    ids=("local", "gpu", "tpu", "gke", "data"),
)
def test_missing_tool_or_file_is_named(site, script, arguments, message):
    for tool in ("bash", "dirname"):  # and no other programs
        (site.folder / "bin" / tool).symlink_to(shutil.which(tool))
    site.environment["PATH"] = str(site.folder / "bin")
    answer = site.run(script, *arguments)
    assert answer.returncode == 2
    assert answer.stderr.startswith(f"error: {message}")
    assert answer.stderr.count("\n") == 1


# local.sh

LOCAL = (*TRAIN, "--port=4000")


def signal_name(number: signal.Signals) -> str:
    return number.name


def local_commands(processes: int) -> list[str]:
    return [
        f"JAX_PLATFORMS=cpu python {TRAINING} --coordinator=localhost:4000 --num_processes={processes} --process_id={i}"
        for i in range(processes)
    ]


def test_local_starts_all_processes_and_succeeds(site):
    site.own_python()
    site.write(ends_0=[0], ends_1=[0], ends_2=[0])
    done = site.run("local.sh", *LOCAL, "--processes=3")
    assert done.returncode == 0
    assert done.stderr == ""
    assert sorted(site.record()) == local_commands(3)


def test_local_stops_the_others_when_one_fails(site):
    site.own_python()
    site.write(ends_0=["hang"], ends_1=[3], ends_2=["deaf"])
    done = site.run("local.sh", *LOCAL, "--processes=3")
    assert done.returncode == 3
    assert done.stderr == "error: process 1 failed with exit code 3\n"
    assert sorted(site.record()) == local_commands(3)
    assert site.running() == []


def test_local_failure_outweighs_an_interruption(site):
    site.own_python()
    site.write(ends_0=[42], ends_1=[1])
    assert site.run("local.sh", *LOCAL).returncode == 1
    assert sorted(site.record()) == local_commands(2)


def test_local_restarts_an_interrupted_training(site):
    site.own_python()
    site.write(ends_0=[42, 42, 0], ends_1=[42, 0, 0])
    done = site.run("local.sh", *LOCAL)
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "interrupted: restart 1 of at most 100",
        "interrupted: restart 2 of at most 100",
    ]
    assert [sorted(site.record()[k : k + 2]) for k in (0, 2, 4)] == [local_commands(2)] * 3
    assert len(site.record()) == 6


def test_local_limits_the_restarts(site):
    site.own_python()
    site.write(ends_0=[42, 42], ends_1=[42, 42])
    done = site.run("local.sh", *LOCAL, "--max-restarts=1")
    assert done.returncode == 42
    assert done.stderr.splitlines() == [
        "interrupted: restart 1 of at most 1",
        "interrupted once more after 1 restarts (--max-restarts); the same command goes on",
    ]
    assert len(site.record()) == 4


@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1), ids=signal_name)
def test_local_passes_a_signal_on_and_does_not_restart(site, number):
    site.own_python()
    site.write(ends_0=["save"], ends_1=["save"])
    process = site.start("local.sh", *LOCAL)
    until(lambda: (site.folder / "up0").exists() and (site.folder / "up1").exists())
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 42
    assert sorted(site.record()) == ["0 saved", "1 saved", *local_commands(2)]


@pytest.mark.slow
def test_local_kills_the_training_at_a_second_signal(site):
    site.own_python()
    site.write(ends_0=["deaf"], ends_1=["deaf"])
    process = site.start("local.sh", *LOCAL)
    until(lambda: (site.folder / "up0").exists() and (site.folder / "up1").exists())
    process.terminate()
    time.sleep(2.5)  # signals within two seconds are one wish
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 137
    assert site.running() == []


def test_local_dry_run(site):
    shown = site.run("local.sh", "--dry-run", *LOCAL, "--config.views.source_area=(0.2, 0.3)", "--", "--more=it's")
    training = (
        f"env JAX_PLATFORMS=cpu .venv/bin/python {TRAINING} '--config.views.source_area=(0.2, 0.3)' '--more=it'\\''s'"
    )
    assert shown.stdout.splitlines() == [
        f"{training} --coordinator=localhost:4000 --num_processes=2 --process_id={i}" for i in range(2)
    ]
    assert shown.returncode == 0
    assert site.record() == []


# gpu.sh


def test_gpu_installs_and_trains_on_all_gpus(site):
    site.stand_in(nvidia_smi=NVIDIA_SMI, uv=UV)
    site.write(ends_0=[0])
    assert site.run("gpu.sh", *TRAIN).returncode == 0
    assert site.record() == [*UV_GPU, f"JAX_PLATFORMS=cuda,cpu python {TRAINING}"]


def test_gpu_trains_on_the_first_gpus_and_restarts(site):
    site.stand_in(nvidia_smi=NVIDIA_SMI)
    site.own_python()
    site.write(ends_0=[42, 0])
    assert site.run("gpu.sh", *TRAIN, "--gpus=2").returncode == 0
    training = f"JAX_PLATFORMS=cuda,cpu CUDA_VISIBLE_DEVICES=0,1 python {TRAINING}"
    assert site.record() == ["nvidia-smi --list-gpus", training, training]


def test_gpu_returns_the_code_of_a_failure(site):
    site.stand_in(nvidia_smi=NVIDIA_SMI)
    site.own_python()
    site.write(ends_0=[2])
    assert site.run("gpu.sh", *TRAIN).returncode == 2
    assert len(site.record()) == 1


def test_gpu_refuses_more_gpus_than_exist(site):
    site.stand_in(nvidia_smi=NVIDIA_SMI)
    answer = site.run("gpu.sh", *TRAIN, "--gpus=3")
    assert answer.returncode == 2
    assert answer.stderr.splitlines()[:2] == [
        "error: --gpus=3, but nvidia-smi lists:",
        "GPU 0: NVIDIA H100 (UUID: GPU-a)",
    ]


def test_gpu_saves_on_sigterm(site):
    site.stand_in(nvidia_smi=NVIDIA_SMI)
    site.own_python()
    site.write(ends_0=["save"])
    process = site.start("gpu.sh", *TRAIN)
    until(lambda: (site.folder / "up0").exists())
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 42
    assert site.record() == [f"JAX_PLATFORMS=cuda,cpu python {TRAINING}", "0 saved"]


# A training that handles signals as ours do, and takes half a second to save.
SAVING = """
import os, pathlib, time
from cvsa_jax.runtime import cli, interruption
from cvsa_jax.runtime.errors import Interrupted
site = pathlib.Path(os.environ["SITE"])
def main():
    with interruption.deferred() as interrupted:
        (site / "up0").touch()
        while not (stop := interrupted()):
            time.sleep(0.05)
        time.sleep(0.5)
        (site / "saved").touch()
        raise Interrupted("saved", interruption.CODES[stop])
cli.run(main)
"""


@pytest.fixture
def on_a_terminal(site):
    """A training under gpu.sh, started from a terminal of its own: (process, the terminal)."""
    (site.folder / "saving.py").write_text(SAVING)
    site.stand_in(nvidia_smi=NVIDIA_SMI, python=f'PYTHONPATH={ROOT} exec {sys.executable} "$SITE/saving.py"\n')
    site.own_python()
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ("setsid", "--ctty", "bash", "launch/gpu.sh", *TRAIN),
        cwd=site.repository,
        env=site.environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    until(lambda: (site.folder / "up0").exists())
    yield process, ours
    process.kill()
    process.wait()


def test_gpu_saves_on_ctrl_c_at_a_terminal(site, on_a_terminal):
    # The terminal signals the training as well as the script, which passes it on: two signals, and one wish.
    process, terminal = on_a_terminal
    os.write(terminal, b"\x03")
    assert process.wait(timeout=60) == 42
    assert (site.folder / "saved").exists()
    os.close(terminal)


def test_gpu_saves_when_its_terminal_closes(site, on_a_terminal):
    process, terminal = on_a_terminal
    os.close(terminal)
    assert process.wait(timeout=60) == 42
    assert (site.folder / "saved").exists()


@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGUSR1), ids=signal_name)
def test_gpu_saves_on_a_signal_to_the_whole_group(site, on_a_terminal, number):
    process, terminal = on_a_terminal
    os.killpg(process.pid, number)
    assert process.wait(timeout=60) == 42
    assert (site.folder / "saved").exists()
    os.close(terminal)


def test_gpu_keeps_to_the_visible_devices(site):
    site.stand_in(nvidia_smi=NVIDIA_SMI)
    site.own_python()
    site.environment["CUDA_VISIBLE_DEVICES"] = "4,5,GPU-c"
    site.write(ends_0=[0])
    assert site.run("gpu.sh", *TRAIN, "--gpus=2").returncode == 0
    assert site.record()[-1] == f"JAX_PLATFORMS=cuda,cpu CUDA_VISIBLE_DEVICES=4,5 python {TRAINING}"
    site.environment["CUDA_VISIBLE_DEVICES"] = "4"
    answer = site.run("gpu.sh", *TRAIN, "--gpus=2")
    assert answer.returncode == 2
    assert answer.stderr == "error: --gpus=2, but CUDA_VISIBLE_DEVICES=4 allows 1\n"


def test_gpu_dry_run(site):
    site.stand_in(uv=UV)
    shown = site.run("gpu.sh", "--dry-run", *TRAIN, "--gpus=2")
    assert shown.stdout.splitlines() == [
        "nvidia-smi --list-gpus",
        "./setup.sh .venv launch/requirements-gpu.txt",
        f"env JAX_PLATFORMS=cuda,cpu CUDA_VISIBLE_DEVICES=0,1 .venv/bin/python {TRAINING}",
    ]
    assert shown.returncode == 0
    assert site.record() == []
