"""The road that users take, by the commands as they type them: stage 1, maps, stage 2, probe, fine-tuning, export.

    python -m benchmarks.main_road                       # on a GPU ResNet-50 at 224 px; elsewhere `--scale=small`
    python -m benchmarks.main_road --scale=few           # ResNet-50 at 224 px on two cores, of few steps

Stage 1 is the recipe of configs/imagenet.py (BYOL, LARS) on a folder of drawn birds; stage 2 configs/cub.py, the probe
configs/cub_linear.py and fine-tuning configs/cub_finetune.py on other drawn birds in CUB's own archives. Optimisers,
schedules and heads are the configs' own; learning rates are raised so that their peaks are those of the recipes'
batches of 256. Each training gets a SIGTERM in its middle and goes on.

What must hold of any healthy training is checked: every part that has a gradient moves, every other stays to the bit,
the alignment and the objective fall, nothing has collapsed, the probe is ahead of the start's, and what is exported
gives the run's features. With `--scale=few` the checks that need more steps are left out, and the output says which.
Writes benchmarks/results/main_road.json; exit code 1 where a check fails.
"""

import argparse
import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from PIL import Image

import cvsa_jax
from benchmarks.common import write_results
from cvsa_jax import settings
from cvsa_jax.data.sources import load, procedural
from cvsa_jax.runtime.distributed import make_mesh
from cvsa_jax.training import checkpoint
from cvsa_jax.training.log import read_metrics
from cvsa_jax.training.resume import read_config
from cvsa_jax.training.state import Network, empty_network, init_state

PYTHON = (sys.executable, "-u", "-m")


@dataclasses.dataclass(frozen=True)
class Scale:
    """`images` of each class in the train part, `px` of the views, and whether the steps are `enough` to learn from."""

    classes: int
    images: int
    px: int
    batch: int
    steps: int
    epochs: float  # of fine-tuning
    model: dict[str, object]
    enough: bool = True

    @property
    def flags(self) -> list[str]:
        """What the three trainings share."""
        flags = {"eval.size": self.px, "eval.resize": round(self.px * 256 / 224), "views.size": self.px}
        flags |= {"log_steps": 1 if self.steps < 100 else 10} | {f"model.{k}": v for k, v in self.model.items()}
        return [f"--config.{key}={value}" for key, value in flags.items()]

    def pretraining(self) -> list[str]:
        """A batch and a rate whose peak is that of the recipes' batch of 256, and the number of steps."""
        flags = {"batch_size": self.batch, "optim.lr": 0.45 * 256 / self.batch, "total_steps": self.steps}
        flags |= {"optim.warmup_steps": max(1, self.steps // 10), "watch.knn_steps": 0, "checkpoint_steps": self.steps}
        flags |= {"target.reference_batch": self.batch} if self.px < 224 else {}
        return [f"--config.{key}={value}" for key, value in flags.items()]


_SMALL = {"depth": 8, "width": 16, "stem": "small", "head_hidden": 256, "head_out": 64}
SCALES = {
    "full": Scale(100, 30, 224, 256, 600, 10.0, {"dtype": "bfloat16"}),
    "few": Scale(4, 6, 224, 8, 6, 1.0, {}, enough=False),
    "small": Scale(12, 40, 64, 32, 300, 12.0, _SMALL),
    "tiny": Scale(3, 8, 32, 8, 12, 1.0, _SMALL | {"width": 4, "head_hidden": 16, "head_out": 8}, enough=False),
}


class Road:
    """The commands one after the other in a folder of their own, what was checked, and what each phase took."""

    def __init__(self, folder: Path, scale: Scale):
        self.folder, self.scale = folder, scale
        self.checks: dict[str, bool] = {}
        self.left_out: list[str] = []
        self.phases: dict[str, dict[str, float]] = {}

    def check(self, what: str, holds: bool, *, needs_steps: bool = False) -> None:
        if needs_steps and not self.scale.enough:
            self.left_out.append(what)
            return
        self.checks[what] = bool(holds)
        print(f"{'holds' if holds else 'FAILS'}: {what}", flush=True)

    def command(self, phase: str, *words: str) -> str:
        began = time.monotonic()
        done = subprocess.run([*PYTHON, *words], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{phase} ended with code {done.returncode}:\n{done.stdout}\n{done.stderr}")
        self.phases[phase] = {"seconds": time.monotonic() - began}
        print(f"{phase}: {self.phases[phase]['seconds']:.0f} s", flush=True)
        return done.stdout

    def training(self, phase: str, *words: str) -> Path:
        """Trains, is interrupted in the middle, and goes on; its rate, share of time waiting for input, and memory."""
        workdir = self.folder / phase
        words = ("cvsa_jax.main", *words, f"--workdir={workdir}", *self.scale.flags)
        began, middle = time.monotonic(), self.scale.steps // 2
        first = subprocess.Popen([*PYTHON, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while first.poll() is None and max((row["step"] for row in read_metrics(workdir)), default=0) < middle:
            time.sleep(0.05)
        first.send_signal(signal.SIGTERM)
        said = first.communicate()[1]
        self.check(f"{phase}: SIGTERM in the middle saves and ends with 42", first.returncode == 42)
        if first.returncode not in (0, 42):
            raise SystemExit(said)
        self.command(phase, *words)
        rows = read_metrics(workdir)
        self.check(f"{phase}: goes on to its last step", rows[-1]["step"] == self.scale.steps)
        speed = {key.removeprefix("perf/"): value for key, value in rows[-1].items() if key.startswith("perf/")}
        self.phases[phase] = speed | {"seconds": time.monotonic() - began}
        return workdir


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--scale", choices=SCALES, default="full" if jax.default_backend() == "gpu" else "small")
    name = asked.parse_args().scale
    folder = Path(tempfile.mkdtemp(prefix="cvsa_jax-road-"))
    try:
        road = drive(folder, SCALES[name])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for phase, figures in road.phases.items():
        print(f"{phase:12}" + "".join(f"  {key} {value:.4g}" for key, value in figures.items()))
    for what in road.left_out:
        print(f"not checked in so few steps: {what}")
    told = {"scale": name, "device": jax.devices()[0].device_kind} | dataclasses.asdict(road.scale)
    write_results("main_road", told | {"phases": road.phases, "checks": road.checks, "left_out": road.left_out})
    sys.exit(not all(road.checks.values()))


def drive(folder: Path, scale: Scale) -> Road:
    road = Road(folder, scale)
    draw_folder(folder / "pictures", scale)
    draw_cub(folder / "cub", scale)
    cub, store = f"--config.data.root={folder / 'cub'}", f"--config.saliency.store={folder / 'maps'}"

    # Stage 1. configs/imagenet.py is configs/folder.py:byol on TFDS's ImageNet.
    stage1 = road.training(
        "stage1",
        "--config=configs/folder.py:byol",
        f"--config.data.root={folder / 'pictures'}",
        *scale.pretraining(),
    )
    check_parts(road, stage1, None)
    check_learning(road, stage1, ["train/contrastive"])

    # Stage 2, with the maps that it needs.
    road.command("maps", "cvsa_jax.saliency", "--config=configs/cub.py", cub, store, "--detector=masks")
    start = f"--config.init_from={stage1}"
    stage2 = road.training("stage2", "--config=configs/cub.py", cub, store, start, *scale.pretraining())
    check_parts(road, stage2, stage1)
    check_learning(road, stage2, ["train/align", "train/contrastive"])

    # The probe of both, and fine-tuning.
    top = {}
    for phase, run in (("stage1", stage1), ("stage2", stage2)):
        words = ("cvsa_jax.main", "--config=configs/cub_linear.py", cub, f"--config.init_from={run}")
        road.command(f"probe of {phase}", *words, f"--workdir={folder / f'linear_{phase}'}")
        top[phase] = json.loads((folder / f"linear_{phase}" / "report" / "results.json").read_text())["linear_top1"]
    road.phases["probe of stage2"] |= {f"linear_top1_{phase}": value for phase, value in top.items()}
    road.check("the probe of stage 2 is ahead of its start's", top["stage2"] > top["stage1"], needs_steps=True)
    tuned = folder / "tuned"
    words = ("cvsa_jax.main", "--config=configs/cub_finetune.py", cub, f"--config.init_from={stage2}")
    length = (f"--config.total_epochs={scale.epochs}", "--config.learning_rates=(0.03,)", "--config.batch_size=16")
    road.command("fine-tuning", *words, *length, f"--workdir={tuned}", *scale.flags[:3])
    found = json.loads((tuned / "report" / "results.json").read_text())["finetune_top1"]
    road.phases["fine-tuning"]["finetune_top1"] = found
    road.check("fine-tuning is ahead of chance by two standard errors", found > _above_chance(scale), needs_steps=True)

    # Export.
    road.command("export", "cvsa_jax.weights", "export", f"--run={stage2}", f"--out={folder / 'out'}")
    images = np.random.default_rng(0).integers(0, 256, (4, scale.px + 9, scale.px + 30, 3), np.uint8)
    file = folder / "out" / "model.safetensors"
    features = [cvsa_jax.load_backbone(str(origin)).features(images) for origin in (stage2, file)]
    exact = scale.model.get("dtype", "float32") == "float32"  # a file does not say what it is computed in
    road.check("the export's features are the run's", np.allclose(*features, rtol=1e-5 if exact else 0.05, atol=1e-4))
    return road


def _above_chance(scale: Scale) -> float:
    chance, tested = 1 / scale.classes, scale.classes * max(4, scale.images)
    return chance + 2 * (chance * (1 - chance) / tested) ** 0.5


def check_parts(road: Road, run: Path, start: Path | None) -> None:
    """Every part with a gradient has moved away from where the run began; every other is what it was, to the bit."""
    config, before = read_config(str(run)), initial(run)
    if start is not None:
        trained = settings.trained_parts(read_config(str(start)))
        before = before.with_parts(online(start).only(trained))
    after, trained = online(run), settings.trained_parts(config)
    for part in sorted(after.params):
        pairs = zip(*(jax.tree.leaves(network.params[part]) for network in (after, before)), strict=True)
        moved = [bool(np.any(a != b)) for a, b in pairs if a.ndim > 1]
        stays = part not in trained
        what = "stays to the bit" if stays else "moves, each kernel"
        road.check(f"{run.name}: {part} {what}", not any(moved) if stays else all(moved))
    rows = read_metrics(run)
    road.check(f"{run.name}: every step has a gradient", all(row["health/grad_norm"] > 0 for row in rows))


def check_learning(road: Road, run: Path, losses: list[str]) -> None:
    """The losses fall, and the projections have not collapsed."""
    rows = read_metrics(run)
    first, last = rows[: max(1, len(rows) // 10)], rows[-max(1, len(rows) // 10) :]
    if "train/align" in losses:
        gradient = [row["health/align_gradient"] / row["health/objective_gradient"] for row in rows]
        road.check(f"{run.name}: the alignment has a gradient", min(gradient) > 1e-4)
    for key in losses:
        ends = [float(np.mean([row[key] for row in part])) for part in (first, last)]
        road.check(f"{run.name}: {key} falls, {ends[0]:.3f} to {ends[1]:.3f}", ends[1] < ends[0], needs_steps=True)
    std, rank = (last[-1][f"health/{key}"] for key in ("projection_std", "effective_rank"))
    what = f"{run.name}: no collapse (std {std:.2f}, rank {rank:.1f})"
    road.check(what, std > 0.1 and rank > 1.2, needs_steps=True)


def online(run: Path) -> Network:
    model = settings.model(read_config(str(run)).model)
    return jax.device_get(checkpoint.restore_online(run, empty_network(model), make_mesh())[0])


def initial(run: Path) -> Network:
    """The random weights of the run's config."""
    config = read_config(str(run))
    model, (optimizer, _) = settings.model(config.model), settings.optimizer(config, config.batch_size)
    build = jax.jit(lambda key: init_state(model, optimizer, config.views.size, key).online)
    return jax.device_get(build(jax.random.key(config.seed)))


# Drawn birds in the layouts of users.


def _drawn(scale: Scale, seed: int):
    test = max(4, scale.images)
    return load("procedural", "", procedural.Spec(seed, scale.classes, scale.images, test, scale.px + scale.px // 4))


def _jpeg(source, i: int) -> bytes:
    content = io.BytesIO()
    Image.open(io.BytesIO(source.read(i))).convert("RGB").save(content, "JPEG", quality=92)
    return content.getvalue()


def draw_folder(root: Path, scale: Scale) -> None:
    """A flat folder without labels, of other kinds of birds."""
    source = _drawn(scale, seed=1)
    root.mkdir()
    for i in source.split("train"):
        (root / f"{i:06d}.jpg").write_bytes(_jpeg(source, int(i)))


def draw_cub(root: Path, scale: Scale) -> None:
    """CUB-200-2011's two archives as they are got, of drawn birds."""
    source, tables = _drawn(scale, seed=2), {}
    train = set(source.split("train").tolist())
    names = [f"{label + 1:03d}.Bird_{label}/{i:06d}.jpg" for i, label in enumerate(source.labels)]
    tables["images.txt"] = [f"{i + 1} {name}" for i, name in enumerate(names)]
    tables["image_class_labels.txt"] = [f"{i + 1} {label + 1}" for i, label in enumerate(source.labels)]
    tables["train_test_split.txt"] = [f"{i + 1} {int(i in train)}" for i in range(len(source))]
    tables["classes.txt"] = [f"{label + 1} {label + 1:03d}.Bird_{label}" for label in range(scale.classes)]
    root.mkdir()
    with tarfile.open(root / "CUB_200_2011.tgz", "w:gz", compresslevel=1) as archive:
        for table, lines in tables.items():
            _add(archive, f"CUB_200_2011/{table}", "".join(f"{line}\n" for line in lines).encode())
        for i, name in enumerate(names):
            _add(archive, f"CUB_200_2011/images/{name}", _jpeg(source, i))
    with tarfile.open(root / "segmentations.tgz", "w:gz", compresslevel=1) as archive:
        for i, name in enumerate(names):
            content = io.BytesIO()
            Image.fromarray(source.mask(i)).save(content, "PNG")
            _add(archive, f"segmentations/{name.removesuffix('.jpg')}.png", content.getvalue())


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime = len(content), int(os.path.getmtime(__file__))
    archive.addfile(info, io.BytesIO(content))


if __name__ == "__main__":
    main()
