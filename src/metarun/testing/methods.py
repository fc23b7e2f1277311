"""The contract of a few-shot method."""

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metarun.assembly.returned import method_faults
from metarun.config.schema import FEW_SHOT
from metarun.models.mlp import mlp
from metarun.testing import toy_tasks
from metarun.testing.contract import compiled_quickly, differ, hold, made, name_of, not_finite, retraced
from metarun.testing.toy_tasks import CLASSES, QUERY_SHOT, SHOT, WAY
from metarun.trust.checks import replace_others
from metarun.types import Method, Split, Task

NUM_TASKS = 8  # of a step of the training
_ROUNDS = 6  # the losses of the first and of the last of as many parts of the training are compared
_FALLS = 0.97  # of the loss, what may be left of it
_TESTED = 30  # tasks


@compiled_quickly()
def check_method(
    factory: Callable[..., Method],
    settings: Mapping[str, Any] | None = None,
    *,
    objective: str = "classification",
    network: Callable[..., Any] | None = None,
    steps: int = 300,
    learning_rate: float = 1e-3,
    compiler_options: Mapping[str, Any] | None = None,
    trains_on_queries: bool = False,
    only: Collection[str] | None = None,
) -> None:
    """Holds a few-shot method to what every method of metarun promises.

    It is built as a run builds it, on a small network, and trained on toy tasks: three of twelve patterns under noise, or
    straight lines. A method is a set of functions of one task, so the promises are of these:

    - types and shapes: `init`, `loss`, `adapt`, `unadapted` and `predict` return what `types.Method` says;
    - no memory: a function called again computes the same;
    - keys: none is used twice;
    - finite: loss and gradient are finite numbers, of blank inputs as well;
    - alone and together: the gradient over a meta-batch is the mean over its tasks;
    - query labels: the answer to one query does not depend on the label of another in the outer loss;
    - compiled once: an outer step returns meta-parameters of the types that it was given;
    - learns: the outer loss falls, and after it answers are better than chance;
    - order of queries, number of queries: an answer is to its own query;
    - labels: before adaptation at chance; with other labels in the support set, other answers;
    - tasks of any shape: where tasks may differ in way or shot, padding changes nothing.

    Args:
      factory: what `method=NAME` would call.
      settings: its keys.
      objective: of the toy tasks, "classification" or "regression".
      network: called as the factory of a `model` is; None: an MLP of one hidden layer.
      steps: of the training.
      learning_rate: of Adam, in the training.
      compiler_options: for the compiled outer step, as `jax.jit` takes them.
      trains_on_queries: whether the outer loss may learn from the labels of all queries together, as Reptile's does.
      only: names of the promises to be checked, as an error names them; None: all.

    Raises:
      ContractError: a promise is broken, with what was found and how to mend it.
    """
    network = network or partial(mlp, hidden=[32])
    of_classes = objective == "classification"
    num_outputs = WAY if of_classes else 1
    given = {
        "model": network(num_outputs=num_outputs),
        "encoder": network(num_outputs=None),
        "objective": objective,
        "num_outputs": num_outputs,
        "num_train_classes": CLASSES,
        "way": WAY,
        "shot": SHOT,
        "query_shot": QUERY_SHOT,
        "train_way": None,
        "seed": 0,
    }
    method = made(factory, "method", FEW_SHOT, given, settings or {})
    of = _Checked(method, objective, steps, learning_rate, compiler_options)
    promises = {
        "types and shapes": lambda: method_faults(method, of.one, num_outputs),
        "no memory": of.memory,
        "keys": of.key_reuse,
        "finite": of.not_finite,
        "alone and together": of.apart,
    }
    if of_classes and method.trains_on == "tasks" and not trains_on_queries:
        promises["query labels"] = of.query_labels
    if method.trains_on != "nothing":
        promises |= {"compiled once": of.recompiled, "learns": of.learns}
    promises |= {"order of queries": of.order, "number of queries": of.number}
    if of_classes:
        promises |= {"better than chance": of.chance, "labels": of.labels}
    if method.varies:
        promises["tasks of any shape"] = of.padding
    hold(name_of(factory), promises, only)


class _Checked:
    """A method on toy tasks; each function is compiled when it is first asked, and once."""

    def __init__(self, method: Method, objective: str, steps: int, learning_rate: float, options: Any):
        self.method, self.objective, self.steps = method, objective, steps
        self.optimizer, self.options = optax.adam(learning_rate), dict(options or {})
        self.tasks = partial(toy_tasks.tasks, objective, method.trains_on == "classes")
        self.one: Task = jax.tree.map(lambda x: x[0], self.tasks(1, 0))
        self.test = toy_tasks.tasks(objective, False, _TESTED, 2)
        self._keys = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(3), NUM_TASKS)))

    def keys(self, number: Any = slice(None)) -> Any:
        """Keys of a step's tasks, or of one, made anew, so that none is used twice."""
        return jax.random.wrap_key_data(jnp.asarray(self._keys[number]))

    @cache  # noqa: B019 - lives as long as the check
    def params(self) -> Any:
        return jax.jit(self.method.init)(jax.random.key(0), self.one)

    @cache  # noqa: B019
    def alone(self) -> Any:
        """Compiled `(params, task, key) -> (loss, gradient)`."""
        return jax.jit(jax.value_and_grad(lambda params, task, key: self.method.loss(params, task, key)[0]))

    @cache  # noqa: B019
    def step(self) -> Any:
        """Compiled `(params, opt_state, tasks, keys) -> (params, opt_state, metrics["loss"], (loss, gradient))`."""

        def step(params: Any, opt_state: Any, tasks: Task, keys: Any) -> Any:
            def loss(params: Any) -> Any:
                losses, metrics = jax.vmap(self.method.loss, (None, 0, 0))(params, tasks, keys)
                return losses.mean(), metrics["loss"].mean()

            (value, said), gradient = jax.value_and_grad(loss, has_aux=True)(params)
            with jax.numpy_dtype_promotion("standard"):
                updates, opt_state = self.optimizer.update(gradient, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, said, (value, gradient)

        return jax.jit(step, compiler_options=self.options or None)

    @cache  # noqa: B019
    def trained(self) -> tuple[Any, list[float]]:
        """The meta-parameters after training, and the losses on the way."""
        params, losses = self.params(), []
        state = params, self.optimizer.init(params)
        drawn = self.tasks(self.steps * NUM_TASKS, 4)
        keys: Any = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(5), self.steps * NUM_TASKS)))
        for number in range(self.steps):
            here = slice(number * NUM_TASKS, (number + 1) * NUM_TASKS)
            tasks = jax.tree.map(lambda x, here=here: x[here], drawn)
            *state, loss, _ = self.step()(*state, tasks, jax.random.wrap_key_data(keys[here]))
            losses.append(loss)
        return state[0], np.asarray(jax.device_get(losses)).tolist()

    @cache  # noqa: B019
    def answering(self, name: str) -> Any:
        """Compiled `(params, tasks) -> outputs`, by the method's function of that name."""

        def one(params: Any, task: Task, key: Any) -> Any:
            return self.method.predict(getattr(self.method, name)(params, task.support, key), task.query.x)

        def answers(params: Any, tasks: Task) -> Any:
            return jax.vmap(one, (None, 0, 0))(params, tasks, jax.random.split(jax.random.key(6), _TESTED))

        return jax.jit(answers)

    @cache  # noqa: B019
    def outputs(self) -> Any:
        return np.asarray(self.answering("adapt")(self.params_tested(), self.test))

    def params_tested(self) -> Any:
        return self.params() if self.method.trains_on == "nothing" else self.trained()[0]

    def memory(self) -> Iterator[str]:
        params, task, key = self.params(), self.one, jax.random.key(0)
        yield from retraced("init", self.method.init, key, task)
        yield from retraced("adapt", self.method.adapt, params, task.support, key)
        yield from retraced("loss", self.method.loss, params, task, key)

    def key_reuse(self) -> Iterator[str]:
        with jax.debug_key_reuse(True):
            try:
                jax.jit(self.method.loss)(self.params(), self.one, self.keys(0))
            except jax.errors.KeyReuseError as error:
                yield f"A key is used twice in loss, so that what is drawn is not independent: split it. ({str(error).splitlines()[0]})"

    def not_finite(self) -> Iterator[str]:
        blank = self.one._replace(
            **{name: part._replace(x=np.zeros_like(part.x)) for name, part in self.one._asdict().items()}
        )
        for task, words in ((self.one, "an ordinary task"), (blank, "blank inputs, all of them 0")):
            loss, gradient = self.alone()(self.params(), task, self.keys(0))
            if where := not_finite((loss, gradient)):
                yield (
                    f"Of {words}, loss or gradient is not finite at {', '.join(where[:3])}. Look for a square root, a logarithm or "
                    "a quotient at 0: its gradient is infinite there, and stays so behind a jnp.where."
                )
                return

    def apart(self) -> Iterator[str]:
        tasks, params = self.tasks(NUM_TASKS, 1), self.params()
        *_, found = self.step()(params, self.optimizer.init(params), tasks, self.keys())
        each = [
            self.alone()(params, jax.tree.map(lambda x, number=number: x[number], tasks), self.keys(number))
            for number in range(NUM_TASKS)
        ]
        mean = jax.tree.map(lambda *leaves: np.mean(np.stack(leaves), 0), *each)
        if differ(found, mean, 3e-2):  # rounding, where a norm divides by little
            yield (
                "The gradient over a meta-batch is not the mean of the gradients of its tasks. A function of one task must "
                "not look at the batch: leave out jax.lax collectives, and host callbacks that keep something."
            )

    def query_labels(self) -> Iterator[str]:
        """Of a loss that is a mean over queries, a change of two labels is the sum of the changes of each."""

        def loss_of(*changed: int) -> float:
            y = np.array(self.one.query.y)
            y[list(changed)] = (y[list(changed)] + 1) % WAY
            task = self.one._replace(query=self.one.query._replace(y=jnp.asarray(y)))
            return float(self.alone()(self.params(), task, self.keys(0))[0])

        neither, first, second, both = loss_of(), loss_of(0), loss_of(1), loss_of(0, 1)
        size = max(abs(first - neither), abs(second - neither), abs(neither))
        if abs((both - neither) - (first - neither) - (second - neither)) > 1e-3 * size:
            yield (
                "In the outer loss, the answer to one query depends on the labels of others: adapt to the support set alone. "
                "If that is meant, as in Reptile, say trains_on_queries=True."
            )

    def recompiled(self) -> Iterator[str]:
        self.trained()
        if (programs := self.step()._cache_size()) > 1:
            weak = [
                jax.tree_util.keystr(path)
                for path, leaf in jax.tree_util.tree_leaves_with_path(self.params())
                if getattr(leaf, "weak_type", False)
            ]
            said = f"init returns a number without a type at {', '.join(weak)}: make it an array, as by jnp.asarray(value, jnp.float32)."
            yield f"{programs} programs for one step. {said if weak else 'Meta-parameters come back with other types or shapes.'}"

    def learns(self) -> Iterator[str]:
        losses = self.trained()[1]
        part = self.steps // _ROUNDS
        before, after = np.mean(losses[:part]), np.mean(losses[-part:])
        if not after < _FALLS * before:
            yield (
                f"The outer loss goes from {before:.4g} to {after:.4g} in {self.steps} steps. Is its gradient stopped on the "
                "way, or its sign wrong? A slow learner can be given steps= and learning_rate=."
            )

    def chance(self) -> Iterator[str]:
        found = _accuracy(self.outputs(), self.test)
        if not found > 1 / WAY + 0.2:
            yield f"After training, {found:.0%} of the answers to test tasks are right, and chance is {1 / WAY:.0%}."

    def order(self) -> Iterator[str]:
        order = np.random.default_rng(0).permutation(self.test.query.y.shape[1])
        query = jax.tree.map(lambda x: x[:, order], self.test.query)
        found = self.answering("adapt")(self.params_tested(), self.test._replace(query=query))
        if not np.allclose(found, self.outputs()[:, order], rtol=1e-3, atol=1e-3):
            yield "Answers change with the order of the queries: predict has to answer each row by what it shows."

    def number(self) -> Iterator[str]:
        if self.method.protocol.get("query_statistics") == "query":
            return
        kept = self.test.query.y.shape[1] // 2
        x = jax.vmap(lambda x: replace_others(x, kept))(self.test.query.x)
        found = self.answering("adapt")(self.params_tested(), self.test._replace(query=self.test.query._replace(x=x)))
        if not np.allclose(found[:, :kept], self.outputs()[:, :kept], rtol=1e-3, atol=1e-3):
            yield (
                "An answer changes when other queries do, and the protocol does not say so. Use the support set's statistics, "
                'or state it: protocol={"query_statistics": "query"}.'
            )

    def labels(self) -> Iterator[str]:
        right = _accuracy(self.outputs(), self.test)
        blind = _accuracy(self.answering("unadapted")(self.params_tested(), self.test), self.test)
        if abs(blind - 1 / WAY) > 0.15:
            yield f"Before adaptation {blind:.0%} of the answers are right, and chance is {1 / WAY:.0%}: unadapted sees labels."
        support = self.test.support
        misled = self.test._replace(support=support._replace(y=(support.y + 1) % WAY))
        found = _accuracy(self.answering("adapt")(self.params_tested(), misled), self.test)
        if not found < right - 0.2:
            yield (
                f"With wrong labels in the support set {found:.0%} of the answers are right, with the true ones {right:.0%}: "
                "answers do not follow the support labels."
            )

    def padding(self) -> Iterator[str]:
        """A task with its last class, or its last support example, as padding is the task without it."""
        without_class = "way" in self.method.varies and self.objective == "classification"
        trained = self.params_tested()
        for where, task, known in self._to_be_padded():
            numbers = [np.arange(len(part.y)) for part in task]
            kept = [
                np.asarray(part.y != task.support.y[0]) if without_class else number < number.size - 1
                for part, number in zip(task, numbers, strict=True)
            ]
            alone = Task(*(_marked(part, its, 0) for part, its in zip(task, kept, strict=True)))
            padded = Task(*(_marked(part, its, int((~its).sum())) for part, its in zip(task, kept, strict=True)))
            found = [jax.tree.map(np.asarray, known(trained, each)) for each in (alone, padded)]
            queries = len(alone.query.y)
            one, other = ((outputs[:queries], rest) for outputs, rest in found)
            if differ(one, other, 1e-3):
                yield (
                    f"{where} changes with padding, and `varies` says that tasks may differ in {' and '.join(self.method.varies)}. "
                    "Give the network support.mask as its reference, and leave out of every mean, sum and attention the rows "
                    "that it does not mark."
                )

    def _to_be_padded(self) -> Iterator[tuple[str, Task, Any]]:
        """What is asked of it, of what task, and `(params, task) -> (answers, the rest)`."""

        def answers(params: Any, task: Task) -> Any:
            key = jax.random.key(6)
            return self.method.predict(self.method.adapt(params, task.support, key), task.query.x), ()

        if self.method.protocol.get("query_statistics") != "query":
            yield "An answer", jax.tree.map(lambda x: x[0], self.test), jax.jit(answers)
        if self.method.trains_on == "tasks":
            known = lambda params, task: (np.zeros(1), self.alone()(params, task, self.keys(0)))
            yield "The outer loss or its gradient", self.one, known


def _marked(part: Split, kept: np.ndarray, padding: int) -> Split:
    """The examples of a set that are kept, followed by so many rows of padding, in which there is something."""

    def fill(values: Any) -> Any:
        return np.concatenate([values[kept], 1 + 2 * values[~kept][:padding]])

    x, y, mask = fill(part.x), fill(part.y), np.arange(kept.sum() + padding) < kept.sum()
    return Split(x, y % WAY if y.ndim == 1 else y, jnp.asarray(mask))


def _accuracy(outputs: Any, tasks: Task) -> float:
    return float(np.mean(np.asarray(outputs).argmax(-1) == np.asarray(tasks.query.y)))
