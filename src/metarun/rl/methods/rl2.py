"""RL2: a recurrent network that learns to reinforcement learn.

Sources: Duan et al. 2016, RL2: Fast Reinforcement Learning via Slow Reinforcement Learning; Wang et al. 2016, Learning to
Reinforcement Learn.
"""

from collections.abc import Callable

import optax

from metarun.errors import one_of, positive_int
from metarun.models.recurrent import gru, lstm
from metarun.rl.environment import Environment
from metarun.rl.meta_learner import MetaLearner
from metarun.rl.policy_gradient import trial_learner
from metarun.task_map import Layout

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
) -> MetaLearner:
    """h_t = f(h_{t-1}, (s_t, a_{t-1}, r_{t-1}, d_{t-1})) through all episodes of a trial; policy and value are linear in h_t.

    Args:
      environment, optimizer, layout, meta_batch_size, steps, algorithm, epochs, minibatches, clip, discount, decay,
        entropy, value, shared: see `policy_gradient.trial_learner`.
      cell: "gru", as Duan et al., or "lstm", as Wang et al.
      hidden: cells.

    Raises:
      ConfigError: for a value that is not allowed.

    Source: Duan et al. 2016, section 2.2 and figure 1. There the value has a network of its own, and the policy is trained
    by TRPO.
    """
    of_cell, hidden = CELLS[one_of("method.cell", cell, CELLS)], positive_int("method.hidden", hidden)
    return trial_learner(
        environment=environment,
        network=lambda num_outputs, num_inputs: of_cell(num_outputs=num_outputs, hidden=hidden),
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
