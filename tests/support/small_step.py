"""A step in small: a stand-in for the ResNet, a state and batches of random values, and the step by its definition.

A compilation takes most of a test's time, so views are normalised and not augmented (`test_step.py` has both).
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cvsa_jax import losses
from cvsa_jax.models.heads import Head
from cvsa_jax.models.normalization import BatchNorm
from cvsa_jax.models.siamese import Siamese
from cvsa_jax.runtime import distributed
from cvsa_jax.training import photometric
from cvsa_jax.training.health import init_probe
from cvsa_jax.training.negatives import Queue
from cvsa_jax.training.state import TrainState, init_state
from cvsa_jax.training.step import Alignment, StepSpec
from support.comparing import numpy_of, unit
from support.compiling import quick

BATCH, SIZE, MASK, CLASSES, CHANNELS = 16, 16, 4, 5, 16
LEARNING_RATE, TEMPERATURE, WEIGHT, TAU = 0.1, 0.3, 2.0, 0.75
TURNS = 3  # the queue holds the keys of so many batches
KEYS = 2 * BATCH
# Plain gradient descent, so that a gradient that is N times too large moves the parameters N times too far.
OPTIMIZER = optax.sgd(LEARNING_RATE)
FIRST_VIEWS, SECOND_VIEWS = slice(0, BATCH), slice(BATCH, KEYS)
# One photometric parameter set is as good as another where `augment` is replaced.
STILL = photometric.Photometric(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


class Patches(nn.Module):
    """One smooth layer in the ResNet's place."""

    axis_name: str | None

    @nn.compact
    def __call__(self, images, train: bool):
        x = nn.Conv(CHANNELS, (8, 8), 8, use_bias=False)(images)
        x = nn.tanh(BatchNorm(train, self.axis_name, name="bn")(x))
        return x, x.mean((1, 2))


class Small(Siamese):
    def setup(self):
        self.backbone = Patches(self.axis_name)
        head = functools.partial(Head, self.head_hidden, self.head_out, self.axis_name, self.dtype)
        self.projector, self.predictor = head(), head()
        self.conv_projector, self.conv_predictor = head(), head()


MODEL = Small(depth=8, width=4, stem="small", head_hidden=16, head_out=8, axis_name=distributed.AXIS)


@functools.cache
def start(name: str) -> TrainState:
    """A state with a probe as NumPy values; the target is unlike the online network."""
    objective = losses.OBJECTIVES[name]
    build = functools.partial(
        init_state,
        MODEL,
        OPTIMIZER,
        SIZE,
        target=objective.target,
        queue=TURNS * KEYS if objective.queue else 0,
        classes=CLASSES,
    )
    rng = np.random.default_rng(0)

    def values(path, leaf):
        if leaf.ndim > 1:
            return (rng.standard_normal(leaf.shape) * np.prod(leaf.shape[:-1]) ** -0.5).astype(np.float32)
        one = getattr(path[-1], "key", "") in ("scale", "var")
        return np.asarray(one + rng.uniform(-0.3, 0.3, leaf.shape), np.float32)

    state = jax.eval_shape(build, jax.random.key(0))
    random = functools.partial(jax.tree_util.tree_map_with_path, values)
    weights = random(state.probe.weights)
    return state.replace(
        step=np.zeros((), np.int32),
        online=random(state.online),
        target=random(state.target),
        queue=None if state.queue is None else Queue(unit(random(state.queue.keys))),
        probe=init_probe(CHANNELS, CLASSES)._replace(weights=weights),
    )


@functools.cache
def batch(number: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([1, number])
    views = rng.integers(0, 256, (2, BATCH, SIZE, SIZE, 3), np.uint8)
    masks = rng.integers(0, 256, (2, BATCH, MASK, MASK), np.uint8)
    return {
        "view1": views[0],
        "view2": views[1],
        "mask1": masks[0],
        "mask2": masks[1],
        "position": np.stack([np.zeros(BATCH), number * BATCH + np.arange(BATCH)], 1).astype(np.uint32),
        "label": rng.integers(0, CLASSES, BATCH).astype(np.int32),
    }


def without(rows: dict, *names: str) -> dict:
    return {name: values for name, values in rows.items() if name not in names}


def spec_of(objective: losses.Objective, weight: float = WEIGHT) -> StepSpec:
    """The step of an objective without augmentation."""
    align = Alignment(weight, "kl", 0.2)
    return StepSpec(objective, TEMPERATURE, align, (STILL, STILL), lambda step: jnp.float32(TAU), seed=0)


def normalized(views, keys=None, strengths=None):
    """In the place of `photometric.augment`."""
    return photometric.normalize(photometric.to_float(jnp.asarray(views)))


class Definition(NamedTuple):
    losses: dict
    gradients: dict
    batch_stats: dict
    pooled: np.ndarray
    cosine: np.ndarray  # of the mean pair of query and key


def contrast(name: str, queries: jax.Array, keys: jax.Array) -> jax.Array:
    """The objective of the whole batch, as its paper has it; rows are view 1 of all images, then view 2."""
    other = np.roll(np.arange(KEYS), BATCH)
    queries, keys = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (queries, keys))
    cosine = (queries * keys[other]).sum(-1)
    if name == "simsiam":
        return -(cosine[FIRST_VIEWS].mean() + cosine[SECOND_VIEWS].mean()) / 2
    if name == "moco":
        logits, right = jnp.concatenate([cosine[:, None], queries @ start(name).queue.keys.T], 1), 0
    else:
        logits, right = jnp.fill_diagonal(queries @ queries.T, -jnp.inf, inplace=False), other
    return -jax.nn.log_softmax(logits / TEMPERATURE)[np.arange(KEYS), right].mean()


@functools.cache
def define(name: str) -> Definition:
    """One step of an objective from `start` on the whole batch at once, without a mesh."""
    model, old, rows = MODEL.clone(axis_name=None), start(name), batch()
    views = normalized(jnp.concatenate([rows["view1"], rows["view2"]]))
    cells = SIZE // model.stride
    mask1, mask2 = (losses.cell_masks(jnp.asarray(rows[m], jnp.float32) / 255, cells) for m in ("mask1", "mask2"))

    @quick
    @functools.partial(jax.jacrev, has_aux=True)
    def loss_fn(params):
        variables = {"params": params, "batch_stats": old.online.batch_stats}
        out, stats = model.apply(variables, views, True, mutable=["batch_stats"])
        target = out
        if name == "moco":
            target, _ = model.apply(old.target.variables, views, True, method="project", mutable=["batch_stats"])
        queries = out.prediction if name == "simsiam" else out.projection
        keys = jax.lax.stop_gradient(target.projection)
        p, z = out.prediction_map, jax.lax.stop_gradient(target.projection_map)
        kl = losses.ALIGNMENT_FORMS["kl"]
        aligned = kl(p[FIRST_VIEWS], z[SECOND_VIEWS], mask1, mask2, 0.2)
        aligned += kl(p[SECOND_VIEWS], z[FIRST_VIEWS], mask2, mask1, 0.2)
        both = {"contrastive": contrast(name, queries, keys), "align": aligned.mean()}
        return both, (both, stats["batch_stats"], out.pooled, queries, keys)

    gradients, (both, stats, pooled, queries, keys) = numpy_of(loss_fn(old.online.params))
    cosine = (unit(queries) * np.roll(unit(keys), BATCH, 0)).sum(-1).mean()
    return Definition(both, gradients, stats, pooled, cosine)
