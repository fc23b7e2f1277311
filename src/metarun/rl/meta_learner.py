"""What every method of meta-reinforcement learning is to the experiment that trains and tests it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import optax

from metarun.compiled.task_map import Layout
from metarun.rl.environment import Environment
from metarun.types import Array, Metrics, Params


@dataclass(frozen=True)
class Training:
    """What every method that learns is given.

    Attributes:
      environment: the distribution over tasks.
      optimizer: `(steps) -> optimizer`, from the number of gradients that it will follow in the whole run.
      layout: where tasks are computed.
      meta_batch_size: tasks of an outer step.
      steps: outer steps of the run.
    """

    environment: Environment
    optimizer: Callable[..., optax.GradientTransformation]
    layout: Layout
    meta_batch_size: int
    steps: int


class Outcome(NamedTuple):
    """What came of a trial.

    Attributes:
      value: its worth, a scalar: the total reward of a trial, or the return after the last inner step.
      curve: how that came about, `[n]`: the reward of each episode or step, or the return after each inner step.
      first: reward of the very first step, before which nothing can be known of the task.
    """

    value: Array
    curve: Array
    first: Array


class Watched(NamedTuple):
    """What a learner does in a task, to be looked at: each entry with leading axes `[stages, length]`.

    Attributes:
      observation: before each action.
      live: whether the stage still ran.
      ended: whether an episode ended with the action.
    """

    observation: Array
    live: Array
    ended: Array


class Shown(NamedTuple):
    """What a learner did in some test tasks, to be drawn: NumPy arrays with a leading axis `[num_tasks]`.

    Attributes:
      watched: what it did, `[num_tasks, stages, length]`.
      goals: where to go to in the plane, `[num_tasks, 2]`, if `watched.observation` are places in it; else None.
      captions: what each task asks of a body, if one moves; else None.
      limbs: of the body before each action, `[num_tasks, stages, length, n, 2, 3]`.
      radii: of the limbs, `[n]`.
      seconds: of a step.
    """

    watched: Watched
    goals: Any = None
    captions: Sequence[str] | None = None
    limbs: Any = None
    radii: Any = None
    seconds: float | None = None


class MetaLearner(NamedTuple):
    """A method of meta-reinforcement learning.

    Attributes:
      init: `(key) -> params`, the meta-parameters; an empty dict for an agent that learns nothing.
      improve: `(params, opt_state, tasks, keys, key) -> (params, opt_state, metrics)`, an outer step on tasks and keys with
        a leading axis `[num_tasks]`; "reward" among the metrics is the mean total reward of the trials it was made of.
      outcome: `(params, task, key, blind) -> Outcome`, a test in one task; `blind` is a Python bool: the learner is
        shown a reward of 0 whatever it earns.
      watch: `(params, task, key) -> Watched`: its trial, in one stage, or an episode before and after each inner step.
      init_opt: `(params) -> opt_state`.
      curve_over: what `Outcome.curve` is over: "episode", "step" or "inner step".
      protocol: conventions of its test that move a number without being the method.
      trains: whether there is anything to be trained.
    """

    init: Callable[[Array], Params]
    improve: Callable[[Params, Any, Any, Array, Array], tuple[Params, Any, Metrics]]
    outcome: Callable[[Params, Any, Array, bool], Outcome]
    watch: Callable[[Params, Any, Array], Watched]
    init_opt: Callable[[Params], Any]
    curve_over: str
    protocol: Mapping[str, Any]
    trains: bool = True
