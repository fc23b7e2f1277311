"""The functions of `metarun.testing` find planted defects, each by its own promise."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metarun.assembly.returned import environment_faults, in_sentences, optimizer_faults
from metarun.data.sinusoid import sinusoid
from metarun.few_shot.learner import class_means, conditioned, flat
from metarun.few_shot.methods.maml import maml
from metarun.models.mlp import mlp
from metarun.rl.environment import Agent, Body, Discrete, Environment, Step, random_agent
from metarun.testing import ContractError, check_dataset, check_environment, check_method, check_model
from metarun.types import DataSet, Model, Split, Task, TaskSource

# ---- Methods


def honest(*, encoder, objective, num_outputs):
    """Prototypical networks, with a learnt temperature."""

    def init(key, task):
        return {"encoder": encoder.init(key, task.support.x), "temperature": jnp.ones((), jnp.float32)}

    def read(params, support, key):
        return params, class_means(flat(encoder.apply(params["encoder"], support.x)), support.y)

    def answer(state, x, reference):
        params, means = state
        features = flat(encoder.apply(params["encoder"], x, reference))
        return -params["temperature"] * jnp.square(features[:, None] - means[None]).sum(-1)

    return conditioned(
        init=init,
        read=read,
        answer=answer,
        objective=objective,
        num_outputs=num_outputs,
        query_statistics="support",
    )


def changed(change):
    """A factory of the honest method with something else in the place of some of its functions."""

    def factory(*, encoder, objective, num_outputs):
        method = honest(encoder=encoder, objective=objective, num_outputs=num_outputs)
        return method._replace(**change(method))

    return factory


def with_loss_of(adapt_to):
    """The loss of a method that adapts to `adapt_to(task)`."""

    def change(method):
        def loss(params, task, key):
            outputs = method.predict(method.adapt(params, adapt_to(task), key), task.query.x)
            mean = -jnp.take_along_axis(jax.nn.log_softmax(outputs), task.query.y[:, None], 1).mean()
            return mean, {"loss": mean}

        return {"loss": loss}

    return change


def both(task):
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), task.support, task.query)


def remembers(method):
    kept = []

    def adapt(params, support, key):
        kept.append(support.x)
        return method.adapt(params, support._replace(x=support.x + 0.1 * kept[0]), key)

    return {"adapt": adapt}


def draws_without_a_key(method):
    def adapt(params, support, key):
        noise = np.random.default_rng().normal(size=support.x.shape).astype(np.float32)
        return method.adapt(params, support._replace(x=support.x + noise), key)

    return {"adapt": adapt}


def uses_a_key_twice(method):
    def loss(params, task, key):
        noise = [jax.random.normal(key, part.x.shape) for part in task]
        parts = (part._replace(x=part.x + 0.1 * each) for part, each in zip(task, noise, strict=True))
        return method.loss(params, Task(*parts), key)

    return {"loss": loss}


def has_an_infinite_slope(method):
    def loss(params, task, key):
        mean, metrics = method.loss(params, task, key)
        size = jnp.sqrt(jnp.square(task.query.x * params["temperature"]).sum())
        return mean + 1e-3 * size, metrics

    return {"loss": loss}


def counts_by_a_number(method):
    return {"init": lambda key, task: method.init(key, task) | {"temperature": 1.0}}


def follows_nothing(method):
    return {"loss": lambda params, task, key: method.loss(jax.lax.stop_gradient(params), task, key)}


def by_place(method):
    def predict(adapted, x):
        return method.predict(adapted, x) + 100 * jax.nn.one_hot(jnp.arange(x.shape[0]) % 3, 3)

    return {"predict": predict}


def by_company(method):
    return {"predict": lambda adapted, x: method.predict(adapted, x - x.mean(0, keepdims=True))}


def sees_labels_before(method):
    return {"unadapted": method.adapt}


def hears_no_labels(method):
    def blind(support):
        return support._replace(y=jnp.arange(support.y.shape[0], dtype=jnp.int32) % 3)

    return {"adapt": lambda params, support, key: method.adapt(params, blind(support), key)}


def says_no_metrics(method):
    return {"loss": lambda params, task, key: method.loss(params, task, key)[0]}


def answers_one_number(method):
    return {"predict": lambda adapted, x: method.predict(adapted, x)[:, 0]}


def with_early(early):
    return lambda method: {"early": early(method)}


def falls_early(method):
    return lambda params, task, key, step: method.loss(params, task, key)


METHOD_DEFECTS = [
    (says_no_metrics, "types and shapes", "expected (loss, metrics)"),
    (answers_one_number, "types and shapes", "expected [n, num_outputs]"),
    (lambda method: {"trains_on": "nothing"}, "types and shapes", "init returns meta-parameters"),
    (lambda method: {"sizes": 3}, "types and shapes", "sizes fails"),
    (lambda method: {"sizes": lambda params, task: {"rows": "many"}}, "types and shapes", "names with whole numbers"),
    (with_early(lambda method: 3), "types and shapes", "early is 3: expected pairs"),
    (with_early(lambda method: [(5, None)]), "types and shapes", "expected pairs of a number of steps and a loss"),
    (
        with_early(lambda method: [(9, falls_early(method)), (3, falls_early(method))]),
        "types and shapes",
        "early ends at [9, 3]: expected its losses by rising end",
    ),
    (with_early(lambda method: [(5, method.loss)]), "types and shapes", "early loss until 5 fails"),
    (lambda method: {"protocol": {"rate": float("nan")}}, "types and shapes", "finite numbers"),
    (remembers, "no memory", "left behind"),
    (draws_without_a_key, "no memory", "something else when it is called again"),
    (uses_a_key_twice, "keys", "split it"),
    (has_an_infinite_slope, "finite", "blank inputs"),
    (with_loss_of(both), "query labels", "adapt to the support set alone"),
    (counts_by_a_number, "compiled once", "['temperature']"),
    (follows_nothing, "learns", "gradient stopped"),
    (by_place, "order of queries", "order of the queries"),
    (by_company, "number of queries", "query_statistics"),
    (sees_labels_before, "labels", "unadapted sees labels"),
    (hears_no_labels, "labels", "do not follow the support labels"),
]


def test_an_honest_method_keeps_every_promise():
    check_method(honest)
    check_method(
        maml,
        {"inner_lr": 0.1, "inner_steps": 2, "eval_inner_steps": None, "first_order": False},
        objective="regression",
        learning_rate=1e-2,
        steps=60,
    )


@pytest.mark.parametrize("defect, promise, words", METHOD_DEFECTS, ids=lambda each: getattr(each, "__name__", None))
def test_a_defect_of_a_method_is_found(defect, promise, words):
    with pytest.raises(ContractError) as found:
        check_method(changed(defect), steps=60, only=[promise])
    assert [*found.value.broken] == [promise]
    assert words in found.value.broken[promise]


def test_a_factory_that_asks_for_what_there_is_not_is_told_what_there_is():
    with pytest.raises(ContractError, match="needs 'networks'.*metarun offers encoder, model"):
        check_method(lambda *, networks: None)
    with pytest.raises(ContractError, match="returns a int: expected a metarun.types.Method"):
        check_method(lambda *, encoder: 3)
    with pytest.raises(ContractError, match=r"3 breaks its contract:\n- factory: It is not callable"):
        check_model(3)
    with pytest.raises(ContractError, match="factory: It fails: SystemExit: 0"):
        check_method(lambda *, encoder: sys.exit(0))
    with pytest.raises(ValueError, match="nothing called speed: there are types and shapes"):
        check_method(honest, only=["speed"])


# ---- Networks


def centred(*, num_outputs, over):
    """A linear layer on inputs that are centred on the mean of `over(x, reference)`."""
    inner = mlp(num_outputs=num_outputs, hidden=[])
    return Model(
        inner.init, lambda params, x, reference=None: inner.apply(params, x - over(x, reference).mean(0, keepdims=True))
    )


def layer(change):
    def factory(*, num_outputs):
        model = mlp(num_outputs=num_outputs, hidden=[])
        return model._replace(**change(model, num_outputs))

    return factory


NETWORK_DEFECTS = [
    (
        layer(lambda model, n: {"apply": lambda p, x: model.apply(p, x)}),
        "types and shapes",
        "expected apply(params, x, reference=None).",
    ),
    (partial(centred, over=lambda x, reference: x), "rows", "first `reference` rows"),
    (
        layer(lambda model, n: {"init": lambda key, x: model.init(jax.random.key(0), x)}),
        "no memory",
        "draw them from it",
    ),
    (
        layer(lambda model, n: {"apply": lambda p, x, r=None: model.apply(p, x / jnp.linalg.norm(x))}),
        "finite",
        "blank inputs",
    ),
    (
        layer(
            lambda model, n: {
                "apply": lambda p, x, r=None: model.apply(p, x) + jnp.arange(x.shape[0], dtype=x.dtype)[:, None]
            }
        ),
        "rows",
        "change places",
    ),
    (
        layer(lambda model, n: {"apply": lambda p, x, r=None: model.apply(p, x)[:, : None if n is None else 1]}),
        "types and shapes",
        "expected [n, num_outputs]",
    ),
]


def test_an_honest_network_keeps_every_promise():
    check_model(partial(centred, over=lambda x, reference: x if reference is None else x[:reference]))
    check_model(mlp, {"hidden": [8]}, shape=[5])


@pytest.mark.parametrize("factory, promise, words", NETWORK_DEFECTS)
def test_a_defect_of_a_network_is_found(factory, promise, words):
    with pytest.raises(ContractError) as found:
        check_model(factory)
    assert promise in found.value.broken and words in found.value.broken[promise]


# ---- Data sets

NUM_CLASSES, EACH = 12, 8
EXAMPLES = jax.random.normal(jax.random.key(1), (3, NUM_CLASSES, EACH, 4)) + 3 * jax.random.normal(
    jax.random.key(2), (3, NUM_CLASSES, 1, 4)
)


def classes_of(
    *, way, shot, query_shot, ordered=False, own_numbers=False, repeated=False, shared=False, told=False, fixed=False
):
    """Classes of points in space."""

    def source(split):
        def sample(data, key):
            class_key, *keys = jax.random.split(jax.random.key(0) if fixed else key, 2 + way)
            classes = jax.random.permutation(class_key, NUM_CLASSES)[:way]
            if own_numbers:
                classes = jnp.sort(classes)
            chosen = jnp.stack([jax.random.permutation(each, EACH)[: shot + query_shot] for each in keys[:way]])
            if repeated:
                chosen = chosen.at[:, shot].set(chosen[:, 0])
            x = data[classes[:, None], chosen]
            y = jnp.broadcast_to(jnp.arange(way, dtype=jnp.int32)[:, None], chosen.shape)
            if told:
                x = x.at[..., 0].add(y.astype(x.dtype))
            parts = []
            for number, (first, last) in enumerate(((0, shot), (shot, shot + query_shot))):
                size = way * (last - first)
                order_key = jax.random.fold_in(keys[way], number)
                order = jnp.arange(size) if ordered else jax.random.permutation(order_key, size)
                part = Split(x[:, first:last].reshape(size, 4)[order], y[:, first:last].reshape(size)[order])
                parts.append(part)
            return Task(*parts)

        return TaskSource(EXAMPLES[split], sample)

    from metarun.data.contents import content_hashes

    contents = {
        name: [content_hashes(np.asarray(one)) for one in EXAMPLES[number]]
        for number, name in enumerate(("train", "val", "test"))
    }
    if shared:
        contents["test"] = contents["train"]
    return DataSet(
        source(0), source(1), source(0 if shared else 2), "classification", way, {"name": "points"}, contents=contents
    )


def changed_data(change, **defect):
    """A factory of the honest data with something else in the place of some of their parts."""

    def factory(*, way, shot, query_shot):
        dataset = classes_of(way=way, shot=shot, query_shot=query_shot, **defect)
        return dataset._replace(**change(dataset))

    return factory


def with_tasks(change):
    """Data whose tasks are changed, in every split."""

    def change_source(source):
        return source._replace(sample=lambda data, key: change(source.sample(data, key)))

    return changed_data(lambda dataset: {split: change_source(getattr(dataset, split)) for split in SPLITS})


def cut(task):
    return task._replace(query=task.query._replace(x=task.query.x[:, :2]))


def from_one(task):
    return Task(*(part._replace(y=part.y + 1) for part in task))


def of_lists(task):
    return task._replace(support=task.support._replace(x=[task.support.x]))


def with_two_classes(dataset):
    """Tasks of three ways from two classes: the first and the last are of one."""

    def sample(data, key):
        task = dataset.train.sample(data, key)
        first, last = (part.x[jnp.argmax(part.y == 0)] for part in task), (part.y == 2 for part in task)
        parts = zip(task, first, last, strict=True)
        return Task(*(part._replace(x=jnp.where(at[:, None], x, part.x)) for part, x, at in parts))

    return {"train": dataset.train._replace(sample=sample)}


SPLITS = ("train", "val", "test")
ODD_DATA = [
    (with_tasks(cut), "types and shapes", "[4] in support and [2] in query"),
    (with_tasks(from_one), "types and shapes", "labels from 1 to 3: expected 0 to 2"),
    (with_tasks(of_lists), "types and shapes", "support.x is a list"),
    (with_tasks(lambda task: {"support": task.support}), "types and shapes", "expected a Task of two Splits"),
    (changed_data(lambda dataset: {"num_outputs": 4}), "types and shapes", "without the labels 3"),
    (changed_data(lambda dataset: {"contents": {"train": 3}}), "types and shapes", "contents are {'train': 3}"),
    (changed_data(lambda dataset: {"protocol": {"name": "points", "a": np.nan}}), "types and shapes", "finite numbers"),
    (changed_data(lambda dataset: {"protocol": None}), "types and shapes", "protocol is None"),
    (changed_data(lambda dataset: {"ground": "x"}), "types and shapes", "ground is 'x'"),
    (changed_data(lambda dataset: {"train_way": "x"}), "types and shapes", "train_way is 'x'"),
    (changed_data(lambda dataset: {"num_train_classes": "x"}), "types and shapes", "num_train_classes is 'x'"),
    (
        changed_data(lambda dataset: {"train_classes": 3, "num_train_classes": 3}),
        "types and shapes",
        "train_classes is",
    ),
    (changed_data(lambda dataset: {"standardized": 3}), "types and shapes", "standardized is 3"),
    (changed_data(lambda dataset: {"train": None}), "types and shapes", "train is a NoneType: expected a TaskSource"),
    (
        changed_data(lambda dataset: {"val": dataset.val._replace(sample=lambda key: None)}),
        "types and shapes",
        "val.sample fails",
    ),
    (
        changed_data(lambda dataset: {"test": dataset.test._replace(data={"a": "text"})}),
        "types and shapes",
        "test.data has a str at ['a']",
    ),
    (
        changed_data(lambda dataset: {"val": dataset.train, "test": dataset.train, "contents": None}),
        "splits",
        "train and val, train and test, val and test give the same tasks",
    ),
    (
        changed_data(
            lambda dataset: {
                "val": dataset.train._replace(
                    sample=lambda data, key: dataset.train.sample(data, jax.random.fold_in(key, 1))
                ),
                "contents": None,
            }
        ),
        "splits",
        "of the inputs of val are in train too",
    ),
    (changed_data(with_two_classes), "leaks", "a class has two labels"),
]


@pytest.mark.parametrize("factory, promise, words", ODD_DATA, ids=lambda each: None)
def test_data_of_other_types_or_of_the_same_splits_are_found(factory, promise, words):
    with pytest.raises(ContractError) as found:
        check_dataset(factory)
    assert promise in found.value.broken and words in found.value.broken[promise]


DATA_DEFECTS = [
    ({"ordered": True}, "leaks", "labels_by_position"),
    ({"own_numbers": True}, "leaks", "labels_by_class"),
    ({"repeated": True}, "leaks", "support_apart_from_query"),
    ({"shared": True}, "leaks", "test_apart_from_train"),
    ({"told": True}, "leaks", "input alone"),
    ({"fixed": True}, "drawn by the key", "the same task for every key"),
]


def test_honest_data_keep_every_promise():
    check_dataset(classes_of)
    check_dataset(sinusoid)


@pytest.mark.parametrize("defect, promise, words", DATA_DEFECTS, ids=lambda each: None)
def test_a_defect_of_data_is_found(defect, promise, words):
    with pytest.raises(ContractError) as found:
        check_dataset(partial(classes_of, **defect))
    assert promise in found.value.broken and words in found.value.broken[promise]


# ---- Environments


def arms(*, shared=False, infinite=False, widens=False, optimum=1.0, first=0.0):
    """Two arms, one of which pays 1."""

    def sample(key, split):
        number = 0 if shared else {"train": 0, "val": 1, "test": 2}[split]
        return jax.random.uniform(jax.random.fold_in(key, number))

    def step(task, state, action, key):
        reward = jnp.where((action == 0) == (task < 0.5), 1.0, 0.0) + jnp.where(action == 0, first, 0.0)
        if infinite:
            reward = reward / jnp.where(action == 0, 0.0, 1.0)
        return Step(state.astype(jnp.float32) if widens else state + 1, reward, jnp.zeros((), bool))

    return Environment(
        sample=sample,
        reset=lambda task, key: jnp.zeros((), jnp.int32),
        observe=lambda task, state: jnp.zeros(0),
        step=step,
        actions=Discrete(2),
        observation_size=0,
        horizon=1,
        episodes=8,
        protocol={"name": "two arms"},
        optimum=lambda task: jnp.full((), 8 * optimum),
        exchangeable=True,
    )


def changed_arms(**parts):
    return lambda: arms()._replace(**parts)


def aimless(memory, seen, key):
    return memory, jnp.zeros(3), ()


BODY = Body(lambda observation: jnp.zeros((2, 2, 3)), [0.1, 0.1], str, 0.1)
ODD_ENVIRONMENTS = [
    (changed_arms(actions=Discrete(0)), "Discrete(n=0): expected a whole number of them"),
    (changed_arms(actions=Discrete("2")), "expected a whole number of them"),
    (changed_arms(observation_size="2"), "observation_size is '2'"),
    (changed_arms(episodes=None), "episodes is None"),
    (changed_arms(exchangeable=3), "exchangeable is 3"),
    (changed_arms(yardsticks=None), "yardsticks are a NoneType"),
    (changed_arms(yardsticks={"best": 3}), "yardstick best is a int: expected an Agent"),
    (changed_arms(yardsticks={"best": Agent(lambda key: (), aimless)}), "action [3] float32: expected [] int32"),
    (changed_arms(optimum=lambda: 3), "optimum fails"),
    (changed_arms(optimum=lambda task: jnp.nan * task), "optimum is nan"),
    (changed_arms(optimum=lambda task: jnp.zeros(2)), "optimum returns [2] float32"),
    (changed_arms(goal=3), "goal fails"),
    (changed_arms(goal=lambda task: jnp.zeros(5)), "goal returns [5] float32"),
    (changed_arms(goal=lambda task: jnp.zeros(2)), "observations are [0]: expected places in the plane"),
    (changed_arms(body=3), "body is a int"),
    (changed_arms(body=BODY._replace(radii=[0.1])), "body.radii are [1] for 2 limbs"),
    (changed_arms(body=BODY._replace(limbs=lambda observation: observation)), "expected the ends of limbs"),
]


@pytest.mark.parametrize("factory, words", ODD_ENVIRONMENTS, ids=lambda each: None)
def test_an_environment_of_other_types_is_refused_before_a_trial(factory, words):
    assert words in in_sentences(environment_faults(factory()))
    with pytest.raises(ContractError) as found:
        check_environment(factory)
    assert [*found.value.broken] == ["types and shapes"]


def test_a_body_and_agents_as_they_are_to_be_are_no_fault():
    agents = {"random": random_agent(Discrete(2))}
    assert not [*environment_faults(arms()._replace(body=BODY, yardsticks=agents))]


ENVIRONMENT_DEFECTS = [
    ({"shared": True}, "drawn by the key", "the tasks of train for val"),
    ({"infinite": True}, "finite", "not finite"),
    ({"widens": True}, "types and shapes", "keeps both"),
    ({"optimum": 0.1}, "optimum", "more than the stated optimum"),
    ({"first": 5.0, "optimum": 6.0}, "exchangeable", "not exchangeable"),
]


def test_an_honest_environment_keeps_every_promise():
    check_environment(arms)


@pytest.mark.parametrize("defect, promise, words", ENVIRONMENT_DEFECTS, ids=lambda each: None)
def test_a_defect_of_an_environment_is_found(defect, promise, words):
    with pytest.raises(ContractError) as found:
        check_environment(partial(arms, **defect))
    assert promise in found.value.broken and words in found.value.broken[promise]


# ---- Optimisers

PARAMS = {"w": jnp.zeros((3, 2)), "b": jnp.zeros(2)}


def optimizer(init, update):
    return optax.GradientTransformation(init, update)


OPTIMIZER_DEFECTS = [
    (lambda p: (), lambda g, s, p: (None, s), "updates of other shapes"),
    (lambda p: (), lambda g, s, p: (g | {"b": jnp.zeros(3)}, s), "[3] float32 for [2] float32 at ['b']"),
    (lambda p: jnp.zeros(()), lambda g, s, p: (g, jnp.zeros(2)), "a state of other shapes or types than init's"),
    (lambda p: jnp.zeros((), jnp.int32), lambda g, s, p: (g, s.astype(jnp.float32)), "[] float32 for [] int32"),
    (lambda p: (), lambda g, s, p: g, "expected (updates, state)"),
    (lambda p: 1 / 0, lambda g, s, p: (g, s), "init fails"),
    (lambda p: (), lambda g: g, "update fails"),
]


@pytest.mark.parametrize("init, update, words", OPTIMIZER_DEFECTS, ids=lambda each: None)
def test_an_optimiser_whose_update_a_loop_cannot_follow_is_found(init, update, words):
    assert words in in_sentences(optimizer_faults(optimizer(init, update), PARAMS))


@pytest.mark.parametrize("its", [optax.adam(0.1), optax.sgd(0.1), optax.chain(optax.clip(1.0), optax.lion(0.1))])
def test_an_optimiser_of_optax_has_no_fault(its):
    assert not [*optimizer_faults(its, PARAMS)]


def test_what_several_functions_fail_by_is_said_once_and_in_sentences():
    faults = ["loss fails in own.py: KeyError: 'a'", "adapt fails in own.py: KeyError: 'a'", "predict returns None."]
    assert in_sentences(faults) == "loss fails in own.py: KeyError: 'a'. predict returns None."
    assert in_sentences(faults, 1) == "loss fails in own.py: KeyError: 'a'."
    assert in_sentences([]) == ""
