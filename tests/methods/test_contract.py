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
from omegaconf import OmegaConf

from metarun.models.conv4 import conv4
from metarun.models.mlp import mlp
from metarun.types import Split, Task

CONF = Path(__file__).parents[2] / "conf" / "few_shot" / "method"
NEED_MAPS = {"relation"}  # compares feature maps; for all others a network that compiles fast will do
METHODS = sorted(file.stem for file in CONF.glob("*.yaml"))
# Their training takes as long to compile as that of all others together.
SLOW = ("conditional", "mann", "relation", "rnn", "snail")
WAY, SHOT, QUERY_SHOT, SIZE, CLASSES, NUM_EVALUATED = 3, 2, 3, 8, 12, 30
# What a toy needs other than the default run: settings of the method; sixths of its training, and the learning rate.
SETTINGS = {
    "mann": {"hidden": 64, "slots": 16, "numberings": 4},
    "maml_plus_plus": {"per_step_norm": False},
    "reptile": {"inner_optimizer": "sgd", "inner_lr": 0.05},
    "rnn": {"hidden": 64, "numberings": 2},
    "snail": {"filters": 32, "attention": [[16, 16], [32, 32], [32, 32]]},
}
# Unlike the rest, training computes more than it compiles.
OPTIMISED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
TRAINING = {"rnn": (150, 3e-3), "mann": (150, 1e-3), "reptile": (200, 1e-3)}


@cache
def built(name):
    """The method as the command line builds it, on a small network."""
    options = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    options = options.get("method", options) | SETTINGS.get(name, {})  # some set keys of the run as well
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


@cache
def tasks_of(num_tasks, trains_on="tasks", seed=1):
    return jax.jit(jax.vmap(partial(draw, trains_on=trains_on)))(jax.random.split(jax.random.key(seed), num_tasks))


@cache
def initial(name):
    method = built(name)
    return jax.jit(method.init)(jax.random.key(0), jax.tree.map(lambda x: x[0], tasks_of(1, method.trains_on)))


@cache
def answering(name, which):
    """Compiled `(params, tasks) -> outputs`, by the method's function of that name."""
    method = built(name)

    def one(params, task, key):
        return method.predict(getattr(method, which)(params, task.support, key), task.query.x)

    keys = jax.random.split(jax.random.key(5), NUM_EVALUATED)
    return jax.jit(lambda params, tasks: jax.vmap(one, (None, 0, 0))(params, tasks, keys))


@pytest.mark.parametrize("name", METHODS)
def test_vmap_over_tasks_equals_a_loop(name):
    method, params = built(name), initial(name)
    gradient = jax.value_and_grad(lambda params, task, key: method.loss(params, task, key)[0])
    at_once = jax.jit(jax.vmap(gradient, (None, 0, 0)))
    in_turn = jax.jit(lambda params, tasks, keys: lax.map(lambda pair: gradient(params, *pair), (tasks, keys)))
    tasks = tasks_of(3, method.trains_on)
    found = [fn(params, tasks, jax.random.split(jax.random.key(3), 3)) for fn in (at_once, in_turn)]
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        assert np.isfinite(a).all()
        assert np.linalg.norm(a - b) <= 3e-2 * np.linalg.norm(b) + 1e-5  # rounding, where a norm divides by little


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in METHODS])
def test_it_learns_compiles_once_and_answers_honestly(name):
    method = built(name)
    steps, lr = TRAINING.get(name, (50, 1e-3))
    optimizer = optax.adam(lr)

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

    params = initial(name)
    if method.trains_on == "nothing":
        assert params == {}
    else:
        train = jax.jit(lambda state, keys: lax.scan(step, state, keys), compiler_options=OPTIMISED)
        state, losses = (params, optimizer.init(params)), []
        for keys in jax.random.split(jax.random.key(4), (6, steps)):
            state, found = train(state, keys)
            losses.append(float(found.mean()))
        assert train._cache_size() == 1
        assert losses[-1] < 0.97 * losses[0]
        params = state[0]

    tasks, answer = tasks_of(NUM_EVALUATED, seed=2), answering(name, "adapt")
    outputs = answer(params, tasks)
    assert accuracy(outputs, tasks) > 1 / WAY + 0.2
    # Blind without labels, led by them, and deaf to the order of the questions.
    assert abs(accuracy(answering(name, "unadapted")(params, tasks), tasks) - 1 / WAY) < 0.15
    relabelled = tasks._replace(support=tasks.support._replace(y=(tasks.support.y + 1) % WAY))
    assert accuracy(answer(params, relabelled), tasks) < accuracy(outputs, tasks) - 0.2
    order = jax.random.permutation(jax.random.key(6), tasks.query.y.shape[1])
    reordered = tasks._replace(query=jax.tree.map(lambda x: x[:, order], tasks.query))
    np.testing.assert_allclose(answer(params, reordered), outputs[:, order], rtol=1e-3, atol=1e-3)


def accuracy(outputs, tasks):
    return float(np.mean(outputs.argmax(-1) == tasks.query.y))
