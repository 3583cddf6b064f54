"""A small U-Net that says where the object is: residual encoder and decoder with a map at every scale of the decoder.

In the spirit of U²-Net (Qin et al. 2020): supervision at all scales, none of its nested blocks. GroupNorm and not
BatchNorm, so that an image's map does not depend on the batch or on statistics of the training set.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

CHANNEL_GROUP = 8  # channels that are normalised together


class Stage(nn.Module):
    """Two 3x3 convolutions with a residual around the second."""

    channels: int
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        pad = ((1, 1), (1, 1))
        first = nn.Conv(self.channels, (3, 3), strides=self.stride, padding=pad, use_bias=False, dtype=self.dtype)
        x = nn.relu(nn.GroupNorm(None, CHANNEL_GROUP)(first(x))).astype(self.dtype)
        second = nn.Conv(self.channels, (3, 3), padding=pad, use_bias=False, dtype=self.dtype)
        return nn.relu(x + nn.GroupNorm(None, CHANNEL_GROUP)(second(x))).astype(self.dtype)


class UNet(nn.Module):
    """Attributes:
    channels: of each scale, from the finest (half of the image's resolution) to the coarsest; multiples of 8.
    dtype: compute dtype of the convolutions; parameters and normalisation stay float32.
    """

    channels: tuple[int, ...] = (24, 32, 64, 96, 128)
    dtype: DTypeLike = jnp.float32

    @property
    def stride(self) -> int:
        """What the image's side must be a multiple of."""
        return 2 ** len(self.channels)

    @nn.compact
    def __call__(self, images: Float[Array, "b size size 3"]) -> list[Float[Array, "b h w"]]:
        """Normalised images -> logits at every scale, the finest (size / 2) first."""
        x, skips = images.astype(self.dtype), []
        for channels in self.channels:
            x = Stage(channels, 2, self.dtype)(x)
            skips.append(x)
        logits = [_logits(x)]
        for skip in skips[-2::-1]:
            x = jax.image.resize(x, (*skip.shape[:3], x.shape[3]), "bilinear")
            x = Stage(skip.shape[3], 1, self.dtype)(jnp.concatenate([x, skip], -1))
            logits.append(_logits(x))
        return logits[::-1]


def _logits(x: Float[Array, "b h w c"]) -> Float[Array, "b h w"]:
    return nn.Conv(1, (1, 1), dtype=jnp.float32)(x.astype(jnp.float32))[..., 0]
