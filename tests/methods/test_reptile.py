"""Reptile's update against its closed form on a quadratic, (1 - (1 - c)^k) (theta - a), and its mini-batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quadratic import THETA, A, constant, task_of

from metarun.errors import ConfigError
from metarun.few_shot.methods.reptile import _batches, reptile
from metarun.models.conv4 import conv4
from metarun.types import Split, Task


def updates(method, task, num_keys=1):
    """The gradients that the outer optimiser sees, with keys of 0, 1, ...: `[num_keys, 2]`."""
    params = jax.jit(method.init)(jax.random.key(0), task)
    gradient = jax.jit(jax.grad(lambda params, key: method.loss(params, task, key)[0]))
    return np.array([gradient(params, jax.random.key(i))["dense0"]["bias"] for i in range(num_keys)])


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_golden_update(steps, batch_size):
    with jax.enable_x64(True):
        method = reptile(
            model=constant(),
            objective="regression",
            inner_optimizer="sgd",
            inner_lr=0.3,
            inner_steps=steps,
            inner_batch_size=batch_size,
        )
        expected = (1 - (1 - 0.3) ** steps) * (THETA - A)
        np.testing.assert_allclose(updates(method, task_of(A, A))[0], expected, rtol=1e-12)


def test_training_sees_support_and_query_alike_and_evaluation_the_support_alone():
    with jax.enable_x64(True):
        options = {"model": constant(), "objective": "regression", "inner_optimizer": "sgd", "inner_lr": 0.3}
        method = reptile(**options, inner_steps=1, inner_batch_size=None, eval_inner_steps=2)
        task = task_of(A, A + 7.0)
        # Three examples of the support set and four queries: their mean is the target of all.
        np.testing.assert_allclose(updates(method, task)[0], 0.3 * (THETA - (A + 4.0)), rtol=1e-12)
        params = jax.jit(method.init)(jax.random.key(0), task)
        state = method.adapt(params, task.support, jax.random.key(1)).state["dense0"]["bias"]
        np.testing.assert_allclose(state, A + 0.7**2 * (THETA - A), rtol=1e-12)


def test_adam_has_no_first_moment():
    with jax.enable_x64(True):
        options = {"inner_steps": 3, "inner_lr": 0.5, "inner_batch_size": None}
        method = reptile(model=constant(), objective="regression", **options)
        theta, second = THETA, np.zeros(2)
        for t in range(1, 4):
            gradient = theta - A
            second = 0.999 * second + 0.001 * gradient**2
            theta = theta - 0.5 * gradient / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(updates(method, task_of(A, A))[0], THETA - theta, rtol=1e-9)


def test_every_example_has_its_turn_before_any_has_another():
    batches = np.array(_batches(jax.random.key(0), 6, 7, 4))
    assert batches.shape == (7, 4)
    passes = batches.ravel()[:24].reshape(4, 6)
    assert (np.sort(passes, axis=1) == np.arange(6)).all()
    assert len({tuple(order) for order in passes}) > 1
    everything = np.array(_batches(jax.random.key(0), 6, 3, 9))
    assert (everything == np.arange(6)).all() and everything.shape == (3, 6)


def test_the_key_decides_the_batches():
    with jax.enable_x64(True):
        options = {"inner_steps": 2, "inner_batch_size": 2, "inner_optimizer": "sgd", "inner_lr": 0.3}
        method = reptile(model=constant(), objective="regression", **options)
        assert len({tuple(update) for update in updates(method, task_of(A, A + 7.0), num_keys=6)}) > 1


@pytest.mark.parametrize("statistics", ["query", "support", "each"])
def test_whose_statistics_normalise_the_queries(statistics):
    def split(key, n):
        return Split(jax.random.uniform(key, (3 * n, 8, 8, 1)), jnp.tile(jnp.arange(3, dtype=jnp.int32), n))

    task = Task(split(jax.random.key(0), 1), split(jax.random.key(1), 2))
    model = conv4(num_outputs=3, filters=4)
    method = reptile(model=model, objective="classification", eval_inner_steps=3, query_statistics=statistics)
    assert method.protocol["query_statistics"] == statistics
    params = jax.jit(method.init)(jax.random.key(2), task)
    adapted = jax.jit(method.adapt)(params, task.support, jax.random.key(3))
    together, alone = (jax.jit(method.predict)(adapted, x) for x in (task.query.x, task.query.x[:1]))
    assert np.allclose(together[:1], alone, rtol=1e-4, atol=1e-5) == (statistics != "query")
    if statistics == "each":
        # As in the authors' code: the support set and one query through the network, of which the last answer counts.
        network = jax.jit(lambda x: model.apply(adapted.state, x, None))
        by_hand = [network(jnp.concatenate([task.support.x, x[None]]))[-1] for x in task.query.x]
        np.testing.assert_allclose(together, by_hand, rtol=1e-4, atol=1e-5)
        assert not np.allclose(network(task.query.x), together, rtol=1e-2)


@pytest.mark.parametrize(
    "key, value",
    [("inner_optimizer", "rmsprop"), ("inner_batch_size", 0), ("eval_inner_batch_size", 1.5), ("inner_lr", 0)],
)
def test_a_setting_that_cannot_be_used_is_named(key, value):
    with pytest.raises(ConfigError, match=f"method.{key}={value}"):
        reptile(model=constant(), objective="regression", **{key: value})
