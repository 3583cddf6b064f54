"""Pre-training, stage 1 (BYOL) and stage 2 (CVSA): data, step, start, loop, report."""

import functools

from ml_collections import ConfigDict

from cvsa_jax import settings
from cvsa_jax.data import inspect, reading
from cvsa_jax.evaluation.evaluator import Evaluator
from cvsa_jax.evaluation.features import evenly
from cvsa_jax.report.run import report_run
from cvsa_jax.runs.feed import feed_of, maps_of, readable_images, train_images
from cvsa_jax.runtime import checks
from cvsa_jax.runtime.distributed import check_batch_size, is_first, make_mesh
from cvsa_jax.runtime.files import AnyPath, write_json_atomically
from cvsa_jax.training.loop import Watch, run_steps
from cvsa_jax.training.resume import begin
from cvsa_jax.training.state import TrainState, init_state
from cvsa_jax.training.step import make_train_step
from cvsa_jax.weights import backbones


def train(config: ConfigDict, workdir: AnyPath) -> dict[str, float]:
    """Trains as `config` says and returns the figures of `report/results.json`; the same call continues a run.

    Raises:
        UserError: whatever the user can put right, before the first step where it can be known then.
    """
    # 1) What the config alone tells, and the data, with the saliency maps where the views or the loss need them.
    mesh, model = make_mesh(), settings.model(config.model)
    check_batch_size(config.batch_size, config.views.group, mesh, config.accumulate_steps, config.views.where)
    # A network that learns has no look head yet, and its maps would cost every look at it another pass.
    checks.choice("config.eval.pooling of a pre-training", config.eval.pooling, ("average", "attention"))
    views, evaluation = settings.view_spec(config, model.stride), settings.evaluation(config.eval, config)
    source = settings.load_source(config.data)
    store = maps_of(config, source)
    pool = train_images(config, source, store)
    inspect.warn_of_faint(source, pool)

    # 2) Views, optimiser and the jitted step.
    optimizer, schedule = settings.optimizer(config, len(pool))
    spec = settings.step_spec(config, len(pool))
    begins = not (workdir / "ckpt").is_dir()
    print("".join(f"{note}\n" for note in settings.notes(config, len(pool), begins)), end="")
    feed = feed_of(config, source, pool, store, views, mesh)
    train_step = make_train_step(model, optimizer, mesh, spec, feed.make_views)
    evaluator = Evaluator(model, mesh, source, evaluation)

    # 3) State: this workdir's newest checkpoint, else other weights, else random ones.
    def start_from(state: TrainState) -> tuple[TrainState, str]:
        weights, origin = backbones.online_start(config.init_from, model, mesh)
        return state.starting_from(state.online.with_parts(weights)), origin

    kept = settings.state_parts(config, spec.objective, len(pool), len(source.classes))
    initialize = functools.partial(init_state, model, optimizer, views.size, **kept)
    # Of the whole split, so that a run can go on without an image that turns out to be unreadable.
    chosen = source.split(config.data.train_split)
    identity = {"fingerprint": source.fingerprint, "images": len(chosen), "selection": source.selection(chosen)}
    run = begin(
        config,
        workdir,
        mesh,
        initialize,
        identity=identity | ({} if store is None else {"saliency": store.identity}),
        total=settings.total_steps(config, len(pool)),
        about=f"{source.name}: {len(pool)} images",
        start_from=start_from if config.init_from else None,
    )
    if is_first():
        maps = {} if store is None else {"saliency": store.described}
        write_json_atomically(workdir / "data.json", source.described() | maps)

    # 4) The loop.
    def neighbors(state: TrainState) -> dict[str, float]:
        return evaluator.neighbors(state.online, evenly(pool, config.watch.knn_images), settings.knn(config.eval))

    watch = Watch(config.watch.knn_steps, neighbors) if source.labels is not None and config.eval.knn else None
    state, batch = run_steps(
        run, train_step, feed.batches(run.steps), schedule, watch=watch, micro_batches=spec.accumulate
    )

    # 5) Figures and pictures of the online network.
    test = None
    if config.data.test_split in source.splits:
        test = readable_images(config, source, config.data.test_split, store)
        reading.warn_of_overlap(source, pool, test)
    else:
        print(f"{source.name} has no split {config.data.test_split!r}: no kNN, and the attention is of training images")
    views = feed.shown(batch or next(feed.batches(range(run.total - 1, run.total))))
    return report_run(run, state.online, evaluator, pool, test, views)
