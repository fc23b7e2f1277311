"""What was earned, with where and by what: products of the last observation, action and reward as an input."""

from typing import Any

import jax
import jax.numpy as jnp

from metarun.types import Array, Params, RecurrentModel


def of_pairs(model: RecurrentModel, observation_size: int) -> RecurrentModel:
    """A network fed (s_t, a_{t-1}, r_{t-1}, d_{t-1}), whose `model` is fed (s_t, p, r_{t-1} p, r_{t-1}, d_{t-1}) instead.

    p are a_{t-1} and the products of each entry of s_{t-1} with each of a_{t-1}, so that what was earned comes with where
    and by what; 0 at the start of a trial.

    Args:
      model: the network within.
      observation_size: entries of s.
    """

    def paired(x: Array, before: Array) -> Array:
        observation, action, reward_and_done = jnp.split(x, [observation_size, x.size - 2])
        pairs = jnp.outer(jnp.append(1.0, before), action).ravel()
        return jnp.concatenate([observation, pairs, reward_and_done[0] * pairs, reward_and_done])

    def step(params: Params, state: Any, x: Array) -> tuple[Any, Array]:
        memory, before = state
        memory, outputs = model.step(params, memory, paired(x, before))
        return (memory, x[:observation_size]), outputs

    def unroll(params: Params, rows: Array) -> Array:
        before = jnp.pad(rows[:-1, :observation_size], ((1, 0), (0, 0)))
        return model.unroll(params, jax.vmap(paired)(rows, before))

    return RecurrentModel(
        init=lambda key, x: model.init(key, paired(x, jnp.zeros(observation_size, x.dtype))),
        start=lambda dtype: (model.start(dtype), jnp.zeros(observation_size, dtype)),
        step=step,
        unroll=unroll,
    )
