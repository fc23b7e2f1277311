"""The simple neural attentive learner, as it reinforcement learns.

Source: Mishra, Rohaninejad, Chen and Abbeel 2018, A Simple Neural Attentive Meta-Learner.
"""

from collections.abc import Sequence
from functools import partial

from metarun.config.flat_keys import with_settings
from metarun.errors import positive_int, true_or_false
from metarun.models.causal_snail import causal_snail
from metarun.models.temporal import attention_sizes
from metarun.rl.meta_learner import MetaLearner, Training
from metarun.rl.pairs import of_pairs
from metarun.rl.policy_gradient import TrialLearning, policy_and_value, trial_learner
from metarun.types import RecurrentModel

# That a core differentiates at once: more leave the cache of 1 MB, and a product takes twice as long.
_ROWS_AT_ONCE = 512


@with_settings(training=Training, learning=TrialLearning())
def snail(
    *,
    training: Training,
    learning: TrialLearning,
    filters: int = 32,
    attention: Sequence[Sequence[int]] = ((32, 32), (32, 32)),
    shared: bool = True,
    products: bool = False,
) -> MetaLearner:
    """Temporal convolutions and causal attention in turn, over all that has been seen in a trial.

    Args:
      training: what every method is given.
      learning: how the network learns from trials.
      filters: of a temporal convolution.
      attention: [key size, value size] of each attention block; between each two stand ceil(log2 T) convolutions, T being
        the steps of a trial.
      shared: whether policy and value are outputs of one network; else each has a network of its own.
      products: whether the network is fed `of_pairs` instead. Attention is a mean of linear functions of what was seen: of
        the action beside the reward it says how often each was, and only of their product what each action earned.

    Raises:
      ConfigError: for a value that is not allowed.

    Source: section 3 and appendix C, where the policy is trained by TRPO.
    """
    environment = training.environment
    of_products = true_or_false("method.products", products)
    of_trial = partial(
        causal_snail,
        num_positions=environment.length,
        filters=positive_int("method.filters", filters),
        attention=attention_sizes(attention),
    )

    def network(num_outputs: int, num_inputs: int) -> RecurrentModel:
        del num_inputs  # which the network finds from its first row
        model = of_trial(num_outputs=num_outputs)
        return of_pairs(model, environment.observation_size) if of_products else model

    at_once = max(1, _ROWS_AT_ONCE // environment.length)
    return trial_learner(training, policy_and_value(network, shared), learning, at_once)
