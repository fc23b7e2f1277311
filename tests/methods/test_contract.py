"""What must hold of every method that the command line knows, whatever it computes."""

from functools import cache, partial
from importlib import import_module
from inspect import signature
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree
from omegaconf import OmegaConf

from metarun.models.conv4 import conv4
from metarun.models.mlp import mlp
from metarun.types import Split, Task

CONF = Path(__file__).parents[2] / "conf" / "method"
NEED_MAPS = {"relation"}  # compares feature maps; for all others a network that compiles fast will do
METHODS = sorted(file.stem for file in CONF.glob("*.yaml"))
WAY, SHOT, QUERY_SHOT, SIZE, CLASSES = 3, 2, 3, 8, 12


@cache
def built(name):
    """The method as the command line builds it, on a small network."""
    options = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    module, _, factory = options.pop("_target_").rpartition(".")
    factory = getattr(import_module(module), factory)
    network = partial(conv4, filters=8, norm="layer") if name in NEED_MAPS else partial(mlp, hidden=[32])
    given = {
        "model": network(num_outputs=WAY),
        "encoder": network(num_outputs=None),
        "objective": "classification",
        "num_outputs": WAY,
        "num_train_classes": CLASSES,
        "way": WAY,
        "shot": SHOT,
        "query_shot": QUERY_SHOT,
        "train_way": None,
    }
    parameters = signature(factory).parameters
    return factory(**options, **{key: value for key, value in given.items() if key in parameters})


def draw(key, trains_on="tasks"):
    """A task of `WAY` of `CLASSES` patterns, each image a pattern under noise."""
    class_key, order_key, support_key, query_key = jax.random.split(key, 4)
    patterns = jax.random.uniform(jax.random.key(7), (CLASSES, SIZE, SIZE, 1))
    classes = jax.random.permutation(class_key, CLASSES)[:WAY]

    def split(key, order_key, n):
        y = jax.random.permutation(order_key, jnp.tile(jnp.arange(WAY, dtype=jnp.int32), n))
        x = patterns[classes[y]] + 0.2 * jax.random.normal(key, (WAY * n, SIZE, SIZE, 1))
        return Split(x, classes[y] if trains_on == "classes" else y)

    order_keys = jax.random.split(order_key)
    return Task(split(support_key, order_keys[0], SHOT), split(query_key, order_keys[1], QUERY_SHOT))


def training_tasks(method, num_tasks, seed=1):
    return jax.vmap(partial(draw, trains_on=method.trains_on))(jax.random.split(jax.random.key(seed), num_tasks))


def evaluation_tasks(num_tasks, seed=2):
    return jax.vmap(draw)(jax.random.split(jax.random.key(seed), num_tasks))


@cache
def initial(name):
    method = built(name)
    return method.init(jax.random.key(0), jax.tree.map(lambda x: x[0], training_tasks(method, 1)))


def answers(method, params, tasks, adapt):
    def one(task, key):
        return method.predict(adapt(params, task.support, key), task.query.x)

    return jax.jit(jax.vmap(one))(tasks, jax.random.split(jax.random.key(5), tasks.query.y.shape[0]))


@pytest.mark.parametrize("name", METHODS)
def test_vmap_over_tasks_equals_a_loop(name):
    method, params = built(name), initial(name)
    tasks, keys = training_tasks(method, 3), jax.random.split(jax.random.key(3), 3)
    gradient = jax.value_and_grad(lambda params, task, key: method.loss(params, task, key)[0])
    at_once = jax.jit(jax.vmap(gradient, (None, 0, 0)))(params, tasks, keys)
    one_by_one = [jax.jit(gradient)(params, jax.tree.map(lambda x: x[i], tasks), keys[i]) for i in range(3)]  # noqa: B023
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *one_by_one)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), at_once, stacked)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(at_once))


@pytest.mark.parametrize("name", METHODS)
def test_training_lowers_the_loss_and_compiles_once(name):
    method = built(name)
    if method.trains_on == "nothing":
        assert jax.tree.leaves(initial(name)) == []
        return
    optimizer = optax.adam(1e-3)

    def step(state, key):
        params, opt_state = state
        task_key, method_key = jax.random.split(key)
        tasks = jax.vmap(partial(draw, trains_on=method.trains_on))(jax.random.split(task_key, 8))

        def loss(params):
            losses, metrics = jax.vmap(method.loss, (None, 0, 0))(params, tasks, jax.random.split(method_key, 8))
            return losses.mean(), metrics

        (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), metrics["loss"].mean()

    train = jax.jit(lambda state, keys: lax.scan(step, state, keys))
    state = initial(name), optimizer.init(initial(name))
    losses = []
    for keys in jax.random.split(jax.random.key(4), (6, 50)):
        state, found = train(state, keys)
        losses.append(float(found.mean()))
    assert train._cache_size() == 1
    assert losses[-1] < 0.97 * losses[0]
    params = state[0]
    tasks = evaluation_tasks(30)
    accuracy = lambda outputs: float(np.mean(outputs.argmax(-1) == tasks.query.y))
    assert accuracy(answers(method, params, tasks, method.adapt)) > 1 / WAY + 0.2
    assert abs(accuracy(answers(method, params, tasks, method.unadapted)) - 1 / WAY) < 0.15


@pytest.mark.parametrize("name", METHODS)
def test_the_order_of_the_queries_moves_no_answer(name):
    method, params, tasks = built(name), initial(name), evaluation_tasks(2)
    order = jax.random.permutation(jax.random.key(6), tasks.query.y.shape[1])
    shuffled = tasks._replace(query=jax.tree.map(lambda x: x[:, order], tasks.query))
    expected = answers(method, params, tasks, method.adapt)[:, order]
    np.testing.assert_allclose(answers(method, params, shuffled, method.adapt), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_an_answer_uses_the_support_labels(name):
    method, params, tasks = built(name), initial(name), evaluation_tasks(2)
    relabelled = tasks._replace(support=tasks.support._replace(y=(tasks.support.y + 1) % WAY))
    first, second = (ravel_pytree(answers(method, params, t, method.adapt))[0] for t in (tasks, relabelled))
    assert jnp.abs(first - second).max() > 1e-6
