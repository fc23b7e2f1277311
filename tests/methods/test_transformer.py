"""The transformer by hand, whose support set has no order and whose queries do not see each other."""

import jax
import numpy as np
import pytest
from point_task import curve_task, point_task

from metarun.errors import ConfigError
from metarun.few_shot.methods.transformer import transformer
from metarun.models.mlp import mlp
from metarun.models.transformer import transformer as network_over_sets
from metarun.types import Split


def method(objective="classification", num_outputs=3, **options):
    encoder = mlp(num_outputs=None, hidden=[6])
    settings = {"layers": 2, "heads": 2, "size": 8, "embedding": 5, **options}
    return transformer(encoder=encoder, objective=objective, num_outputs=num_outputs, **settings)


def by_hand(params, rows, ends, layers, heads):
    """As in Vaswani et al. 2017, with the norms before each part; written with loops over heads and rows."""

    def dense(name, part, x):
        return x @ part[name]["kernel"] + part[name]["bias"]

    def norm(part, x):
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(var + 1e-6) * part["scale"] + part["bias"]

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def layer(part, x, context):
        asking, seen = norm(part["attention_norm"], x), norm(part["attention_norm"], context)
        q, k, v = dense("queries", part, asking), dense("keys", part, seen), dense("values", part, seen)
        size = q.shape[1] // heads
        found = np.zeros_like(q)
        for head in range(heads):
            at = slice(head * size, (head + 1) * size)
            for i in range(len(q)):
                weights = np.exp(k[:, at] @ q[i, at] / np.sqrt(size))
                found[i, at] = weights @ v[:, at] / weights.sum()
        x = x + dense("found", part, found)
        return x + dense("output", part, gelu(dense("hidden", part, norm(part["hidden_norm"], x))))

    rows, ends = dense("input", params, rows), dense("input", params, ends)
    for number in range(layers):
        part = params[f"layer_{number}"]
        rows, ends = layer(part, rows, rows), layer(part, ends, rows)
    return dense("head", params, norm(params["norm"], ends))


def test_the_network_by_hand():
    with jax.enable_x64(True):
        network = network_over_sets(num_outputs=3, layers=2, heads=2, size=8)
        rows, ends = jax.random.normal(jax.random.key(0), (7, 6)), jax.random.normal(jax.random.key(1), (4, 6))
        params = jax.jit(network.init)(jax.random.key(2), rows, ends)
        for part in (params["layer_0"], params["layer_1"]):
            np.testing.assert_array_equal(part["queries"]["kernel"], part["keys"]["kernel"])
            # Apart from each other, so that neither stands in for the other.
            part["queries"]["kernel"] = 1.5 * part["queries"]["kernel"][::-1]
        answered = jax.jit(lambda: network.answer(params, network.read(params, rows), ends))()
    params, rows, ends = jax.tree.map(np.asarray, (params, rows, ends))
    np.testing.assert_allclose(answered, by_hand(params, rows, ends, 2, 2), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("objective", ["classification", "regression"])
def test_the_support_set_has_no_order(objective):
    with jax.enable_x64(True):
        if objective == "classification":
            task, learner = point_task(jax.random.key(0)), method()
        else:
            task, learner = curve_task(jax.random.key(0)), method(objective, 1)
        meta_params = jax.jit(learner.init)(jax.random.key(1), task)
        answer = jax.jit(lambda support: learner.predict(learner.adapt(meta_params, support, None), task.query.x))
        answers = [answer(task.support), answer(Split(task.support.x[::-1], task.support.y[::-1]))]
    np.testing.assert_allclose(*answers, rtol=1e-10, atol=1e-10)


def test_a_query_is_answered_from_no_other_query():
    learner, task = method(), point_task(jax.random.key(0))
    adapted = jax.jit(learner.adapt)(jax.jit(learner.init)(jax.random.key(1), task), task.support, None)
    before, after = (jax.jit(learner.predict)(adapted, x) for x in (task.query.x, task.query.x.at[2].add(1.0)))
    np.testing.assert_array_equal(np.any(before != after, 1), np.arange(6) == 2)


@pytest.mark.parametrize("key, value", [("layers", 0), ("heads", 3), ("heads", 0), ("size", 1.5)])
def test_a_setting_that_cannot_be_used_is_named(key, value):
    with pytest.raises(ConfigError, match=f"method.{key}={value}"):
        method(**{key: value})
