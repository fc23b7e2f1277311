"""Tasks cut from a draw, the loss of nearest class means, and what both cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from point_task import curve_task, point_task

from metarun.errors import ConfigError
from metarun.few_shot.in_context import nearest_mean_loss, subtask
from metarun.few_shot.methods.rnn import rnn
from metarun.models.conv4 import conv4
from metarun.models.mlp import mlp
from metarun.types import Split, Task


def learner(objective="classification", num_outputs=3, encoder=(5,), **options):
    settings = {"hidden": 8, "embedding": 4, **options}
    network = mlp(num_outputs=None, hidden=list(encoder))
    return rnn(encoder=network, objective=objective, num_outputs=num_outputs, **settings)


def draw_of(classes, shot, query_shot):
    """A draw whose inputs are the class and a number of the example: what is cut from it can be told."""

    def split(count, first):
        y = jnp.tile(jnp.arange(classes), count)
        return Split(jnp.stack([y, first + jnp.arange(y.size)], 1).astype(jnp.float32), y)

    return Task(split(shot, 0), split(query_shot, 100))


def test_a_task_is_cut_from_a_draw():
    draw = draw_of(classes=6, shot=2, query_shot=3)
    cut = jax.jit(lambda key: subtask(key, draw, way=4, classes=6))
    chosen, orders = set(), set()
    for seed in range(40):
        task = cut(jax.random.key(seed))
        of_label = {}
        for split, whole, count in ((task.support, draw.support, 2), (task.query, draw.query, 3)):
            rows = {tuple(row) for row in np.asarray(split.x).tolist()}
            assert len(rows) == 4 * count  # each once
            assert rows <= {tuple(row) for row in np.asarray(whole.x).tolist()}
            np.testing.assert_array_equal(np.bincount(split.y, minlength=4), [count] * 4)
            for (original, _), label in zip(np.asarray(split.x).tolist(), np.asarray(split.y).tolist(), strict=True):
                assert of_label.setdefault(label, original) == original  # the same numbers in both sets
        chosen |= set(of_label.items())
        orders.add(tuple(np.asarray(task.support.y).tolist()))
    assert len(chosen) == 4 * 6  # any class by any number
    assert len(orders) > 30


def test_nearest_means_by_hand():
    support = Split(jnp.array([[0.0, 0.0], [2.0, 0.0], [0.0, 3.0], [0.0, 1.0]]), jnp.array([0, 0, 1, 1]))
    query = Split(jnp.array([[1.0, 1.0], [0.0, 0.0]]), jnp.array([0, 1]))
    # The means are (1, 0) and (0, 2), the squared distances 1 and 2, 1 and 4.
    expected = np.mean([np.log(1 + np.exp(1 - 2)), np.log(1 + np.exp(4 - 1))])
    np.testing.assert_allclose(nearest_mean_loss(Task(support, query), 2), expected, rtol=1e-5)


def test_numberings_average_the_loss_over_the_ways_to_number_the_classes():
    # One example of a class: its order in the support set is all that a numbering of two classes leaves open.
    task = point_task(jax.random.key(0), way=2)
    plain, numbered = (learner(num_outputs=2, numberings=n) for n in (1, 400))
    params = jax.jit(plain.init)(jax.random.key(1), task)
    loss, metrics = jax.jit(numbered.loss)(params, task, jax.random.key(2))
    assert loss == metrics["loss"]

    size = task.support.y.size
    losses = []
    for key in jax.random.split(jax.random.key(3), 400):
        number_key, order_key = jax.random.split(key)
        number, order = jax.random.permutation(number_key, 2), jax.random.permutation(order_key, size)
        support = Split(task.support.x[order], number[task.support.y[order]])
        losses.append((support, task.query._replace(y=number[task.query.y])))
    tasks = Task(*jax.tree.map(lambda *leaves: jnp.stack(leaves), *losses))
    each = jax.jit(jax.vmap(lambda task: plain.loss(params, task, jax.random.key(2))[0]))(tasks)
    assert each.std() > 0.001
    assert abs(loss - each.mean()) < 4 * each.std() * np.sqrt(2 / 400)


def test_the_embedding_s_loss_is_added_by_its_weight():
    task = point_task(jax.random.key(0))
    plain, weighted = learner(), learner(embedding_loss=0.5)
    params = jax.jit(plain.init)(jax.random.key(1), task)
    loss, metrics = jax.jit(weighted.loss)(params, task, jax.random.key(2))
    without, _ = jax.jit(plain.loss)(params, task, jax.random.key(2))
    assert metrics["loss"] == without
    np.testing.assert_allclose(loss, without + 0.5 * metrics["embedding_loss"], rtol=1e-6)

    def embed(x):
        hidden = jax.nn.relu(x @ params["encoder"]["dense0"]["kernel"] + params["encoder"]["dense0"]["bias"][None])
        return hidden @ params["embedding"]["head"]["kernel"] + params["embedding"]["head"]["bias"][None]

    embedded = Task(*(split._replace(x=embed(split.x)) for split in task))
    np.testing.assert_allclose(metrics["embedding_loss"], nearest_mean_loss(embedded, 3), rtol=1e-5)


@pytest.mark.parametrize("statistics", ["support", "query", "each"])
def test_training_embeds_as_the_test_does(statistics):
    """The loss is that of what `adapt` and `predict` answer, whichever set's statistics normalise."""
    key = jax.random.key(0)
    images = Split(jax.random.uniform(key, (4, 8, 8, 1)), jnp.array([0, 1, 0, 1]))
    task = Task(images, Split(1 - images.x[:2], jnp.array([0, 1])))
    method = rnn(
        encoder=conv4(num_outputs=None, filters=3),
        objective="classification",
        num_outputs=2,
        hidden=4,
        embedding=3,
        query_statistics=statistics,
    )
    params = jax.jit(method.init)(jax.random.key(1), task)
    outputs = jax.jit(lambda x: method.predict(method.adapt(params, task.support, None), x))(task.query.x)
    expected = -jax.nn.log_softmax(outputs)[jnp.arange(2), task.query.y].mean()
    np.testing.assert_allclose(jax.jit(method.loss)(params, task, key)[0], expected, rtol=1e-5)


def test_numberings_cost_nothing_before_the_sequence():
    task = point_task(jax.random.key(0))

    def flops(numberings):
        method = learner(encoder=(1000, 1000), numberings=numberings)
        params = jax.eval_shape(method.init, jax.random.key(1), task)
        gradient = jax.jit(jax.grad(lambda params: method.loss(params, task, jax.random.key(2))[0]))
        return gradient.lower(params).compile().cost_analysis()["flops"]

    assert flops(8) < 1.1 * flops(1)


def test_a_regression_has_no_classes_to_number():
    task = curve_task(jax.random.key(0))
    methods = [learner("regression", 1, numberings=n, embedding_loss=weight) for n, weight in ((1, 0.0), (4, 1.0))]
    params = jax.jit(methods[0].init)(jax.random.key(1), task)
    one, other = (jax.jit(method.loss)(params, task, jax.random.key(2))[0] for method in methods)
    assert one == other


@pytest.mark.parametrize(
    "key, value",
    [("numberings", 0), ("numberings", 1.5), ("numberings", True), ("embedding", 0), ("embedding_loss", -1)],
)
def test_a_number_that_cannot_be_used_is_named(key, value):
    with pytest.raises(ConfigError, match=f"method.{key}={value}"):
        learner("regression", 1, **{key: value})


def test_a_draw_of_fewer_classes_than_a_task_is_named():
    with pytest.raises(ConfigError, match="train_way=2"):
        learner(train_way=2)
