"""The losses of the objectives, worked by hand, against explicit loops, and their gradients."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.comparing import unit

from cvsa_jax import losses
from cvsa_jax.losses import ObjectiveInputs


def vectors(seed: int, *counts: int, dimensions: int = 6) -> list[np.ndarray]:
    """Arrays of so many rows each, of all lengths."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(n, dimensions)) * rng.uniform(0.3, 5, (n, 1)) for n in counts]


def on_device(*arrays: np.ndarray) -> list[jnp.ndarray]:
    return [jnp.asarray(x, jnp.float32) for x in arrays]


def share_of(chosen: float, others: list[float], temperature: float) -> float:
    """−log of one similarity's share in the softmax of them all."""
    return -math.log(math.exp(chosen / temperature) / sum(math.exp(s / temperature) for s in [chosen, *others]))


def simsiam(query, key) -> jax.Array:
    return losses.simsiam(ObjectiveInputs(query, key), 0.2)


def moco(query, key, queue, temperature: float) -> jax.Array:
    return losses.moco(ObjectiveInputs(query, key, queue=queue), temperature)


def simclr(rows, batch, places, temperature: float) -> jax.Array:
    """The loss of some rows of a batch, of which they are those at `places`."""
    return losses.simclr(ObjectiveInputs(rows, jnp.zeros_like(rows), batch=batch, row=jnp.asarray(places)), temperature)


def test_byol_sums_directions_and_simsiam_averages_them():
    # cos((3, 4), (4, 3)) = 24/25; then parallel, opposite, orthogonal.
    p = jnp.array([[3.0, 4.0], [1.0, 2.0], [1.0, 0.0], [0.0, 5.0]])
    z = jnp.array([[4.0, 3.0], [2.0, 4.0], [-7.0, 0.0], [1.0, 0.0]])
    np.testing.assert_allclose(losses.byol(ObjectiveInputs(p, z), 0.2), [4 - 96 / 25, 0, 8, 4], atol=1e-6)
    np.testing.assert_allclose(simsiam(p, z), [-24 / 25, -1, 1, 0], atol=1e-6)


def test_moco_matches_worked_value():
    # Query 1, along (1, 0): its key (3, 4) has cosine 3/5, the queue 0 and −1; over 1/2: 1.2, 0, −2.
    # Query 2, along (0, 1): its key (0, −2) has cosine −1, the queue 1 and 0; over 1/2: −2, 2, 0.
    queries, keys = jnp.array([[5.0, 0.0], [0.0, 0.1]]), jnp.array([[3.0, 4.0], [0.0, -2.0]])
    queue = jnp.array([[0.0, 1.0], [-1.0, 0.0]])
    expected = [math.log(1 + math.exp(-1.2) + math.exp(-3.2)), math.log(1 + math.exp(4) + math.exp(2))]
    np.testing.assert_allclose(moco(queries, keys, queue, 0.5), expected, rtol=1e-5)


def test_simclr_matches_worked_value():
    # Of two images, rows 0 and 2 are views of the first, 1 and 3 of the second. The cosines of row 0 with rows 1 to 3
    # are 0, 4/5 (the positive), 0; over 2/5: 0, 2, 0. Those of row 1 with rows 0, 2, 3 are 0, 3/5, −1 (the positive);
    # over 2/5: 0, 1.5, −2.5. Their own cosine of 1 would add exp(2.5) to either sum.
    rows = jnp.array([[2.0, 0.0], [0.0, 3.0], [4.0, 3.0], [0.0, -1.0]])
    expected = [math.log(math.exp(2) + 2) - 2, math.log(math.exp(-2.5) + 1 + math.exp(1.5)) + 2.5]
    np.testing.assert_allclose(simclr(rows[:2], rows, [0, 1], 0.4), expected, rtol=1e-5)


def test_simsiam_equals_explicit_loops():
    p, z = vectors(11, 7, 7)
    expected = [-float(unit(p[i]) @ unit(z[i])) for i in range(7)]
    np.testing.assert_allclose(simsiam(*on_device(p, z)), expected, rtol=1e-5, atol=1e-6)


def test_moco_equals_explicit_loops():
    queries, keys, queue = vectors(12, 5, 5, 9)
    queries_of_1, keys_of_1, queue = unit(queries), unit(keys), unit(queue)
    expected = [
        share_of(float(q @ k), [float(q @ old) for old in queue], 0.3)
        for q, k in zip(queries_of_1, keys_of_1, strict=True)
    ]
    np.testing.assert_allclose(moco(*on_device(queries, keys, queue), 0.3), expected, rtol=1e-5)


def test_simclr_equals_explicit_loops():
    (rows,) = vectors(13, 10)
    # Some of the views, in some order; the other view of an image is five rows away.
    places = np.array([3, 0, 9, 4])
    ones = unit(rows)
    expected = [
        share_of(float(ones[i] @ ones[j]), [float(ones[i] @ ones[k]) for k in range(10) if k not in (i, j)], 0.3)
        for i, j in zip(places, [8, 5, 4, 9], strict=True)
    ]
    np.testing.assert_allclose(simclr(*on_device(rows[places], rows), places, 0.3), expected, rtol=1e-5)


def test_simclr_excludes_the_view_itself():
    (rows,) = vectors(14, 6)
    view, before, after = on_device(rows[2:3], rows, rows)
    after = after.at[2].set(-before[2] + before[5])
    loss = jax.value_and_grad(lambda batch: simclr(view, batch, [2], 0.2).sum())
    (with_before, gradient), (with_after, _) = loss(before), loss(after)
    assert with_before == with_after
    # What is left out has no gradient; all the others have, for no network is stopped.
    assert np.array_equal(np.abs(gradient).sum(1) > 1e-6, np.arange(6) != 2)


@pytest.mark.parametrize("objective", [losses.byol, losses.simsiam], ids=["byol", "simsiam"])
def test_regression_objective_target_has_no_gradient(objective):
    p, z = on_device(*vectors(15, 4, 4))
    to_p, to_z = jax.grad(lambda p, z: objective(ObjectiveInputs(p, z), 0.2).sum(), (0, 1))(p, z)
    assert not np.any(to_z)
    assert np.all(np.abs(to_p).sum(-1) > 1e-3)


@pytest.mark.parametrize("stopped", ["key", "queue"])
def test_moco_keys_and_queue_have_no_gradient(stopped):
    query, key, queue = on_device(*vectors(16, 4, 4, 5))
    values = {"query": query, "key": key, "queue": queue}
    gradient = jax.grad(lambda values: moco(**values, temperature=0.2).sum())(values)
    assert not np.any(gradient[stopped])
    assert np.all(np.abs(gradient["query"]).sum(-1) > 1e-3)


def with_lengths(seed: int, *arrays: jnp.ndarray) -> list[jnp.ndarray]:
    rng = np.random.default_rng(seed)
    return [x * jnp.asarray(rng.uniform(0.2, 30, (len(x), 1)), jnp.float32) for x in arrays]


def test_objectives_ignore_vector_length():
    a, b, queue = on_device(*vectors(17, 6, 6, 8))
    queue = jnp.asarray(unit(np.asarray(queue)))
    long_a, long_b = with_lengths(18, a, b)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    close(simsiam(a, b), simsiam(long_a, long_b))
    close(moco(a, b, queue, 0.2), moco(long_a, long_b, queue, 0.2))
    close(simclr(a, a, range(6), 0.2), simclr(long_a, long_a, range(6), 0.2))


def test_objectives_are_finite_at_zero_vectors_and_low_temperature():
    a, b, queue = on_device(*vectors(19, 4, 4, 5))
    queue = jnp.asarray(unit(np.asarray(queue)))
    # exp(1 / 0.004) is more than float32 holds.
    for temperature in (0.2, 0.004):
        for x, y in ((a, b), (0 * a, b), (a, 0 * b), (0 * a, 0 * b)):
            for name, objective in losses.OBJECTIVES.items():

                def loss(x, y=y, t=temperature, objective=objective):
                    return objective.loss(ObjectiveInputs(x, y, queue, x, jnp.arange(4)), t).sum()

                value, gradient = jax.value_and_grad(loss)(x)
                assert np.isfinite(value) and np.all(np.isfinite(gradient)), (name, temperature)


def test_objective_flags_match_their_papers():
    # BYOL has a predictor and a target network, MoCo a target and a queue, SimSiam a predictor, SimCLR its batch.
    assert {name: objective[1:] for name, objective in losses.OBJECTIVES.items()} == {
        "byol": (True, True, False, False),
        "moco": (False, True, True, False),
        "simclr": (False, False, False, True),
        "simsiam": (True, False, False, False),
    }
