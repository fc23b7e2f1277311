"""Relation networks: what is compared with what, what is trained, and what cannot leak."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_tasks import image_task, reordered_support, vector_task

from metarun.errors import ConfigError
from metarun.few_shot.methods.relation import relation
from metarun.models.conv4 import conv4
from metarun.models.mlp import mlp
from metarun.models.relation_module import relation_module


def method(encoder=None, **options):
    encoder = encoder or conv4(num_outputs=None, filters=4, norm="layer")
    return relation(encoder=encoder, objective="classification", num_outputs=3, **options)


def initial(learner, task):
    return jax.jit(learner.init)(jax.random.key(1), task)


def answers(learner, params, task, queries=None):
    answer = jax.jit(lambda params, support, x: learner.predict(learner.adapt(params, support, None), x))
    return answer(params, task.support, task.query.x if queries is None else queries)


def loss(learner, params, task):
    return jax.jit(lambda params, task: learner.loss(params, task, None)[0])(params, task)


@pytest.mark.parametrize("size", [8, 28])
def test_scores_are_those_of_each_pair_on_its_own(size):
    encoder = conv4(num_outputs=None, filters=4, norm="layer")
    task = image_task(jax.random.key(0), size=size)
    learner = method(encoder, norm="none")
    params = initial(learner, task)
    embed = jax.jit(encoder.apply)
    support, query = (embed(params["encoder"], part.x) for part in task)
    assert support.shape[1:3] == ((1, 1) if size == 8 else (2, 2))
    compare = jax.jit(lambda pair: relation_module(hidden=8, norm="none").apply(params["relation"], pair, None))
    outputs = answers(learner, params, task)
    for i in (0, 4):
        for k in range(3):
            class_sum = support[task.support.y == k].sum(0)
            pair = jnp.concatenate([class_sum, query[i]], -1)[None]
            score = jax.nn.sigmoid(compare(pair))
            np.testing.assert_allclose(outputs[i, k], score[0], rtol=1e-4)


def test_the_loss_of_the_paper_is_the_mean_squared_error_of_all_pairs():
    task = image_task(jax.random.key(0))
    learner = method()
    params = initial(learner, task)
    scores = np.asarray(answers(learner, params, task))
    assert (scores > 0).all() and (scores < 1).all()
    y = np.asarray(task.query.y)
    expected = np.mean([(scores[i, k] - (y[i] == k)) ** 2 for i in range(9) for k in range(3)])
    np.testing.assert_allclose(loss(learner, params, task), expected, rtol=1e-5)


def test_cross_entropy_is_of_the_scores_before_the_sigmoid():
    task = image_task(jax.random.key(0))
    params = initial(method(), task)
    logits = np.asarray(answers(method(loss="cross_entropy"), params, task))
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), answers(method(), params, task), rtol=1e-5)
    expected = np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(9), np.asarray(task.query.y)])
    np.testing.assert_allclose(loss(method(loss="cross_entropy"), params, task), expected, rtol=1e-5)


@pytest.mark.parametrize("statistics", ["query", "support"])
def test_queries_share_statistics_only_if_asked(statistics):
    task = image_task(jax.random.key(0))
    learner = method(query_statistics=statistics, norm="batch")
    params = initial(learner, task)
    together, alone = answers(learner, params, task)[:1], answers(learner, params, task, task.query.x[:1])
    assert np.allclose(together, alone, rtol=1e-4, atol=1e-5) == (statistics == "support")


def test_the_order_of_the_support_set_does_not_matter():
    task = image_task(jax.random.key(0))
    learner = method()
    params = initial(learner, task)
    reordered = reordered_support(task, jnp.array([4, 0, 5, 1, 3, 2]))
    outputs, expected = (answers(learner, params, part) for part in (reordered, task))
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("key, value", [("hidden", 0), ("norm", "group"), ("loss", "hinge")])
def test_a_setting_that_cannot_be_used_is_named(key, value):
    with pytest.raises(ConfigError, match=f"method.{key}={value}"):
        method(**{key: value})


def test_an_encoder_without_feature_maps_is_refused():
    with pytest.raises(ConfigError, match="such as conv4"):
        method(mlp(num_outputs=None, hidden=[4])).init(jax.random.key(0), vector_task(jax.random.key(0)))
