"""Planning in a tabular Markov decision process that is known, and learning one by posterior sampling."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from metarun.rl.environment import Agent
from metarun.types import Array


class Model(NamedTuple):
    """A tabular Markov decision process.

    Attributes:
      transitions: probabilities of the next state, `[states, actions, states]`.
      rewards: their means, `[states, actions]`.
    """

    transitions: Array
    rewards: Array


class Statistics(NamedTuple):
    """What has been seen of it, and what is planned from that.

    Attributes:
      transitions: counts, `[states, actions, states]`.
      sums: of rewards, `[states, actions]`.
      state: the last, int32.
      time: steps into the episode, int32.
      values: of each action at each step of the episode, `[horizon, states, actions]`.
    """

    transitions: Array
    sums: Array
    state: Array
    time: Array
    values: Array


def plan(model: Model, horizon: int) -> Array:
    """Q_t(s, a) = r(s, a) + sum over s' of p(s' | s, a) max_a' Q_{t+1}(s', a'), and Q_horizon = 0.

    Returns:
      Q_0, ..., Q_{horizon - 1}, `[horizon, states, actions]`.

    Source: Bellman 1957, Dynamic Programming.
    """

    def back(later, _):
        values = model.rewards + model.transitions @ later
        return values.max(1), values

    return lax.scan(back, jnp.zeros(model.rewards.shape[0]), length=horizon, reverse=True)[1]


def posterior(key: Array, transitions: Array, sums: Array, samples: int, prior_mean: float) -> Model:
    """Draws from the posterior: rows of transitions Dirichlet(1 + counts), means of rewards N with prior N(m, 1).

    The rewards' noise has variance 1.

    Args:
      key: of the samples.
      transitions, sums: as in `Statistics`.
      samples: how many.
      prior_mean: m.

    Returns:
      Models with a leading axis `[samples]`.
    """
    transition_key, reward_key = jax.random.split(key)
    gammas = jax.random.gamma(transition_key, 1 + transitions, (samples, *transitions.shape))
    precision = 1 + transitions.sum(2)
    noise = jax.random.normal(reward_key, (samples, *sums.shape)) / jnp.sqrt(precision)[None]
    return Model(gammas / gammas.sum(-1, keepdims=True), ((prior_mean + sums) / precision)[None] + noise)


def psrl(states: int, actions: int, horizon: int, *, samples: int = 1, prior_mean: float = 0.0) -> Agent:
    """Plans anew for each episode, in a model that is sampled from the posterior; with `samples` > 1, in the best for each
    action of several: the highest Q of them all.

    Observations are one-hot states. A prior mean of 0 is less than the true one of random MDPs, 1, and so holds exploring
    back, which pays in short trials. The figure of Duan et al. fits it: 138.1 in ten episodes, where ours are
    137.4 ± 1.6, and 133.6 ± 1.6 with the true mean.

    Source: Strens 2000, A Bayesian Framework for Reinforcement Learning; Osband, Russo and Van Roy 2013, (More) Efficient
    Reinforcement Learning via Posterior Sampling, algorithm 1. With several samples, Osband and Van Roy 2017, Why is
    Posterior Sampling Better than Optimism for Reinforcement Learning?
    """

    def start(key):
        del key
        zeros = jnp.zeros
        return Statistics(
            zeros((states, actions, states)), zeros((states, actions)), jnp.int32(0), jnp.int32(0),
            zeros((horizon, states, actions)),
        )  # fmt: skip

    def planned(key, transitions, sums):
        models = posterior(key, transitions, sums, samples, prior_mean)
        return jax.vmap(lambda model: plan(model, horizon))(models).max(0)

    @custom_vmap
    def values_of(begins, key, transitions, sums, before):
        return lax.cond(begins, lambda: planned(key, transitions, sums), lambda: before)

    @values_of.def_vmap
    def values_of_many(axis_size, in_batched, begins, *given):
        # A choice for each trial would plan for all at every step. Their episodes begin together.
        key, transitions, sums, before = (
            x if batched else jax.tree.map(lambda x: jnp.broadcast_to(x, (axis_size, *x.shape)), x)
            for x, batched in zip(given, in_batched[1:], strict=True)
        )
        begins = begins if in_batched[0] else jnp.broadcast_to(begins, axis_size)
        new = lambda: jnp.where(begins[:, None, None, None], jax.vmap(planned)(key, transitions, sums), before)
        return lax.cond(begins.any(), new, lambda: before), True

    def act(memory, seen, key):
        state = seen.observation.argmax().astype(jnp.int32)
        known = 1.0 - seen.first
        # After the last step of an episode nothing shows where it led, and the environment begins anew.
        led = known * (1.0 - seen.done)
        transitions = memory.transitions.at[memory.state, seen.action, state].add(led)
        sums = memory.sums.at[memory.state, seen.action].add(known * seen.reward)
        begins = (seen.first + seen.done) > 0
        values = values_of(begins, key, transitions, sums, memory.values)
        time = jnp.where(begins, 0, memory.time + 1)
        return Statistics(transitions, sums, state, time, values), values[time, state].argmax().astype(jnp.int32), ()

    return Agent(start, act)
