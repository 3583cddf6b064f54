"""A copy of the repository's launch files, with recording stand-ins first on PATH for what the scripts call."""

import re
import shutil
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPTS = ("local.sh", "gpu.sh", "tpu_pod.sh", "gke.sh", "slurm.sbatch")
SHELL_FILES = (*SCRIPTS, "common.sh", "tpu_host.sh")
TRAIN = ("--config=configs/folder.py:small", "--workdir=runs/x")
TRAINING = "-m cvsa_jax.main --config=configs/folder.py:small --workdir=runs/x"

TPU = ("--name=cub", "--zone=z")
GKE = ("--image=i", "--bucket=b")

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
echo $$ >>"$SITE/processes"
read -r end file <"$SITE/ends/$number"
sed -i 1d "$SITE/ends/$number"
case $end in
    hang) exec sleep 120 ;;
    deaf)
        trap '' TERM
        touch "$SITE/up$number"
        exec sleep 120
        ;;
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
        if [[ $command == *' wait' && -e $SITE/cut ]]; then
            # Not before the log is followed, which would be stopped before it is recorded.
            for ((i = 0; i < 200; i++)); do grep -q 'tpu_host.sh log' "$RECORD" && break; sleep 0.05; done
            rm "$SITE/cut"
            exit 255
        fi
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

UV_GPU = [
    "uv venv --quiet --python >=3.11,<3.14 .venv",
    "uv pip install --quiet --python .venv/bin/python -r launch/requirements-gpu.txt",
]


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

    def running(self) -> list[int]:
        """The processes of the trainings that have not ended."""
        file = self.folder / "processes"
        numbers = map(int, file.read_text().split()) if file.exists() else ()
        return [number for number in numbers if Path(f"/proc/{number}").exists()]

    def record(self, host: str = "") -> list[str]:
        file = self.folder / f"record{host}"
        return self.plain(file.read_text()) if file.exists() else []

    def plain(self, text: str) -> list[str]:
        """The lines without what differs from run to run."""
        text = text.replace(str(self.folder), "SITE")
        return re.sub(r"cvsa_jax\.\d+/", "cvsa_jax.0/", text).splitlines()


def until(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
