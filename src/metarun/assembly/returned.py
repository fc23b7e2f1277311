"""What is wrong with what a factory has returned: another type than its group's, or other shapes than the type promises.

Nothing is computed: functions are traced on shapes. `metarun.testing` asks the same, and then computes.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from metarun.config.named_code import place_in_additions, would_end
from metarun.errors import MetarunError, in_a_line, some
from metarun.few_shot.losses import OBJECTIVES
from metarun.rl.environment import Continuous, Discrete, Environment, Step, no_action
from metarun.types import DataSet, Method, Model, Split, Task

TRAINED_ON = ("tasks", "classes", "nothing")
_PLAIN = (str, int, float, bool, type(None))


def refuse(choice: str, faults: Iterator[str]) -> None:
    """Raises `MetarunError` where there is a fault.

    Args:
      choice: in words, such as "method=mine".
      faults: of what it has made.
    """
    if found := list(faults):
        raise MetarunError(f"{choice}: {' '.join(found[:3])}")


def method_faults(method: Method, task: Task, num_outputs: int) -> Iterator[str]:
    """What is wrong with a method's functions.

    Args:
      method: any.
      task: one of its tasks, of arrays or of their shapes.
      num_outputs: that its answers have to have.
    """
    if method.trains_on not in TRAINED_ON:
        yield f"trains_on is {method.trains_on!r}: expected one of {', '.join(TRAINED_ON)}."
    yield from _protocol_faults(method.protocol)
    key, shapes = jax.random.key(0), _shapes(task)
    params = yield from _traced("init", method.init, key, shapes)
    if params is None:
        return
    yield from _leaf_faults("init", params)
    params = _shapes(params)
    lost = yield from _traced("loss", method.loss, params, shapes, key)
    if lost is not None:
        yield from _loss_faults(lost)
    for name in ("adapt", "unadapted"):
        adapted = yield from _traced(name, getattr(method, name), params, shapes.support, key)
        if adapted is None:
            continue
        outputs = yield from _traced(f"predict, after {name},", method.predict, adapted, shapes.query.x)
        if outputs is not None:
            wanted = (shapes.query.x.shape[0], num_outputs)
            yield from _array_faults(f"predict, after {name},", outputs, wanted, jnp.floating, "[n, num_outputs]")


def model_faults(model: Model, x: Any, num_outputs: int | None) -> Iterator[str]:
    """What is wrong with a network's functions.

    Args:
      model: any.
      x: inputs `[n, *feature]`, or their shape.
      num_outputs: that it was made with.
    """
    inputs = _shapes(x)
    params = yield from _traced("init", model.init, jax.random.key(0), inputs)
    if params is None:
        return
    yield from _leaf_faults("init", params)
    outputs = yield from _traced(
        "apply", lambda params, x: model.apply(params, x, inputs.shape[0] - 1), _shapes(params), inputs
    )
    if outputs is None:
        return
    if num_outputs is not None:
        yield from _array_faults("apply", outputs, (inputs.shape[0], num_outputs), jnp.floating, "[n, num_outputs]")
    elif not hasattr(outputs, "shape") or not outputs.shape or outputs.shape[0] != inputs.shape[0]:
        yield f"apply returns {_said(outputs)}: expected a row of features for each of the {inputs.shape[0]} inputs."


def data_set_faults(dataset: DataSet) -> Iterator[str]:
    """What is wrong with a data set's sources."""
    if dataset.objective not in OBJECTIVES:
        yield f"objective is {dataset.objective!r}: expected one of {', '.join(OBJECTIVES)}."
        return
    if not isinstance(dataset.num_outputs, int) or dataset.num_outputs < 1:
        yield f"num_outputs is {dataset.num_outputs!r}: expected a whole number, 1 or more."
        return
    yield from _protocol_faults(dataset.protocol)
    if "name" not in dataset.protocol:
        yield "protocol has no name: give the data set one, protocol={'name': ...}."
    features = {}
    for split in ("train", "val", "test"):
        source = getattr(dataset, split)
        task = yield from _traced(f"{split}.sample", source.sample, source.data, jax.random.key(0))
        if task is None:
            continue
        if not isinstance(task, Task) or not all(isinstance(part, Split) for part in task):
            yield f"{split}.sample returns {_said(task)}: expected a Task of two Splits of metarun.types."
            continue
        yield from _task_faults(split, task, dataset)
        features[split] = tuple(task.support.x.shape[1:])
    if len(set(features.values())) > 1:
        yield f"inputs differ in shape between splits: {features}."


def environment_faults(environment: Environment) -> Iterator[str]:
    """What is wrong with an environment's functions."""
    if not isinstance(environment.actions, Discrete | Continuous):
        yield f"actions are {_said(environment.actions)}: expected a Discrete or Continuous of metarun.rl.environment."
        return
    yield from _protocol_faults(environment.protocol)
    for name in ("horizon", "episodes"):
        if not isinstance(getattr(environment, name), int) or getattr(environment, name) < 1:
            yield f"{name} is {getattr(environment, name)!r}: expected a whole number, 1 or more."
    key = jax.random.key(0)
    tasks = {}
    for split in ("train", "val", "test"):
        tasks[split] = yield from _traced(
            f"sample of {split}", lambda key, split=split: environment.sample(key, split), key
        )
    if any(task is None for task in tasks.values()):
        return
    shapes = {split: jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), task) for split, task in tasks.items()}
    if not shapes["train"] == shapes["val"] == shapes["test"]:
        yield f"sample returns tasks of other shapes for other splits: {shapes}."
    state = yield from _traced("reset", environment.reset, tasks["train"], key)
    if state is None:
        return
    seen = yield from _traced("observe", environment.observe, tasks["train"], state)
    if seen is not None:
        yield from _array_faults("observe", seen, (environment.observation_size,), jnp.floating, "[observation_size]")
    step = yield from _traced("step", environment.step, tasks["train"], state, no_action(environment.actions), key)
    if step is None:
        return
    if not isinstance(step, Step):
        yield f"step returns {_said(step)}: expected a Step of metarun.rl.environment."
        return
    yield from _array_faults("step's reward", step.reward, (), jnp.floating, "a scalar")
    yield from _array_faults("step's terminated", step.terminated, (), jnp.bool_, "a scalar")
    before, after = (jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), each) for each in (state, step.state))
    if before != after:
        yield f"step's state has other shapes or types than reset's: {after} after {before}. A compiled loop keeps both."


def _traced(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Yields a fault where a function cannot be traced; returns the shapes of what it returns, or None."""
    try:
        with jax.debug_key_reuse(False):
            return jax.eval_shape(function, *arguments)
    except BaseException as error:  # a stranger's code may raise anything
        if isinstance(error, MetarunError) or not (isinstance(error, Exception) or would_end(error)):
            raise
        where = place_in_additions(error)
        yield f"{name} fails{f' in {where}' if where else ''}: {in_a_line(error)[:500]}"
        return None


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), tree)


def _leaf_faults(name: str, params: Any) -> Iterator[str]:
    """Faults of meta-parameters: what the outer optimiser cannot follow."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        where = f"{name} returns at {jax.tree_util.keystr(path)}" if path else f"{name} returns"
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            yield f"{where} an array of {leaf.dtype}: meta-parameters have to be floating point."


def _loss_faults(lost: Any) -> Iterator[str]:
    if not isinstance(lost, tuple) or len(lost) != 2 or not isinstance(lost[1], Mapping):
        yield f"loss returns {_said(lost)}: expected (loss, metrics), a scalar and a mapping of scalars."
        return
    yield from _array_faults("loss's first", lost[0], (), jnp.floating, "a scalar")
    if "loss" not in lost[1]:
        yield f'loss\'s metrics are {some([*map(str, lost[1])]) or "empty"}: "loss" has to be among them.'
    for name, value in lost[1].items():
        if jnp.shape(value) != ():
            yield f"loss's metric {name} is {_said(value)}: expected a scalar."


def _task_faults(split: str, task: Task, dataset: DataSet) -> Iterator[str]:
    classes = dataset.objective == "classification"
    for name, part in task._asdict().items():
        where = f"{split}.sample's {name}"
        if not jnp.issubdtype(part.x.dtype, jnp.floating):
            yield f"{where}.x is of {part.x.dtype}: expected float32."
        if part.x.shape[:1] != part.y.shape[:1]:
            yield f"{where} has {part.x.shape[:1]} inputs and {part.y.shape[:1]} targets."
        if classes and (part.y.ndim != 1 or part.y.dtype != jnp.int32):
            yield f"{where}.y is {_said(part.y)}: expected the numbers of classes, [n] int32."
        if not classes and (part.y.shape[1:] != (dataset.num_outputs,) or part.y.dtype != part.x.dtype):
            yield f"{where}.y is {_said(part.y)}: expected [n, {dataset.num_outputs}] {part.x.dtype}."


def _array_faults(name: str, found: Any, shape: tuple[int, ...], kind: Any, words: str) -> Iterator[str]:
    if not hasattr(found, "shape") or tuple(found.shape) != shape or not jnp.issubdtype(found.dtype, kind):
        kinds = {jnp.floating: "floating point", jnp.bool_: "bool"}
        yield f"{name} returns {_said(found)}: expected {words}, here {list(shape)}, of {kinds[kind]}."


def _protocol_faults(protocol: Any) -> Iterator[str]:
    def plain(value: Any) -> bool:
        if isinstance(value, Mapping):
            return all(isinstance(key, str) and plain(each) for key, each in value.items())
        return all(map(plain, value)) if isinstance(value, list | tuple) else isinstance(value, _PLAIN)

    if not isinstance(protocol, Mapping) or not plain(protocol):
        yield f"protocol is {protocol!r:.200}: expected names with plain values: texts, numbers, true, false, lists of them."


def _said(value: Any) -> str:
    """A value in a few words."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{list(value.shape)} {value.dtype}"
    return f"a {type(value).__name__}"
