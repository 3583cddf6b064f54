"""CVSA's network: one module; the online and the target network are two parameter trees of it."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cvsa_jax.models.heads import Head
from cvsa_jax.models.resnet import ResNet, channels, stride

# The target network is the average of these; the predictors have no target.
TARGET_PARTS = ("backbone", "projector", "conv_projector")
CONV_HEADS = ("conv_projector", "conv_predictor")
PARTS = ("backbone", "projector", "predictor", *CONV_HEADS)


def trained_parts(*, predictor: bool, aligned: bool) -> tuple[str, ...]:
    """The parts of the online network that receive a gradient, where the objective has a `predictor` and where the
    alignment has a weight. The others stay as they were initialised."""
    return ("backbone", "projector", *(("predictor",) if predictor else ()), *(CONV_HEADS if aligned else ()))


class Outputs(NamedTuple):
    """What the network gives for a batch of views; maps and predictions are None where they were not asked for."""

    pooled: Float[Array, "b c"]  # f, averaged over the cells
    projection: Float[Array, "b d"]  # g(f): BYOL's regression target when it comes from the target network
    projection_map: Float[Array, "b h w d"] | None  # G(f): keys Z of the attention, from the target network
    prediction: Float[Array, "b d"] | None  # q(g(f)): online only
    prediction_map: Float[Array, "b h w d"] | None  # R(G(f)): queries P of the attention, online only


class Siamese(nn.Module):
    """Backbone, MLP projector and predictor (BYOL), conv-projector and conv-predictor (CVSA).

    Attributes:
        depth, width, stem, dtype, remat, padding: see `ResNet`.
        head_hidden: hidden channels of the four heads.
        head_out: output channels D of the four heads.
        axis_name: mesh axis of BatchNorm, or None.
    """

    depth: int = 50
    width: int = 64
    stem: str = "imagenet"
    head_hidden: int = 4096
    head_out: int = 256
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    remat: bool = False
    padding: str = "symmetric"

    @property
    def stride(self) -> int:
        """Pixels of the view per cell of the feature map."""
        return stride(self.depth, self.stem)

    @property
    def features_out(self) -> int:
        """Channels C of the feature map."""
        return channels(self.depth, self.width)

    def setup(self):
        self.backbone = ResNet(self.depth, self.width, self.stem, self.axis_name, self.dtype, self.remat, self.padding)
        head = functools.partial(Head, self.head_hidden, self.head_out, self.axis_name, self.dtype)
        self.projector, self.predictor = head(), head()
        self.conv_projector, self.conv_predictor = head(), head()

    def __call__(
        self, images: Float[Array, "b size size 3"], train: bool, maps: bool = True, predictor: bool = True
    ) -> Outputs:
        """Online pass: everything, or only the vectors where `maps` is False (no alignment), and without the vectors'
        prediction where `predictor` is False."""
        target = self.project(images, train, maps)
        prediction = self.predictor(target.projection, train) if predictor else None
        prediction_map = self.conv_predictor(target.projection_map, train) if maps else None
        return target._replace(prediction=prediction, prediction_map=prediction_map)

    def project(self, images: Float[Array, "b size size 3"], train: bool, maps: bool = True) -> Outputs:
        """Target pass: the two projections, without the predictors."""
        feature_map, pooled = self.backbone(images, train)
        if not self.is_initializing():
            # Where the step tells the gradients of both losses apart: see `training.balance`.
            feature_map, pooled = self.perturb("to_map", feature_map), self.perturb("to_vector", pooled)
        projection_map = self.conv_projector(feature_map, train) if maps else None
        return Outputs(pooled, self.projector(pooled, train), projection_map, None, None)

    def features(self, images: Float[Array, "b size size 3"]) -> tuple[Float[Array, "b h w c"], Float[Array, "b c"]]:
        """Frozen backbone in evaluation mode: feature map and pooled vector."""
        return self.backbone(images, False)
