"""What a task of reinforcement learning is, and who acts in it. Functions speak of one task and one trial.

A *trial* is what a learner is given to learn a task in: some *episodes*, each of which begins anew in the same task. An
episode is *terminated* by the task itself, or *truncated* because its time is up; the two are kept apart, because only
what terminates says that nothing more was to be had.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metarun.types import Array


class Discrete(NamedTuple):
    """Actions 0, ..., n - 1, int32 scalars."""

    n: int


class Continuous(NamedTuple):
    """Actions `[size]` float32, of which an environment can do those in [-1, 1] and brings others to the nearest."""

    size: int


class Step(NamedTuple):
    """What follows an action.

    Attributes:
      state: of the environment.
      reward: scalar.
      terminated: scalar bool, whether the task ended the episode.
    """

    state: Any
    reward: Array
    terminated: Array


class Seen(NamedTuple):
    """All that an agent is told before it acts.

    Attributes:
      observation: `[observation_size]`.
      action: its last one; zeros at the start of a trial.
      reward: that followed it; 0 at the start.
      done: whether the episode ended with it, 1 or 0; 0 at the start.
      first: 1 at the start of a trial, else 0.
    """

    observation: Array
    action: Array
    reward: Array
    done: Array
    first: Array


class Agent(NamedTuple):
    """Who acts through a trial, remembering what it likes.

    Attributes:
      start: `(key) -> memory`, before a trial.
      act: `(memory, seen, key) -> (memory, action, noted)`; `noted` is recorded beside the action.
    """

    start: Callable[[Array], Any]
    act: Callable[[Any, Seen, Array], tuple[Any, Array, Any]]


class Trajectory(NamedTuple):
    """A trial, or an episode, step by step: each entry with a leading axis `[length]`.

    Attributes:
      seen: before the action.
      action: taken.
      reward: that followed; 0 where not `live`.
      terminated, truncated: whether the episode ended with it, and how.
      live: whether the trial still ran.
      noted: what the agent noted.
    """

    seen: Seen
    action: Array
    reward: Array
    terminated: Array
    truncated: Array
    live: Array
    noted: Any


class Body(NamedTuple):
    """How what moves in an environment is drawn, from the side.

    Attributes:
      limbs: `(observation) -> [n, 2, 3]`, the ends of each limb in space, in metres; x is along, z is up.
      radii: of the limbs, `[n]`, in metres.
      caption: `(task) -> str`, what is to be done, of a task of NumPy arrays.
      seconds: of a step.
    """

    limbs: Callable[[Array], Array]
    radii: Any
    caption: Callable[[Any], str]
    seconds: float


class Environment(NamedTuple):
    """A distribution over tasks, each a Markov decision process.

    Attributes:
      sample: `(key, split) -> task`, a pytree; tasks of "train", "val" and "test" are disjoint.
      reset: `(task, key) -> state`.
      observe: `(task, state) -> [observation_size]`.
      step: `(task, state, action, key) -> Step`.
      actions: what actions there are.
      observation_size: length of an observation; may be 0.
      horizon: steps after which an episode is truncated.
      episodes: of a trial.
      protocol: facts of the task distribution that move a number.
      optimum: `(task) -> scalar`, the expected total reward of a trial for one who knows the task; None: not known.
      yardsticks: name -> an agent that was not learnt, to hold a learner against; a run adds "random".
      goal: `(task) -> [2]`, where to go to, of an environment whose observations are positions in the plane; else None.
      body: that moves, of an environment that has one, to be drawn; else None.
      exchangeable: whether all ways to act are worth the same to one who has seen no reward, so that this is chance.
    """

    sample: Callable[[Array, str], Any]
    reset: Callable[[Any, Array], Any]
    observe: Callable[[Any, Any], Array]
    step: Callable[[Any, Any, Array, Array], Step]
    actions: Discrete | Continuous
    observation_size: int
    horizon: int
    episodes: int
    protocol: Mapping[str, Any]
    optimum: Callable[[Any], Array] | None = None
    yardsticks: Mapping[str, Agent] = {}
    goal: Callable[[Any], Array] | None = None
    body: Body | None = None
    exchangeable: bool = False

    @property
    def length(self) -> int:
        """Steps of a trial, at most."""
        return self.episodes * self.horizon


def no_action(actions: Discrete | Continuous) -> Array:
    """What stands for the last action at the start of a trial."""
    return jnp.zeros((), jnp.int32) if isinstance(actions, Discrete) else jnp.zeros(actions.size)


def random_agent(actions: Discrete | Continuous) -> Agent:
    """Actions uniformly at random."""

    def act(memory, seen, key):
        if isinstance(actions, Discrete):
            return memory, jax.random.randint(key, (), 0, actions.n), ()
        return memory, jax.random.uniform(key, (actions.size,), minval=-1.0), ()

    return Agent(lambda key: (), act)
