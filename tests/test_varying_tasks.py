"""Methods on tasks of any shape, and the compiled loop over them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metarun.few_shot.methods.matching import matching
from metarun.few_shot.methods.metaoptnet import metaoptnet
from metarun.few_shot.methods.nearest_neighbor import nearest_neighbor
from metarun.few_shot.methods.proto_maml import proto_maml
from metarun.few_shot.methods.protonet import protonet
from metarun.few_shot.methods.r2d2 import r2d2
from metarun.few_shot.methods.relation import relation
from metarun.few_shot.padding import at_its_size
from metarun.models.conv4 import conv4
from metarun.trust import checks
from metarun.types import Split, Task

WAY, MOST = 3, 5
FREE = {
    "matching": matching,
    "metaoptnet": metaoptnet,
    "nearest_neighbor": nearest_neighbor,
    "proto_maml": proto_maml,
    "protonet": protonet,
    "r2d2": r2d2,
    "relation": relation,
}


def task_of(shots, query_shot=2, seed=0):
    """A task of images whose classes have so many support examples."""
    keys = jax.random.split(jax.random.key(seed), 5)
    means = jax.random.uniform(keys[0], (len(shots), 16, 16, 1))

    def split(key, y):
        return Split(means[y] + 0.3 * jax.random.normal(key, (y.size, 16, 16, 1)), y)

    support = jnp.repeat(jnp.arange(len(shots), dtype=jnp.int32), jnp.array(shots), total_repeat_length=sum(shots))
    query = jnp.repeat(jnp.arange(len(shots), dtype=jnp.int32), query_shot)
    return Task(split(keys[1], jax.random.permutation(keys[2], support)), split(keys[3], query))


def padded(task, num_support, num_query, seed=9):
    """The task with rows of noise after its examples."""

    def pad(part, rows, key):
        more = rows - part.y.size
        noise = jax.random.normal(key, (more, *part.x.shape[1:]))
        return Split(
            jnp.concatenate([part.x, noise]),
            jnp.pad(part.y, (0, more), constant_values=1),
            jnp.arange(rows) < part.y.size,
        )

    keys = jax.random.split(jax.random.key(seed))
    return Task(pad(task.support, num_support, keys[0]), pad(task.query, num_query, keys[1]))


def made(factory, num_outputs):
    encoder = {} if factory is nearest_neighbor else {"encoder": conv4(num_outputs=None, filters=4, halvings=2)}
    return factory(**encoder, objective="classification", num_outputs=num_outputs)


@pytest.mark.parametrize("name", FREE)
def test_a_padded_task_is_the_task_that_a_learner_of_its_own_way_has(name):
    """Answers, loss and gradient of 3 classes out of 5 at most are those of the method made for 3, without any mask."""
    task = task_of([1, 3, 2])
    large, own = made(FREE[name], MOST), made(FREE[name], WAY)
    key = jax.random.key(1)
    params = own.init(key, task)

    @jax.jit
    def found(params, task):
        def compute(method, task):
            outputs = method.predict(method.adapt(params, task.support, key), task.query.x)
            return outputs, jax.value_and_grad(lambda params: method.loss(params, task, key)[0])(params)

        return compute(own, task), compute(large, padded(task, 15, 12))

    (expected, of_loss), (outputs, of_padded) = found(params, task)
    queries = task.query.y.size
    np.testing.assert_allclose(outputs[:queries, :WAY], expected, rtol=2e-3, atol=2e-4)
    assert (np.asarray(outputs[:queries, WAY:]) < -1e8).all()
    for ours, theirs in zip(jax.tree.leaves(of_padded), jax.tree.leaves(of_loss), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=5e-3, atol=5e-4)


def test_gradients_at_a_task_s_own_size_are_those_of_the_padded_one_and_compile_once():
    method, key, compiled = made(protonet, MOST), jax.random.key(1), []
    tasks = [
        padded(task_of(shots, seed=seed), 15, 10)
        for seed, shots in enumerate([[1, 1], [2, 2, 2], [3, 2, 1, 3], [3] * 5])
    ]
    params = method.init(key, tasks[0])

    def loss(params, task, key):
        return method.loss(params, task, key)

    def traced(params, task):
        compiled.append(task)
        return jax.value_and_grad(at_its_size(loss), has_aux=True)(params, task, key)

    step = jax.jit(traced)
    for task in tasks:
        (value, metrics), gradient = step(params, task)
        (expected, said), whole = jax.value_and_grad(loss, has_aux=True)(params, task, key)
        np.testing.assert_allclose([value, metrics["query/accuracy"]], [expected, said["query/accuracy"]], rtol=1e-4)
        for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=1e-4)
    assert len(compiled) == 1


def test_labels_are_dealt_among_examples_alone():
    task = padded(task_of([1, 3, 2]), 15, 12)
    dealt = checks.shuffle_support_labels(task, jax.random.key(4)).support.y
    its = np.asarray(task.support.mask)
    assert sorted(np.asarray(dealt)[its]) == sorted(np.asarray(task.support.y)[its])
    assert (np.asarray(dealt)[~its] == np.asarray(task.support.y)[~its]).all()
    several = jax.vmap(lambda key: checks.shuffle_support_labels(task, key).support.y)(
        jax.random.split(jax.random.key(0), 600)
    )
    share = (np.asarray(several)[:, 0] == 1).mean()
    assert abs(share - 1 / 2) < 0.1


def test_ways_are_counted_in_padded_tasks():
    tasks = [padded(task_of(shots), 15, 12) for shots in ([1, 1], [2, 1, 2])]
    support = jax.tree.map(lambda *parts: jnp.stack(parts), *(task.support for task in tasks))
    np.testing.assert_array_equal(checks.ways_of(support, MOST), [2, 3])
    np.testing.assert_array_equal(checks.ways_of(support._replace(mask=None), MOST), [MOST, MOST])


def test_where_classes_are_not_equally_often_chance_reaches_up_to_the_most_frequent():
    query = Split(
        np.zeros((2, 4, 1)), np.array([[0, 0, 0, 1], [0, 1, 1, 2]]), np.array([[True] * 4, [True, True, True, False]])
    )
    np.testing.assert_allclose(checks.most_frequent(query, 3), [3 / 4, 2 / 3])
    even = Split(
        np.zeros((2, 4, 1)), np.array([[0, 0, 1, 1], [0, 1, 2, 2]]), np.array([[True] * 4, [True, True, True, False]])
    )
    assert checks.most_frequent(even, 3) is None
    rng = np.random.default_rng(0)
    most = np.full(200, 0.7)
    for mean, passed in ((0.5, True), (0.6, True), (0.7, True), (0.3, False), (0.8, False)):
        found = checks.is_chance(mean + 0.1 * rng.standard_normal(200), np.full(200, 0.5), most)
        assert found["passed"] == passed and found["best"] == pytest.approx(0.7)
