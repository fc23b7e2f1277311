"""What is wrong with what a factory has returned: another type than its group's, or other shapes than the type promises.

Functions are traced on shapes. Computed is one task of each split, and its optimum. `metarun.testing` asks the same, and then
computes more.
"""

import inspect
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metarun.config.named_code import place_in_additions, would_end
from metarun.errors import MetarunError, in_a_line, some
from metarun.few_shot.losses import OBJECTIVES
from metarun.rl.environment import Agent, Body, Continuous, Discrete, Environment, Seen, Step, no_action
from metarun.types import SIZES, DataSet, Method, Model, Split, Stream, Task, TaskSource

TRAINED_ON = ("tasks", "classes", "nothing")
_SPLITS = ("train", "val", "test")
_MOST = 3  # faults of a refusal
_FAILED = object()  # stands for what a function that raises would have returned, where None is an answer
_FAILS = " fails"  # what a function does that raises


def refuse(choice: str, faults: Iterator[str]) -> None:
    """Raises `MetarunError` where there is a fault.

    Args:
      choice: in words, such as "method=mine".
      faults: of what it has made.
    """
    if found := in_sentences(faults, _MOST):
        raise MetarunError(f"{choice}: {found}")


def in_sentences(faults: Iterable[str], most: int | None = None) -> str:
    """Faults in one line, each a sentence, and one that several functions share said once; "" if there is none.

    Args:
      faults: any.
      most: how many are said; None: all.
    """
    said: dict[str, str] = {}
    for fault in faults:
        said.setdefault(
            fault.partition(_FAILS)[2] or fault, fault if fault.endswith((".", "!", "?", ".)")) else f"{fault}."
        )
    return " ".join([*said.values()][:most])


def method_faults(method: Method, task: Task, num_outputs: int) -> Iterator[str]:
    """What is wrong with a method's functions.

    Args:
      method: any.
      task: one of its tasks, of arrays or of their shapes.
      num_outputs: that its answers have to have.
    """
    if method.trains_on not in TRAINED_ON:
        yield f"trains_on is {method.trains_on!r}: expected one of {', '.join(TRAINED_ON)}."
    yield from _varies_faults(method.varies)
    yield from _protocol_faults(method.protocol)
    key, shapes = jax.random.key(0), _shapes(task)
    params = yield from _traced("init", method.init, key, shapes)
    if params is None:
        return
    yield from _leaf_faults("init", params)
    if method.trains_on == "nothing" and jax.tree.leaves(params):
        yield 'trains_on is "nothing", and init returns meta-parameters: expected an empty dict.'
    params = _shapes(params)
    yield from _size_faults(method.sizes, params, shapes)
    lost = yield from _traced("loss", method.loss, params, shapes, key)
    if lost is not None:
        yield from _loss_faults("loss", lost)
    yield from _early_faults(method.early, params, shapes, key)
    for name in ("adapt", "unadapted"):
        adapted = yield from _traced(name, getattr(method, name), params, shapes.support, key)
        if adapted is None:
            continue
        outputs = yield from _traced(f"predict, after {name},", method.predict, adapted, shapes.query.x)
        if outputs is not None:
            wanted = (shapes.query.x.shape[0], num_outputs)
            yield from _array_faults(f"predict, after {name},", outputs, wanted, jnp.floating, "[n, num_outputs]")


def _varies_faults(varies: Any) -> Iterator[str]:
    if isinstance(varies, str) or not isinstance(varies, Collection) or not {*varies} <= {*SIZES}:
        yield f"varies is {varies!r}: expected a collection of {' and '.join(SIZES)}, such as {SIZES!r}, or an empty one."


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
    if not _takes(model.apply, 3):
        yield "apply does not take what it is called with: expected apply(params, x, reference=None)."
        return
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
    if not _is_whole(dataset.num_outputs, 1):
        yield f"num_outputs is {dataset.num_outputs!r}: expected a whole number, 1 or more."
        return
    yield from _varies_faults(dataset.varies)
    yield from _protocol_faults(dataset.protocol)
    if isinstance(dataset.protocol, Mapping) and "name" not in dataset.protocol:
        yield "protocol has no name: give the data set one, protocol={'name': ...}."
    if odd := [*_fact_faults(dataset)]:
        yield from odd
        return
    features, said = {}, set[str]()
    for split in (*_SPLITS, *(() if dataset.train_classes is None else ("train_classes",))):
        faults: list[str] = []
        task = _drawn(split, getattr(dataset, split), dataset, faults)
        # What is wrong in one split is most often so in the others: it is said once.
        yield from (fault for fault in faults if fault.removeprefix(split) not in said)
        said |= {fault.removeprefix(split) for fault in faults}
        if task is not None:
            features[split] = tuple(task.support.x.shape[1:])
    if len(set(features.values())) > 1:
        yield f"inputs differ in shape between splits: {features}."


def environment_faults(environment: Environment) -> Iterator[str]:
    """What is wrong with an environment's functions."""
    actions = environment.actions
    if not isinstance(actions, Discrete | Continuous):
        yield f"actions are {_said(actions)}: expected a Discrete or Continuous of metarun.rl.environment."
        return
    if not _is_whole(actions[0], 1):
        yield f"actions are {actions}: expected a whole number of them, 1 or more."
        return
    yield from _protocol_faults(environment.protocol)
    odd = False
    for name, least in (("horizon", 1), ("episodes", 1), ("observation_size", 0)):
        if not _is_whole(getattr(environment, name), least):
            odd = True
            yield f"{name} is {getattr(environment, name)!r}: expected a whole number, {least} or more."
    if not isinstance(environment.exchangeable, bool):
        yield f"exchangeable is {environment.exchangeable!r}: expected True or False."
    if odd:
        return
    yield from _yardstick_faults(environment)
    key = jax.random.key(0)
    tasks = {}
    for split in _SPLITS:
        tasks[split] = yield from _traced(
            f"sample of {split}", lambda key, split=split: environment.sample(key, split), key
        )
    if any(task is None for task in tasks.values()):
        return
    shapes = {split: jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), task) for split, task in tasks.items()}
    if not shapes["train"] == shapes["val"] == shapes["test"]:
        yield f"sample returns tasks of other shapes for other splits: {shapes}."
    yield from _optimum_faults(environment, tasks["test"])
    yield from _drawing_faults(environment, tasks["test"])
    state = yield from _traced("reset", environment.reset, tasks["train"], key)
    if state is None:
        return
    seen = yield from _traced("observe", environment.observe, tasks["train"], state)
    if seen is not None:
        yield from _array_faults("observe", seen, (environment.observation_size,), jnp.floating, "[observation_size]")
    step = yield from _traced("step", environment.step, tasks["train"], state, no_action(actions), key)
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


def optimizer_faults(optimizer: optax.GradientTransformation, params: Any) -> Iterator[str]:
    """What is wrong with an outer optimiser.

    Args:
      optimizer: any.
      params: meta-parameters that it is to follow, or their shapes.
    """
    params = _shapes(params)
    state = yield from _traced("init", optimizer.init, params, none_will_do=True)
    if state is _FAILED:
        return
    with jax.numpy_dtype_promotion("standard"):  # as a step has it, see `outer_loop.updated`
        update = yield from _traced("update", optimizer.update, params, state, params)
    if update is None:
        return
    if not isinstance(update, tuple) or len(update) != 2:
        yield f"update returns {_said(update)}: expected (updates, state)."
        return
    updates, after = update
    if [*map(jnp.shape, jax.tree.leaves(updates))] != [*map(jnp.shape, jax.tree.leaves(params))] or (
        jax.tree.structure(updates) != jax.tree.structure(params)
    ):
        yield (
            f"update returns updates of other shapes than the parameters{_first_difference(updates, params)}: expected one for "
            "each parameter, of its shape."
        )
    if _outline(after) != _outline(state):
        yield (
            f"update returns a state of other shapes or types than init's{_first_difference(after, state)}. A compiled loop "
            "keeps both."
        )


def _traced(name: str, function: Callable[..., Any], *arguments: Any, none_will_do: bool = False) -> Any:
    """Yields a fault where a function cannot be traced, or returns nothing.

    Returns:
      The shapes of what it returns. Else None, or `_FAILED` where None is an answer.
    """
    try:
        with jax.debug_key_reuse(False):
            found = jax.eval_shape(function, *arguments)
    except BaseException as error:  # a stranger's code may raise anything
        yield _failure(name, error)
        return _FAILED if none_will_do else None
    if found is None and not none_will_do:
        yield f"{name} returns None."
    return found


def _failure(name: str, error: BaseException) -> str:
    """How a function fails; raises what a user is to be told as it is."""
    if isinstance(error, MetarunError) or not (isinstance(error, Exception) or would_end(error)):
        raise error
    where = place_in_additions(error)
    return f"{name}{_FAILS}{f' in {where}' if where else ''}: {in_a_line(error)[:500]}"


def _computed(name: str, compute: Callable[[], Any]) -> Any:
    """As `_traced`, of what is computed; returns NumPy arrays, or None."""
    try:
        with jax.debug_key_reuse(False):
            return jax.device_get(compute())
    except BaseException as error:
        yield _failure(name, error)
        return None


def _takes(function: Any, number: int) -> bool:
    """Whether a function can be called with so many arguments; True of one that does not say."""
    try:
        inspect.signature(function).bind(*range(number))
    except TypeError:
        return False
    except ValueError:  # of what is built in
        return True
    return True


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= least)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)


def _outline(tree: Any) -> Any:
    """Structure, shapes and types of a tree."""
    leaves, structure = jax.tree.flatten(_shapes(tree))
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]


def _first_difference(found: Any, wanted: Any) -> str:
    """Where two trees of shapes differ first, in words; "" where they have other leaves."""
    pairs = [jax.tree_util.tree_leaves_with_path(tree) for tree in (found, wanted)]
    if jax.tree.structure(found) != jax.tree.structure(wanted):
        return ""
    for (path, one), (_, other) in zip(*pairs, strict=True):
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            where = jax.tree_util.keystr(path)
            return f", {_said(one)} for {_said(other)}{f' at {where}' if where else ''}"
    return ""


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), tree)


def _leaf_faults(name: str, params: Any) -> Iterator[str]:
    """Faults of meta-parameters: what the outer optimiser cannot follow."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        where = f"{name} returns at {jax.tree_util.keystr(path)}" if path else f"{name} returns"
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            yield f"{where} an array of {leaf.dtype}: meta-parameters have to be floating point."


def _loss_faults(name: str, lost: Any) -> Iterator[str]:
    if not isinstance(lost, tuple) or len(lost) != 2 or not isinstance(lost[1], Mapping):
        yield f"{name} returns {_said(lost)}: expected (loss, metrics), a scalar and a mapping of scalars."
        return
    yield from _array_faults(f"{name}'s first", lost[0], (), jnp.floating, "a scalar")
    if "loss" not in lost[1]:
        yield f'{name}\'s metrics are {some([*map(str, lost[1])]) or "empty"}: "loss" has to be among them.'
    for metric, value in lost[1].items():
        if getattr(value, "shape", None) != ():
            yield f"{name}'s metric {metric} is {_said(value)}: expected a scalar."


def _size_faults(sizes: Any, params: Any, task: Task) -> Iterator[str]:
    try:
        found = sizes(params, task)
    except (Exception, SystemExit) as error:
        yield _failure("sizes", error)
        return
    if not isinstance(found, Mapping) or not all(
        isinstance(name, str) and _is_whole(number, 0) for name, number in found.items()
    ):
        yield f"sizes returns {found!r:.100}: expected names with whole numbers."


def _early_faults(early: Any, params: Any, task: Task, key: Any) -> Iterator[str]:
    pairs: list[Any] = list(early) if isinstance(early, Sequence) and not isinstance(early, str) else [None]
    if not all(
        isinstance(pair, tuple | list) and len(pair) == 2 and _is_whole(pair[0], 0) and callable(pair[1])
        for pair in pairs
    ):
        yield f"early is {early!r:.100}: expected pairs of a number of steps and a loss, (end, loss)."
        return
    ends = [end for end, _ in pairs]
    if ends != sorted(ends):
        yield f"early ends at {ends}: expected its losses by rising end."
    for end, loss in pairs:
        lost = yield from _traced(
            f"early loss until {end}", loss, params, task, key, jax.ShapeDtypeStruct((), jnp.int32)
        )
        if lost is not None:
            yield from _loss_faults(f"early loss until {end}", lost)


def _fact_faults(dataset: DataSet) -> Iterator[str]:
    """Faults of what a data set says beside its sources."""
    if dataset.train_way is not None and not _is_whole(dataset.train_way, 1):
        yield f"train_way is {dataset.train_way!r}: expected None or a whole number, 1 or more."
    least = 0 if dataset.train_classes is None else 1
    if not _is_whole(dataset.num_train_classes, least):
        yield f"num_train_classes is {dataset.num_train_classes!r}: expected a whole number, {least} or more."
    if dataset.ground is not None and not (_is_finite(dataset.ground) and 0 <= dataset.ground <= 1):
        yield f"ground is {dataset.ground!r}: expected None or a number from 0 to 1."
    if dataset.standardized is not None and not _is_standard(dataset.standardized):
        yield (
            f"standardized is {dataset.standardized!r:.100}: expected None, or (shifts, factors), two lists of as many finite numbers."
        )
    contents = dataset.contents
    if contents is not None and not (
        isinstance(contents, Mapping) and all(name in _SPLITS and _are_hashes(its) for name, its in contents.items())
    ):
        yield (
            f"contents are {contents!r:.100}: expected train, val and test, each with a list of [count] uint64 NumPy arrays, one "
            "for each class, as of metarun.data.contents.content_hashes."
        )


def _is_standard(value: Any) -> bool:
    try:
        shifts, factors = (list(part) for part in value)
    except (TypeError, ValueError):
        return False
    return len(shifts) == len(factors) > 0 and all(map(_is_finite, [*shifts, *factors]))


def _are_hashes(classes: Any) -> bool:
    return isinstance(classes, Sequence) and all(
        isinstance(its, np.ndarray) and its.ndim == 1 and its.dtype == np.uint64 for its in classes
    )


def _drawn(split: str, source: Any, dataset: DataSet, faults: list[str]) -> Any:
    """The shapes of a task of a source, or None; adds to the faults."""

    def drawn() -> Iterator[str]:
        found.append((yield from _drawn_faults(split, source, dataset)))

    found: list[Any] = []
    faults.extend(drawn())
    return found[0]


def _drawn_faults(split: str, source: Any, dataset: DataSet) -> Any:
    """Yields the faults of a source and of one task that is drawn from it; returns the task's shapes, or None."""
    if not isinstance(source, TaskSource):
        yield f"{split} is {_said(source)}: expected a TaskSource of metarun.types."
        return None
    if source.stream is not None and not isinstance(source.stream, Stream):
        yield f"{split}.stream is {_said(source.stream)}: expected None or a Stream of metarun.types."
        return None
    for path, leaf in jax.tree_util.tree_leaves_with_path(source.data):
        kind = getattr(
            getattr(leaf, "dtype", None), "kind", "" if isinstance(leaf, bool | int | float | complex) else "O"
        )
        if kind in "OSUMm" and kind:
            yield f"{split}.data has {_said(leaf)} at {jax.tree_util.keystr(path) or 'its top'}: expected arrays of numbers."
            return None
    key = jax.random.key(0)
    task = yield from _traced(f"{split}.sample", source.sample, source.data, key)
    if task is None:
        return None
    if not isinstance(task, Task) or not all(isinstance(part, Split) for part in task):
        found = f" of {' and '.join(map(_said, task))}" if isinstance(task, Task) else ""
        yield f"{split}.sample returns {_said(task)}{found}: expected a Task of two Splits of metarun.types."
        return None
    for name, part in task._asdict().items():
        for of, array in _arrays(part):
            if not hasattr(array, "shape") or not array.shape:
                yield f"{split}.sample's {name}.{of} is {_said(array)}: expected an array with a row for each example."
                return None
    faults = [*_task_faults(split, task, dataset)]
    yield from faults
    if not faults:
        drawn = yield from _computed(f"{split}.sample", lambda: _one_of(source, key))
        if drawn is not None:
            yield from _value_faults(split, drawn, dataset)
    return task


def _arrays(part: Split) -> Iterator[tuple[str, Any]]:
    """The fields of a set; a mask may be absent."""
    return ((name, array) for name, array in part._asdict().items() if name != "mask" or array is not None)


def _one_of(source: TaskSource, key: Any) -> Task:
    """A task; of what is streamed, with no more on the device than its own items."""
    its = source.stream
    if its is None:
        return jax.jit(source.sample)(source.data, key)
    rows, rest = jax.jit(its.choose)(its.index, key)
    return jax.jit(its.cut)(jnp.asarray(its.items[np.asarray(rows)]), rest)


def _value_faults(split: str, task: Task, dataset: DataSet) -> Iterator[str]:
    """Faults of a task's numbers."""
    for name, part in task._asdict().items():
        for of, array in _arrays(part):
            if not np.isfinite(np.asarray(array, np.float32)).all():
                yield f"{split}.sample's {name}.{of} has numbers that are not finite."
    if dataset.objective != "classification":
        return
    way, words = dataset.num_outputs, "num_outputs"
    if split == "train" and dataset.train_way is not None:
        way, words = dataset.train_way, "train_way"
    if split == "train_classes":
        way, words = dataset.num_train_classes, "num_train_classes"
    of_examples = [part.y if part.mask is None else part.y[part.mask] for part in task]
    labels = np.unique(np.concatenate(of_examples))
    if labels.size and (labels[0] < 0 or labels[-1] >= way):
        yield f"{split}.sample has labels from {labels[0]} to {labels[-1]}: expected 0 to {way - 1}, as {words} is {way}."
    elif (
        split != "train_classes"
        and "way" not in dataset.varies
        and (lacking := sorted({*range(way)} - {*of_examples[0].tolist()}))
    ):
        yield (
            f"{split}.sample has support sets without the labels {some([*map(str, lacking)])}: expected examples of each of 0 to "
            f"{way - 1}, as {words} is {way}."
        )


def _task_faults(split: str, task: Task, dataset: DataSet) -> Iterator[str]:
    classes = dataset.objective == "classification"
    for name, part in task._asdict().items():
        where = f"{split}.sample's {name}"
        if not jnp.issubdtype(part.x.dtype, jnp.floating):
            yield f"{where}.x is of {part.x.dtype}: expected float32."
        if part.x.shape[:1] != part.y.shape[:1]:
            yield f"{where} has {part.x.shape[0]} inputs and {part.y.shape[0]} targets."
        if part.mask is not None and (part.mask.shape != part.x.shape[:1] or part.mask.dtype != jnp.bool_):
            yield f"{where}.mask is {_said(part.mask)}: expected [{part.x.shape[0]}] bool, or None."
        if part.mask is not None and not dataset.varies:
            yield f"{where} has a mask, and the data set's varies is empty: expected that it says in what tasks differ."
        if classes and (part.y.ndim != 1 or part.y.dtype != jnp.int32):
            yield f"{where}.y is {_said(part.y)}: expected the numbers of classes, [n] int32."
        if not classes and (part.y.shape[1:] != (dataset.num_outputs,) or part.y.dtype != part.x.dtype):
            yield f"{where}.y is {_said(part.y)}: expected [n, {dataset.num_outputs}] {part.x.dtype}."

    shapes = [list(part.x.shape[1:]) for part in task]
    if shapes[0] != shapes[1]:
        yield f"{split}.sample's inputs are of shape {shapes[0]} in support and {shapes[1]} in query: expected the same."


def _yardstick_faults(environment: Environment) -> Iterator[str]:
    if not isinstance(environment.yardsticks, Mapping):
        yield f"yardsticks are {_said(environment.yardsticks)}: expected names with agents."
        return
    key = jax.random.key(0)
    number: Any = jax.ShapeDtypeStruct((), jnp.float32)
    blank = no_action(environment.actions)
    observation: Any = jax.ShapeDtypeStruct((environment.observation_size,), jnp.float32)
    seen = Seen(observation, blank, number, number, number)
    for name, agent in environment.yardsticks.items():
        where = f"yardstick {name}"
        if not isinstance(name, str) or not isinstance(agent, Agent):
            yield f"{where} is {_said(agent)}: expected an Agent of metarun.rl.environment."
            continue
        memory = yield from _traced(f"start of {where}", agent.start, key, none_will_do=True)
        if memory is _FAILED:
            continue
        acted = yield from _traced(f"act of {where}", agent.act, memory, seen, key)
        if acted is None:
            continue
        if not isinstance(acted, tuple) or len(acted) != 3:
            yield f"act of {where} returns {_said(acted)}: expected (memory, action, noted)."
            continue
        if getattr(acted[1], "shape", None) != blank.shape or acted[1].dtype != blank.dtype:
            yield f"act of {where} returns the action {_said(acted[1])}: expected {_said(blank)}."
        if _outline(acted[0]) != _outline(memory):
            yield f"act of {where} returns a memory of other shapes or types than start's. A compiled loop keeps both."


def _optimum_faults(environment: Environment, task: Any) -> Iterator[str]:
    optimum = environment.optimum
    if optimum is None:
        return
    best = yield from _traced("optimum", optimum, task)
    if best is None:
        return
    if getattr(best, "shape", None) != () or not jnp.issubdtype(best.dtype, jnp.number):
        yield f"optimum returns {_said(best)}: expected a scalar, the total reward of a trial."
        return
    of_one = jax.jit(lambda key: optimum(environment.sample(key, "test")))
    value = yield from _computed("optimum", lambda: of_one(jax.random.key(0)))
    if value is not None and not np.isfinite(value):
        yield f"optimum is {value} of a task of test: expected a finite number, or optimum=None where it is not known."


def _drawing_faults(environment: Environment, task: Any) -> Iterator[str]:
    """Faults of what a task is drawn by."""
    if environment.goal is not None:
        place = yield from _traced("goal", environment.goal, task)
        if place is not None:
            if getattr(place, "shape", None) != (2,):
                yield f"goal returns {_said(place)}: expected a place in the plane, [2]."
            elif environment.observation_size != 2:
                yield f"goal is given, and observations are [{environment.observation_size}]: expected places in the plane, [2]."
    body = environment.body
    if body is None:
        return
    if not isinstance(body, Body):
        yield f"body is {_said(body)}: expected None or a Body of metarun.rl.environment."
        return
    observation = jax.ShapeDtypeStruct((environment.observation_size,), jnp.float32)
    limbs = yield from _traced("body.limbs", body.limbs, observation)
    if limbs is not None:
        shape = tuple(getattr(limbs, "shape", ()))
        if len(shape) != 3 or shape[1:] != (2, 3):
            yield f"body.limbs returns {_said(limbs)}: expected the ends of limbs in space, [n, 2, 3]."
        elif np.shape(body.radii) != shape[:1]:
            yield f"body.radii are {list(np.shape(body.radii))} for {shape[0]} limbs: expected [n]."
    if not callable(body.caption):
        yield f"body.caption is {_said(body.caption)}: expected a function of a task."
    if not _is_finite(body.seconds) or body.seconds <= 0:
        yield f"body.seconds is {body.seconds!r}: expected a number above 0."


def _array_faults(name: str, found: Any, shape: tuple[int, ...], kind: Any, words: str) -> Iterator[str]:
    if not hasattr(found, "shape") or tuple(found.shape) != shape or not jnp.issubdtype(found.dtype, kind):
        kinds = {jnp.floating: "floating point", jnp.bool_: "bool"}
        yield f"{name} returns {_said(found)}: expected {words}, here {list(shape)}, of {kinds[kind]}."


def _protocol_faults(protocol: Any) -> Iterator[str]:
    def plain(value: Any) -> bool:
        if isinstance(value, Mapping):
            return all(isinstance(key, str) and plain(each) for key, each in value.items())
        if isinstance(value, list | tuple):
            return all(map(plain, value))
        if isinstance(value, float):
            return math.isfinite(value)
        return isinstance(value, str | int | bool | None)

    if not isinstance(protocol, Mapping) or not plain(protocol):
        yield (
            f"protocol is {protocol!r:.200}: expected names with plain values: texts, finite numbers, true, false, lists of them."
        )


def _said(value: Any) -> str:
    """A value in a few words."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{list(value.shape)} {value.dtype}"
    return f"a {type(value).__name__}"
