"""What feeds a pre-training: its images, and the views that the host makes of them, or the devices."""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cvsa_jax import settings
from cvsa_jax.data import pipeline, reading
from cvsa_jax.data.index import Order
from cvsa_jax.data.resample import with_masks
from cvsa_jax.data.sources import Source
from cvsa_jax.data.stored import Squares
from cvsa_jax.data.view_spec import ViewSpec
from cvsa_jax.data.views import Pairs
from cvsa_jax.runtime.distributed import together
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.saliency.store import SaliencyStore, open_store
from cvsa_jax.training import device_views


class Feed(NamedTuple):
    """Where the step's views come from: `batches` of steps; `make_views`, what the step does first; and `shown`
    (batch), its views as arrays to look at."""

    batches: Callable[[range], Iterator[dict]]
    make_views: Callable
    shown: Callable[[dict], dict[str, np.ndarray]]


def feed_of(
    config: ConfigDict, source: Source, pool: np.ndarray, store: SaliencyStore | None, views: ViewSpec, mesh: Mesh
) -> Feed:
    """The host makes the views as the batches come, or the devices from what lies in their memory."""
    labels = source.labels if config.watch.online_probe else None

    def order(steps: range) -> Order:
        place = jax.process_index(), jax.process_count()
        return Order(config.batch_size, steps, config.seed, *place)

    if views.where == "host":
        squares = together(lambda: Squares(source, pool, views.square)) if config.data.cache else None
        return Feed(
            lambda steps: pipeline.train_batches(source, pool, store, views, order(steps), labels, squares),
            functools.partial(with_masks, size=views.size, xp=jnp),
            functools.partial(with_masks, size=views.size, xp=np),
        )
    resident = device_views.load(source, pool, store, views, mesh)
    rows_labels = None if labels is None else labels[pool]
    return Feed(
        lambda steps: device_views.device_batches(resident, len(pool), order(steps), rows_labels),
        device_views.make_views(views, config.seed),
        lambda batch: device_views.render_views(batch, views, config.seed, mesh),
    )


def maps_of(config: ConfigDict, source: Source) -> SaliencyStore | None:
    """The store of saliency maps, where the views or the loss need it; UserError where it is not the config's."""
    if config.views.kind != "saliency_swap" and config.align.weight == 0:
        return None
    store = open_store(config.saliency.store, source, config.saliency.detector, config.saliency.warn_fallback)
    if store.threshold != config.saliency.threshold:
        raise UserError(
            f"config.saliency.threshold={config.saliency.threshold:g}, but the boxes of {store.folder} were made at "
            f"{store.threshold:g}: give that one, or make the store again, into another folder"
        )
    return store


def view_dataset(config: ConfigDict) -> tf.data.Dataset:
    """The host's views of a whole pre-training; see `api.views`."""
    views = settings.view_spec(config, settings.model(config.model).stride)
    if config.batch_size % views.group:
        raise UserError(
            f"config.batch_size={config.batch_size} does not divide by config.views.group={views.group}, whose images "
            "lend each other their backgrounds"
        )
    source = settings.load_source(config.data)
    store = maps_of(config, source)
    pool = train_images(config, source, store)
    order = Order(config.batch_size, range(settings.total_steps(config, len(pool))), config.seed)
    squares = Squares(source, pool, views.square) if config.data.cache else None
    making, places = Pairs.of(store, views, order.seed), pipeline.in_order(order, pool)
    return pipeline.Input(source, pool, places, making, source.labels, squares).pairs(order.steps)


def train_images(config: ConfigDict, source: Source, store: SaliencyStore | None) -> np.ndarray:
    """Indices of the images that a run trains on; UserError where they are fewer than a batch."""
    pool = readable_images(config, source, config.data.train_split, store)
    if config.batch_size > len(pool):
        raise UserError(
            f"config.batch_size={config.batch_size} is more than the {len(pool)} images of {source.name}: set it "
            "lower, so that no batch holds an image twice"
        )
    return pool


def readable_images(config: ConfigDict, source: Source, split: str, store: SaliencyStore | None) -> np.ndarray:
    """Indices of the images of a split that can be read, as far as is known."""
    usable = None if store is None else store.usable
    return reading.readable(source, source.split(split), config.data.on_bad_image, usable)
