"""ResNet v1.5 (He et al. 2016, stride in the 3x3 convolution) that returns its feature map and its pooled vector.

Depths 18, 34 and 50 are the ImageNet networks; 8 and 14 are the three-stage form of the same paper's CIFAR section.

Padding is symmetric by default, as in torchvision, so that weights move to and from PyTorch with equal outputs;
TensorFlow's SAME, for networks that were trained with it, pads asymmetrically where the stride is 2.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cvsa_jax.models import convolution
from cvsa_jax.models.normalization import BatchNorm, joined

STAGE_SIZES = {8: (1, 1, 1), 14: (2, 2, 2), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
STEMS = ("imagenet", "small")
PADDINGS = ("symmetric", "same")
BOTTLENECK_DEPTH = 50  # from which on blocks have the 1-3-1 form

_he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
conv = functools.partial(
    nn.Conv, use_bias=False, kernel_init=_he_normal, conv_general_dilated=convolution.conv_general_dilated
)


def pads(padding: str, x: Float[Array, "b h w c"], kernel: int, stride: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns before and after a map, for a convolution or pooling of it: as many on each side, or as
    TensorFlow's SAME, where of an odd number the one more comes after."""
    if padding == "symmetric":
        return ((kernel // 2, kernel // 2),) * 2
    totals = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[1:3]]
    return tuple((total // 2, total - total // 2) for total in totals)


class Block(nn.Module):
    """Residual block; `bottleneck` selects the 1-3-1 form of ResNet-50, else the 3-3 form of ResNet-18/34.

    The last normalisation of the residual branch starts at zero (Goyal et al. 2017), so that the block starts as the
    identity.
    """

    channels: int
    stride: int
    bottleneck: bool
    norm: Callable[..., nn.Module]
    dtype: DTypeLike
    padding: str = "symmetric"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        pad = pads(self.padding, x, 3, self.stride)
        three = functools.partial(conv, self.channels, (3, 3), dtype=self.dtype)
        one = functools.partial(conv, kernel_size=(1, 1), dtype=self.dtype)
        norm = functools.partial(self.norm, dtype=self.dtype)
        rectified = functools.partial(norm, relu=True)
        if self.bottleneck:
            out = rectified(name="bn1")(one(self.channels, name="conv1")(x))
            out = rectified(name="bn2")(three(strides=self.stride, padding=pad, name="conv2")(out))
            out = one(4 * self.channels, name="conv3")(out)
        else:
            out = rectified(name="bn1")(three(strides=self.stride, padding=pad, name="conv1")(x))
            out = three(padding=((1, 1), (1, 1)), name="conv2")(out)
        last = "bn3" if self.bottleneck else "bn2"
        out = norm(name=last, scale_init=nn.initializers.zeros)(out)
        if x.shape != out.shape:
            x = one(out.shape[-1], strides=self.stride, name="downsample_conv")(x)
            x = norm(name="downsample_bn")(x)
        return joined(x, out)


def stride(depth: int, stem: str) -> int:
    """Pixels of the view per cell of the feature map: 32 for the ImageNet networks."""
    return (4 if stem == "imagenet" else 2) * 2 ** (len(STAGE_SIZES[depth]) - 1)


def channels(depth: int, width: int) -> int:
    """Channels of the feature map: 2048 for the standard ResNet-50."""
    return width * 2 ** (len(STAGE_SIZES[depth]) - 1) * (4 if depth >= BOTTLENECK_DEPTH else 1)


class ResNet(nn.Module):
    """Backbone f.

    Attributes:
        depth: 18, 34 or 50 (four stages), or 8 or 14 (three stages, for views below about 64 px).
        width: channels of the first stage; 64 is the standard network.
        stem: `imagenet` (7x7 stride 2, then 3x3 max-pool stride 2) or `small` (3x3 stride 2, no pool), for views
            below about 128 px.
        axis_name: mesh axis over which BatchNorm averages its statistics, or None.
        dtype: compute dtype of the convolutions; parameters and normalisation stay float32.
        remat: keep only the input of each stage for the backward pass, which computes the stage anew: less memory, and
            the forward pass once more.
        padding: of the convolutions and the max-pool, `symmetric` as torchvision's or `same` as TensorFlow's.
    """

    depth: int = 50
    width: int = 64
    stem: str = "imagenet"
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    padding: str = "symmetric"

    @nn.compact
    def __call__(
        self, x: Float[Array, "b size size 3"], train: bool
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b c"]]:
        """Normalised images -> (feature map, its global average as float32)."""
        norm = functools.partial(BatchNorm, train, self.axis_name)
        x = x.astype(self.dtype)
        size = 7 if self.stem == "imagenet" else 3
        pad = pads(self.padding, x, size, 2)
        x = conv(self.width, (size, size), strides=2, padding=pad, dtype=self.dtype, name="stem_conv")(x)
        x = norm(relu=True, dtype=self.dtype, name="stem_bn")(x)
        if self.stem == "imagenet":
            same = functools.partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2), padding="SAME")
            x = same(x) if self.padding == "same" else convolution.max_pool(x)
        for stage, blocks in enumerate(STAGE_SIZES[self.depth]):
            run_stage = functools.partial(_stage, stage=stage, blocks=blocks, norm=norm)
            x = nn.remat(run_stage)(self, x) if self.remat else run_stage(self, x)
        return x, x.astype(jnp.float32).mean((1, 2))


def _stage(network: ResNet, x: jax.Array, *, stage: int, blocks: int, norm: Callable[..., nn.Module]) -> jax.Array:
    for block in range(blocks):
        x = Block(
            channels=network.width * 2**stage,
            stride=2 if stage > 0 and block == 0 else 1,
            bottleneck=network.depth >= BOTTLENECK_DEPTH,
            norm=norm,
            dtype=network.dtype,
            padding=network.padding,
            name=f"stage{stage + 1}_block{block + 1}",
            parent=network,
        )(x)
    return x
