"""What the inner gradient of MAML is the gradient of: the factor of each action's advantage A.

Both have the same gradient where they are taken, by the policy that acted. They differ in what they become when that gradient
is differentiated in turn, by the outer one.
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp

from metarun.types import Array


def log_likelihood(log_prob: Array, acted: Array) -> Array:
    """log pi: its second derivative knows nothing of how theta decides what is sampled.

    Source: Finn et al. 2017, Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks, algorithm 3.
    """
    del acted
    return log_prob


def likelihood_ratio(log_prob: Array, acted: Array) -> Array:
    """pi / pi_acted, whose derivatives are unbiased at each step: the "low variance curvature".

    Source: Rothfuss et al. 2019, ProMP: Proximal Meta-Policy Search, section 5.
    """
    return jnp.exp(log_prob - acted)


# By `method.estimator`: from the logarithmic probabilities of actions, by the policy and by the one that acted.
ESTIMATORS: Mapping[str, Callable[[Array, Array], Array]] = {"log_prob": log_likelihood, "ratio": likelihood_ratio}
