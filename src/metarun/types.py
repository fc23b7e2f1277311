"""The shapes that everything else agrees on. Functions speak of one unbatched task; a meta-batch is the same
pytree with a leading task axis."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

Array = jax.Array
Params = Any  # a plain nested dict of arrays
Reference = int | Array | None  # whose statistics serve, see `Model.apply`
Metrics = Mapping[str, Array]


class Split(NamedTuple):
    """A labelled set.

    Attributes:
      x: inputs, `[n, *feature]`, float32; images are `[n, height, width, channel]` in [0, 1].
      y: targets, `[n]` int32 labels in [0, way) or `[n, *target]` float32.
      mask: `[n]` bool, which rows are examples; the others are padding, of whatever numbers. None: all are.
    """

    x: Array
    y: Array
    mask: Array | None = None


class Task(NamedTuple):
    """One task: adapt on `support`, answer on `query`."""

    support: Split
    query: Split


class Stream(NamedTuple):
    """How tasks are cut from items that stay on the host, where a device has no room for them.

    Attributes:
      items: `[num_items, *item]`, a NumPy array, such as one that is mapped from a file.
      index: a pytree of small arrays, on which draws depend.
      choose: `(index, key) -> (rows, rest)`: the items of a task, `[n]` int32, and whatever else is drawn for it.
      cut: `(items[rows], rest) -> Task`. Both are pure and jittable.
    """

    items: np.ndarray
    index: Any
    choose: Callable[[Any, Array], tuple[Array, Any]]
    cut: Callable[[Array, Any], Task]


class TaskSource(NamedTuple):
    """A distribution over tasks.

    Attributes:
      data: the arrays that tasks are cut from, as a pytree; an argument of `sample` and not a part of it, so that
        a compiled step holds one copy on the device and no constants.
      sample: `(data, key) -> Task`, one task; pure and jittable, so that tasks are drawn inside the compiled step.
      stream: the same tasks for the same keys, without `data`; None: there is no other way than `sample`.
    """

    data: Any
    sample: Callable[[Any, Array], Task]
    stream: Stream | None = None


SIZES = ("way", "shot")  # in which tasks may differ


class DataSet(NamedTuple):
    """Three task sources that share no class, and what is needed to state the protocol.

    Attributes:
      train, val, test: the sources of meta-training, meta-validation and meta-test.
      objective: "classification" or "regression".
      num_outputs: outputs of a model for it: the way, or the size of a regression target.
      protocol: facts that move the number: split, class counts, rotations, checksum of the data.
      train_way: classes of a training task, if other than `num_outputs`.
      varies: "way", "shot" or both, where they differ from task to task; `num_outputs` and `train_way` are then the most that
        there are, and tasks are padded to it, see `Split.mask`.
      train_classes: meta-training without tasks: the same draws as `train`, with each class's own label in
        [0, num_train_classes); None where there are no classes.
      num_train_classes: of meta-training.
      contents: split -> for each class the hashes of its examples' contents, `[count]` uint64 NumPy arrays (see
        `data.contents`), by which the checks know an example again, whatever its shape; for each task, where a regression
        has a fixed number of them; None where there is neither.
      ground: the level around what the images show, in [0, 1]: the median at their borders; None where there are none.
      domains: where tasks are of several data sets, the source of meta-test's tasks of each by its name; empty: of one.
      standardized: shift and factor, each of one number or of one for each entry of the last axis of an input, by which
        inputs have been standardised: (value - shift) * factor. None: they have not.
    """

    train: TaskSource
    val: TaskSource
    test: TaskSource
    objective: str
    num_outputs: int
    protocol: Mapping[str, Any]
    train_way: int | None = None
    train_classes: TaskSource | None = None
    num_train_classes: int = 0
    contents: Mapping[str, Sequence[Any]] | None = None
    ground: float | None = None
    standardized: tuple[Sequence[float], Sequence[float]] | None = None
    domains: Mapping[str, TaskSource] = {}
    varies: Collection[str] = ()


class Model(NamedTuple):
    """A network as two pure functions; its parameters are its only state.

    Attributes:
      init: `(key, x) -> params`, for `x: [n, *feature]`.
      apply: `(params, x, reference=None) -> outputs: [n, num_outputs]`. Where the network normalises over a set, it
        uses the statistics of its `reference`: the first so many rows of `x`; or, an array `[k]` bool, those of the first
        k rows that it marks; all rows if None.
    """

    init: Callable[[Array, Array], Params]
    apply: Callable[..., Array]


class SequenceModel(NamedTuple):
    """A causal network over a sequence of rows and one more row, which comes in alternatives.

    The alternatives do not see each other: each is answered as if it alone stood at the end of the sequence.

    Attributes:
      init: `(key, rows: [length, size], ends: [n, size]) -> params`.
      read: `(params, rows: [length, size], mask=None) -> memory`, what answering needs of the sequence; `mask: [length]` bool
        says which rows are of it.
      answer: `(params, memory, ends: [n, size]) -> outputs: [n, num_outputs]`.
    """

    init: Callable[[Array, Array, Array], Params]
    read: Callable[[Params, Array], Any]
    answer: Callable[[Params, Any, Array], Array]


class RecurrentModel(NamedTuple):
    """A causal network that is fed one row after the other.

    Attributes:
      init: `(key, x: [size]) -> params`.
      start: `(dtype) -> state`, before the first row.
      step: `(params, state, x: [size]) -> (state, outputs: [num_outputs])`.
      unroll: `(params, rows: [length, size]) -> [length, num_outputs]`, the same for all rows at once.
    """

    init: Callable[[Array, Array], Params]
    start: Callable[[Any], Any]
    step: Callable[[Params, Any, Array], tuple[Any, Array]]
    unroll: Callable[[Params, Array], Array]


class Method(NamedTuple):
    """A meta-learning algorithm as pure functions of one task.

    Attributes:
      init: `(key, task) -> meta_params`; the task serves for its shapes.
      adapt: `(meta_params, support, key) -> adapted`, whatever the method adapts, at its evaluation setting.
      predict: `(adapted, x: [n, *feature]) -> outputs: [n, num_outputs]`.
      loss: `(meta_params, task, key) -> (scalar, metrics)`, the outer loss whose gradient meta-training follows; the metrics are
        scalars by name, and "loss" is among them.
      unadapted: `(meta_params, support, key) -> adapted`, the state in which `adapt` starts, having seen no label.
      protocol: conventions of its evaluation that move a number without being the method, to be stated with it:
        inner steps at test, `query_statistics` ("query" where answers may depend on the other queries), ...
      trains_on: "tasks"; "classes" (all of meta-training's at once, see `DataSet.train_classes`); or "nothing", for a
        baseline without meta-parameters, which init as an empty dict.
      early: `(end, loss)` by rising end, for losses `(meta_params, task, key, step) -> (scalar, metrics)` that
        meta-training follows at the outer steps before `end`, `step` being a scalar int32; then it follows `loss`.
      sizes: `(meta_params, task) -> {name: count of numbers}`, what is to be said of its size beside the number of its
        meta-parameters; both arguments may be mere shapes.
      varies: what may differ from task to task, "way", "shot" or both; its functions then heed `Split.mask`, and outputs for
        classes that a support set has not are `losses.ABSENT`.
    """

    init: Callable[[Array, Task], Params]
    adapt: Callable[[Params, Split, Array], Any]
    predict: Callable[[Any, Array], Array]
    loss: Callable[[Params, Task, Array], tuple[Array, Metrics]]
    unadapted: Callable[[Params, Split, Array], Any]
    protocol: Mapping[str, Any]
    trains_on: str = "tasks"
    early: Sequence[tuple[int, Callable[[Params, Task, Array, Array], tuple[Array, Metrics]]]] = ()
    sizes: Callable[[Params, Task], Mapping[str, int]] = lambda meta_params, task: {}
    varies: Collection[str] = ()


class TrainState(NamedTuple):
    """What training changes.

    Attributes:
      step: scalar int32, outer steps taken.
      params: meta-parameters.
      opt_state: state of the outer optimiser.
    """

    step: Array
    params: Params
    opt_state: Any


class Evaluation(NamedTuple):
    """What an evaluation found.

    Attributes:
      metric: name of the quantity, e.g. "accuracy" or "mse".
      value: its mean over tasks.
      ci95: half the width of its 95% interval over tasks, 1.96 s / sqrt(n); NaN of one task, which has none.
      num_tasks: n.
      per_task: `[n]` NumPy array, the quantity of each task.
      checks: name -> {"passed": bool, "value": float, ...}, or {"passed": None, "value": None, "reason": words} where one
        could not be made; empty unless asked for.
      beside: what else a result states, as plain values: name -> entry.
      groups: entry of `beside` -> name -> `[k]` NumPy array, the quantity of each task of a group whose mean the entry states,
        the same tasks at every call.
    """

    metric: str
    value: float
    ci95: float
    num_tasks: int
    per_task: Any
    checks: Mapping[str, Mapping[str, Any]]
    beside: Mapping[str, Any] = {}
    groups: Mapping[str, Mapping[str, Any]] = {}


class Plan(NamedTuple):
    """How an outer step is computed, and what it takes.

    Attributes:
      devices: on which it runs.
      tasks: of the meta-batch, on each device.
      chunk: of these, computed at once.
      together: whether all devices compute each task together.
      variant: of the method, in words; "" if there is but one.
      streams: whether images come from the host step by step, because the device has no room for all.
      bytes_predicted: memory that the compiled step takes on a device.
      bytes_available: memory that a device had for it; None: unknown.
      compile_seconds: spent compiling it, or loading it from the cache of compiled programs.
    """

    devices: int
    tasks: int
    chunk: int
    together: bool
    variant: str
    streams: bool
    bytes_predicted: int
    bytes_available: int | None
    compile_seconds: float


class Program(NamedTuple):
    """The outer steps of an experiment in all their forms, for one who compiles them.

    Attributes:
      steps: `(variant, chunk) -> (state, *given, num_steps) -> (state, metrics)`, to be traced; as `Experiment.step`.
      given: arrays that every step is given, such as the data and the key that the run's seed has made.
      variants: in words, the fastest first.
      chunks: tasks that a device computes at once, most first.
      layout: a `task_map.Layout`, the fastest.
      bytes_available: memory of a device; None: unknown.
    """

    steps: Callable[[str, int], Callable[..., tuple[TrainState, Metrics]]]
    given: tuple[Any, ...]
    variants: Sequence[str]
    chunks: Sequence[int]
    layout: Any
    bytes_available: int | None


class Inspection(NamedTuple):
    """The tasks of one outer step, each by itself; arrays have a leading axis of tasks.

    Attributes:
      keys: `[n, words]` uint32, the seeds that they are drawn by.
      tasks: the tasks themselves.
      loss: `[n]`; None where a method's loss is not that of single tasks.
      gradient_norm: `[n]`, the Euclidean norm of the outer gradient; None likewise.
    """

    keys: Any
    tasks: Any
    loss: Any = None
    gradient_norm: Any = None


class Experiment(NamedTuple):
    """What the runner drives. Few-shot learning and reinforcement learning both build one.

    Attributes:
      init: `() -> TrainState`, from the run's seed.
      prepare: `() -> Plan`, compiles `step` in the form that fits the memory; `step` does so itself where nobody has.
      step: `(state, num_steps) -> (state, metrics)`: that many outer steps in one dispatch, which consumes the `state`
        that it is given; `metrics`, among them "loss", are means over them. Step `i` draws its tasks from
        `fold_in(root key, i)`, so how steps are grouped changes no draw.
      inspect: `(state) -> Inspection`, as NumPy arrays, of the tasks of the outer step that `state` is before.
      evaluate: `(params, split, num_tasks, checks=False) -> Evaluation` on `split` "val" or "test", whose tasks are
        the same at every call and for every training seed.
      examples: `(params, num_tasks) -> what is to be looked at` of so many test tasks, as NumPy arrays; None: nothing.
      metric: name of the quantity that `evaluate` measures.
      maximize: whether more of it is better.
      tasks_per_step: tasks in a meta-batch.
      protocol: everything that moves the number, as nested plain values.
      sizes: `() -> {name: count of numbers}`: of the meta-parameters, and what else the method says of its size.
      program: what `step` compiles; None where it is no single program, because images are streamed.
    """

    init: Callable[[], TrainState]
    prepare: Callable[[], Plan]
    step: Callable[[TrainState, int], tuple[TrainState, Metrics]]
    inspect: Callable[[TrainState], Inspection]
    evaluate: Callable[..., Evaluation]
    examples: Callable[[Params, int], Any] | None
    metric: str
    maximize: bool
    tasks_per_step: int
    protocol: Mapping[str, Any]
    sizes: Callable[[], Mapping[str, int]] = dict
    program: Program | None = None
