"""Few-shot experiments: how steps are grouped, the checks against learners that leak, and evaluation's interval."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metarun.compiled.task_map import default_layout
from metarun.data.sinusoid import sinusoid
from metarun.errors import ConfigError
from metarun.few_shot.experiment import few_shot_experiment
from metarun.few_shot.methods.maml import maml
from metarun.models.mlp import mlp
from metarun.training.optimizers import adam
from metarun.types import DataSet, Method, Split, Task, TaskSource

WAY, QUERY = 3, 4


def blobs(noise=0.3):
    """Classes are points in the plane, examples lie near them."""

    def sample(data, key):
        centre_key, support_key, query_key, order_key = jax.random.split(key, 4)
        centres = 3 * jax.random.normal(centre_key, (WAY, 2))

        def split(key, y):
            return Split(centres[y] + noise * jax.random.normal(key, (y.size, 2)), y)

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
    return few_shot_experiment(
        variants, dataset or blobs(), adam(outer_lr=0.01, steps=10), layouts or [default_layout()], **settings
    )


def checks(**options):
    found = experiment(learner(**options)).evaluate({"unused": jnp.zeros(())}, "test", 100, checks=True)
    return {name: check["passed"] for name, check in found.checks.items()}, found


def test_an_honest_learner_passes_every_check():
    passed, found = checks()
    assert found.value > 0.9
    # Points whose classes nobody has listed: what needs no contents is checked, and the rest says why it is not.
    unknown = {"labels_by_class", "test_apart_from_train"}
    checked = {"chance_before_adaptation", "chance_with_shuffled_labels", "query_order", "query_count", "relabelling"}
    checked |= {"labels_by_position", "support_apart_from_query"}
    assert passed == dict.fromkeys(checked, True) | {"labels_by_position": False} | dict.fromkeys(unknown)
    # `blobs` has its support in the order of the labels.
    assert found.checks["labels_by_position"]["query"] < 4 < found.checks["labels_by_position"]["support"]
    for name in unknown:
        entry = found.checks[name]
        assert entry["value"] is None and "DataSet.contents" in entry["reason"]


def failing(passed):
    """The checks of the learner that have failed."""
    return {name for name, ok in passed.items() if ok is False} - {"labels_by_position"}


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
    count = found.checks["query_count"]
    assert count["together"] == pytest.approx(found.value)  # of so few queries, all are asked alone too
    assert count["value"] == pytest.approx(count["together"] - count["alone"])


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


PRECISIONS = ("float32", "tensorfloat32", "bfloat16")
FEATURES = 64


def rounded(x, precision):
    """Products of this precision as a GPU makes them, on any device: their factors have 8 or 11 significant bits."""
    if precision == "bfloat16":
        return x.astype(jnp.bfloat16).astype(x.dtype)
    return jax.lax.reduce_precision(x, 8, 10) if precision == "tensorfloat32" else x


def network(precision, norm, leak=None, statistics="support"):
    """A learner of two layers, whose rounding depends on the number of rows: the class mean of features is nearest."""
    weights = [
        jax.random.normal(key, shape) / shape[0] ** 0.5
        for key, shape in zip(jax.random.split(jax.random.key(1)), [(2, FEATURES), (FEATURES, FEATURES)], strict=True)
    ]

    def normalised(x, reference):
        if norm == "layer":
            return (x - x.mean(1, keepdims=True)) / (x.std(1, keepdims=True) + 1e-3)
        of = x if leak == "statistics" and reference is not None else x[:reference]
        if leak == "momentum" and reference is not None:
            mean = 0.98 * x[:reference].mean(0) + 0.02 * x[reference:].mean(0)
        else:
            mean = of.mean(0)
        return (x - mean[None]) / (of.std(0)[None] + 1e-3)

    def features(x, reference):
        for weight in weights:
            # As by another kernel: how a sum is split, hence rounded, is decided by the number of rows.
            pieces = [jnp.array_split(rounded(a, precision), 1 + len(x) % 3, axis) for a, axis in ((x, 1), (weight, 0))]
            x = sum(rounded(a @ b, precision) for a, b in zip(*pieces, strict=True))
            x = rounded(jax.nn.relu(normalised(x, reference)), precision)
        return x

    def predict(support, x):
        if statistics == "each":
            found = jax.lax.map(lambda one: features(jnp.concatenate([support.x, one[None]]), None), x)
            known, asked = found[:, :-1], found[:, -1:]
            outputs = -jnp.square(known - asked).mean(2)
        else:
            reference = len(support.x)
            found = features(jnp.concatenate([support.x, x]), reference)
            known, asked = found[:reference], found[reference:]
            outputs = -jnp.square(asked[:, None] - known[None]).mean(2)
        if leak != "position":  # of the support set, which has its classes in order
            outputs = jnp.zeros_like(outputs).at[:, support.y].add(outputs)
        place = jax.nn.one_hot(jnp.arange(len(x)) % WAY, WAY)
        if leak == "order":
            outputs = outputs + 0.05 * place
        if leak == "others":  # the classes are asked equally often
            outputs = outputs - 0.1 * jax.nn.softmax(outputs).mean(0)[None]
        return outputs

    return {"predict": predict, "unadapted": (lambda support: support) if leak == "unadapted" else None}


@functools.cache
def of_network(precision, norm, leak=None, statistics="support"):
    noisy = blobs(noise=1.2)
    made = learner(**network(precision, norm, leak, statistics))
    found = experiment(made, noisy, precision=precision).evaluate({"unused": jnp.zeros(())}, "test", 200, checks=True)
    return found, failing({name: entry["passed"] for name, entry in found.checks.items()})


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("norm", "statistics"), [("batch", "support"), ("batch", "each"), ("layer", "support")])
def test_no_precision_raises_a_false_alarm(precision, norm, statistics):
    found, failed = of_network(precision, norm, statistics=statistics)
    assert not failed
    count = found.checks["query_count"]
    assert count["changed_by_others"] == 0 and 0.4 < found.value < 0.95
    if precision == "bfloat16" and statistics == "support":
        assert count["changed"] > (1e-3 if norm == "batch" else 0)  # rounding does change answers, which is no leak


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("leak", "check"),
    [
        ("statistics", "query_count"),
        ("momentum", "query_count"),
        ("others", "query_count"),
        ("order", "query_order"),
        ("position", "relabelling"),
        ("position", "chance_with_shuffled_labels"),
        ("unadapted", "chance_before_adaptation"),
    ],
)
def test_planted_leaks_are_found_in_every_precision(precision, leak, check):
    assert check in of_network(precision, "batch", leak)[1]


def test_one_task_has_no_interval_and_no_sampling_error_to_judge_by():
    found = experiment().evaluate({"unused": jnp.zeros(())}, "test", 1, checks=True)
    assert np.isnan(found.ci95)
    for name in ("chance_before_adaptation", "chance_with_shuffled_labels", "relabelling"):
        assert found.checks[name]["passed"] is None and "eval_tasks=2" in found.checks[name]["reason"]


def test_checks_of_a_regression_that_need_classes_say_so():
    one = regression()
    found = one.evaluate(one.init().params, "test", 20, checks=True).checks
    made = {"query_order", "query_count", "support_apart_from_query"}
    assert {name for name, entry in found.items() if entry["passed"]} == made and len(found) == 9
    assert all("no classes" in entry["reason"] for name, entry in found.items() if name not in made)


def products(traced):
    """The precisions of the products in a program, as text."""
    text = str(traced)
    return {
        word for word in ("HIGHEST", "HIGH", "DEFAULT") if f"Precision.{word}," in text or f"Precision.{word})" in text
    }


@pytest.mark.slow
def test_each_experiment_is_traced_under_its_own_precision():
    alone = {}
    for precision in ("float32", "tensorfloat32"):
        one = regression(precision=precision)
        state, _ = one.step(one.init(), 2)
        alone[precision] = state.params, one.evaluate(state.params, "test", 20).value
    both = {precision: regression(precision=precision) for precision in alone}  # built before either is traced
    for precision, word in [("float32", "HIGHEST"), ("tensorfloat32", "HIGH")]:
        one = both[precision]
        state = jax.eval_shape(one.init)
        steps = one.program.steps(one.program.variants[0], one.program.chunks[0])
        assert products(jax.make_jaxpr(steps)(state, *one.program.given, jnp.int32(1))) == {word}
    for precision, one in both.items():
        state, _ = one.step(one.init(), 2)
        jax.tree.map(np.testing.assert_array_equal, state.params, alone[precision][0])
        assert one.evaluate(state.params, "test", 20).value == alone[precision][1]
    assert jax.config.jax_default_matmul_precision is None


def test_whatever_an_experiment_traces_is_under_its_own_precision():
    seen = set()

    def noting(fn):
        def noted(*args):
            seen.add(jax.config.jax_default_matmul_precision)
            return fn(*args)

        return noted

    honest = learner()
    noted = {name: noting(getattr(honest, name)) for name in ("init", "adapt", "predict", "loss", "unadapted")}
    both = {precision: experiment(honest._replace(**noted), precision=precision) for precision in PRECISIONS[:2]}
    states, traced = {}, set()
    calls = {
        "init": lambda one, state: one.init(),
        "sizes": lambda one, state: one.sizes(),
        "program": lambda one, state: jax.eval_shape(
            one.program.steps("", one.program.chunks[0]), state, *one.program.given, jnp.int32(1)
        ),
        "prepare": lambda one, state: one.prepare(),
        "inspect": lambda one, state: one.inspect(state),
        "evaluate": lambda one, state: one.evaluate(state.params, "test", 2, checks=True),
        "examples": lambda one, state: one.examples(state.params, 1),
    }
    for name, call in calls.items():
        for precision, one in both.items():
            seen.clear()
            found = call(one, states.get(precision))
            states[precision] = states.get(precision, found)
            assert seen <= {precision}, name
            traced |= {name} if seen else set()
    assert traced >= {"init", "program", "prepare", "inspect", "evaluate"}  # for the others all was known by then
    with pytest.raises(ConfigError, match="precision=float16"):
        experiment(precision="float16")
