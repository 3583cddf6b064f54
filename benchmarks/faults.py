"""A campaign of faults: small runs are killed at random moments and started again, and must end as if nothing had been.

    python -m benchmarks.faults --kills=60 --seed=0

One run (one process, two simulated devices), its saliency pass, and the same run in two processes are killed with
SIGKILL, in turn
  - in a step: after a random step of the log and a random part of the next,
  - in a save: when an unfinished checkpoint is seen on the disk, and up to a random while later,
  - in a start: anywhere between the start of the command and its first step, so during imports, restore or compilation,
  - in the saliency pass, at a random share of the time that it takes,
  - one of two processes, in a step; what starts them ends the other at once.
After each kill the same command goes on, until it is killed again; a run that comes to its end is compared bit for bit
with one that nothing interrupted, and the next begins. Then come faults of the storage. Prints the tables behind
docs/measurements/reliability.md and writes benchmarks/results/faults.json. Stops at the first run that differs or does
not go on.
"""

import collections
import contextlib
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags, logging

from benchmarks import tiny_run
from benchmarks.common import write_results

_KILLS = flags.DEFINE_integer("kills", 60, "In all, divided over the moments.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")
_STEPS = flags.DEFINE_integer("steps", 200, "Of each run.")
DEVICES = 2
MOMENTS = ("in a step", "in a save", "in a start", "in the saliency pass", "one of two processes, in a step")
_UNFINISHED = "*orbax-checkpoint-tmp*"


class Campaign:
    """Runs in a folder of their own, and what was counted of them."""

    def __init__(self, folder: Path, rng: np.random.Generator):
        self.folder, self.rng = folder, rng
        self.store, self.cache, self.runs = folder / "store", folder / "cache", 0
        tiny_run.make_store(self.store)
        self.expected = self._finished(folder / "uninterrupted")
        # With everything compiled: how long a start takes.
        began = time.monotonic()
        shutil.rmtree(folder / "uninterrupted")
        processes = self._start(folder / "uninterrupted")
        tiny_run.wait_for_step(folder / "uninterrupted", 1, processes)
        self.start_seconds = time.monotonic() - began
        tiny_run.ended(processes)
        self._compare(folder / "uninterrupted", self.expected)
        self.lost: dict[str, list[int]] = collections.defaultdict(list)
        self.unfinished_left = 0

    def kill_training(self, moments: list[str]) -> None:
        """Kills one run at each of the moments in turn, or several runs where one comes to its end before."""
        workdir = self._next_workdir()
        while moments:
            before = tiny_run.last_step(workdir)
            if not self._killed(moments[0], workdir):
                self._compare(workdir, self.expected)
                workdir = self._next_workdir()
                continue
            at, kept = tiny_run.last_step(workdir), self._newest(workdir)
            # A run killed before its first step has left the log of the one before, whose loss is counted already.
            self.lost[moments[0]].append(0 if moments[0] == "in a start" and at == before else max(at - kept, 0))
            self.unfinished_left += any((workdir / "ckpt").glob(_UNFINISHED))
            print(f"killed {moments[0]}: step {at}, newest checkpoint {kept}", flush=True)
            moments.pop(0)
        tiny_run.ended(self._start(workdir))
        self._compare(workdir, self.expected)

    def kill_one_of_two(self, count: int) -> None:
        """Kills one of two processes with a device each so often, in a random step; both go on."""
        expected = self._finished(self.folder / "two", processes=2)
        workdir, killed = self._next_workdir(), 0
        while killed < count:
            processes = self._start(workdir, processes=2)
            step = self._newest(workdir) + int(self.rng.integers(1, 2 * tiny_run.CHECKPOINT_STEPS))
            _wait(processes[0], lambda workdir=workdir, step=step: tiny_run.last_step(workdir) >= step)
            if processes[0].poll() is not None:
                tiny_run.ended(processes)
                self._compare(workdir, expected)
                workdir = self._next_workdir()
                continue
            tiny_run.kill(processes if self.rng.integers(2) else processes[::-1])
            killed += 1
            at, kept = tiny_run.last_step(workdir), self._newest(workdir)
            self.lost[MOMENTS[4]].append(max(at - kept, 0))
            print(f"killed {MOMENTS[4]}: step {at}, newest checkpoint {kept}", flush=True)
        tiny_run.ended(self._start(workdir, processes=2))
        self._compare(workdir, expected)

    def kill_saliency(self, count: int) -> None:
        """Kills the saliency pass so often, at random moments, and compares the store that it ends with."""
        command = ["cvsa_jax.saliency", "--config=configs/demo.py", "--detector=rbd"]
        command += [f"--config.data.procedural.{key}={value}" for key, value in tiny_run.DATA.items()]
        # Enough images that a pass has several files.
        command += ["--config.data.procedural.train_per_class=300"]

        def pass_into(folder):
            return tiny_run.python([*command, f"--config.saliency.store={folder}"], self.cache, 1)

        began = time.monotonic()
        tiny_run.ended([pass_into(self.folder / "maps")])
        seconds = time.monotonic() - began
        expected = _maps(self.folder / "maps")
        killed = 0
        while killed < count:
            folder = self.folder / "maps_killed"
            shutil.rmtree(folder, ignore_errors=True)
            while killed < count:
                process = pass_into(folder)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(self.rng.uniform(0.05, 1.0) * seconds)
                if process.poll() is not None:
                    break
                tiny_run.kill([process])
                killed += 1
                self.lost[MOMENTS[3]].append(0)
                print(f"killed {MOMENTS[3]}: {len(list(folder.glob('shard-*.npy')))} files finished", flush=True)
            else:
                process = pass_into(folder)
            tiny_run.ended([process])
            stored = _maps(folder)
            assert stored.keys() == expected.keys() and all((stored[k] == expected[k]) for k in expected), folder

    def storage_faults(self) -> dict[str, str]:
        """Fault -> the error it leads to, or how it is survived."""
        told = {}
        finished = self._next_workdir()
        tiny_run.ended(self._start(finished))

        # A file of the newest checkpoint is cut off: the error names it, and without it the run goes on from the one
        # before.
        workdir = Path(shutil.copytree(finished, self._next_workdir()))
        newest = workdir / "ckpt" / str(_STEPS.value)
        largest = max((p for p in (newest / "online").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
        told["a file of the newest checkpoint cut off"] = self._error(workdir)
        shutil.rmtree(newest)
        tiny_run.ended(self._start(workdir))
        self._compare(workdir, self.expected)

        # The disk is full during a save.
        with _tmpfs(self.folder / "small", "size=600k") as small:
            if small:
                told["disk full during a save"] = self._error(small / "run", checkpoint_steps=2)

        # The folder cannot be written.
        with _tmpfs(self.folder / "readonly", "ro") as readonly:
            if readonly:
                told["a workdir that cannot be written"] = self._error(readonly)

        # The store is deleted after the start.
        store = Path(shutil.copytree(self.store, self.folder / "lent"))
        workdir = self._next_workdir()
        processes = tiny_run.start([workdir], store, self.cache, devices=DEVICES, steps=_STEPS.value)
        tiny_run.wait_for_step(workdir, 5, processes)
        shutil.rmtree(store)
        tiny_run.ended(processes)
        self._compare(workdir, self.expected)
        told["the saliency store deleted during the run"] = "survived: an open file stays readable; the end is the same"

        # An image is cut off in the middle of an epoch: the error names it, and with the whole file the run goes on.
        flags = tiny_run.make_folder(self.folder / "images")
        finished, workdir = self._next_workdir(), self._next_workdir()
        expected = self._finished(finished, **flags)
        processes = self._start(workdir, **flags)
        tiny_run.wait_for_step(workdir, 5, processes)
        image = self.rng.choice(sorted((self.folder / "images" / "train").rglob("*.jpg")))
        whole = image.read_bytes()
        image.write_bytes(whole[: len(whole) // 2])
        told["a JPEG cut off in the middle of an epoch"] = self._told(processes)
        image.write_bytes(whole)
        tiny_run.ended(self._start(workdir, **flags))
        self._compare(workdir, expected)
        return told

    def _error(self, workdir: Path, **flags) -> str:
        return self._told(self._start(workdir, **flags))

    def _told(self, processes: list[subprocess.Popen]) -> str:
        """The error with which a process ends.

        Raises:
            AssertionError: it ends otherwise.
        """
        # On a full disk TensorBoard's thread prints a traceback of its own besides.
        (printed,) = tiny_run.ended(processes, code=2)
        return next(line for line in printed.splitlines() if line.startswith("error: ")).replace(str(self.folder), "…")

    def _killed(self, moment: str, workdir: Path) -> bool:
        """Starts the run and kills it at the moment; False where it has come to its end before."""
        newest = self._newest(workdir)
        (process,) = self._start(workdir)
        if moment == "in a start":
            time.sleep(self.rng.uniform(0, self.start_seconds))
        else:
            # What the run before had begun, rows of the log and a checkpoint, is removed before the first step.
            _wait(process, lambda: tiny_run.last_step(workdir) <= newest)
            _wait(process, lambda: tiny_run.last_step(workdir) > newest)
            if moment == "in a step":
                step = newest + int(self.rng.integers(1, 2 * tiny_run.CHECKPOINT_STEPS))
                _wait(process, lambda: tiny_run.last_step(workdir) >= step)
                time.sleep(self.rng.uniform(0, 0.02))
            else:
                _wait(process, lambda: any((workdir / "ckpt").glob(_UNFINISHED)))
                time.sleep(self.rng.uniform(0, 0.1))
        if process.poll() is not None:
            tiny_run.ended([process])
            return False
        tiny_run.kill([process])
        return True

    def _start(self, workdir: Path, processes: int = 1, **flags) -> list[subprocess.Popen]:
        workdirs, devices = [workdir] * processes, DEVICES // processes
        return tiny_run.start(workdirs, self.store, self.cache, devices=devices, steps=_STEPS.value, **flags)

    def _finished(self, workdir: Path, processes: int = 1, **flags) -> dict[str, np.ndarray]:
        tiny_run.ended(self._start(workdir, processes, **flags))
        return tiny_run.final_state(workdir, _STEPS.value)

    def _compare(self, workdir: Path, expected: dict[str, np.ndarray]) -> None:
        state = tiny_run.final_state(workdir, _STEPS.value)
        assert state.keys() == expected.keys(), f"{workdir} holds {state.keys() ^ expected.keys()}"
        differing = [name for name, values in expected.items() if not np.array_equal(state[name], values)]
        assert not differing, f"{workdir} differs in {differing[:3]}"

    def _newest(self, workdir: Path) -> int:
        return max((int(p.name) for p in (workdir / "ckpt").glob("*") if p.name.isdigit()), default=0)

    def _next_workdir(self) -> Path:
        self.runs += 1
        return self.folder / f"run{self.runs}"


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.FATAL)
    rng = np.random.default_rng(_SEED.value)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder), rng)
        counts = {moment: _KILLS.value // len(MOMENTS) for moment in MOMENTS}
        training = [moment for moment in MOMENTS[:3] for _ in range(counts[moment])]
        rng.shuffle(training)
        campaign.kill_training(training)
        campaign.kill_saliency(counts[MOMENTS[3]])
        campaign.kill_one_of_two(counts[MOMENTS[4]])
        storage = campaign.storage_faults()
    rows = [
        f"| {moment} | {len(lost)} | {len(lost)} | {statistics.median(lost):g} | {max(lost)} |"
        for moment, lost in campaign.lost.items()
    ]
    print(
        "\n| killed | kills | went on, same end | steps lost, median | at most |\n|---|---|---|---|---|",
        *rows,
        sep="\n",
    )
    for fault, outcome in storage.items():
        print(f"- {fault}: {outcome}")
    results = {
        "seed": _SEED.value,
        "steps": _STEPS.value,
        "checkpoint_steps": tiny_run.CHECKPOINT_STEPS,
        "kills": sum(map(len, campaign.lost.values())),
        "runs": campaign.runs,
        "unfinished_checkpoints_left_by_kills": campaign.unfinished_left,
        "minutes": (time.monotonic() - began) / 60,
        "lost_steps": dict(campaign.lost),
        "storage": storage,
    }
    write_results("faults", results)


def _wait(process: subprocess.Popen, until) -> None:
    while process.poll() is None and not until():
        time.sleep(0.001)


def _maps(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(store.glob("shard-*.npy"))}


@contextlib.contextmanager
def _tmpfs(folder: Path, options: str):
    """A small file system in memory, or None where it may not be mounted (that takes root on Linux)."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False)
    try:
        yield None if mounted.returncode else folder
    finally:
        if not mounted.returncode:
            subprocess.run(["umount", folder], check=True)


if __name__ == "__main__":
    app.run(main)
