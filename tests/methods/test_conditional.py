"""Conditional networks: which of them depends on the order of the support set, and the neural process by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from point_task import curve_task, point_task

from metarun.errors import ConfigError
from metarun.few_shot.methods.conditional import conditional, context_vector
from metarun.models.conv4 import conv4
from metarun.models.mlp import mlp
from metarun.types import Model, Split, Task


def method(body, objective="classification", num_outputs=3, shot=2, **options):
    encoder, model = mlp(num_outputs=None, hidden=[6]), mlp(num_outputs=num_outputs, hidden=[6])
    settings = {"filters": 7, "embedding": 5, **options}
    return conditional(
        model=model, encoder=encoder, objective=objective, num_outputs=num_outputs, shot=shot, body=body, **settings
    )


@pytest.mark.parametrize("body", ["neural_process", "wavenet", "context_vector"])
@pytest.mark.parametrize("objective", ["classification", "regression"])
def test_only_wavenet_depends_on_the_order_of_the_support_set(body, objective):
    with jax.enable_x64(True):
        if objective == "classification":
            task, learner = point_task(jax.random.key(0)), method(body)
        else:
            task, learner = curve_task(jax.random.key(0)), method(body, objective, 1, shot=3)
        meta_params = jax.jit(learner.init)(jax.random.key(1), task)
        answer = jax.jit(lambda support: learner.predict(learner.adapt(meta_params, support, None), task.query.x))
        answers = [answer(task.support), answer(Split(task.support.x[::-1], task.support.y[::-1]))]
    assert np.allclose(*answers, rtol=1e-10, atol=1e-10) == (body != "wavenet")


def test_context_by_hand():
    """Means of h over each class, side by side; over the whole set in a regression."""
    cases = [
        (point_task(jax.random.key(0)), method("neural_process"), 3),
        (curve_task(jax.random.key(0)), method("neural_process", "regression", 1, shot=3), 1),
    ]
    for task, learner, num_outputs in cases:
        meta_params = jax.jit(learner.init)(jax.random.key(1), task)
        context = jax.jit(learner.adapt)(meta_params, task.support, None).state.memory.read
        encoder, linear, network = (meta_params[name] for name in ("encoder", "embedding", "sequence"))

        def dense(layer, v):
            return v @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])

        represented = []
        for x, y in zip(np.asarray(task.support.x), np.asarray(task.support.y), strict=True):
            # A one-hot label is as long as an embedding; a regression's target is read as it is.
            target = np.sqrt(linear["head"]["bias"].size) * np.eye(num_outputs)[y] if num_outputs > 1 else y
            v = dense(linear["head"], np.maximum(dense(encoder["dense0"], x), 0))
            v = np.concatenate([v / np.sqrt(np.mean(v**2)), target, [0]])
            for layer in ("h_0", "h_1"):
                v = np.maximum(dense(network[layer], v), 0)
            represented.append(dense(network["h_2"], v))
        groups = [task.support.y == label for label in range(3)] if num_outputs > 1 else [slice(None)]
        expected = np.concatenate([np.mean(np.array(represented)[group], 0) for group in groups])
        np.testing.assert_allclose(context, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("body", ["neural_process", "wavenet", "context_vector"])
def test_a_query_is_answered_from_no_other_query(body):
    learner, task = method(body), point_task(jax.random.key(0))
    adapted = jax.jit(learner.adapt)(jax.jit(learner.init)(jax.random.key(1), task), task.support, None)
    before, after = (jax.jit(learner.predict)(adapted, x) for x in (task.query.x, task.query.x.at[2].add(1.0)))
    np.testing.assert_array_equal(np.any(before != after, 1), np.arange(6) == 2)


@pytest.mark.parametrize("key, value", [("body", "pixelcnn"), ("filters", 0), ("embedding", -1), ("products", -1)])
def test_a_setting_that_cannot_be_used_is_named(key, value):
    with pytest.raises(ConfigError, match=f"method.{key}={value}"):
        method(**{"body": "wavenet", key: value})


def test_answers_of_a_neural_process_by_hand():
    """g of what was read and the query; beside its hidden layer, products of a linear layer over each."""
    task, learner = point_task(jax.random.key(0)), method("neural_process", products=4)
    meta_params = jax.jit(learner.init)(jax.random.key(1), task)
    adapted = jax.jit(learner.adapt)(meta_params, task.support, None)
    answers = jax.jit(learner.predict)(adapted, task.query.x)
    params, context = jax.tree.map(np.asarray, (meta_params, adapted.state.memory.read))

    def dense(layer, v):
        return v @ layer["kernel"] + layer["bias"]

    for x, answer in zip(np.asarray(task.query.x), answers, strict=True):
        v = dense(params["embedding"]["head"], np.maximum(dense(params["encoder"]["dense0"], x), 0))
        end = np.concatenate([v / np.sqrt(np.mean(v**2)), np.zeros(3), [np.sqrt(v.size)]])
        network = params["sequence"]
        hidden = np.concatenate([context, end])
        for layer in ("g_0", "g_1"):
            hidden = np.maximum(dense(network[layer], hidden), 0)
        products = dense(network["what"], context) * dense(network["where"], end)
        expected = dense(network["g_2"], np.concatenate([hidden, products]))
        np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5)


def linear_model():
    """outputs = x W, of which every derivative is known."""
    return Model(
        init=lambda key, x: {"head": jax.random.normal(key, (x.shape[-1], 2), x.dtype)},
        apply=lambda params, x, reference=None: x @ params["head"],
    )


def test_a_context_vector_is_adapted_and_nothing_else():
    """Of a linear network and the squared error, z' = z - lr 2/(n d) sum_i W_z (W_x^T x_i + W_z^T z - y_i)."""
    x, y = jax.random.normal(jax.random.key(0), (5, 3)), jax.random.normal(jax.random.key(1), (5, 2))
    task = Task(Split(x, y), Split(x[:2], y[:2]))
    learner = context_vector(model=linear_model(), objective="regression", context_channels=4, inner_lr=0.3)
    meta_params = jax.jit(learner.init)(jax.random.key(2), task)
    assert meta_params["context"].shape == (4,) and meta_params["params"]["head"].shape == (7, 2)
    meta_params["context"] = jax.random.normal(jax.random.key(3), (4,))
    params, context = jax.jit(learner.adapt)(meta_params, task.support, None).state
    w, z = np.asarray(meta_params["params"]["head"]), np.asarray(meta_params["context"])
    errors = np.asarray(x) @ w[:3] + z @ w[3:] - np.asarray(y)
    expected = z - 0.3 * 2 / (5 * 2) * (errors @ w[3:].T).sum(0)
    np.testing.assert_allclose(context, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(params["head"], meta_params["params"]["head"])
    adapted = jax.jit(learner.adapt)(meta_params, task.support, None)
    answers = jax.jit(learner.predict)(adapted, task.query.x)
    np.testing.assert_allclose(answers, np.asarray(x[:2]) @ w[:3] + expected @ w[3:], rtol=1e-5, atol=1e-6)


def test_a_context_of_images_is_further_channels():
    x = jax.random.uniform(jax.random.key(0), (6, 8, 8, 1))
    task = Task(Split(x[:4], jnp.array([0, 1, 0, 1])), Split(x[4:], jnp.array([0, 1])))
    options = {"objective": "classification", "num_outputs": 2, "shot": 2, "context_channels": 3}
    learner = conditional(
        model=conv4(num_outputs=2, filters=4, norm="none"),
        encoder=conv4(num_outputs=None, filters=4),
        body="context_vector",
        products=0,
        **options,
    )
    meta_params = jax.jit(learner.init)(jax.random.key(1), task)
    assert meta_params["context"].shape == (8, 8, 3)
    assert meta_params["params"]["conv0"]["kernel"].shape == (3, 3, 4, 4)
    with jax.enable_x64(True):
        as_float64 = lambda tree: jax.tree.map(lambda a: a.astype(jnp.float64) if a.dtype.kind == "f" else a, tree)
        task, meta_params = as_float64(task), as_float64(meta_params)
        loss = jax.jit(lambda context: learner.loss({**meta_params, "context": context}, task, None)[0])
        context = meta_params["context"] + 0.1
        gradient = jax.jit(jax.grad(loss))(context)
        along = jax.random.normal(jax.random.key(5), context.shape, context.dtype)
        step = 1e-5
        difference = (loss(context + step * along) - loss(context - step * along)) / (2 * step)
        np.testing.assert_allclose((gradient * along).sum(), difference, rtol=1e-4)


@pytest.mark.parametrize("objective", ["classification", "regression"])
def test_a_context_that_is_multiplied_descends_the_support_loss(objective):
    """z' of one step, its gradient by finite differences of a network that is written out here."""
    with jax.enable_x64(True):
        if objective == "classification":
            task, num_outputs = point_task(jax.random.key(0)), 3
        else:
            task, num_outputs = curve_task(jax.random.key(0)), 1
        task = jax.tree.map(lambda a: a.astype(jnp.float64) if a.dtype.kind == "f" else a, task)
        learner = method(
            "context_vector",
            objective,
            num_outputs,
            shot=2,
            products=4,
            context_channels=2,
            inner_lr=0.7,
            inner_steps=1,
        )
        meta_params = jax.jit(learner.init)(jax.random.key(1), task)
        params = jax.tree.map(np.asarray, meta_params)
        x, y = np.asarray(task.support.x), np.asarray(task.support.y)

        def dense(layer, v):
            return v @ layer["kernel"] + layer["bias"]

        def embedded(v):
            return dense(params["embedding"]["head"], np.maximum(dense(params["encoder"]["dense0"], v), 0))

        def outputs(context, v):
            what, where = dense(params["what"]["head"], embedded(context)), dense(params["where"]["head"], embedded(v))
            return np.stack([dense(params["last"]["head"], np.concatenate([w * row for w in what])) for row in where])

        def loss(context):
            o = outputs(context, x)
            if objective == "regression":
                return ((o - y) ** 2).mean()
            return np.mean(np.log(np.exp(o).sum(1)) - o[np.arange(len(y)), y])

        z = params["context"]
        assert z.shape == (2, *x.shape[1:])
        gradient, step = np.zeros_like(z), 1e-6
        for index in np.ndindex(*z.shape):
            along = np.zeros_like(z)
            along[index] = step
            gradient[index] = (loss(z + along) - loss(z - along)) / (2 * step)
        adapted = jax.jit(learner.adapt)(meta_params, task.support, None)
        answers = jax.jit(learner.predict)(adapted, task.query.x)
        np.testing.assert_allclose(answers, outputs(z - 0.7 * gradient, np.asarray(task.query.x)), rtol=1e-6, atol=1e-8)


def test_a_context_that_is_multiplied_has_exact_outer_gradients():
    """Through the inner steps, whose number in evaluation may be another."""
    with jax.enable_x64(True):
        task = jax.tree.map(
            lambda a: a.astype(jnp.float64) if a.dtype.kind == "f" else a, point_task(jax.random.key(0))
        )
        options = {"products": 4, "context_channels": 2, "inner_lr": 0.7, "inner_steps": 2}
        learner = method("context_vector", **options)
        meta_params = jax.jit(learner.init)(jax.random.key(1), task)
        loss = jax.jit(lambda meta_params: learner.loss(meta_params, task, None)[0])
        gradient = jax.jit(jax.grad(loss))(meta_params)
        leaves, structure = jax.tree.flatten(meta_params)
        keys = jax.random.split(jax.random.key(2), len(leaves))
        along = structure.unflatten([jax.random.normal(k, a.shape, a.dtype) for k, a in zip(keys, leaves, strict=True)])
        step = 1e-6
        ends = [loss(jax.tree.map(lambda a, b, s=sign: a + s * step * b, meta_params, along)) for sign in (1, -1)]
        slope = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(along), strict=True))
        np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * step), rtol=1e-6)
        longer = method("context_vector", **options, eval_inner_steps=3)
        assert longer.protocol["eval_inner_steps"] == 3
        np.testing.assert_array_equal(loss(meta_params), jax.jit(longer.loss)(meta_params, task, None)[0])
        answers = [m.predict(m.adapt(meta_params, task.support, None), task.query.x) for m in (learner, longer)]
        assert not np.allclose(*answers)
