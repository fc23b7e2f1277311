"""RL2: a recurrent network that learns to reinforcement learn.

Sources: Duan et al. 2016, RL2: Fast Reinforcement Learning via Slow Reinforcement Learning; Wang et al. 2016, Learning to
Reinforcement Learn.
"""

from typing import Any

import jax
import jax.numpy as jnp

from metarun.config.flat_keys import with_settings
from metarun.errors import one_of, positive_int, true_or_false
from metarun.models.recurrent import gru, lstm
from metarun.rl.meta_learner import MetaLearner, Training
from metarun.rl.policy_gradient import TrialLearning, policy_and_value, trial_learner
from metarun.types import Array, Params, RecurrentModel

CELLS = {"gru": gru, "lstm": lstm}


@with_settings(training=Training, learning=TrialLearning())
def rl2(
    *,
    training: Training,
    learning: TrialLearning,
    cell: str = "gru",
    hidden: int = 64,
    shared: bool = True,
    products: bool = False,
) -> MetaLearner:
    """h_t = f(h_{t-1}, (s_t, a_{t-1}, r_{t-1}, d_{t-1})) through all episodes of a trial; policy and value are linear in h_t.

    Args:
      training: what every method is given.
      learning: how the network learns from trials.
      cell: "gru", as Duan et al., or "lstm", as Wang et al.
      hidden: cells.
      shared: whether policy and value are outputs of one network; else each has a network of its own.
      products: whether the network is fed `of_pairs` instead, and reads its memory through products of 2 `hidden` linear
        functions of h_t with as many of its input: so a memory of what each action did in each observation is within
        reach of learning. The paper leaves the embedding of (s, a, r, d) open.

    Raises:
      ConfigError: for a value that is not allowed.

    Source: Duan et al. 2016, section 2.2 and figure 1. There the value has a network of its own, and the policy is trained
    by TRPO.
    """
    of_cell, hidden = CELLS[one_of("method.cell", cell, CELLS)], positive_int("method.hidden", hidden)
    read_by_products = true_or_false("method.products", products)

    def network(num_outputs: int, num_inputs: int) -> RecurrentModel:
        del num_inputs  # which the network finds from its first row
        model = of_cell(num_outputs=num_outputs, hidden=hidden, products=2 * hidden if read_by_products else 0)
        return of_pairs(model, training.environment.observation_size) if read_by_products else model

    return trial_learner(training, policy_and_value(network, shared), learning)


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
