"""Pre-training, stage 1 (BYOL) and stage 2 (CVSA): build, restore, loop, finish."""

import functools

import jax
from ml_collections import ConfigDict

from cvsa_jax import settings
from cvsa_jax.data import pipeline
from cvsa_jax.models.resnet import parameter_count
from cvsa_jax.report.run import evenly, report_run
from cvsa_jax.runtime.distributed import check_batch_size, check_shared, make_mesh, replicated
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.runtime.files import AnyPath, as_path
from cvsa_jax.saliency.store import REPORT_PAGE, SaliencyStore, store_path
from cvsa_jax.training import checkpoint
from cvsa_jax.training.loop import run_steps
from cvsa_jax.training.optim import target_decay
from cvsa_jax.training.state import TrainState, init_state
from cvsa_jax.training.step import make_train_step
from cvsa_jax.weights import backbones


def train(config: ConfigDict, workdir: AnyPath) -> dict[str, float]:
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
        if store.fallback_share > config.saliency.warn_fallback:
            print(
                f"warning: {store.fallback_share:.0%} of the maps in {folder} have no cell at the threshold "
                f"{store.manifest['settings']['threshold']:g}: look at {folder / REPORT_PAGE} before you trust them "
                "(config.saliency.warn_fallback sets this limit)"
            )
    usable = None if store is None else store.usable
    split = lambda name: pipeline.readable(source, source.split(name), config.data.on_bad_image, usable)  # noqa: E731
    pool = split(config.data.train_split)

    # 2) Model, optimiser and the jitted step.
    mesh = make_mesh()
    accumulate = settings.accumulate_steps(config)
    check_batch_size(config.batch_size, config.views.group, mesh, accumulate)
    model = settings.model(config.model)
    optimizer, schedule = settings.optimizer(config, len(pool))
    total = settings.total_steps(config, len(pool))
    spec = settings.view_spec(config.views, model.stride)
    augment = [settings.photometric(config.augment[view]) for view in ("view1", "view2")]
    objective = settings.objective(config)
    watched = source.labels if config.watch.online_probe else None
    evaluator = settings.evaluator(model, mesh, source, config.eval, config)
    train_step = make_train_step(
        model,
        optimizer,
        mesh,
        objective=objective,
        temperature=settings.temperature(config),
        tau=target_decay(config.target.tau, total, config.target.cosine),
        augment1=augment[0],
        augment2=augment[1],
        align_form=settings.align_form(config.align),
        align_weight=config.align.weight,
        seed=config.seed,
        accumulate=accumulate,
    )

    # 3) State: this workdir's newest checkpoint, else another run's network, else random weights.
    initialize = functools.partial(
        init_state,
        model,
        optimizer,
        spec.size,
        target=objective.target,
        queue=settings.queue_size(config, len(pool)),
        classes=0 if watched is None else len(source.classes),
    )
    state = jax.jit(initialize, out_shardings=replicated(mesh))(jax.random.key(config.seed))
    check_shared(workdir)
    checkpoints = checkpoint.Checkpointer(workdir)
    changes = settings.compare_config(config, workdir) if checkpoints.latest is not None else []
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
    elif as_path(config.init_from).is_file():
        state = checkpoint.with_backbone(state, backbones.load_file(as_path(config.init_from), model, mesh), mesh)
        origin = config.init_from
    elif config.init_from:
        state, step = checkpoint.init_from(as_path(config.init_from), state, mesh)
        origin = f"{config.init_from} at step {step}"
    start = int(state.step)
    settings.write_config(config, workdir)
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
            labels=watched,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def watch(state: TrainState) -> dict[str, float]:
        images = evenly(pool, config.watch.knn_images)
        return evaluator.neighbors(state.online, images, settings.knn(config.eval))

    # 4) The loop.
    state, batch = run_steps(
        config,
        workdir,
        train_step,
        state,
        batches(range(start, total)),
        mesh,
        checkpoints,
        total=total,
        schedule=schedule,
        meta=identity,
        watch=(0 if source.labels is None or not config.eval.knn else config.watch.knn_steps, watch),
        micro_batches=accumulate,
    )

    # 5) Figures and pictures of the online network.
    held_out = config.data.test_split in source.splits
    if not held_out:
        print(f"{source.name} has no split {config.data.test_split!r}: no kNN, and the attention is of training images")
    return report_run(
        config,
        workdir,
        state.online,
        evaluator,
        train=pool,
        test=split(config.data.test_split) if held_out else None,
        batch=batch or next(batches(range(total - 1, total))),
    )
