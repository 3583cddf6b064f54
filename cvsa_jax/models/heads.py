"""The two-layer head of BYOL, on a vector (MLP head) or on every cell of a feature map (1x1 convolution head)."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cvsa_jax.models.normalization import BatchNorm


class Head(nn.Module):
    """Linear -> BatchNorm -> ReLU -> linear over the last axis. The first bias is BatchNorm's; the last layer has none,
    as DeepMind's (deepmind-research/byol at 3d8692e, utils/networks.py, `MLP`).

    A dense layer over the last axis of a feature map *is* a 1x1 convolution, so one module serves both kinds of head
    (CVSA's conv-projector and conv-predictor; BYOL's projector and predictor). BatchNorm then averages over the
    batch and, for a map, over its cells."""

    hidden: int = 4096
    out: int = 256
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *cells c"], train: bool) -> Float[Array, "b *cells d"]:
        x = nn.Dense(self.hidden, use_bias=False, dtype=self.dtype, name="linear1")(x)
        x = BatchNorm(train, self.axis_name, relu=True, dtype=self.dtype, name="bn")(x)
        return nn.Dense(self.out, use_bias=False, dtype=self.dtype, name="linear2")(x).astype(jnp.float32)
