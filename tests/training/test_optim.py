import jax
import jax.numpy as jnp
import numpy as np
import optax

from cvsa_jax.training import optim, state

LR = (0.5, 0.3, 0.7)


def schedule(step):
    return jnp.array(LR)[step]


def tree(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "kernel": rng.standard_normal((5, 4)),
        "conv": rng.standard_normal((3, 3, 2, 4)),
        "bias": rng.normal(size=4),
    }


def on_device(values: dict) -> dict:
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), values)


def steps_of(used: optax.GradientTransformation, params: dict, gradients: list[dict]) -> list[dict]:
    """The parameters after each update."""
    params, out = on_device(params), []
    opt_state, update = used.init(params), jax.jit(used.update)
    for gradient in gradients:
        updates, opt_state = update(on_device(gradient), opt_state, params)
        params = optax.apply_updates(params, updates)
        out.append(params)
    return out


def assert_trees_close(got: dict, expected: dict, atol: float = 1e-6):
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-5, atol=atol, err_msg=name)


def optimizer(*values, **changes) -> optax.GradientTransformation:
    """Of an `OptimizerSpec`, along the schedule."""
    return optim.make_optimizer(schedule, optim.OptimizerSpec(*values, **changes))


def test_lars_matches_reference_for_three_steps():
    weight_decay, momentum = 0.1, 0.9
    params, gradients = tree(0), [tree(seed) for seed in (1, 2, 3)]
    got = steps_of(optimizer("lars", weight_decay, momentum), params, gradients)
    velocity = {name: np.zeros_like(p) for name, p in params.items()}
    for step, gradient in enumerate(gradients):
        for name, g in gradient.items():
            if name != "bias":
                g = g + weight_decay * params[name]
                g = g * 1e-3 * np.linalg.norm(params[name]) / np.linalg.norm(g)
            # optax.lars is decay -> trust ratio -> learning rate -> trace: the velocity holds steps that have already
            # been multiplied by the learning rate of their own time (as in You et al.; torch's SGD multiplies later).
            velocity[name] = momentum * velocity[name] - LR[step] * g
            params[name] = params[name] + velocity[name]
        assert_trees_close(got[step], params)


def test_lars_moves_a_kernel_that_is_zero():
    zeros = {"kernel": np.zeros((2, 2))}
    (params,) = steps_of(optimizer("lars", 0.1, 0.9), zeros, [{"kernel": np.ones((2, 2))}])
    np.testing.assert_allclose(params["kernel"], -LR[0])


def test_sgd_is_nesterov_with_kernel_decay():
    weight_decay, momentum = 0.1, 0.9
    params, gradients = tree(4), [tree(seed) for seed in (5, 6, 7)]
    got = steps_of(optimizer("sgd", weight_decay, momentum), params, gradients)
    velocity = {name: np.zeros_like(p) for name, p in params.items()}
    for step, gradient in enumerate(gradients):
        for name, g in gradient.items():
            g = g + (0 if name == "bias" else weight_decay) * params[name]
            velocity[name] = momentum * velocity[name] + g
            params[name] = params[name] - LR[step] * (g + momentum * velocity[name])
        assert_trees_close(got[step], params)


def test_sgd_of_moco_and_simsiam_matches_torch_sgd():
    # torch.optim.SGD: weight decay on everything, momentum that is not Nesterov's; SimSiam's predictor at one rate.
    weight_decay, momentum, fixed = 0.1, 0.9, 0.05
    names = {"backbone": "kernel", "predictor": "conv", "conv_predictor": "bias"}
    params = {part: {name: tree(4)[name]} for part, name in names.items()}
    gradients = [{part: {name: tree(seed)[name]} for part, name in names.items()} for seed in (5, 6, 7)]
    torchs = {"momentum": momentum, "nesterov": False, "decay": "all", "predictor_rate": fixed}
    got = steps_of(optimizer("sgd", weight_decay, **torchs), params, gradients)
    velocity = jax.tree.map(np.zeros_like, params)
    for step, gradient in enumerate(gradients):
        for part, name in names.items():
            g = gradient[part][name] + weight_decay * params[part][name]
            velocity[part][name] = momentum * velocity[part][name] + g
            rate = LR[step] if part == "backbone" else fixed
            params[part][name] = params[part][name] - rate * velocity[part][name]
            np.testing.assert_allclose(got[step][part][name], params[part][name], rtol=1e-5, atol=1e-6)


def test_adam_weight_decay_is_decoupled_and_spares_biases():
    params = tree(8)
    zero = {name: np.zeros_like(p) for name, p in params.items()}
    (got,) = steps_of(optimizer("adam", 0.1, 0.9), params, [zero])
    assert_trees_close(got, {n: p if n == "bias" else p * (1 - LR[0] * 0.1) for n, p in params.items()})


def test_adam_first_step_is_the_learning_rate_along_the_sign_of_the_gradient():
    params, gradient = tree(9), tree(10)
    (got,) = steps_of(optimizer("adam", 0.0, 0.9), params, [gradient])
    assert_trees_close(got, {n: p - LR[0] * np.sign(gradient[n]) for n, p in params.items()}, atol=1e-5)


def test_learning_rate_warms_up_and_decays_by_cosine():
    rate = optim.learning_rate(base=0.2, batch_size=512, warmup_steps=10, total_steps=110)
    # Peak 0.2 · 512/256; a quarter of the cosine's way leaves (1 + cos(π/4))/2 of it.
    expected = {0: 0, 5: 0.2, 10: 0.4, 35: 0.4 * (1 + 0.5**0.5) / 2, 60: 0.2, 110: 0}
    np.testing.assert_allclose([rate(step) for step in expected], list(expected.values()), atol=1e-7)


def test_learning_rate_without_warmup_starts_at_peak():
    np.testing.assert_allclose(optim.learning_rate(0.3, 256, 0, 100)(0), 0.3, rtol=1e-6)


def test_target_decay_rises_from_base_to_exactly_1():
    tau = jax.jit(optim.target_decay(0.96, 1000, cosine=True))
    np.testing.assert_allclose([tau(0), tau(500)], [0.96, 0.98], rtol=1e-6)
    assert tau(1000) == 1.0
    assert np.all(np.diff([tau(step) for step in range(0, 1001, 50)]) > 0)


def test_target_decay_is_constant_without_cosine():
    tau = jax.jit(optim.target_decay(0.996, 1000, cosine=False))
    assert [float(tau(step)) for step in (0, 500, 1000)] == [float(np.float32(0.996))] * 3


def networks() -> tuple[dict, dict]:
    """A target and an online tree, the latter with all five parts."""
    parts = ("backbone", "projector", "conv_projector", "predictor", "conv_predictor")
    online = {name: on_device(tree(seed)) for seed, name in enumerate(parts)}
    return {name: on_device(tree(seed + 10)) for seed, name in enumerate(parts[:3])}, online


def test_initial_target_copies_online_without_predictors():
    online = state.Network(params=networks()[1], batch_stats=networks()[1])
    target = state.initial_target(online)
    for ours, theirs in ((target.params, online.params), (target.batch_stats, online.batch_stats)):
        assert set(ours) == {"backbone", "projector", "conv_projector"}
        for part, values in ours.items():
            jax.tree.map(np.testing.assert_array_equal, values, theirs[part])
            # Not the same buffers: the step donates those of its state, and one buffer cannot be donated twice.
            for mine, other in zip(jax.tree.leaves(values), jax.tree.leaves(theirs[part]), strict=True):
                assert mine.unsafe_buffer_pointer() != other.unsafe_buffer_pointer()
