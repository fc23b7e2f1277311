"""MetaOptNet's machine as a classifier: margins, and invariance to the order of the support set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from small_tasks import reordered_support, vector_task

from metarun.errors import ConfigError
from metarun.few_shot.methods.metaoptnet import metaoptnet
from metarun.models.mlp import mlp
from metarun.types import Model, Split

IDENTITY = Model(init=lambda key, x: {}, apply=lambda params, x, reference=None: x)


def method(encoder=IDENTITY, num_outputs=3, **options):
    return metaoptnet(encoder=encoder, objective="classification", num_outputs=num_outputs, **options)


def test_two_points_are_parted_with_a_margin_of_one():
    """By hand: x_1 = (1, 2), x_2 = (3, 2) and w_1 = -w_2 = a x_1 - b x_2, with hardly a ridge and no bound.

    Margins of one, 2 w_1 . x_1 = 10 a - 14 b = 1 and -2 w_1 . x_2 = 26 b - 14 a = 1, are met by a = 5/8 and b = 3/8, so
    that w_1 = (-1/2, 1/2).
    """
    with jax.enable_x64(True):
        support = Split(jnp.array([[1.0, 2.0], [3.0, 2.0]]), jnp.array([0, 1]))
        learner = method(num_outputs=2, penalty=100.0, ridge=1e-9)
        params = {"encoder": {}, "scale": jnp.array(3.0)}
        outputs = learner.predict(learner.adapt(params, support, None), jnp.array([[1.0, 2.0], [3.0, 2.0], [2.0, 7.0]]))
        np.testing.assert_allclose(outputs[:, 0], 3 * np.array([0.5, -0.5, 2.5]), atol=1e-6)
        np.testing.assert_allclose(outputs[:, 1], -outputs[:, 0], atol=1e-9)


def test_outer_gradient_agrees_with_finite_differences():
    with jax.enable_x64(True):
        task = vector_task(jax.random.key(0))
        learner = method(mlp(num_outputs=None, hidden=[5]))
        params = jax.jit(learner.init)(jax.random.key(1), task)
        check_grads(
            jax.jit(lambda p: learner.loss(p, task, None)[0]),
            (params,),
            order=1,
            modes=["rev"],
            eps=1e-6,
            atol=1e-6,
            rtol=1e-5,
        )


def test_the_order_of_the_support_set_does_not_matter():
    with jax.enable_x64(True):
        task = vector_task(jax.random.key(0))
        params = jax.jit(method().init)(jax.random.key(1), task)
        reordered = reordered_support(task, jnp.array([4, 0, 5, 1, 3, 2]))
        outputs, expected = (
            method().predict(method().adapt(params, part.support, None), task.query.x) for part in (reordered, task)
        )
        np.testing.assert_allclose(outputs, expected, rtol=1e-7)


@pytest.mark.parametrize("key", ["penalty", "ridge", "init_scale"])
def test_a_setting_that_cannot_be_used_is_named(key):
    with pytest.raises(ConfigError, match=f"method.{key}=0"):
        method(**{key: 0})
