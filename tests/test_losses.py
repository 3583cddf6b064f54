"""The forms of the alignment and BYOL's regression, worked by hand, against explicit loops, and their gradients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.compiling import quick

from cvsa_jax import losses

TAU = 0.2


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


# A pair of 2x2 maps. View 1: cell 0 is e1, the others e2; view 2 likewise. So A = [[1 0 0 0], [0 1 1 1] x 3].
AXES = jnp.array([[[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]]])
FIRST_CELL = jnp.array([[1.0, 0.0, 0.0, 0.0]])

# Both masks hold cell 0 alone, so fg = (1, 0, 0, 0) and bg = (0, 1, 1, 1).
WORKED = {
    # The whole share is on cell 0: −log softmax(5, 0, 0, 0)_0.
    "kl": math.log(1 + 3 * math.exp(-5)),
    # fg − bg = (1, −1, −1, −1), over τ ±5, always with the right sign.
    "contrast_bce": softplus(-5),
    # Row 0 puts 1/(1 + 3e⁻⁵) on cell 0 of view 2; the others put 1/(1 + 3e⁵), where 0 is wanted.
    "propagate": (math.log(1 + 3 * math.exp(-5)) - 3 * math.log(1 - 1 / (1 + 3 * math.exp(5)))) / 4,
    "cosine": 0.0,
    # Row means (1, 3, 3, 3)/4 become (0, 1, 1, 1) against (1, 0, 0, 0): wrong everywhere.
    "minmax": 1.0,
    # Logits ±2.5. One entry is rightly positive, six are rightly negative, nine are wrongly positive.
    "pairwise": (7 * softplus(-2.5) + 9 * softplus(2.5)) / 16,
    # Channel 0 of view 1's map is (1, 0, 0, 0).
    "mask_head": (softplus(-1) + 3 * math.log(2)) / 4,
    # Both objects are e1.
    "masked_dense": 0.0,
}


def reference(form: str, p: np.ndarray, z: np.ndarray, m1: np.ndarray, m2: np.ndarray) -> float:
    """One pair in float64 with explicit loops: p and z are cells x channels."""
    n = len(p)
    a = [[float(p[i] @ z[j]) / math.sqrt(float(p[i] @ p[i]) * float(z[j] @ z[j])) for j in range(n)] for i in range(n)]
    fg = [sum(m2[j] * a[i][j] for j in range(n)) / sum(m2) for i in range(n)]
    bg = [sum((1 - m2[j]) * a[i][j] for j in range(n)) / sum(1 - m2) for i in range(n)]

    def bce(probability, label):
        return -label * math.log(probability) - (1 - label) * math.log(1 - probability)

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    total = 0.0
    if form == "kl":
        partition = sum(math.exp(f / TAU) for f in fg)
        for i in range(n):
            share = m1[i] / sum(m1)
            total += share * math.log(share / (math.exp(fg[i] / TAU) / partition))
        return total
    if form == "cosine":
        positive = [max(f, 0.0) for f in fg]
        dot = sum(f * m for f, m in zip(positive, m1, strict=True))
        return 1 - dot / math.sqrt(sum(f * f for f in positive) * sum(m * m for m in m1))
    if form == "masked_dense":
        one, two = ([sum(m[i] * x[i][c] for i in range(n)) for c in range(len(x[0]))] for m, x in ((m1, p), (m2, z)))
        dot = sum(a * b for a, b in zip(one, two, strict=True))
        return 2 - 2 * dot / math.sqrt(sum(a * a for a in one) * sum(b * b for b in two))
    if form == "minmax":
        means = [sum(row) / n for row in a]
        low, high = min(means), max(means)
        return sum(((means[i] - low) / (high - low) - m1[i] / max(m1)) ** 2 for i in range(n)) / n
    if form == "pairwise":
        terms = [bce(sigmoid((a[i][j] - 0.5) / TAU), m1[i] * m2[j]) for i in range(n) for j in range(n)]
        return sum(terms) / n**2
    for i in range(n):
        if form == "contrast_bce":
            total += bce(sigmoid((fg[i] - bg[i]) / TAU), m1[i])
        elif form == "propagate":
            weights = [math.exp(v / TAU) for v in a[i]]
            total += bce(sum(w * m for w, m in zip(weights, m2, strict=True)) / sum(weights), m1[i])
        else:
            total += bce(sigmoid(p[i][0]), m1[i])
    return total / n


def align(form: str, *pair) -> jax.Array:
    """The loss of a form at the tau of this file."""
    return losses.ALIGNMENT_FORMS[form](*pair, TAU)


compiled = quick(align, static_argnums=0)


def random_pairs(seed: int, count: int = 3, side: int = 3, channels: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    # Off the origin, so that similarities of both signs occur in each pair (`cosine` knows positive ones only).
    maps = [rng.normal(0.3, 1, (count, side, side, channels)).astype(np.float32) for _ in range(2)]
    masks = [rng.uniform(0.05, 0.95, (count, side * side)).astype(np.float32) for _ in range(2)]
    return [*maps, *masks]


def test_regression_matches_known_angles():
    # cos((3, 4), (4, 3)) = 24/25; then parallel, opposite, orthogonal.
    p = jnp.array([[3.0, 4.0], [1.0, 2.0], [1.0, 0.0], [0.0, 5.0]])
    z = jnp.array([[4.0, 3.0], [2.0, 4.0], [-7.0, 0.0], [1.0, 0.0]])
    np.testing.assert_allclose(losses.regression(p, z), [2 - 48 / 25, 0, 4, 2], atol=1e-6)


def test_attention_is_cosine_of_all_cells_in_row_major_order():
    p = jnp.array([[[[3.0, 0.0], [0.0, 2.0]], [[1.0, 1.0], [-1.0, 0.0]]]])
    z = jnp.array([[[[5.0, 0.0], [0.0, 4.0]]]])  # a 1x2 map
    half = math.sqrt(0.5)
    np.testing.assert_allclose(losses.attention(p, z)[0], [[1, 0], [0, 1], [half, half], [-1, 0]], atol=1e-6)


def test_foreground_similarity_is_the_mean_over_the_mask():
    a = jnp.array([[[1.0, 0.0, -1.0], [0.2, 0.4, 0.6]]])
    mask = jnp.array([[1.0, 0.5, 0.5]])
    # (1 + 0 − 0.5) / 2 and (0.2 + 0.2 + 0.3) / 2
    np.testing.assert_allclose(losses.foreground_similarity(a, mask), [[0.25, 0.35]], atol=1e-6)


def test_cell_masks_average_areas_in_row_major_order():
    mask = np.zeros((2, 4, 4), np.float32)
    mask[0, 0, 2] = mask[0, 1, 2] = mask[0, 0, 3] = 1  # three quarters of the upper right cell
    mask[0, 2:, :2] = 0.5  # the lower left cell
    mask[1] = 1
    np.testing.assert_allclose(losses.cell_masks(jnp.asarray(mask), 2), [[0, 0.75, 0.5, 0], [1, 1, 1, 1]])


def test_pairs_are_usable_when_both_masks_reach_0_3_cells():
    full, little, enough = [1.0, 1.0], [0.29, 0.0], [0.2, 0.11]
    mask1 = jnp.array([full, full, little, enough, [0.0, 0.0]])
    mask2 = jnp.array([full, little, full, enough, full])
    assert losses.usable_pairs(mask1, mask2).tolist() == [True, False, False, True, False]


def test_every_form_has_a_worked_value():
    assert set(WORKED) == set(losses.ALIGNMENT_FORMS)


@pytest.mark.parametrize("form", losses.ALIGNMENT_FORMS)
def test_alignment_form_matches_worked_value(form):
    loss = align(form, AXES, AXES, FIRST_CELL, FIRST_CELL)
    np.testing.assert_allclose(loss, [WORKED[form]], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", losses.ALIGNMENT_FORMS)
def test_temperature_changes_only_forms_that_use_it(form):
    pair = [jnp.asarray(x) for x in random_pairs(8)]
    at = [float(losses.ALIGNMENT_FORMS[form](*pair, tau).sum()) for tau in (0.1, 0.4)]
    assert (at[0] == at[1]) == (form in ("cosine", "minmax", "mask_head", "masked_dense"))


@pytest.mark.parametrize("form", losses.ALIGNMENT_FORMS)
def test_alignment_form_equals_explicit_loops(form):
    p, z, m1, m2 = random_pairs(1)
    got = compiled(form, *map(jnp.asarray, (p, z, m1, m2)))
    cells = [x.reshape(len(x), -1, x.shape[-1]).astype(np.float64) for x in (p, z)]
    pairs = zip(*cells, m1.astype(np.float64), m2.astype(np.float64), strict=True)
    np.testing.assert_allclose(got, [reference(form, *pair) for pair in pairs], rtol=2e-5)


def test_regression_target_has_no_gradient():
    p, z = (jnp.asarray(x[:, 0, 0]) for x in random_pairs(2)[:2])
    to_p, to_z = jax.grad(lambda p, z: losses.regression(p, z).sum(), (0, 1))(p, z)
    assert not np.any(to_z)
    assert np.all(np.abs(to_p).sum(-1) > 1e-3)


@pytest.mark.parametrize("form", losses.ALIGNMENT_FORMS)
def test_projection_map_has_no_gradient(form):
    p, z, m1, m2 = map(jnp.asarray, random_pairs(3))
    gradient = quick(jax.grad(lambda p, z: align(form, p, z, m1, m2).sum(), (0, 1)))
    to_p, to_z = gradient(p, z)
    assert not np.any(to_z)
    assert np.all(np.abs(to_p).sum((1, 2, 3)) > 1e-4)


@pytest.mark.parametrize("form", losses.ALIGNMENT_FORMS)
def test_alignment_is_finite_for_empty_masks_and_zero_maps(form):
    p, z, m1, m2 = map(jnp.asarray, random_pairs(4, count=1))
    # Rows: nothing empty, mask 1, mask 2, both masks, all-one masks, map 1, map 2, everything zero.
    ones, off = jnp.ones_like, jnp.zeros_like
    p = jnp.concatenate([p, p, p, p, p, off(p), p, off(p)])
    z = jnp.concatenate([z, z, z, z, z, z, off(z), off(z)])
    m1, m2 = (
        jnp.concatenate([m1, off(m1), m1, off(m1), ones(m1), m1, m1, off(m1)]),
        jnp.concatenate([m2, m2, off(m2), off(m2), ones(m2), m2, m2, off(m2)]),
    )
    gradient = quick(jax.value_and_grad(lambda p: align(form, p, z, m1, m2).sum()))
    value, to_p = gradient(p)
    assert np.isfinite(value)
    assert np.all(np.isfinite(to_p))


def test_regression_gradient_is_finite_at_zero():
    gradient = jax.grad(lambda p: losses.regression(p, jnp.ones((1, 3))).sum())(jnp.zeros((1, 3)))
    assert np.all(np.isfinite(gradient))


def test_kl_is_zero_and_minimal_at_the_normalised_mask():
    mask1, mask2 = jnp.array([[0.8, 0.4, 0.2, 0.1]]), jnp.ones((1, 1))
    # With one cell in view 2, fg is the only column of A; a constant added to it does not matter.
    best = (TAU * jnp.log(mask1) + 0.3)[:, :, None]

    @jax.jit
    def loss(a):
        return losses.align_kl(a, mask1, mask2, TAU).sum()

    value, gradient = jax.value_and_grad(loss)(best)
    assert abs(value) < 1e-6
    assert np.abs(gradient).max() < 1e-6
    for cell in range(4):
        for change in (-0.05, 0.05):
            assert loss(best.at[0, cell, 0].add(change)) > 1e-4


@pytest.mark.parametrize("form", sorted(losses.ALIGNMENT_FORMS.keys() - {"mask_head", "masked_dense"}))
def test_alignment_ignores_feature_length(form):
    p, z, m1, m2 = random_pairs(5)
    lengths = np.random.default_rng(6).uniform(0.2, 30, (2, *p.shape[:3], 1)).astype(np.float32)
    plain = compiled(form, *map(jnp.asarray, (p, z, m1, m2)))
    scaled = compiled(form, *map(jnp.asarray, (p * lengths[0], z * lengths[1], m1, m2)))
    np.testing.assert_allclose(plain, scaled, rtol=1e-4, atol=1e-6)


def test_regression_ignores_vector_length():
    p, z = (jnp.asarray(x[:, 0, 0]) for x in random_pairs(7)[:2])
    np.testing.assert_allclose(losses.regression(p, z), losses.regression(17 * p, z / 9), rtol=1e-5, atol=1e-6)
