"""The sequence that a support set becomes, and who sees what of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from point_task import curve_task, point_task

from metarun.few_shot.in_context import Reading
from metarun.few_shot.sequence import beside, longest, offset, sequence_learner
from metarun.models.mlp import mlp
from metarun.types import SequenceModel

# Hands back what it is given: the memory is the rows, an answer is an end.
MIRROR = SequenceModel(
    init=lambda key, rows, ends: {},
    read=lambda params, rows: rows,
    answer=lambda params, memory, ends: ends,
)


def learner(model=MIRROR, num_outputs=3, labels=beside, objective="classification", statistics="support"):
    return sequence_learner(
        model=model,
        encoder=mlp(num_outputs=None, hidden=[5]),
        labels=labels,
        objective=objective,
        num_outputs=num_outputs,
        reading=Reading(embedding=2, query_statistics=statistics),
    )


def test_labels_by_hand():
    targets = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    seen, asked = beside(targets)
    np.testing.assert_array_equal(seen, [[1, 0, 0], [0, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(asked, [0, 0, 1])
    seen, asked = offset(targets)
    np.testing.assert_array_equal(seen, [[0, 0], [1, 0], [0, 1]])
    np.testing.assert_array_equal(asked, [1, 0])


def test_the_longest_sequence():
    assert longest("classification", 5, 1, None) == 6
    assert longest("classification", 5, 1, 3) == 16
    assert longest("classification", 5, 5, 3) == 26
    assert longest("regression", 2, 5, None) == 6


@pytest.mark.parametrize("statistics", ["support", "query"])
def test_rows_are_an_embedding_and_a_label_in_the_order_of_the_support_set(statistics):
    task = point_task(jax.random.key(0))
    method = learner(statistics=statistics)
    meta_params = jax.jit(method.init)(jax.random.key(1), task)

    def embedded(x):
        encoder, linear = meta_params["encoder"]["dense0"], meta_params["embedding"]["head"]
        hidden = np.maximum(np.asarray(x) @ encoder["kernel"] + np.asarray(encoder["bias"])[None], 0)
        embeddings = hidden @ linear["kernel"] + np.asarray(linear["bias"])[None]
        return embeddings / np.sqrt((embeddings**2).mean(1, keepdims=True))

    adapted = jax.jit(method.adapt)(meta_params, task.support, None)
    one_hot = np.sqrt(2) * np.eye(3)[task.support.y]  # as long as an embedding of size 2 with entries of 1
    rows = np.concatenate([embedded(task.support.x), one_hot, np.zeros((6, 1))], 1)
    np.testing.assert_allclose(adapted.state.memory.read, rows, rtol=1e-4, atol=1e-5)
    ends = np.concatenate([embedded(task.query.x), np.zeros((6, 3)), np.full((6, 1), np.sqrt(2))], 1)
    np.testing.assert_allclose(jax.jit(method.predict)(adapted, task.query.x), ends, rtol=1e-4, atol=1e-5)
    unadapted = jax.jit(method.unadapted)(meta_params, task.support, None)
    np.testing.assert_allclose(unadapted.state.memory.read[:, 2:5], np.full((6, 3), np.sqrt(2) / 3), rtol=1e-6)


def test_targets_of_a_regression_are_read_as_they_are():
    task = curve_task(jax.random.key(0))
    method = learner(num_outputs=1, objective="regression")
    adapted = jax.jit(method.adapt)(jax.jit(method.init)(jax.random.key(1), task), task.support, None)
    np.testing.assert_array_equal(adapted.state.memory.read[:, 2], task.support.y[:, 0])
    np.testing.assert_array_equal(adapted.state.memory.read[:, 3], np.zeros(3))
    np.testing.assert_array_equal(jax.jit(method.predict)(adapted, task.query.x)[:, 2:], [[0, 1]] * 4)
