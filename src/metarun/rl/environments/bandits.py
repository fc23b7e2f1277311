"""Bandits: an episode is one pull of an arm, a trial some pulls of the same arms. There is nothing to observe."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from metarun.errors import ConfigError, one_of, positive_float, positive_int
from metarun.rl import bandit_agents as agents
from metarun.rl import task_space
from metarun.rl.environment import Agent, Discrete, Environment, Step, random_agent
from metarun.types import Array

# How far the two arms of a dependent bandit are apart, from Wang et al. 2016, section 3.1.2: the first arm's probability
# is one of two, or any; the second's is what is left to 1.
_DEPENDENT = {"uniform": None, "easy": 0.1, "medium": 0.25, "hard": 0.4}
_INFORMATIVE_ARMS = 11


def _bandit(
    sample: Callable[[Array, str], Array],
    pull: Callable[[Array, Array], Array],
    *,
    arms: int,
    episodes: int,
    yardsticks: Mapping[str, Agent],
    protocol: Mapping[str, Any],
    exchangeable: bool = True,
) -> Environment:
    """A bandit whose task is `[arms]` numbers, one for each arm.

    Args:
      sample: `(key, split) -> task`.
      pull: `(key, number of the arm) -> reward`, whose mean is that number.
    """
    if arms < 2:
        raise ConfigError("env.arms", arms, "a whole number, 2 or more")

    def step(task, state, action, key):
        return Step(state, pull(key, task[action]), jnp.bool_(False))

    return Environment(
        sample=sample,
        reset=lambda task, key: (),
        observe=lambda task, state: jnp.zeros(0),
        step=step,
        actions=Discrete(arms),
        observation_size=0,
        horizon=1,
        episodes=episodes,
        protocol={"arms": arms, **protocol},
        optimum=lambda task: episodes * task.max(),
        yardsticks=yardsticks,
        exchangeable=exchangeable,
    )


def _coin(key: Array, probability: Array) -> Array:
    return jax.random.bernoulli(key, probability).astype(jnp.float32)


def bernoulli_bandit(*, arms: int, episodes: int) -> Environment:
    """Arms that pay 1 with a probability of their own, uniform in (0, 1), else nothing.

    Args:
      arms: k.
      episodes: n, pulls of a trial.

    Raises:
      ConfigError: for a value that is not allowed.

    Source: Duan et al. 2016, RL2, section 3.1.
    """
    arms, episodes = positive_int("env.arms", arms), positive_int("env.episodes", episodes)
    return _bandit(
        lambda key, split: task_space.uniform(key, split, (arms,)),
        _coin,
        arms=arms,
        episodes=episodes,
        yardsticks=agents.for_bernoulli(arms, episodes),
        protocol={"means": "uniform in (0, 1)"},
    )


def gaussian_bandit(*, arms: int, episodes: int, noise: float = 1.0) -> Environment:
    """Arms that pay N(mean, noise^2), with means of their own from N(0, 1).

    Args:
      arms: number of them.
      episodes: pulls of a trial.
      noise: standard deviation of a reward.

    Raises:
      ConfigError: for a value that is not allowed.
    """
    arms, episodes = positive_int("env.arms", arms), positive_int("env.episodes", episodes)
    noise = positive_float("env.noise", noise)
    return _bandit(
        lambda key, split: task_space.normal(key, split, (arms,)),
        lambda key, mean: mean + noise * jax.random.normal(key),
        arms=arms,
        episodes=episodes,
        yardsticks=agents.for_any(arms, agents.gaussian(noise)),
        protocol={"means": "N(0, 1)", "noise": noise},
    )


def dependent_bandit(*, episodes: int, difficulty: str = "uniform") -> Environment:
    """Two Bernoulli arms whose probabilities add up to 1, so that pulling one tells of the other.

    Args:
      episodes: pulls of a trial.
      difficulty: "uniform", any probabilities; or "easy", "medium", "hard": within 1e-3 of 0.1, 0.25 or 0.4, and the rest.
        The paper has exactly these; being spread so little, no two tasks of different splits are the same.

    Raises:
      ConfigError: for a value that is not allowed.

    Source: Wang et al. 2016, Learning to Reinforcement Learn, section 3.1.2.
    """
    episodes = positive_int("env.episodes", episodes)
    low = _DEPENDENT[one_of("env.difficulty", difficulty, _DEPENDENT)]

    def sample(key, split):
        place_key, side_key = jax.random.split(key)
        if low is None:
            p = task_space.uniform(place_key, split)
        else:
            p = low + 2e-3 * (task_space.uniform(place_key, split, cells=2**10) - 0.5)
            p = jnp.where(jax.random.bernoulli(side_key), p, 1 - p)
        return jnp.stack([p, 1 - p])

    return _bandit(
        sample,
        _coin,
        arms=2,
        episodes=episodes,
        yardsticks=agents.for_bernoulli(2, episodes),
        protocol={"means": "p and 1 - p", "difficulty": difficulty},
    )


def informative_bandit(*, episodes: int) -> Environment:
    """Eleven arms: one of the first ten pays 5, the others 1.1; the last pays a tenth of that one's number, 0.1 to 1.

    The last arm pays least and tells most. With ten tasks in all, those of "train", "val" and "test" are 4, 3 and 3: what
    is asked in the test is to trust a number that has not been trusted before.

    Args:
      episodes: pulls of a trial.

    Raises:
      ConfigError: for a value that is not allowed.

    Source: Wang et al. 2016, section 3.1.3, where tests are on the tasks of training.
    """
    episodes = positive_int("env.episodes", episodes)

    def sample(key, split):
        target = task_space.one_of(key, split, _INFORMATIVE_ARMS - 1)
        pays = jnp.where(jnp.arange(_INFORMATIVE_ARMS) == target, 5.0, 1.1)
        return pays.at[-1].set((target + 1) / 10)

    def informed(memory, seen, key):
        told = jnp.where(
            (seen.first == 0) & (seen.reward < 1.05), jnp.round(10 * seen.reward).astype(jnp.int32), memory
        )
        return told, jnp.where(seen.first == 1, _INFORMATIVE_ARMS - 1, told - 1), ()

    return _bandit(
        sample,
        lambda key, pays: pays,
        arms=_INFORMATIVE_ARMS,
        episodes=episodes,
        yardsticks={
            "random": random_agent(Discrete(_INFORMATIVE_ARMS)),
            "informed": Agent(lambda key: jnp.int32(0), informed),
        },
        protocol={"means": "5; 1.1 nine times; a tenth of the number of the first"},
        exchangeable=False,
    )


def restless_bandit(*, arms: int, pulls: int, volatility: float = 0.05) -> Environment:
    """Bernoulli arms whose probabilities walk: normal steps between two pulls, reflected at 0 and 1.

    A trial is one episode of many pulls, for the walk does not begin anew. A task is the whole walk.

    Args:
      arms: number of them.
      pulls: of a trial.
      volatility: standard deviation of a step.

    Raises:
      ConfigError: for a value that is not allowed.
    """
    arms, pulls = positive_int("env.arms", arms), positive_int("env.pulls", pulls)
    volatility = positive_float("env.volatility", volatility)

    def sample(key, split):
        start_key, walk_key = jax.random.split(key)
        steps = volatility * jax.random.normal(walk_key, (pulls, arms))
        walk = jnp.cumsum(steps.at[0].set(task_space.uniform(start_key, split, (arms,))), axis=0)
        return 1 - jnp.abs(1 - walk % 2)

    def step(task, state, action, key):
        return Step(state + 1, _coin(key, task[jnp.minimum(state, pulls - 1), action]), jnp.bool_(False))

    bandit = bernoulli_bandit(arms=arms, episodes=pulls)
    stationary = {name: bandit.yardsticks[name] for name in ("random", "epsilon_greedy", "thompson", "ucb1")}
    return bandit._replace(
        sample=sample,
        reset=lambda task, key: jnp.int32(0),
        step=step,
        horizon=pulls,
        episodes=1,
        protocol={"arms": arms, "means": "reflected walk from uniform", "volatility": volatility},
        optimum=lambda task: task.max(1).sum(),
        yardsticks=stationary,
    )
