"""Meta-SGD against its closed form on a quadratic: theta_k = a + (1 - alpha)^k (theta - a), alpha elementwise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quadratic import THETA, A, B, constant, task_of

from metarun.errors import ConfigError
from metarun.few_shot.methods.maml import maml
from metarun.few_shot.methods.meta_sgd import meta_sgd
from metarun.models.mlp import mlp
from metarun.types import Split, Task

ALPHA = np.array([0.3, 0.7])


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("first_order", [False, True])
def test_golden_gradients(steps, first_order):
    with jax.enable_x64(True):
        method = meta_sgd(model=constant(), objective="regression", inner_steps=steps, first_order=first_order)
        meta_params = {
            "params": {"dense0": {"bias": jnp.array(THETA)}},
            "lr": {"dense0": {"bias": jnp.array(ALPHA)}},
        }
        loss, gradient = jax.value_and_grad(lambda p: method.loss(p, task_of(), None)[0])(meta_params)
        fast = A + (1 - ALPHA) ** steps * (THETA - A)
        np.testing.assert_allclose(loss, 0.5 * np.sum((fast - B) ** 2), rtol=1e-12)
        d_theta, d_alpha = (1 - ALPHA) ** steps, -steps * (1 - ALPHA) ** (steps - 1) * (THETA - A)
        if first_order:  # the inner gradients theta_i - a are constants
            d_theta, d_alpha = 1, -sum((1 - ALPHA) ** i * (THETA - A) for i in range(steps))
        np.testing.assert_allclose(gradient["params"]["dense0"]["bias"], d_theta * (fast - B), rtol=1e-12)
        np.testing.assert_allclose(gradient["lr"]["dense0"]["bias"], d_alpha * (fast - B), rtol=1e-12)


def test_equal_rates_adapt_as_maml_does():
    x = jax.random.normal(jax.random.key(0), (6, 4))
    split = Split(x, jnp.array([0, 1, 2, 0, 1, 2], jnp.int32))
    options = {"model": mlp(num_outputs=3, hidden=[5]), "objective": "classification", "inner_lr": 0.4}
    learnt, fixed = meta_sgd(**options, inner_steps=2), maml(**options, inner_steps=2)
    meta_params = jax.jit(learnt.init)(jax.random.key(1), Task(split, split))
    fast = learnt.adapt(meta_params, split, None)
    expected = fixed.adapt(meta_params["params"], split, None)
    jax.tree.map(np.testing.assert_array_equal, fast.state, expected.state)
    assert not np.array_equal(fast.state["head"]["kernel"], meta_params["params"]["head"]["kernel"])


def test_rates_are_drawn_from_the_range():
    x = jnp.zeros((3, 4))
    split = Split(x, jnp.arange(3, dtype=jnp.int32))
    method = meta_sgd(model=mlp(num_outputs=3), objective="classification", inner_lr=[0.005, 0.1])
    rates = np.concatenate(
        [r.ravel() for r in jax.tree.leaves(jax.jit(method.init)(jax.random.key(0), Task(split, split))["lr"])]
    )
    assert 0.005 <= rates.min() < 0.01 and 0.095 < rates.max() <= 0.1
    assert len(np.unique(rates)) > 0.9 * rates.size


@pytest.mark.parametrize("value", ["abc", 0, [0.1], [0.1, 0.005], [0.1, "b"], [0, 0.1]])
def test_a_rate_that_cannot_be_used_is_named(value):
    with pytest.raises(ConfigError, match="method.inner_lr="):
        meta_sgd(model=constant(), objective="regression", inner_lr=value)
