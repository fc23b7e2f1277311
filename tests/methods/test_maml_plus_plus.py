"""MAML++: off, it is MAML to the bit; each knob against a closed form on a quadratic, or a loop written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quadratic import THETA, A, B, constant, task_of

from metarun.errors import ConfigError
from metarun.few_shot.inner_loop import split_loss
from metarun.few_shot.methods.maml import maml
from metarun.few_shot.methods.maml_plus_plus import maml_plus_plus
from metarun.models.conv4 import conv4
from metarun.models.mlp import mlp
from metarun.types import Split, Task

C, K = 0.3, 3


def image_task(key=0):
    def split(key, n):
        return Split(jax.random.uniform(key, (3 * n, 8, 8, 1)), jnp.tile(jnp.arange(3, dtype=jnp.int32), n))

    return Task(*(split(jax.random.fold_in(jax.random.key(key), i), n) for i, n in enumerate((1, 2))))


def images(factory, **options):
    return factory(model=conv4(num_outputs=3, filters=4), objective="classification", **options)


@pytest.mark.parametrize(
    "options",
    [
        {"inner_steps": 3, "eval_inner_steps": 5, "inner_reduction": "class_sum", "query_statistics": "support"},
        pytest.param({"inner_steps": 11, "inner_params": "no_norm", "remat": True}, marks=pytest.mark.slow),
        {"inner_steps": 2, "eval_inner_steps": 0, "inner_params": "head"},
    ],
)
def test_with_every_knob_off_it_is_maml_to_the_last_bit(options):
    task, key = image_task(), jax.random.key(1)
    plain, plus = (images(factory, inner_lr=0.2, **options) for factory in (maml, maml_plus_plus))
    assert not plus.early and plus.protocol == plain.protocol
    found = []
    for method, wrap in ((plain, lambda p: p), (plus, lambda p: p["params"])):
        meta_params = jax.jit(method.init)(key, task)

        @jax.jit
        def everything(params, method=method):
            gradient = jax.value_and_grad(method.loss, has_aux=True)(params, task, key)
            states = [adapt(params, task.support, key) for adapt in (method.adapt, method.unadapted)]
            return gradient, states, [method.predict(state, task.query.x) for state in states]

        (value, gradient), states, outputs = everything(meta_params)
        found.append((wrap(meta_params), value, wrap(gradient), states, outputs))
    jax.tree.map(np.testing.assert_array_equal, *found)
    assert max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(found[0][2])) > 1e-3


def quadratic(**options):
    options = {"inner_lr": C, "inner_steps": K} | options
    return maml_plus_plus(model=constant(), objective="regression", **options)


def loss_at(method, step):
    """What meta-training follows at an outer step."""
    return next((loss for end, loss in method.early if step < end), lambda *args: method.loss(*args[:3]))


def scheduled(method, step, meta_params=None):
    """Loss, metrics and gradient at an outer step, compiled."""
    meta_params = meta_params or jax.jit(method.init)(jax.random.key(0), task_of())
    loss = jax.value_and_grad(loss_at(method, step), has_aux=True)
    (loss, metrics), gradient = jax.jit(loss)(meta_params, task_of(), None, jnp.int32(step))
    return float(loss), metrics, np.array(gradient["params"]["dense0"]["bias"])


def closed_form(weights, first_order=False):
    """Sum over i of weights[i - 1] * 1/2 |theta_i - b|^2, and its gradient."""
    decay = [(1 - C) ** i for i in range(1, K + 1)]
    thetas = [A + d * (THETA - A) for d in decay]
    losses = [0.5 * np.sum((theta - B) ** 2) for theta in thetas]
    gradients = [(1 if first_order else d) * (theta - B) for d, theta in zip(decay, thetas, strict=True)]
    return np.dot(weights, losses), np.dot(weights, gradients), losses[-1]


@pytest.mark.parametrize(
    "step, weights",
    [
        (0, [1 / 3, 1 / 3, 1 / 3]),
        (25, [1 / 4, 1 / 4, 1 / 2]),
        (50, [1 / 6, 1 / 6, 2 / 3]),
        (100, [0, 0, 1]),
        (1000, [0, 0, 1]),
    ],
)
def test_weights_of_the_steps_go_to_the_last(step, weights):
    with jax.enable_x64(True):
        loss, metrics, gradient = scheduled(quadratic(multi_step_loss_steps=100), step)
        expected_loss, expected_gradient, last = closed_form(weights)
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-12)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-12)
        np.testing.assert_allclose(metrics["loss"], last, rtol=1e-12)


@pytest.mark.parametrize("multi_step", [0, 100])
@pytest.mark.parametrize("step", [0, 9, 10, 50])
def test_derivatives_are_of_first_order_until_the_step_named(step, multi_step):
    with jax.enable_x64(True):
        method = quadratic(first_order_steps=10, multi_step_loss_steps=multi_step)
        _, _, gradient = scheduled(method, step)
        progress = step / multi_step if multi_step else 1
        weights = np.array([0, 0, progress]) + (1 - progress) / 3
        np.testing.assert_allclose(gradient, closed_form(weights, first_order=step < 10)[1], rtol=1e-12)


def test_the_schedule_ends_in_the_loss():
    with jax.enable_x64(True):
        method = quadratic(first_order_steps=10, multi_step_loss_steps=20)
        meta_params = jax.jit(method.init)(jax.random.key(0), task_of())
        loss, gradient = jax.value_and_grad(lambda p: method.loss(p, task_of(), None)[0])(meta_params)
        np.testing.assert_allclose(scheduled(method, 20)[0], loss, rtol=1e-12)
        np.testing.assert_allclose(scheduled(method, 20)[2], gradient["params"]["dense0"]["bias"], rtol=1e-12)


def test_rates_of_each_step_and_their_gradient():
    with jax.enable_x64(True):
        method = quadratic(per_step_lr=True, eval_inner_steps=5)
        meta_params = jax.jit(method.init)(jax.random.key(0), task_of())
        np.testing.assert_array_equal(meta_params["lr"], [[C] * K])
        rates = np.array([0.1, 0.5, 0.3])
        meta_params["lr"] = [jnp.array(rates)]
        gradient = jax.grad(lambda p: method.loss(p, task_of(), None)[0])(meta_params)
        decay = np.prod(1 - rates)
        fast = A + decay * (THETA - A)
        np.testing.assert_allclose(gradient["params"]["dense0"]["bias"], decay * (fast - B), rtol=1e-12)
        expected = -decay / (1 - rates) * ((THETA - A) @ (fast - B))
        np.testing.assert_allclose(gradient["lr"][0], expected, rtol=1e-12)
        # Beyond the steps of training, the last rate serves again.
        longer = method.adapt(meta_params, task_of().support, None).state["dense0"]["bias"]
        np.testing.assert_allclose(longer, A + decay * (1 - 0.3) ** 2 * (THETA - A), rtol=1e-12)


@pytest.mark.parametrize("eval_steps, last", [(0, 0), (1, 0), (2, 1), (4, 1)])
def test_each_step_normalises_by_its_own_scale_and_shift(eval_steps, last):
    with jax.enable_x64(True):
        task, model = image_task(), conv4(num_outputs=3, filters=4)
        method = images(maml_plus_plus, inner_lr=0.2, inner_steps=2, eval_inner_steps=eval_steps, per_step_norm=True)
        meta_params = jax.jit(method.init)(jax.random.key(1), task)["params"]
        assert meta_params["conv1"]["norm_scale"].shape == (2, 4) and meta_params["conv1"]["kernel"].ndim == 4
        # Parameters of the two steps that differ.
        spread = lambda path, leaf: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size).reshape(leaf.shape).astype(leaf.dtype))
        meta_params = jax.tree_util.tree_map_with_path(spread, meta_params)
        is_norm = lambda path: "norm" in path[-1].key
        pick = lambda tree, i: jax.tree_util.tree_map_with_path(
            lambda path, fast, meta: meta[i] if is_norm(path) else fast, tree, meta_params
        )
        params = meta_params
        support_gradient = jax.jit(jax.grad(split_loss(model.apply, "classification")))
        for i in range(eval_steps):
            params = pick(params, min(i, 1))
            params = jax.tree.map(lambda p, g: p - 0.2 * g, params, support_gradient(params, task.support))
        expected = pick(params, last)
        adapted = jax.jit(method.adapt)({"params": meta_params}, task.support, None)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), adapted.state, expected)
        unadapted = method.unadapted({"params": meta_params}, task.support, None)
        jax.tree.map(np.testing.assert_array_equal, unadapted.state, pick(meta_params, 0))


@pytest.mark.slow
def test_every_meta_parameter_of_all_knobs_together_is_trained():
    task = image_task()
    method = images(
        maml_plus_plus,
        inner_steps=2,
        per_step_lr=True,
        per_step_norm=True,
        multi_step_loss_steps=10,
        first_order_steps=5,
    )
    meta_params = jax.jit(method.init)(jax.random.key(0), task)
    for step in (0, 7, 20):
        loss = loss_at(method, step)
        gradient = jax.jit(jax.grad(lambda params, step, loss=loss: loss(params, task, None, step)[0]))
        for leaf in jax.tree.leaves(gradient(meta_params, jnp.int32(step))):
            assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0


def test_scale_and_shift_of_a_network_without_normalisation():
    method = maml_plus_plus(model=mlp(num_outputs=3), objective="classification", per_step_norm=True)
    with pytest.raises(ConfigError, match="method.per_step_norm=True: expected false"):
        jax.jit(method.init)(jax.random.key(0), image_task())


@pytest.mark.parametrize(
    "key, value",
    [("multi_step_loss_steps", -1), ("first_order_steps", 1.5), ("per_step_lr", 1), ("per_step_norm", "yes")],
)
def test_a_setting_that_cannot_be_used_is_named(key, value):
    with pytest.raises(ConfigError, match=f"method.{key}={value}"):
        quadratic(**{key: value})
