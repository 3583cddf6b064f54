"""What a training step asks for, counted layer by layer: operations, bytes, collectives, and the state that it keeps.

Bytes are plain bytes; docs/scaling.md explains the formulas. Only the exact size of the state needs JAX, which computes
shapes and no values.
"""

import dataclasses
import functools

import jax

from cvsa_jax.models.resnet import BOTTLENECK_DEPTH, STAGE_SIZES, channels, parameter_count, stride
from cvsa_jax.models.siamese import Siamese
from cvsa_jax.training import optim
from cvsa_jax.training.state import TrainState, init_state

VIEWS = 2
WIDTH, HIDDEN, OUT = 64, 4096, 256  # of configs/common.py
MASK_STRIDE = 4  # of data/views.py, which needs TensorFlow
ITEMSIZE = {"bfloat16": 2, "float32": 4}
PARAMETER_BYTES = 4  # float32, whatever the convolutions compute in
RECIPE_BATCH = 4096  # the largest of BYOL's recipe (arXiv 2006.07733)


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is trained. `align`: with the alignment loss, and so with the conv heads."""

    depth: int = 50
    stem: str = "imagenet"
    size: int = 224  # px of a view
    dtype: str = "bfloat16"
    align: bool = True
    batch_size: int = RECIPE_BATCH  # global
    train_images: int = 100 * 1_281_167  # of the whole run: 100 epochs of ImageNet-1k
    checkpoint_gbs: float = 1.0  # GB/s of the file system; an assumption


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution, or a dense layer on every cell of a map, for one view.

    `normalised`: BatchNorm follows. `shared`: another layer reads the same input (the downsampling convolutions).
    """

    kernel: int
    inputs: int  # channels
    outputs: int  # channels
    input_side: int
    output_side: int
    normalised: bool = True
    shared: bool = False

    @property
    def macs(self) -> int:
        """Multiply-adds, zeros of the padding included, as published counts do."""
        return self.parameters * self.output_side**2

    @property
    def parameters(self) -> int:
        """Of the kernel alone."""
        return self.kernel**2 * self.inputs * self.outputs

    @property
    def read(self) -> int:
        """Elements of its input."""
        return self.inputs * self.input_side**2

    @property
    def written(self) -> int:
        """Elements of its output."""
        return self.outputs * self.output_side**2


def backbone(depth: int, stem: str, size: int, width: int = WIDTH) -> list[Layer]:
    """The layers of `models.resnet.ResNet`, in order, for views of `size` px."""
    side = -(-size // 2)
    layers = [Layer(7 if stem == "imagenet" else 3, 3, width, size, side)]
    if stem == "imagenet":
        side = -(-side // 2)  # max-pool
    before, bottleneck = width, depth >= BOTTLENECK_DEPTH
    for stage, blocks in enumerate(STAGE_SIZES[depth]):
        inner = width * 2**stage
        after = inner * (4 if bottleneck else 1)
        for block in range(blocks):
            out = -(-side // 2) if stage > 0 and block == 0 else side
            if bottleneck:
                layers += [Layer(1, before, inner, side, side), Layer(3, inner, inner, side, out)]
                layers += [Layer(1, inner, after, out, out)]
            else:
                layers += [Layer(3, before, inner, side, out), Layer(3, inner, inner, out, out)]
            if before != after or out != side:
                layers += [Layer(1, before, after, side, out, shared=True)]
            before, side = after, out
    return layers


def head(inputs: int, side: int) -> list[Layer]:
    """The two layers of `models.heads.Head` on side × side cells."""
    return [Layer(1, inputs, HIDDEN, side, side), Layer(1, HIDDEN, OUT, side, side, normalised=False)]


def networks(work: Workload) -> tuple[list[Layer], list[Layer]]:
    """The layers that a step runs: of the online network, and of the target network, which has no predictors."""
    features, cells = channels(work.depth, WIDTH), side_of_map(work)
    target = backbone(work.depth, work.stem, work.size) + head(features, 1)
    online = target + head(OUT, 1)
    if work.align:
        target, online = target + head(features, cells), online + head(features, cells) + head(OUT, cells)
    return online, target


def side_of_map(work: Workload) -> int:
    """Cells along a side of the feature map."""
    return work.size // stride(work.depth, work.stem)


def operations(work: Workload) -> dict[str, float]:
    """Floating-point operations per image (both views) by part; a multiply-add is two.

    The backward pass costs twice the forward pass, but for the first layer, whose input needs no gradient. Attention:
    two directions, forward, and backward to the queries alone. Augmentation: the blur, two S × S matrices on each
    channel of every view; the rest of it is a few operations per pixel.
    """
    online, target = networks(work)
    forward = sum(layer.macs for layer in online)
    attention = 4 * side_of_map(work) ** 4 * OUT if work.align else 0
    return {
        "online_forward": 2.0 * VIEWS * forward,
        "online_backward": 2.0 * VIEWS * (2 * forward - online[0].macs),
        "target_forward": 2.0 * VIEWS * sum(layer.macs for layer in target),
        "attention": 2.0 * attention,
        "blur": 2.0 * VIEWS * 3 * 2 * work.size**3,
    }


def activation_bytes(work: Workload) -> float:
    """Bytes per image (both views) that the online network keeps for its backward pass: what BatchNorm normalised and
    the input of each layer, in the compute dtype. The target network keeps nothing."""
    online, _ = networks(work)
    elements = sum(layer.written * layer.normalised + layer.read * (not layer.shared) for layer in online)
    if work.stem == "imagenet":
        elements += online[0].written  # the max-pool's input
    return float(VIEWS * elements * ITEMSIZE[work.dtype])


def traffic_bytes(work: Workload) -> float:
    """Bytes per image (both views) through the chip's memory for the activations, where every layer reads and writes
    them there. Passes over a normalised output: written, read for the statistics, read and written by the
    normalisation; backward 2 read for its sums, 2 read and 1 written by its gradient, 2 read by the layer's gradients.
    Over an input: 1 read forward; backward 1 read and 1 written."""
    online, target = networks(work)
    passes = lambda layer, out, inside: out * layer.written + inside * layer.read  # noqa: E731
    elements = sum(passes(layer, 4 + 7, 1 + 2) for layer in online) + sum(passes(layer, 4, 1) for layer in target)
    return float(VIEWS * elements * ITEMSIZE[work.dtype])


def gradient_bytes(work: Workload) -> int:
    """Bytes of the gradients that are summed over the chips: kernels and the heads' last biases, in the compute dtype,
    because parameters are cast to it before they meet a chip's own data."""
    online, _ = networks(work)
    biases = sum(layer.outputs for layer in online if not layer.normalised)
    return (sum(layer.parameters for layer in online) + biases) * ITEMSIZE[work.dtype]


def batch_norm(work: Workload) -> dict[str, int]:
    """Synchronous BatchNorm, per step: `reductions` in the program, `rounds` of them that wait for each other (and are
    all there is, once the compiler has merged what does not), and their `bytes`, which do not depend on the batch.

    Forward one reduction of 2 × channels float32 for each layer of both networks; backward, online, three of the
    channels: of the mean, the scale and the bias. Side by side go the networks, the downsampling and the layer beside
    it, and the MLP and the conv heads; one after the other the layers of the backbone, projector and predictor.
    """
    online, target = ([layer for layer in layers if layer.normalised] for layers in networks(work))
    backbone_chain = sum(not layer.shared for layer in backbone(work.depth, work.stem, work.size))
    count = lambda layers: sum(layer.outputs for layer in layers)  # noqa: E731
    return {
        "reductions": len(online) + len(target) + 3 * len(online),
        "rounds": 2 * (backbone_chain + 2),
        "bytes": PARAMETER_BYTES * (2 * count(online) + 2 * count(target) + 3 * count(online)),
    }


def input_bytes(work: Workload) -> int:
    """Bytes per image from host to chip: two uint8 views, their masks, and the place in the data order."""
    masks = (work.size // MASK_STRIDE) ** 2 if work.align else 0
    return VIEWS * (3 * work.size**2 + masks) + 8


@functools.cache
def state(depth: int, stem: str) -> TrainState:
    """Shapes of what a run keeps and checkpoints: both networks and LARS's momentum, float32."""
    model = Siamese(depth, WIDTH, stem, HIDDEN, OUT)
    optimizer = optim.make_optimizer("lars", lambda step: 0.0, 1e-6, 0.9)
    # The key is made inside, so that no device is looked for.
    return jax.eval_shape(lambda: init_state(model, optimizer, 2 * model.stride, jax.random.key(0)))


def parameters(work: Workload) -> tuple[int, int]:
    """Of the online and of the target network."""
    whole = state(work.depth, work.stem)
    return parameter_count(whole.online.params), parameter_count(whole.target.params)


def checkpoint_bytes(work: Workload) -> int:
    """Bytes of a checkpoint before compression."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state(work.depth, work.stem)))


def update_bytes(work: Workload) -> int:
    """Bytes per step and chip through memory for LARS (norms: parameters and gradients read; update: both and the
    momentum read, parameters and momentum written) and for the moving average (two read, one written)."""
    online, target = parameters(work)
    return PARAMETER_BYTES * (7 * online + 3 * target)


def fixed_memory_bytes(work: Workload) -> int:
    """Bytes on each chip whatever its share of the batch: the state and a float32 gradient."""
    return checkpoint_bytes(work) + PARAMETER_BYTES * parameters(work)[0]
