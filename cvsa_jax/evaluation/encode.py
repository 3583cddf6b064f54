"""Evaluation passes of a network over images: pooled features, the maps of where it looks, class activation.

Features are the cells of the last feature map, averaged (`average`) or weighted by where an image shows something: what
a network says of that itself (the keys of `protocol.READINGS`), what a look head reads off the cells (`head`), or the
image's saliency map (`saliency`)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from cvsa_jax.data.resample import cell_means, stretched
from cvsa_jax.data.saliency_maps import Mapped
from cvsa_jax.losses import unit
from cvsa_jax.models.activation import (
    READOUTS,
    class_activation,
    first_component,
    grad_cam,
    looked,
    pooled_by,
    scaled,
    sharpened,
)
from cvsa_jax.models.classifier import Classifier
from cvsa_jax.models.siamese import Siamese
from cvsa_jax.runtime.distributed import AXIS
from cvsa_jax.training import photometric
from cvsa_jax.training.state import Network


class Encoded(NamedTuple):
    """Of B images, float32: `pooled` (B, C); where maps were asked for, the unit queries P and keys Z of the attention
    (B, h·w, D), the attention to the image's own mirror image (B, h, w), the object's probability (B, h, w) that the
    control `mask_head` predicts in channel 0 of P, and the backbone's activation (B, h, w), as `mean` and as first
    `component`."""

    pooled: jax.Array
    queries: jax.Array | None = None
    keys: jax.Array | None = None
    mirrored: jax.Array | None = None
    predicted_mask: jax.Array | None = None
    mean: jax.Array | None = None
    component: jax.Array | None = None


def make_encoder(model: Siamese | Classifier, mesh: Mesh, *, maps: bool) -> Callable[[Network, jax.Array], Encoded]:
    """Evaluation pass of a network on uint8 images (B, S, S, 3), split over the mesh; B must divide by the devices.
    Only a Siamese network has the heads of the attention; another has the maps of its backbone alone."""

    def encode(network: Network, images: jax.Array) -> Encoded:
        views = photometric.normalize(photometric.to_float(images))
        feature_map, pooled = model.apply(network.variables, views, method="features")
        if not maps:
            return Encoded(pooled)
        activation = {name: read(feature_map.astype(jnp.float32))[0] for name, read in READOUTS.items()}
        if not isinstance(model, Siamese):
            return Encoded(pooled, **activation)
        out, mirror = (model.apply(network.variables, x, train=False) for x in (views, views[:, :, ::-1]))
        queries, keys, mirror_keys = map(_unit_cells, (out.prediction_map, out.projection_map, mirror.projection_map))
        mirrored = jnp.einsum("bid,bd->bi", queries, mirror_keys.mean(1), precision="highest")
        mirrored = mirrored.reshape(feature_map.shape[:3])
        mask = jax.nn.sigmoid(out.prediction_map[..., 0].astype(jnp.float32))
        return Encoded(pooled, queries, keys, mirrored, mask, **activation)

    return _on_rows(encode, mesh)


def make_cell_encoder(model: Siamese | Classifier, mesh: Mesh) -> Callable[[Network, jax.Array], jax.Array]:
    """Evaluation pass that gives the cells, (B, h, w, C)."""

    def encode(network: Network, images: jax.Array) -> jax.Array:
        return _cells(model, network, images)[0]

    return _on_rows(encode, mesh)


def make_look(model: Siamese | Classifier, mesh: Mesh) -> Callable[[tuple[Network, jax.Array], jax.Array], jax.Array]:
    """Evaluation pass that gives what a look head, its `vector`, reads off the cells: (B, h, w)."""

    def look(network_and_head: tuple[Network, jax.Array], images: jax.Array) -> jax.Array:
        network, head = network_and_head
        return looked(_cells(model, network, images)[0], head)

    return _on_rows(look, mesh)


def make_attended_encoder(
    model: Siamese | Classifier, mesh: Mesh, reading: str, temperature: float
) -> Callable[[tuple[Network, jax.Array], jax.Array | Mapped], Encoded]:
    """Evaluation pass whose `pooled` averages the cells by where the image shows something; no label takes part.

    Its first argument is the network and a key. Weights of the cells: with `attention`, the posterior that the form
    `kl` trains, the softmax over the cells of the cosine to the `foreground_key` (D,) of train images / temperature;
    with `mask`, the probability that `mask_head` predicts; with `component`, the square of the feature map's first
    principal component, scaled to [0, 1]; with `head`, what the look head whose `vector` is the key reads off them,
    sharpened by its power; with `saliency`, the images being `Mapped`, their maps, each over its own range and
    averaged over the cells, sharpened by the power that is the key (1,).
    """

    def encode(network_and_key: tuple[Network, jax.Array], images: jax.Array | Mapped) -> Encoded:
        return Encoded(_attended(model, *network_and_key, images, reading, temperature)[1])

    return _on_rows(encode, mesh)


def pooled_by_head(features: jax.Array, head: jax.Array) -> jax.Array:
    """(b, h, w, C) -> (b, C), as a look head, `LookHead.vector`, weights the cells."""
    return pooled_by(sharpened(looked(features, head), head[-1]), features)


def pooled_by_maps(features: jax.Array, maps: Mapped, power: jax.Array) -> jax.Array:
    """(b, h, w, C) -> (b, C), as the maps weight the cells; the field `image` is not looked at."""
    weights = cell_means(stretched(maps.cells, jnp), maps.box, *features.shape[1:3], jnp)
    return pooled_by(sharpened(weights, power), features)


def pooled_by_component(features: jax.Array) -> jax.Array:
    """(b, h, w, C) -> (b, C), as the first principal component weights the cells."""
    return pooled_by(scaled(first_component(features)[0]) ** 2, features)


def _attended(model, network: Network, key: jax.Array, images: jax.Array | Mapped, reading: str, temperature: float):
    """Feature map, float32, and what `make_attended_encoder` pools of it; with `average` the plain pooled features."""
    pixels = images.image if isinstance(images, Mapped) else images
    features, pooled = _cells(model, network, pixels)
    if reading == "average":
        return features, pooled
    if reading == "component":
        return features, pooled_by_component(features)
    if reading == "head":
        return features, pooled_by_head(features, key)
    if reading == "saliency":
        return features, pooled_by_maps(features, images, key[0])
    views = photometric.normalize(photometric.to_float(pixels))
    maps = model.apply(network.variables, views, train=False).prediction_map
    if reading == "mask":
        return features, pooled_by(jax.nn.sigmoid(maps[..., 0].astype(jnp.float32)), features)
    cosine = jnp.einsum("bid,d->bi", _unit_cells(maps), key, precision="highest")
    return features, pooled_by(jax.nn.softmax(cosine / temperature).reshape(features.shape[:3]), features)


def _cells(model, network: Network, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The feature map of uint8 images, (b, h, w, C) float32, and its average."""
    views = photometric.normalize(photometric.to_float(images))
    features, pooled = model.apply(network.variables, views, method="features")
    return features.astype(jnp.float32), pooled


class Activation(NamedTuple):
    """Of B images: the classifier's logits (B, K), and for the class it predicts CAM and Grad-CAM (B, h, w)."""

    logits: jax.Array
    cam: jax.Array
    grad_cam: jax.Array


def make_class_activation(
    model: Siamese | Classifier, mesh: Mesh, reading: str = "average", temperature: float = 1.0
) -> Callable[[tuple[Network, jax.Array, jax.Array], jax.Array | Mapped], Activation]:
    """Evaluation pass of a network, a linear classifier (C + 1, K) on its pooled features, biases in the last row, and
    the foreground's key; images as in `make_encoder`, features pooled by `average` or as in `make_attended_encoder`."""

    def activation(network_weights_key: tuple[Network, jax.Array, jax.Array], images: jax.Array | Mapped) -> Activation:
        network, weights, key = network_weights_key
        features, pooled = _attended(model, network, key, images, reading, temperature)
        logits = jnp.matmul(pooled, weights[:-1], precision="highest") + weights[-1]
        explained = (features, weights, logits.argmax(-1))
        return Activation(logits, class_activation(*explained), grad_cam(*explained))

    return _on_rows(activation, mesh)


def _on_rows(function: Callable, mesh: Mesh) -> Callable:
    """`function` (network, images) compiled for images split over the mesh."""
    rows = PartitionSpec(AXIS)
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=(PartitionSpec(), rows), out_specs=rows))


def _unit_cells(cells: jax.Array) -> jax.Array:
    """(B, h, w, D) -> (B, h·w, D), each cell of length 1."""
    return unit(cells.reshape(len(cells), -1, cells.shape[-1]))
