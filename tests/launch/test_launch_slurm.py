"""slurm.sbatch on a stand-in for Slurm."""

import re

import pytest
from support.launch_site import (
    RECORDER,
    ROOT,
    SBATCH,
    SRUN,
    TRAIN,
    TRAINING,
    UV,
    UV_GPU,
)


def submit(site, *arguments):
    site.stand_in(sbatch=SBATCH, srun=SRUN, scontrol=RECORDER)
    return site.run("sbatch launch/slurm.sbatch", *TRAIN, *arguments)


def steps(site) -> list[str]:
    """The programs that the job called."""
    return [re.sub(r"^(\w+=\S+ )*", "", line).split()[0] for line in site.record()[1:]]


def test_slurm_job_installs_and_trains(site):
    site.stand_in(uv=UV)
    site.write(ends_0=[0])
    assert submit(site).returncode == 0
    *installed, trained = site.record()[1:]
    assert installed == UV_GPU
    assert trained.startswith("JAX_PLATFORMS=cuda,cpu SRUN_CPUS_PER_TASK=8 srun ")
    assert trained.endswith(f" .venv/bin/python {TRAINING}")


def test_slurm_requeues_an_interrupted_job(site):
    site.own_python()
    site.write(ends_0=[42])
    assert submit(site).returncode == 42
    assert steps(site) == ["srun", "scontrol"]
    assert site.record()[-1] == "scontrol requeue 7"


@pytest.mark.parametrize("code", (1, 137))
def test_slurm_returns_the_code_of_a_failure(site, code):
    site.own_python()
    site.write(ends_0=[code])
    assert submit(site).returncode == code
    assert steps(site) == ["srun"]


def test_slurm_limits_the_requeues(site):
    site.own_python()
    site.write(ends_0=[42])
    site.environment["SLURM_RESTART_COUNT"] = "3"
    done = submit(site, "--max-restarts=3")
    assert done.returncode == 42
    assert done.stderr == "interrupted once more after 3 restarts (--max-restarts); the same command goes on\n"
    assert steps(site) == ["srun"]


def test_slurm_needs_a_task_for_each_gpu(site):
    site.environment.update(SLURM_NTASKS_PER_NODE="1", SLURM_GPUS_ON_NODE="4")
    answer = submit(site)
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: 1 tasks and 4 GPUs on a node")
    assert len(site.record()) == 1


def test_slurm_refuses_submission_from_another_folder(site):
    site.stand_in(sbatch=SBATCH)
    answer = site.run("env --chdir=configs sbatch ../launch/slurm.sbatch", *TRAIN)
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: submit it from the root of the repository")


def test_slurm_signals_the_training_and_not_the_shell():
    lines = (ROOT / "launch/slurm.sbatch").read_text().splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    assert "--signal=TERM@120" in options
    assert "--requeue" in options
    assert "--open-mode=append" in options


def test_slurm_dry_run(site):
    shown = site.run("slurm.sbatch", "--dry-run", *TRAIN)
    assert shown.stdout.splitlines() == [
        "./setup.sh .venv launch/requirements-gpu.txt",
        f"srun --kill-on-bad-exit=0 --wait=300 .venv/bin/python {TRAINING}",
    ]
    assert shown.returncode == 0
