import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvsa_jax.models.heads import Head
from cvsa_jax.models.normalization import BatchNorm
from cvsa_jax.models.resnet import STAGE_SIZES, Block, ResNet, stride
from cvsa_jax.models.siamese import TARGET_PARTS, Siamese

pytestmark = pytest.mark.usefixtures("quick_compilation")
KEY = jax.random.key(0, impl="rbg")  # compiles faster than the default


def shapes_of(module: nn.Module, shape: tuple[int, ...]) -> dict:
    """Shapes and types of the variables, without computing any."""
    return jax.eval_shape(lambda x: module.init(KEY, x, True), jax.ShapeDtypeStruct(shape, jnp.float32))


def filled(shapes: dict, seed: int = 0) -> dict:
    """Random values of these shapes; no scale is 0, so that every branch counts, and variances are positive."""
    rng = np.random.default_rng(seed)

    def values(path, leaf):
        centre = 1.0 if path[-1].key in ("scale", "var") else 0.0
        spread = 0.3 if leaf.ndim == 1 else (2 / np.prod(leaf.shape[:-1])) ** 0.5
        return jnp.asarray(
            np.abs(centre + spread * rng.uniform(-1, 1, leaf.shape))
            if centre
            else spread * rng.standard_normal(leaf.shape),
            jnp.float32,
        )

    return jax.tree_util.tree_map_with_path(values, shapes)


@pytest.mark.parametrize(
    ("depth", "count"),
    [
        # torchvision's totals less its classifier: 25,557,032 − (2048·1000 + 1000), 11,689,512 − (512·1000 + 1000),
        # 21,797,672 − 513,000. By hand for ResNet-18: stem 9,408 + 128; stages of 4 convolutions and 4 (5 with a
        # shortcut) normalisations: 147,968 + 525,568 + 2,099,712 + 8,393,728.
        (50, 23_508_032),
        (18, 11_176_512),
        (34, 21_284_672),
    ],
)
def test_parameter_count_matches_torchvision(depth, count):
    params = shapes_of(ResNet(depth), (1, 64, 64, 3))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_resnet50_maps_224_pixels_to_7_by_7_by_2048():
    feature_map, pooled = jax.eval_shape(
        lambda x: ResNet(50).init_with_output(KEY, x, True)[0], jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    )
    assert feature_map.shape == (2, 7, 7, 2048)
    assert pooled.shape == (2, 2048)
    assert stride(50, "imagenet") == 32


@pytest.mark.parametrize("stem", ["imagenet", "small"])
@pytest.mark.parametrize("depth", [8, 18])
def test_stride_is_pixels_per_cell(depth, stem):
    model = ResNet(depth, width=4, stem=stem)
    size = 3 * stride(depth, stem)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    assert Siamese(depth, stem=stem).stride == stride(depth, stem)
    feature_map, _ = jax.eval_shape(lambda x: model.init_with_output(KEY, x, True)[0], images)
    assert feature_map.shape == (1, 3, 3, 4 * 2 ** (len(STAGE_SIZES[depth]) - 1))


def test_small_stem_is_a_3x3_convolution_at_half_the_stride():
    small = shapes_of(ResNet(8, width=4, stem="small"), (1, 32, 32, 3))["params"]["stem_conv"]["kernel"]
    standard = shapes_of(ResNet(8, width=4), (1, 32, 32, 3))["params"]["stem_conv"]["kernel"]
    assert small.shape == (3, 3, 3, 4)
    assert standard.shape == (7, 7, 3, 4)
    assert (stride(8, "small"), stride(8, "imagenet")) == (8, 16)


class TorchStyle:
    """The network in float64 NumPy with torchvision's conventions: symmetric padding of k // 2, stride in the 3x3."""

    def __init__(self, variables: dict):
        as_double = functools.partial(jax.tree.map, lambda x: np.asarray(x, np.float64))
        self.params, self.stats = as_double(variables["params"]), as_double(variables["batch_stats"])

    def conv(self, x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
        size, side = kernel.shape[0], x.shape[1]
        pad = size // 2
        x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        out = (side + 2 * pad - size) // stride + 1
        last = stride * (out - 1) + 1
        return sum(
            x[:, i : i + last : stride, j : j + last : stride] @ kernel[i, j] for i in range(size) for j in range(size)
        )

    def max_pool(self, x: np.ndarray) -> np.ndarray:
        out = (x.shape[1] - 1) // 2 + 1
        x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
        last = 2 * (out - 1) + 1
        return np.max([x[:, i : i + last : 2, j : j + last : 2] for i in range(3) for j in range(3)], axis=0)

    def norm(self, x: np.ndarray, params: dict, stats: dict) -> np.ndarray:
        return (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["scale"] + params["bias"]

    def block(self, x: np.ndarray, stride: int, params: dict, stats: dict) -> np.ndarray:
        strides = (1, stride, 1) if "conv3" in params else (stride, 1)
        out = x
        for n, s in enumerate(strides, start=1):
            out = self.norm(self.conv(out, params[f"conv{n}"]["kernel"], s), params[f"bn{n}"], stats[f"bn{n}"])
            out = np.maximum(out, 0) if n < len(strides) else out
        if "downsample_conv" in params:
            x = self.conv(x, params["downsample_conv"]["kernel"], stride)
            x = self.norm(x, params["downsample_bn"], stats["downsample_bn"])
        return np.maximum(x + out, 0)

    def network(self, x: np.ndarray, stem: str) -> np.ndarray:
        x = self.conv(x, self.params["stem_conv"]["kernel"], 2)
        x = np.maximum(self.norm(x, self.params["stem_bn"], self.stats["stem_bn"]), 0)
        x = self.max_pool(x) if stem == "imagenet" else x
        for stage in (1, 2, 3):
            name = f"stage{stage}_block1"
            x = self.block(x, 1 if stage == 1 else 2, self.params[name], self.stats[name])
        return x


@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_resnet_matches_torch_style_reference(stem):
    model = ResNet(8, width=3, stem=stem)
    variables = filled(shapes_of(model, (1, 32, 32, 3)))
    images = np.random.default_rng(1).standard_normal((2, 32, 32, 3)).astype(np.float32)
    feature_map, pooled = jax.jit(lambda v, x: model.apply(v, x, False))(variables, images)
    expected = TorchStyle(variables).network(images.astype(np.float64), stem)
    np.testing.assert_allclose(feature_map, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pooled, expected.mean((1, 2)), rtol=1e-4, atol=1e-5)


def test_bottleneck_has_its_stride_in_the_3x3_convolution():
    model = Block(3, 2, bottleneck=True, norm=functools.partial(BatchNorm, False, None), dtype=jnp.float32)
    x = np.random.default_rng(2).standard_normal((2, 8, 8, 5)).astype(np.float32)
    variables = filled(jax.eval_shape(lambda x: model.init(KEY, x), jax.ShapeDtypeStruct(x.shape, x.dtype)))
    reference = TorchStyle(variables)
    expected = reference.block(x.astype(np.float64), 2, reference.params, reference.stats)
    assert expected.shape == (2, 4, 4, 12)
    np.testing.assert_allclose(jax.jit(model.apply)(variables, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_block_starts_as_the_identity(bottleneck):
    model = Block(4, 1, bottleneck, norm=functools.partial(BatchNorm, False, None), dtype=jnp.float32)
    x = jax.random.normal(KEY, (1, 4, 4, 16 if bottleneck else 4))
    out, _ = jax.jit(model.init_with_output)(KEY, x)
    np.testing.assert_array_equal(out, jnp.maximum(x, 0))


def test_bfloat16_compute_leaves_parameters_statistics_and_outputs_float32():
    model = Siamese(depth=8, width=4, stem="small", head_hidden=16, head_out=8, dtype=jnp.bfloat16)
    variables = shapes_of(model, (2, 32, 32, 3))
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    outputs, mutated = jax.eval_shape(lambda v, x: model.apply(v, x, True, mutable=["batch_stats"]), variables, images)
    feature_map, pooled = jax.eval_shape(lambda v, x: model.apply(v, x, method="features"), variables, images)
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, mutated, outputs, pooled))} == {jnp.dtype("float32")}
    assert feature_map.dtype == jnp.bfloat16


def head_and_variables() -> tuple[Head, dict]:
    head = Head(hidden=6, out=3)
    return head, filled(jax.eval_shape(lambda x: head.init(KEY, x, True), jax.ShapeDtypeStruct((4, 5), jnp.float32)))


def run_head(head: Head, variables: dict, x: np.ndarray) -> tuple[jax.Array, dict]:
    return jax.jit(lambda v, x: head.apply(v, x, True, mutable=["batch_stats"]))(variables, x)


def test_conv_head_on_one_cell_is_the_mlp_head():
    head, variables = head_and_variables()
    x = np.random.default_rng(3).standard_normal((8, 5)).astype(np.float32)
    vector, vector_stats = run_head(head, variables, x)
    one_cell, map_stats = run_head(head, variables, x[:, None, None])
    np.testing.assert_allclose(one_cell[:, 0, 0], vector, rtol=1e-5, atol=1e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), map_stats, vector_stats)


def test_conv_head_treats_cells_as_further_examples():
    head, variables = head_and_variables()
    x = np.random.default_rng(4).standard_normal((2, 3, 4, 5)).astype(np.float32)
    on_map, map_stats = run_head(head, variables, x)
    on_cells, cell_stats = run_head(head, variables, x.reshape(24, 5))
    np.testing.assert_allclose(on_map.reshape(24, 3), on_cells, rtol=1e-5, atol=1e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), map_stats, cell_stats)


def test_head_is_linear_norm_relu_linear_with_running_average_0_9():
    head, variables = head_and_variables()
    x = np.random.default_rng(5).standard_normal((8, 5)).astype(np.float32)
    out, mutated = run_head(head, variables, x)
    p, old = variables["params"], variables["batch_stats"]["bn"]
    assert set(p["linear1"]) == {"kernel"} and set(p["linear2"]) == {"kernel"}
    hidden = x @ p["linear1"]["kernel"]
    mean, var = hidden.mean(0), hidden.var(0)
    normed = (hidden - mean) / np.sqrt(var + 1e-5) * p["bn"]["scale"] + p["bn"]["bias"]
    expected = np.maximum(normed, 0) @ p["linear2"]["kernel"]
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    new = mutated["batch_stats"]["bn"]
    np.testing.assert_allclose(new["mean"], 0.9 * old["mean"] + 0.1 * mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(new["var"], 0.9 * old["var"] + 0.1 * var, rtol=1e-4, atol=1e-6)


def test_siamese_output_shapes_with_and_without_parts():
    model = Siamese(depth=8, width=4, stem="small", head_hidden=16, head_out=8)
    variables = shapes_of(model, (2, 32, 32, 3))
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    run = functools.partial(jax.eval_shape, lambda v, x, **kw: model.apply(v, x, train=False, **kw))
    shape = lambda tree: jax.tree.map(lambda x: x.shape, tree)  # noqa: E731
    assert shape(run(variables, images)) == ((2, 16), (2, 8), (2, 4, 4, 8), (2, 8), (2, 4, 4, 8))
    unpredicted = jax.eval_shape(lambda v, x: model.apply(v, x, False, predictor=False), variables, images)
    assert shape(unpredicted) == ((2, 16), (2, 8), (2, 4, 4, 8), None, (2, 4, 4, 8))

    without_maps = jax.eval_shape(lambda v, x: model.apply(v, x, False, False), variables, images)
    assert shape(without_maps) == ((2, 16), (2, 8), None, (2, 8), None)
    target = {name: {part: tree[part] for part in TARGET_PARTS} for name, tree in variables.items()}
    projected = jax.eval_shape(lambda v, x: model.apply(v, x, False, method="project"), target, images)
    assert shape(projected) == ((2, 16), (2, 8), (2, 4, 4, 8), None, None)


def test_four_heads_have_separate_parameters():
    params = shapes_of(Siamese(depth=8, width=4, stem="small", head_hidden=16, head_out=8), (2, 32, 32, 3))["params"]
    assert set(params) == {"backbone", "projector", "predictor", "conv_projector", "conv_predictor"}
    kernels = {name: params[name]["linear1"]["kernel"].shape for name in params if name != "backbone"}
    assert kernels == {
        "projector": (16, 16),
        "conv_projector": (16, 16),
        "predictor": (8, 16),
        "conv_predictor": (8, 16),
    }


def test_siamese_composes_backbone_projectors_and_predictors():
    model = Siamese(depth=8, width=4, stem="small", head_hidden=16, head_out=8)
    variables = filled(shapes_of(model, (2, 16, 16, 3)))
    images = jnp.asarray(np.random.default_rng(6).standard_normal((2, 16, 16, 3)), jnp.float32)

    @jax.jit
    def by_parts(variables, x):
        def part(name, module, x):
            return module.apply({kind: tree[name] for kind, tree in variables.items()}, x, False)

        head = Head(16, 8)
        feature_map, pooled = part("backbone", ResNet(8, 4, "small"), x)
        projection, projection_map = part("projector", head, pooled), part("conv_projector", head, feature_map)
        prediction, prediction_map = part("predictor", head, projection), part("conv_predictor", head, projection_map)
        return pooled, projection, projection_map, prediction, prediction_map

    got = jax.jit(lambda v, x: model.apply(v, x, False))(variables, images)
    for ours, expected in zip(got, by_parts(variables, images), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
