"""The inner loop against closed forms, exact in float64.

Inner loss 1/2 |t - a|^2 and rate c give theta_k = a + (1 - c)^k (theta - a); with the outer loss 1/2 |theta_k - b|^2 the
meta-gradient is (1 - c)^k (theta_k - b), and theta_k - b in first order.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from metarun.inner_loop import gradient_descent

C = 0.3


def problem():
    return [jnp.array(v, jnp.float64) for v in ([1.0, -2.0, 0.5], [0.2, 0.4, -1.0], [-1.0, 3.0, 2.0])]


def adapted(theta, a, steps, **options):
    inner_loss = lambda params: 0.5 * jnp.sum(jnp.square(params["w"] - a))
    return gradient_descent(inner_loss, {"w": theta}, lr=C, num_steps=steps, **options)["w"]


def outer_loss(theta, a, b, steps, **options):
    return 0.5 * jnp.sum(jnp.square(adapted(theta, a, steps, **options) - b))


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 5, 20])
def test_golden_gradients(steps, remat):
    with jax.enable_x64(True):
        theta, a, b = problem()
        theta_k = adapted(theta, a, steps, remat=remat)
        np.testing.assert_allclose(theta_k, a + (1 - C) ** steps * (theta - a), rtol=1e-12)
        maml = jax.grad(outer_loss)(theta, a, b, steps, remat=remat)
        np.testing.assert_allclose(maml, (1 - C) ** steps * (theta_k - b), rtol=1e-12)
        fomaml = jax.grad(outer_loss)(theta, a, b, steps, first_order=True, remat=remat)
        np.testing.assert_allclose(fomaml, theta_k - b, rtol=1e-12)


def test_second_order_agrees_with_finite_differences_and_first_order_does_not():
    with jax.enable_x64(True):
        theta, a, b = problem()
        check_grads(lambda t: outer_loss(t, a, b, 3), (theta,), order=2, modes=("rev",))
        with pytest.raises(AssertionError):
            check_grads(lambda t: outer_loss(t, a, b, 3, first_order=True), (theta,), order=2, modes=("rev",))


def test_only_the_named_parameters_are_adapted():
    with jax.enable_x64(True):
        theta, a, b = problem()
        loss = lambda p: 0.5 * jnp.sum(jnp.square(p["head"]["w"] - a)) + jnp.sum(p["body"]["w"])
        params = {"head": {"w": theta}, "body": {"w": b}}
        fast = gradient_descent(loss, params, lr=C, num_steps=2, adapts=lambda name: name == "head/w")
        np.testing.assert_array_equal(fast["body"]["w"], b)
        np.testing.assert_allclose(fast["head"]["w"], a + (1 - C) ** 2 * (theta - a), rtol=1e-12)
