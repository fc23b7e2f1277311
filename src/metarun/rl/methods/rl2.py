"""RL2: a recurrent network that learns to reinforcement learn.

Sources: Duan et al. 2016, RL2: Fast Reinforcement Learning via Slow Reinforcement Learning; Wang et al. 2016, Learning to
Reinforcement Learn.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from metarun.compiled.task_map import Layout
from metarun.errors import one_of, positive_int, true_or_false
from metarun.models.recurrent import gru, lstm
from metarun.rl.environment import Environment
from metarun.rl.meta_learner import MetaLearner
from metarun.rl.policy_gradient import trial_learner
from metarun.types import Array, RecurrentModel

CELLS = {"gru": gru, "lstm": lstm}


def rl2(
    *,
    environment: Environment,
    optimizer: Callable[..., optax.GradientTransformation],
    layout: Layout,
    meta_batch_size: int,
    steps: int,
    cell: str = "gru",
    hidden: int = 64,
    algorithm: str = "ppo",
    epochs: int = 4,
    minibatches: int = 4,
    clip: float = 0.2,
    discount: float = 0.99,
    decay: float = 1.0,
    entropy: float = 0.01,
    value: float = 0.5,
    shared: bool = True,
    products: bool = False,
) -> MetaLearner:
    """h_t = f(h_{t-1}, (s_t, a_{t-1}, r_{t-1}, d_{t-1})) through all episodes of a trial; policy and value are linear in h_t.

    Args:
      environment, optimizer, layout, meta_batch_size, steps, algorithm, epochs, minibatches, clip, discount, decay,
        entropy, value, shared: see `policy_gradient.trial_learner`.
      cell: "gru", as Duan et al., or "lstm", as Wang et al.
      hidden: cells.
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

    def network(num_outputs, num_inputs):
        del num_inputs  # which the network finds from its first row
        model = of_cell(num_outputs=num_outputs, hidden=hidden, products=2 * hidden if read_by_products else 0)
        return of_pairs(model, environment.observation_size) if read_by_products else model

    return trial_learner(
        environment=environment,
        network=network,
        optimizer=optimizer,
        layout=layout,
        meta_batch_size=meta_batch_size,
        steps=steps,
        algorithm=algorithm,
        epochs=epochs,
        minibatches=minibatches,
        clip=clip,
        discount=discount,
        decay=decay,
        entropy=entropy,
        value=value,
        shared=shared,
    )


def of_pairs(model: RecurrentModel, observation_size: int) -> RecurrentModel:
    """A network fed (s_t, a_{t-1}, r_{t-1}, d_{t-1}), whose `model` is fed (s_t, p, r_{t-1} p, r_{t-1}, d_{t-1}) instead.

    p are a_{t-1} and the products of each entry of s_{t-1} with each of a_{t-1}, so that what was earned comes with where
    and by what; 0 at the start of a trial.

    Args:
      model: the network within.
      observation_size: entries of s.
    """

    def features(x: Array, before: Array) -> Array:
        observation, action, reward_and_done = jnp.split(x, [observation_size, x.size - 2])
        pairs = jnp.outer(jnp.append(1.0, before), action).ravel()
        return jnp.concatenate([observation, pairs, reward_and_done[0] * pairs, reward_and_done])

    def step(params, state, x):
        memory, before = state
        memory, outputs = model.step(params, memory, features(x, before))
        return (memory, x[:observation_size]), outputs

    def unroll(params, rows):
        before = jnp.pad(rows[:-1, :observation_size], ((1, 0), (0, 0)))
        return model.unroll(params, jax.vmap(features)(rows, before))

    return RecurrentModel(
        init=lambda key, x: model.init(key, features(x, jnp.zeros(observation_size, x.dtype))),
        start=lambda dtype: (model.start(dtype), jnp.zeros(observation_size, dtype)),
        step=step,
        unroll=unroll,
    )
