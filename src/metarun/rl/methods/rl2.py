"""RL2: a recurrent network that learns to reinforcement learn.

Sources: Duan et al. 2016, RL2: Fast Reinforcement Learning via Slow Reinforcement Learning; Wang et al. 2016, Learning to
Reinforcement Learn.
"""

from metarun.config.flat_keys import with_settings
from metarun.errors import one_of, positive_int, true_or_false
from metarun.models.recurrent import gru, lstm
from metarun.rl.meta_learner import MetaLearner, Training
from metarun.rl.pairs import of_pairs
from metarun.rl.policy_gradient import TrialLearning, policy_and_value, trial_learner
from metarun.types import RecurrentModel

CELLS = {"gru": gru, "lstm": lstm}
_TRIALS_AT_ONCE = 10  # that a core differentiates at once: enough for a product, few enough for the cache


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

    return trial_learner(training, policy_and_value(network, shared), learning, _TRIALS_AT_ONCE)
