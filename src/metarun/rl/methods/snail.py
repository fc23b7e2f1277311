"""The simple neural attentive learner, as it reinforcement learns.

Source: Mishra, Rohaninejad, Chen and Abbeel 2018, A Simple Neural Attentive Meta-Learner.
"""

from collections.abc import Sequence
from functools import partial

from metarun.config.flat_keys import with_settings
from metarun.errors import positive_int
from metarun.models.temporal import attention_sizes, recurrent_snail
from metarun.rl.meta_learner import MetaLearner, Training
from metarun.rl.policy_gradient import TrialLearning, policy_and_value, trial_learner
from metarun.types import RecurrentModel


@with_settings(training=Training, learning=TrialLearning())
def snail(
    *,
    training: Training,
    learning: TrialLearning,
    filters: int = 32,
    attention: Sequence[Sequence[int]] = ((32, 32), (32, 32)),
    shared: bool = True,
) -> MetaLearner:
    """Temporal convolutions and causal attention in turn, over all that has been seen in a trial.

    Args:
      training: what every method is given.
      learning: how the network learns from trials.
      filters: of a temporal convolution.
      attention: [key size, value size] of each attention block; between each two stand ceil(log2 T) convolutions, T being
        the steps of a trial.
      shared: whether policy and value are outputs of one network; else each has a network of its own.

    Raises:
      ConfigError: for a value that is not allowed.

    Source: section 3 and appendix C, where the policy is trained by TRPO.
    """
    of_trial = partial(
        recurrent_snail,
        num_positions=training.environment.length,
        filters=positive_int("method.filters", filters),
        attention=attention_sizes(attention),
    )

    def network(num_outputs: int, num_inputs: int) -> RecurrentModel:
        return of_trial(num_outputs=num_outputs, num_inputs=num_inputs)

    return trial_learner(training, policy_and_value(network, shared), learning)
