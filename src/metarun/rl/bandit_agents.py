"""Agents for bandits that know the arms' prior and learn nothing else: what a learnt one is held against."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metarun.rl.environment import Agent, Discrete, Seen, random_agent
from metarun.rl.gittins import bernoulli_index
from metarun.types import Array

UCB_WIDTH = 0.2  # with which the published figures of UCB1 are met


class Counts(NamedTuple):
    """What has been seen of the arms.

    Attributes:
      pulls: of each arm, `[arms]`.
      sums: of each arm's rewards, `[arms]`.
    """

    pulls: Array
    sums: Array


class Prior(NamedTuple):
    """A conjugate prior of each arm's mean, equal for all.

    Attributes:
      strength: pulls that it is worth.
      mean: of these.
      sample: `(key, strength: [arms], mean: [arms]) -> [arms]`, a sample of the posterior worth so many pulls.
    """

    strength: float
    mean: float
    sample: Callable[[Array, Array, Array], Array]

    def posterior(self, counts: Counts) -> tuple[Array, Array]:
        """Strength and mean of each arm, `[arms]`."""
        strength = self.strength + counts.pulls
        return strength, (self.strength * self.mean + counts.sums) / strength


BERNOULLI = Prior(2.0, 0.5, lambda key, strength, mean: jax.random.beta(key, strength * mean, strength * (1 - mean)))


def gaussian(noise: float) -> Prior:
    """Means from N(0, 1), rewards from N(mean, noise^2)."""

    def sample(key, strength, mean):
        return mean + noise / jnp.sqrt(strength) * jax.random.normal(key, mean.shape)

    return Prior(noise**2, 0.0, sample)


def _counting(arms: int, choose: Callable[[Array, Counts], Array]) -> Agent:
    """An agent that chooses by `(key, counts) -> arm`."""

    def act(counts: Counts, seen: Seen, key):
        pulled = jax.nn.one_hot(seen.action, arms) * (1 - seen.first)
        counts = Counts(counts.pulls + pulled, counts.sums + pulled * seen.reward)
        return counts, choose(key, counts).astype(jnp.int32), ()

    return Agent(lambda key: Counts(jnp.zeros(arms), jnp.zeros(arms)), act)


def greedy(arms: int, prior: Prior, epsilon: float) -> Agent:
    """The arm of the highest posterior mean; with probability `epsilon` any."""

    def choose(key, counts):
        explore_key, arm_key = jax.random.split(key)
        best = prior.posterior(counts)[1].argmax()
        return jnp.where(jax.random.uniform(explore_key) < epsilon, jax.random.randint(arm_key, (), 0, arms), best)

    return _counting(arms, choose)


def thompson(arms: int, prior: Prior) -> Agent:
    """The arm that is best in a sample of the posterior.

    Source: Thompson 1933, On the Likelihood that One Unknown Probability Exceeds Another in View of the Evidence.
    """
    return _counting(arms, lambda key, counts: prior.sample(key, *prior.posterior(counts)).argmax())


def ucb1(arms: int, prior: Prior, width: float) -> Agent:
    """The arm of the highest mean + width sqrt(2 log t / pulls), both with the prior's pulls counted in.

    Source: Auer, Cesa-Bianchi and Fischer 2002, Finite-time Analysis of the Multiarmed Bandit Problem, figure 1; the
    prior and the width as in Duan et al. 2016, RL2, appendix.
    """

    def choose(key, counts):
        del key
        strength, mean = prior.posterior(counts)
        return (mean + width * jnp.sqrt(2 * jnp.log(counts.pulls.sum() + 1) / strength)).argmax()

    return _counting(arms, choose)


def gittins(arms: int, pulls: int, discount: float) -> Agent:
    """The arm of the highest Gittins index, of Bernoulli arms with uniform prior; see `gittins.bernoulli_index`."""

    def choose(key, counts):
        del key
        table = jnp.asarray(bernoulli_index(discount, pulls), jnp.float32)
        rewards = counts.sums.astype(jnp.int32)
        return table[rewards, counts.pulls.astype(jnp.int32) - rewards].argmax()

    return _counting(arms, choose)


def for_bernoulli(arms: int, pulls: int) -> dict[str, Agent]:
    """The agents for Bernoulli arms."""
    return {
        **for_any(arms, BERNOULLI),
        # Undiscounted for so many pulls, and discounted forever with that mean life, are much alike.
        "gittins": gittins(arms, pulls, 1 - 1 / max(pulls, 2)),
    }


def for_any(arms: int, prior: Prior) -> dict[str, Agent]:
    """The agents that a prior is enough for."""
    return {
        "random": random_agent(Discrete(arms)),
        "epsilon_greedy": greedy(arms, prior, 0.1),
        "thompson": thompson(arms, prior),
        "ucb1": ucb1(arms, prior, UCB_WIDTH),
    }
