"""Nearest class mean, with a learnt temperature."""

import jax.numpy as jnp

from metarun.errors import positive_float
from metarun.few_shot.learner import class_means, conditioned, flat


def tempered(*, encoder, objective, num_outputs, temperature=1.0):
    """p(y = k | x) = softmax over k of -|f(x) - c_k|² / t, with c_k the mean of f over the support set of class k."""
    start = jnp.log(jnp.asarray(positive_float("method.temperature", temperature), jnp.float32))

    def init(key, task):
        return {"encoder": encoder.init(key, task.support.x), "log_temperature": start}

    def read(meta_params, support, key):
        features = flat(encoder.apply(meta_params["encoder"], support.x, support.mask))
        return meta_params, class_means(features, support.y)

    def answer(state, x, reference):
        meta_params, means = state
        features = flat(encoder.apply(meta_params["encoder"], x, reference))
        distances = ((features[:, None] - means[None]) ** 2).sum(-1)
        return -distances / jnp.exp(meta_params["log_temperature"])

    return conditioned(
        init=init,
        read=read,
        answer=answer,
        objective=objective,
        num_outputs=num_outputs,
        query_statistics="support",
        varies=("way", "shot"),
    )
