"""Matching networks against attention and LSTMs worked out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit
from small_tasks import reordered_support, vector_task

from metarun.errors import ConfigError
from metarun.few_shot.methods.matching import matching
from metarun.models.full_context import full_context
from metarun.models.mlp import mlp


def method(**options):
    encoder = mlp(num_outputs=None, hidden=[6])
    return matching(encoder=encoder, objective="classification", num_outputs=3, **options)


def answers(learner, params, task):
    return jax.jit(lambda p, task: learner.predict(learner.adapt(p, task.support, None), task.query.x))(params, task)


def embedded(params, x):
    layer = params["encoder"]["dense0"]
    return np.maximum(np.asarray(x) @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]), 0)


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def attention(query, support, sharpness=1.0):
    norms = np.linalg.norm(query, axis=1)[:, None] * np.linalg.norm(support, axis=1)
    return softmax(sharpness * (query @ support.T) / norms)


@pytest.mark.parametrize("sharpness", [1.0, 5.0])
def test_a_probability_is_the_attention_to_the_examples_of_the_class(sharpness):
    with jax.enable_x64(True):
        task = vector_task(jax.random.key(0))
        learner = method(sharpness=sharpness)
        params = jax.jit(learner.init)(jax.random.key(1), task)
        params["encoder"]["dense0"]["bias"] += 1  # so that no embedding is zero
        a = attention(embedded(params, task.query.x), embedded(params, task.support.x), sharpness)
        expected = np.stack([a[:, np.asarray(task.support.y) == k].sum(1) for k in range(3)], 1)
        outputs = answers(learner, params, task)
        np.testing.assert_allclose(np.exp(outputs), expected, rtol=1e-9)
        np.testing.assert_allclose(expected.sum(1), 1)
        loss = -np.log(expected[np.arange(9), np.asarray(task.query.y)]).mean()
        np.testing.assert_allclose(learner.loss(params, task, None)[0], loss, rtol=1e-9)


@pytest.mark.parametrize("context", [False, True])
def test_the_order_of_the_support_set_matters_to_full_context_alone(context):
    task = vector_task(jax.random.key(0))
    learner = method(full_context=context)
    params = jax.jit(learner.init)(jax.random.key(1), task)
    reordered = reordered_support(task, jnp.array([4, 0, 5, 1, 3, 2]))
    outputs, others = (answers(learner, params, part) for part in (task, reordered))
    assert np.allclose(outputs, others, rtol=1e-4, atol=1e-5) == (not context)


def test_a_query_does_not_see_the_others_through_full_context():
    task = vector_task(jax.random.key(0))
    learner = method(full_context=True)
    params = jax.jit(learner.init)(jax.random.key(1), task)
    one = task._replace(query=jax.tree.map(lambda x: x[3:4], task.query))
    together, alone = answers(learner, params, task)[3:4], answers(learner, params, one)
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def lstm(params, x, c, h):
    """One step of an LSTM (Hochreiter and Schmidhuber 1997, with forget gates)."""

    def gate(name, function):
        recurrent = params[f"h{name}"]
        return function(x @ params[f"i{name}"]["kernel"] + h @ recurrent["kernel"] + recurrent["bias"])

    i, f, g, o = gate("i", expit), gate("f", expit), gate("g", np.tanh), gate("o", expit)
    c = f * c + i * g
    return c, o * np.tanh(c)


def test_full_context_embeddings_follow_the_equations():
    with jax.enable_x64(True):
        features, queries = jax.random.normal(jax.random.key(0), (2, 4, 5))
        context = full_context(steps=2)
        params = jax.jit(context.init)(jax.random.key(1), features)
        p, support, query = jax.tree.map(np.asarray, (params, features, queries))

        def states(cell, indices):
            c = h = np.zeros(5)
            found = {}
            for i in indices:
                c, h = lstm(cell, support[i], c, h)
                found[i] = h
            return np.stack([found[i] for i in range(4)])

        g = states(p["forward"]["cell"], range(4)) + states(p["backward"]["cell"], reversed(range(4))) + support
        np.testing.assert_allclose(context.embed_support(params, features), g, rtol=1e-9)
        for i, f in enumerate(query):
            c = h = np.zeros(5)
            for _ in range(2):
                r = softmax(g @ h) @ g
                c, out = lstm(p["attention"], np.concatenate([f, r]), c, h)
                h = out + f
            np.testing.assert_allclose(context.embed_query(params, queries, jnp.array(g))[i], h, rtol=1e-9)


@pytest.mark.parametrize("key, value", [("full_context", 1), ("sharpness", 0)])
def test_a_setting_that_cannot_be_used_is_named(key, value):
    with pytest.raises(ConfigError, match=f"method.{key}={value}"):
        method(**{key: value})


def test_context_steps_that_cannot_be_used_are_named():
    with pytest.raises(ConfigError, match="method.context_steps=0"):
        method(full_context=True, context_steps=0)
