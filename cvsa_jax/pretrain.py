"""Pre-training, stage 1 (BYOL) and stage 2 (CVSA): build, restore, loop, finish."""

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from cvsa_jax import checkpoint, photometric, report, settings
from cvsa_jax.data import pipeline
from cvsa_jax.data.sources import Source
from cvsa_jax.distributed import check_batch_size, make_mesh, replicated, to_mesh
from cvsa_jax.errors import UserError
from cvsa_jax.evaluation import localization
from cvsa_jax.evaluation.summary import Evaluator, center_prior, chance
from cvsa_jax.models.resnet import parameter_count
from cvsa_jax.monitor import FiniteCheck, Progress, Writer, read_metrics
from cvsa_jax.optim import target_decay
from cvsa_jax.saliency.store import SaliencyStore, store_path
from cvsa_jax.state import init_state
from cvsa_jax.steps import make_train_step

KNN_NEIGHBOURS = 20
_PICTURED = 10  # images in each picture
_PANELS = {
    "loss": ("loss", "contrastive", "align"),
    "collapse: std falls to 0": ("projection_std", "target_cosine"),
    "collapse: rank falls to 1": ("effective_rank",),
    "attention on the object": ("align_hit", "usable_pairs"),
    "learning rate": ("learning_rate",),
    "target decay tau": ("tau",),
}


def train(config: ConfigDict, workdir: Path) -> dict[str, float]:
    """Trains as `config` says and returns the figures of `report/results.json`; the same call continues a run.

    Raises:
        UserError: whatever the user can put right, before the first step where it can be known then.
    """
    # 1) Data, and the saliency maps where the views or the loss need them.
    source = settings.load_source(config.data)
    store = None
    if config.views.kind == "saliency_swap" or config.align.weight > 0:
        folder = store_path(config.saliency.store, source.name, config.saliency.detector)
        store = SaliencyStore(folder, source)
    usable = None if store is None else store.usable
    split = lambda name: pipeline.readable(source, source.split(name), config.data.on_bad_image, usable)  # noqa: E731
    pool = split(config.data.train_split)

    # 2) Model, optimiser and the jitted step.
    mesh = make_mesh()
    check_batch_size(config.batch_size, config.views.group, mesh)
    model = settings.model(config.model)
    optimizer, schedule = settings.optimizer(config, len(pool))
    total = settings.total_steps(config, len(pool))
    spec = settings.view_spec(config.views, model.stride)
    augment = [settings.photometric(config.augment[view]) for view in ("view1", "view2")]
    train_step = make_train_step(
        model,
        optimizer,
        mesh,
        tau=target_decay(config.target.tau, total, config.target.cosine),
        augment1=augment[0],
        augment2=augment[1],
        align_form=settings.align_form(config.align),
        align_weight=config.align.weight,
        seed=config.seed,
    )

    # 3) State: this workdir's newest checkpoint, else another run's network, else random weights.
    changes = settings.claim_workdir(config, workdir)
    initial = init_state(model, optimizer, spec.size, jax.random.key(config.seed))
    state = jax.device_put(initial, replicated(mesh))
    checkpoints = checkpoint.Checkpointer(workdir)
    identity = {"fingerprint": source.fingerprint, "images": len(pool)}
    origin = "random weights"
    if checkpoints.latest is not None:
        state, meta = checkpoints.restore(state, mesh)
        if {key: meta[key] for key in identity} != identity:
            raise UserError(
                f"{workdir} was trained on other data ({meta['images']} images, fingerprint {meta['fingerprint']}; "
                f"{source.name} now has {len(pool)}, {source.fingerprint}): restore the data or take another --workdir"
            )
        origin = f"{workdir} at step {int(state.step)}"
    elif config.init_from:
        state, step = checkpoint.init_from(Path(config.init_from), state, mesh)
        origin = f"{config.init_from} at step {step}"
    start = int(state.step)
    print(
        f"{mesh.size} {mesh.devices.flat[0].platform} device(s), {config.model.dtype}; {source.name}: {len(pool)} "
        f"images; steps {start} to {total} of {config.batch_size}; {parameter_count(state.online.params) / 1e6:.1f} M "
        f"parameters from {origin}",
        flush=True,
    )
    for change in changes:
        print(f"changed since this run began: {change}")

    def batches(steps: range):
        return pipeline.train_batches(
            source,
            pool,
            store,
            spec,
            batch_size=config.batch_size,
            steps=steps,
            seed=config.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    # 4) The loop.
    writer, finite = Writer(workdir, start), FiniteCheck()
    progress = Progress("train", total, per_count=config.batch_size)
    stream, metrics = batches(range(start, total)), {}
    for done in range(start + 1, total + 1):
        ahead = train_step(state, to_mesh(next(stream), mesh))
        jax.block_until_ready(metrics)  # of the step before: the host stays one step ahead and progress is true
        state, metrics = ahead
        finite.add(done, metrics)
        if done % config.log_steps == 0 or done == total:
            finite.check(checkpoints.latest)
            row = {name: float(value) for name, value in metrics.items()}
            writer.write(done, row | {"learning_rate": float(schedule(done - 1))})
        if done % config.checkpoint_steps == 0 or done == total:
            finite.check(checkpoints.latest)
            checkpoints.save(state, identity)
        progress.update(done, f"loss {row['loss']:.3f}" if done >= start + config.log_steps else "")
    checkpoints.close()
    writer.close()

    # 5) Figures and pictures of the online network.
    size, resize = settings.eval_sizes(config.eval, config)
    evaluator = Evaluator(model, mesh, source, size=size, resize=resize, batch_size=config.eval.batch_size)
    held_out = config.data.test_split if config.data.test_split in source.splits else config.data.train_split
    test = split(held_out)
    first_batch = next(batches(range(1)))
    pictures = [_draw_views(workdir, first_batch, augment)]
    figures: dict[str, float] = {}
    if held_out != config.data.train_split and source.labels is not None:
        figures |= evaluator.recognition(state.online, pool, test, knn=KNN_NEIGHBOURS)
    masks = evaluator.masks(test) if source.mask is not None else None
    if len(test) > 1 and config.align.form != "mask_head":
        attention = evaluator.attention(state.online, test)
        if masks is not None:
            figures |= localization.score(attention, masks)
        pictures.append(_draw_attention(workdir, evaluator, source, test, attention, masks, config.align.weight > 0))
    _write_report(workdir, source, figures, chance(source, test, masks), masks, pictures)
    return figures


def _draw_views(workdir: Path, batch: dict, augment: list[photometric.Photometric]) -> report.Picture:
    views, seen = [], []
    for v in (0, 1):
        images, masks = batch[f"view{v + 1}"][:_PICTURED], batch.get(f"mask{v + 1}")
        keys = jax.random.split(jax.random.key(v), len(images))
        seen.append(np.asarray(photometric.apply(photometric.to_float(images), photometric.draw(keys, augment[v]))))
        views.append((images, masks))
    return report.views_picture(workdir / "report" / "views.png", views, seen)


def _draw_attention(workdir, evaluator, source, test, attention, masks, trained: bool) -> report.Picture:
    shown = np.unique(np.linspace(0, len(test) - 1, _PICTURED).astype(int))
    loaded = pipeline.image_batches(source, test[shown], resize=0, size=evaluator.size, batch_size=len(shown))
    images, _ = next(loaded)
    caption = "Cross-view attention (against all other held-out images) over evenly spaced held-out images."
    if masks is not None:
        caption += " The line is the true mask."
    if not trained:
        caption += " Without the alignment loss the conv heads that it is read from are untrained."
    maps = np.stack([localization.upsample(attention[k], evaluator.size) for k in shown])
    path = workdir / "report" / "attention.png"
    outlines = None if masks is None else masks[shown]
    return report.attention_picture(path, images, {"attention": maps}, outlines, caption)


def _write_report(workdir: Path, source: Source, figures: dict, guess: dict, masks, pictures: list) -> None:
    if jax.process_index() != 0:
        return
    folder = workdir / "report"
    caption = "The run, from metrics.jsonl."
    curves = report.curves_picture(folder / "curves.png", read_metrics(workdir), _PANELS, caption)
    report.write_json(folder / "results.json", figures)
    names = ("knn_top1", "pointing_game", "mask_iou")
    rows = [("this run", figures), ("chance", guess)]
    if masks is not None:
        rows.append(("centre prior", center_prior(masks)))
    table = report.Table(
        ("%", "kNN top-1", "pointing game", "mask IoU"),
        [(name, *(report.percent(row.get(n)) for n in names)) for name, row in rows],
    )
    blocks = [f"{source.name}, {len(source)} images.", table, "# Views", pictures[0]]
    blocks += ["# Attention", *pictures[1:], "# Curves", curves]
    page = report.write_page(folder, f"Run {workdir.name}", blocks)
    print(f"{', '.join(f'{name} {report.percent(value)}' for name, value in figures.items())}\nreport: {page}")
