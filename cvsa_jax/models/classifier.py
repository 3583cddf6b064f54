"""Backbone and a linear classifier on its pooled features, for fine-tuning and the supervised baseline."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cvsa_jax.models.resnet import ResNet


class Classifier(nn.Module):
    """Attributes:
    classes: outputs of the classifier, which starts at zero.
    depth, width, stem, dtype, axis_name, remat, padding: see `ResNet`.
    """

    classes: int
    depth: int = 50
    width: int = 64
    stem: str = "imagenet"
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    remat: bool = False
    padding: str = "symmetric"

    def setup(self):
        self.backbone = ResNet(self.depth, self.width, self.stem, self.axis_name, self.dtype, self.remat, self.padding)
        self.head = nn.Dense(self.classes, kernel_init=nn.initializers.zeros)

    def __call__(self, images: Float[Array, "b size size 3"], train: bool) -> Float[Array, "b classes"]:
        """Normalised images -> logits."""
        return self.head(self.backbone(images, train)[1])

    def features(self, images: Float[Array, "b size size 3"]) -> tuple[Float[Array, "b h w c"], Float[Array, "b c"]]:
        """Frozen backbone in evaluation mode: feature map and pooled vector."""
        return self.backbone(images, False)
