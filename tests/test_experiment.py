"""Few-shot experiments: how steps are grouped, the checks against learners that leak, and evaluation's interval."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metarun.data.sinusoid import sinusoid
from metarun.experiment import few_shot
from metarun.methods.maml import maml
from metarun.models.mlp import mlp
from metarun.optimizers import adam
from metarun.task_map import default_layout
from metarun.types import DataSet, Method, Split, Task, TaskSource

WAY, QUERY = 3, 4


def blobs():
    """Classes are points in the plane, examples lie near them."""

    def sample(data, key):
        centre_key, support_key, query_key, order_key = jax.random.split(key, 4)
        centres = 3 * jax.random.normal(centre_key, (WAY, 2))

        def split(key, y):
            return Split(centres[y] + 0.3 * jax.random.normal(key, (y.size, 2)), y)

        query_y = jax.random.permutation(order_key, jnp.tile(jnp.arange(WAY, dtype=jnp.int32), QUERY))
        return Task(split(support_key, jnp.arange(WAY, dtype=jnp.int32)), split(query_key, query_y))

    source = TaskSource((), sample)
    return DataSet(source, source, source, "classification", WAY, {"name": "blobs"})


def nearest(support, x):
    """Outputs that favour the class of the nearest support point: `[n, WAY]`."""
    distance = jnp.square(x[:, None] - support.x[None]).sum(-1)
    scores = jnp.zeros((x.shape[0], WAY))
    return scores.at[:, support.y].add(-distance)


def learner(predict=nearest, statistics="support", unadapted=None):
    """A method without parameters worth the name, which answers by `predict(support, x)`."""
    blank = lambda support: Split(jnp.zeros_like(support.x), support.y)
    return Method(
        init=lambda key, task: {"unused": jnp.zeros(())},
        adapt=lambda params, support, key: support,
        predict=predict,
        loss=lambda params, task, key: (params["unused"] ** 2, {"loss": params["unused"] ** 2}),
        unadapted=lambda params, support, key: unadapted(support) if unadapted else blank(support),
        protocol={"query_statistics": statistics},
    )


def experiment(method=None, dataset=None, layouts=None, **options):
    settings = {"seed": 0, "eval_seed": 0, "meta_batch_size": 3, "protocol": {}} | options
    variants = {"": method or learner()}
    return few_shot(
        variants, dataset or blobs(), adam(outer_lr=0.01, steps=10), layouts or [default_layout()], **settings
    )


def checks(**options):
    found = experiment(learner(**options)).evaluate({"unused": jnp.zeros(())}, "test", 100, checks=True)
    return {name: check["passed"] for name, check in found.checks.items()}, found


def test_an_honest_learner_passes_every_check():
    passed, found = checks()
    assert found.value > 0.9
    assert passed == dict.fromkeys(passed, True)
    assert set(passed) == {
        "chance_before_adaptation",
        "chance_with_shuffled_labels",
        "query_order",
        "query_count",
        "relabelling",
    }


def failing(passed):
    return {name for name, ok in passed.items() if not ok}


def test_knowing_the_answer_before_adaptation_is_found():
    passed, _ = checks(unadapted=lambda support: support)
    assert failing(passed) == {"chance_before_adaptation"}


def test_position_of_support_carrying_the_label_is_found():
    # This learner ignores the labels: here the classes stand in order in the support set.
    def by_position(support, x):
        return nearest(Split(support.x, jnp.arange(WAY)), x)

    passed, _ = checks(predict=by_position)
    assert {"chance_with_shuffled_labels", "relabelling"} <= failing(passed)


def test_order_of_the_queries_carrying_an_answer_is_found():
    def by_order(support, x):
        return nearest(support, x) + 5.0 * jax.nn.one_hot(jnp.arange(x.shape[0]) % WAY, WAY)

    passed, _ = checks(predict=by_order)
    assert "query_order" in failing(passed)


def transductive(support, x):
    centred = Split(support.x - support.x.mean(0, keepdims=True), support.y)
    return nearest(centred, x - x.mean(0, keepdims=True))


def test_dependence_on_the_number_of_queries_is_found_unless_declared():
    undeclared, _ = checks(predict=transductive)
    assert failing(undeclared) == {"query_count"}
    declared, found = checks(predict=transductive, statistics="query")
    assert not failing(declared)
    # Alone, a centred query lies at the origin and says nothing.
    assert found.checks["query_count"]["changed"] > 0.3
    assert found.checks["query_count"]["value"] == pytest.approx(found.value - found.checks["query_count"]["alone"])


def test_a_favourite_class_is_found_by_relabelling_nowhere_else():
    # Always answering class 0 is chance, whatever the labels: no check may call that a leak.
    passed, found = checks(predict=lambda support, x: jnp.zeros((x.shape[0], WAY)))
    assert not failing(passed)
    assert found.value == pytest.approx(1 / WAY)


def test_interval_is_over_tasks():
    _, found = checks(predict=transductive, statistics="query")
    assert found.num_tasks == len(found.per_task) == 100
    assert found.value == pytest.approx(found.per_task.mean())
    assert found.ci95 == pytest.approx(1.96 * found.per_task.std(ddof=1) / 10)


def test_evaluation_tasks_do_not_depend_on_the_seed_but_on_the_eval_seed():
    params = {"unused": jnp.zeros(())}
    per_task = [
        experiment(seed=seed, eval_seed=eval_seed).evaluate(params, split, 60).per_task
        for seed, eval_seed, split in [(0, 0, "test"), (1, 0, "test"), (0, 1, "test"), (0, 0, "val")]
    ]
    np.testing.assert_array_equal(per_task[0], per_task[1])
    assert not np.array_equal(per_task[0], per_task[2])
    assert not np.array_equal(per_task[0], per_task[3])


def regression(**options):
    method = maml(model=mlp(num_outputs=1, hidden=[8]), objective="regression", inner_lr=0.01)
    return experiment(method, sinusoid(shot=5, query_shot=5), **options)


def test_grouping_of_steps_changes_no_bit():
    one = regression()
    together, _ = one.step(one.init(), 6)
    apart = one.init()
    for size in (1, 3, 2):
        apart, metrics = one.step(apart, size)
    assert int(apart.step) == 6 and np.isfinite(metrics["loss"])
    jax.tree.map(np.testing.assert_array_equal, together, apart)


def test_metrics_are_means_over_the_steps_of_a_dispatch():
    one = regression()
    state, first = one.step(one.init(), 1)
    _, second = one.step(state, 1)
    _, both = one.step(one.init(), 2)
    np.testing.assert_allclose(both["loss"], (first["loss"] + second["loss"]) / 2, rtol=1e-5)


def test_losses_of_the_early_steps_follow_each_other_and_are_told_the_step():
    def loss_of(factor):
        return lambda params, task, key, step: (params["unused"] ** 2, {"loss": factor * step.astype(jnp.float32)})

    late = lambda params, task, key: (params["unused"] ** 2, {"loss": jnp.float32(7)})
    one = experiment(learner()._replace(early=[(2, loss_of(1)), (4, loss_of(10))], loss=late))
    state, metrics = one.step(one.init(), 3)
    assert metrics["loss"] == pytest.approx((0 + 1 + 20) / 3)
    _, metrics = one.step(state, 2)
    assert metrics["loss"] == pytest.approx((30 + 7) / 2)


def test_seed_decides_parameters_and_tasks():
    states = [regression(seed=seed).step(regression(seed=seed).init(), 2)[0] for seed in (0, 0, 1)]
    jax.tree.map(np.testing.assert_array_equal, states[0], states[1])
    assert not np.array_equal(states[0].params["dense0"]["kernel"], states[2].params["dense0"]["kernel"])


def test_second_call_does_not_compile_again():
    one = regression()
    state, _ = one.step(one.init(), 2)
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        compiled = []
        patch.setattr("jax._src.interpreters.pxla.logger.log", lambda level, message, *a, **k: compiled.append(message))
        one.step(state, 3)
    assert not [message for message in compiled if "ompil" in message]


def test_maml_learns_sinusoids():
    one = regression(meta_batch_size=10)
    state = one.init()
    before = one.evaluate(state.params, "test", 100)
    state, _ = one.step(state, 300)
    after = one.evaluate(state.params, "test", 100)
    assert after.metric == "mse" and after.value + after.ci95 < before.value
