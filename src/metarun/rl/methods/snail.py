"""The simple neural attentive learner, as it reinforcement learns.

Source: Mishra, Rohaninejad, Chen and Abbeel 2018, A Simple Neural Attentive Meta-Learner.
"""

from collections.abc import Callable, Sequence

import optax

from metarun.compiled.task_map import Layout
from metarun.errors import positive_int
from metarun.models.temporal import attention_sizes, recurrent_snail
from metarun.rl.environment import Environment
from metarun.rl.meta_learner import MetaLearner
from metarun.rl.policy_gradient import trial_learner


def snail(
    *,
    environment: Environment,
    optimizer: Callable[..., optax.GradientTransformation],
    layout: Layout,
    meta_batch_size: int,
    steps: int,
    filters: int = 32,
    attention: Sequence[Sequence[int]] = ((32, 32), (32, 32)),
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
    """Temporal convolutions and causal attention in turn, over all that has been seen in a trial.

    Args:
      environment, optimizer, layout, meta_batch_size, steps, algorithm, epochs, minibatches, clip, discount, decay,
        entropy, value, shared: see `policy_gradient.trial_learner`.
      filters: of a temporal convolution.
      attention: [key size, value size] of each attention block; between each two stand ceil(log2 T) convolutions, T being
        the steps of a trial.

    Raises:
      ConfigError: for a value that is not allowed.

    Source: section 3 and appendix C, where the policy is trained by TRPO.
    """
    sizes = dict(filters=positive_int("method.filters", filters), attention=attention_sizes(attention))
    return trial_learner(
        environment=environment,
        network=lambda num_outputs, num_inputs: recurrent_snail(
            num_outputs=num_outputs, num_inputs=num_inputs, num_positions=environment.length, **sizes
        ),
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
