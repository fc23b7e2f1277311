"""The sequence that a support set becomes, and who sees what of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from point_task import curve_task, point_task

from metarun.errors import ConfigError
from metarun.few_shot.methods.rnn import rnn
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
        embedding=2,
        labels=labels,
        objective=objective,
        num_outputs=num_outputs,
        query_statistics=statistics,
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
        return hidden @ linear["kernel"] + np.asarray(linear["bias"])[None]

    adapted = jax.jit(method.adapt)(meta_params, task.support, None)
    one_hot = np.sqrt(2) * np.eye(3)[task.support.y]  # as long as an embedding of size 2 with entries of 1
    rows = np.concatenate([embedded(task.support.x), one_hot, np.zeros((6, 1))], 1)
    np.testing.assert_allclose(adapted.state.memory, rows, rtol=1e-5, atol=1e-6)
    ends = np.concatenate([embedded(task.query.x), np.zeros((6, 3)), np.full((6, 1), np.sqrt(2))], 1)
    np.testing.assert_allclose(jax.jit(method.predict)(adapted, task.query.x), ends, rtol=1e-5, atol=1e-6)
    unadapted = jax.jit(method.unadapted)(meta_params, task.support, None)
    np.testing.assert_allclose(unadapted.state.memory[:, 2:5], np.full((6, 3), np.sqrt(2) / 3), rtol=1e-6)


def test_targets_of_a_regression_are_read_as_they_are():
    task = curve_task(jax.random.key(0))
    method = learner(num_outputs=1, objective="regression")
    adapted = jax.jit(method.adapt)(jax.jit(method.init)(jax.random.key(1), task), task.support, None)
    np.testing.assert_array_equal(adapted.state.memory[:, 2], task.support.y[:, 0])
    np.testing.assert_array_equal(adapted.state.memory[:, 3], np.zeros(3))
    np.testing.assert_array_equal(jax.jit(method.predict)(adapted, task.query.x)[:, 2:], [[0, 1]] * 4)


def test_an_embedding_of_no_size_is_named():
    with pytest.raises(ConfigError, match="method.embedding=0"):
        sequence_learner(
            model=MIRROR,
            encoder=mlp(num_outputs=None),
            embedding=0,
            labels=beside,
            objective="classification",
            num_outputs=3,
            query_statistics="support",
        )


def test_numberings_average_the_loss_over_the_ways_to_number_the_classes():
    task = point_task(jax.random.key(0), way=2)
    plain, numbered = (
        rnn(encoder=mlp(num_outputs=None, hidden=[5]), objective="classification", num_outputs=2, numberings=n)
        for n in (1, 16)
    )
    params = jax.jit(plain.init)(jax.random.key(1), task)
    swapped = jax.tree.map(lambda split: split._replace(y=1 - split.y), task, is_leaf=lambda node: hasattr(node, "y"))
    as_it_comes, other = (float(jax.jit(plain.loss)(params, t, jax.random.key(2))[0]) for t in (task, swapped))
    loss, metrics = jax.jit(numbered.loss)(params, task, jax.random.key(2))
    assert loss == metrics["loss"]
    share = 16 * (float(loss) - other) / (as_it_comes - other)
    assert abs(as_it_comes - other) > 0.001
    assert round(share) in range(1, 16)
    np.testing.assert_allclose(share, round(share), atol=0.01)


def test_numberings_cost_nothing_before_the_sequence():
    task = point_task(jax.random.key(0))

    def flops(numberings):
        method = rnn(
            encoder=mlp(num_outputs=None, hidden=[1000, 1000]),
            objective="classification",
            num_outputs=3,
            hidden=8,
            embedding=8,
            numberings=numberings,
        )
        params = jax.eval_shape(method.init, jax.random.key(1), task)
        gradient = jax.jit(jax.grad(lambda params: method.loss(params, task, jax.random.key(2))[0]))
        return gradient.lower(params).compile().cost_analysis()["flops"]

    assert flops(8) < 1.1 * flops(1)


def test_a_regression_has_no_classes_to_number():
    task = curve_task(jax.random.key(0))
    methods = [
        rnn(encoder=mlp(num_outputs=None, hidden=[5]), objective="regression", num_outputs=1, numberings=n)
        for n in (1, 4)
    ]
    params = jax.jit(methods[0].init)(jax.random.key(1), task)
    one, other = (jax.jit(method.loss)(params, task, jax.random.key(2))[0] for method in methods)
    assert one == other


@pytest.mark.parametrize("numberings", [0, 1.5, True])
def test_a_number_of_numberings_that_is_none_is_named(numberings):
    with pytest.raises(ConfigError, match="method.numberings"):
        rnn(encoder=mlp(num_outputs=None, hidden=[5]), objective="regression", num_outputs=1, numberings=numberings)
