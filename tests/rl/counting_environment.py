"""An environment whose every reward says when and where it was earned."""

import jax.numpy as jnp

from metarun.rl.environment import Agent, Discrete, Environment, Step


def counting(*, horizon, episodes, lasts=None):
    """The state counts steps of an episode; the reward is task * 100 + state * 10 + action.

    Args:
      lasts: steps after which the environment terminates an episode; None: it never does.
    """

    def step(task, state, action, key):
        del key
        ended = jnp.bool_(False) if lasts is None else state + 1 >= lasts
        return Step(state + 1, task * 100 + state.astype(jnp.float32) * 10 + action.astype(jnp.float32), ended)

    return Environment(
        sample=lambda key, split: jnp.float32(1),
        reset=lambda task, key: jnp.int32(0),
        observe=lambda task, state: state.astype(jnp.float32)[None],
        step=step,
        actions=Discrete(3),
        observation_size=1,
        horizon=horizon,
        episodes=episodes,
        protocol={},
    )


def always(action):
    """An agent that notes how often it has acted."""
    return Agent(lambda key: jnp.int32(0), lambda memory, seen, key: (memory + 1, jnp.int32(action), memory))
