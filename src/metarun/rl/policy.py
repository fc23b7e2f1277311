"""Distributions over actions, as a network's outputs state them."""

from collections.abc import Callable
from math import log, pi
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metarun.rl.environment import Continuous, Discrete
from metarun.types import Array


class Policy(NamedTuple):
    """How outputs become actions.

    Attributes:
      num_outputs: of the network.
      sample: `(key, outputs: [num_outputs]) -> action`.
      log_prob: `(outputs, action) -> scalar`, logarithm of its probability or density.
      entropy: `(outputs) -> scalar`.
      divergence: `(outputs, others) -> scalar`, of Kullback and Leibler, from the policy of `outputs` to that of `others`.
      encode: `(action) -> [size]`, the action as an input of a network.
    """

    num_outputs: int
    sample: Callable[[Array, Array], Array]
    log_prob: Callable[[Array, Array], Array]
    entropy: Callable[[Array], Array]
    divergence: Callable[[Array, Array], Array]
    encode: Callable[[Array], Array]


def policy_over(actions: Discrete | Continuous) -> Policy:
    """Categorical by softmax; or normal and independent, by means and logarithms of standard deviations."""
    return categorical(actions.n) if isinstance(actions, Discrete) else gaussian(actions.size)


def categorical(n: int) -> Policy:
    """Outputs are the logits of n actions."""

    def entropy(logits):
        log_probs = jax.nn.log_softmax(logits)
        return -(jnp.exp(log_probs) * log_probs).sum()

    def divergence(logits, others):
        log_probs = jax.nn.log_softmax(logits)
        return (jnp.exp(log_probs) * (log_probs - jax.nn.log_softmax(others))).sum()

    return Policy(
        num_outputs=n,
        sample=lambda key, logits: jax.random.categorical(key, logits).astype(jnp.int32),
        log_prob=lambda logits, action: jax.nn.log_softmax(logits)[action],
        entropy=entropy,
        divergence=divergence,
        encode=lambda action: jax.nn.one_hot(action, n),
    )


def gaussian(size: int) -> Policy:
    """Outputs are `size` means and then as many logarithms of standard deviations."""

    def log_prob(outputs, action):
        mean, log_std = outputs[:size], outputs[size:]
        return -(0.5 * ((action - mean) / jnp.exp(log_std)) ** 2 + log_std + 0.5 * log(2 * pi)).sum()

    def divergence(outputs, others):
        mean, log_std, other_mean, other_log_std = outputs[:size], outputs[size:], others[:size], others[size:]
        spread = (jnp.exp(2 * log_std) + (mean - other_mean) ** 2) / (2 * jnp.exp(2 * other_log_std))
        return (other_log_std - log_std + spread - 0.5).sum()

    return Policy(
        num_outputs=2 * size,
        sample=lambda key, outputs: outputs[:size] + jnp.exp(outputs[size:]) * jax.random.normal(key, (size,)),
        log_prob=log_prob,
        divergence=divergence,
        entropy=lambda outputs: (outputs[size:] + 0.5 * log(2 * pi) + 0.5).sum(),
        encode=lambda action: action,
    )
