"""Nearest neighbour on raw inputs: what a method must beat before it has learnt anything."""

import jax.numpy as jnp

from metarun.errors import one_of
from metarun.few_shot.learner import conditioned, flat, refuse_regression
from metarun.few_shot.similarity import SIMILARITIES
from metarun.types import Method


def nearest_neighbor(*, objective: str, num_outputs: int, distance: str = "euclidean") -> Method:
    """A query has the class of the support example that is nearest to it, pixel by pixel.

    The output of a class is the similarity of its nearest example, so that the largest output is the class of the
    nearest of all.

    Args:
      objective: "classification".
      num_outputs: the way.
      distance: "euclidean" or "cosine".

    Returns:
      A `Method` without meta-parameters (an empty dict).

    Raises:
      ConfigError: for a value that is not allowed.

    Source: the pixel baseline of Vinyals et al. 2016, Matching Networks, table 1.
    """
    refuse_regression("nearest_neighbor", objective)
    similarity = SIMILARITIES[one_of("method.distance", distance, SIMILARITIES)]

    def answer(state, x, reference):
        examples, targets = state
        to_examples = similarity(flat(x), flat(examples))[:, :, None]  # [n, support, 1]
        return jnp.where(targets[None] > 0, to_examples, -jnp.inf).max(1)

    return conditioned(
        init=lambda key, task: {},
        read=lambda meta_params, support, key: (support.x, support.y),
        answer=answer,
        objective=objective,
        num_outputs=num_outputs,
        query_statistics="support",
        trains_on="nothing",
        varies=("way", "shot"),
    )
