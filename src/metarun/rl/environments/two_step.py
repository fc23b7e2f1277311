"""The two-step task, which tells planning from habit."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metarun.errors import positive_int, unit_fraction
from metarun.rl import task_space
from metarun.rl.environment import Discrete, Environment, Step, random_agent
from metarun.types import Array

_COMMON = 0.8  # probability that an action leads where it mostly leads
_PAYS = 0.9  # probability of a reward in the better of the second states; in the other 1 - this


class TwoStep(NamedTuple):
    """A task.

    Attributes:
      pays: probability of a reward in the better state.
      better: which of the second states that is, in each round, `[rounds]` int32.
    """

    pays: Array
    better: Array


def two_step(*, rounds: int = 100, switch: float = 0.025) -> Environment:
    """Rounds of two steps: a choice of two actions, each leading to a state of its own in 80%, and what that state pays.

    One state pays 1 with probability 0.9 and the other with 0.1, and from round to round they change places with
    probability `switch`. Seen are, one-hot, the first state and the two second ones; what is done in a second state does
    not matter. A trial is one episode, since the states do not change places anew. That no two tasks of different splits
    are the same, 0.9 is any number within 0.0005 of it.

    Args:
      rounds: of a trial, two steps each.
      switch: probability.

    Raises:
      ConfigError: for a value that is not allowed.

    Source: Daw et al. 2011, Model-based Influences on Humans' Choices and Striatal Prediction Errors, in the form of Wang
    et al. 2016, Learning to Reinforcement Learn, section 3.2.2.
    """
    rounds, switch = positive_int("env.rounds", rounds), unit_fraction("env.switch", switch)

    def sample(key, split):
        pays_key, first_key, switch_key = jax.random.split(key, 3)
        pays = _PAYS + 1e-3 * (task_space.uniform(pays_key, split, cells=2**10) - 0.5)
        switches = jax.random.bernoulli(switch_key, switch, (rounds,))
        switches = switches.at[0].set(jax.random.bernoulli(first_key))
        return TwoStep(pays, jnp.cumsum(switches.astype(jnp.int32)) % 2)

    def step(task, state, action, key):
        # A state is the time in steps and, in odd ones, which of the second states it is.
        time, place = state
        chance = jax.random.uniform(key)
        led = jnp.where(chance < _COMMON, action, 1 - action)
        better = place == task.better[jnp.minimum(time // 2, rounds - 1)]
        reward = chance < jnp.where(better, task.pays, 1 - task.pays)
        second = time % 2 == 1
        return Step((time + 1, led), (second & reward).astype(jnp.float32), jnp.bool_(False))

    def observe(task, state):
        time, place = state
        return jax.nn.one_hot(jnp.where(time % 2 == 1, 1 + place, 0), 3)

    def optimum(task):
        return rounds * (_COMMON * task.pays + (1 - _COMMON) * (1 - task.pays))

    return Environment(
        sample=sample,
        reset=lambda task, key: (jnp.int32(0), jnp.int32(0)),
        observe=observe,
        step=step,
        actions=Discrete(2),
        observation_size=3,
        horizon=2 * rounds,
        episodes=1,
        protocol={"common": _COMMON, "pays": _PAYS, "switch": switch},
        optimum=optimum,
        yardsticks={"random": random_agent(Discrete(2))},
        exchangeable=True,
    )
