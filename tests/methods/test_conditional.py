"""Conditional networks: which of them depends on the order of the support set, and the neural process by hand."""

import jax
import numpy as np
import pytest
from point_task import curve_task, point_task

from metarun.errors import ConfigError
from metarun.few_shot.methods.conditional import conditional
from metarun.models.mlp import mlp
from metarun.types import Split


def method(body, objective="classification", num_outputs=3, shot=2, **options):
    encoder = mlp(num_outputs=None, hidden=[6])
    settings = {"filters": 7, "embedding": 5, **options}
    return conditional(encoder=encoder, objective=objective, num_outputs=num_outputs, shot=shot, body=body, **settings)


@pytest.mark.parametrize("body", ["neural_process", "wavenet"])
@pytest.mark.parametrize("objective", ["classification", "regression"])
def test_only_the_neural_process_is_invariant_to_the_order_of_the_support_set(body, objective):
    with jax.enable_x64(True):
        if objective == "classification":
            task, learner = point_task(jax.random.key(0)), method(body)
        else:
            task, learner = curve_task(jax.random.key(0)), method(body, objective, 1, shot=3)
        meta_params = jax.jit(learner.init)(jax.random.key(1), task)
        answer = jax.jit(lambda support: learner.predict(learner.adapt(meta_params, support, None), task.query.x))
        answers = [answer(task.support), answer(Split(task.support.x[::-1], task.support.y[::-1]))]
    assert np.allclose(*answers, rtol=1e-10, atol=1e-10) == (body == "neural_process")


def test_context_by_hand():
    """Means of h over each class, side by side; over the whole set in a regression."""
    cases = [
        (point_task(jax.random.key(0)), method("neural_process"), 3),
        (curve_task(jax.random.key(0)), method("neural_process", "regression", 1, shot=3), 1),
    ]
    for task, learner, num_outputs in cases:
        meta_params = jax.jit(learner.init)(jax.random.key(1), task)
        context = jax.jit(learner.adapt)(meta_params, task.support, None).state.memory
        encoder, linear, h = meta_params["encoder"], meta_params["embedding"], meta_params["sequence"]["h"]

        def dense(layer, v):
            return v @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])

        represented = []
        for x, y in zip(np.asarray(task.support.x), np.asarray(task.support.y), strict=True):
            # A one-hot label is as long as an embedding; a regression's target is read as it is.
            target = np.sqrt(linear["head"]["bias"].size) * np.eye(num_outputs)[y] if num_outputs > 1 else y
            v = dense(linear["head"], np.maximum(dense(encoder["dense0"], x), 0))
            v = np.concatenate([v, target, [0]])
            for layer in ("dense0", "dense1"):
                v = np.maximum(dense(h[layer], v), 0)
            represented.append(dense(h["head"], v))
        groups = [task.support.y == label for label in range(3)] if num_outputs > 1 else [slice(None)]
        expected = np.concatenate([np.mean(np.array(represented)[group], 0) for group in groups])
        np.testing.assert_allclose(context, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("body", ["neural_process", "wavenet"])
def test_a_query_is_answered_from_no_other_query(body):
    learner, task = method(body), point_task(jax.random.key(0))
    adapted = jax.jit(learner.adapt)(jax.jit(learner.init)(jax.random.key(1), task), task.support, None)
    before, after = (jax.jit(learner.predict)(adapted, x) for x in (task.query.x, task.query.x.at[2].add(1.0)))
    np.testing.assert_array_equal(np.any(before != after, 1), np.arange(6) == 2)


@pytest.mark.parametrize("key, value", [("body", "pixelcnn"), ("filters", 0), ("embedding", -1)])
def test_a_setting_that_cannot_be_used_is_named(key, value):
    with pytest.raises(ConfigError, match=f"method.{key}={value}"):
        method(**{"body": "wavenet", key: value})
