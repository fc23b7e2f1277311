"""ProtoMAML against a prototypical network, MAML, and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.test_util import check_grads
from small_tasks import vector_task

from metarun.errors import ConfigError
from metarun.few_shot.methods.maml import maml
from metarun.few_shot.methods.proto_maml import proto_maml
from metarun.few_shot.methods.protonet import protonet
from metarun.models.mlp import mlp

ENCODER = mlp(num_outputs=None, hidden=[5])


def method(**options):
    return proto_maml(encoder=ENCODER, objective="classification", num_outputs=3, **options)


def answers(learner, params, task):
    return jax.jit(lambda p, task: learner.predict(learner.adapt(p, task.support, None), task.query.x))(params, task)


def test_without_inner_steps_is_a_prototypical_network():
    task = vector_task(jax.random.key(0))
    learner = method(eval_inner_steps=0)
    params = jax.jit(learner.init)(jax.random.key(1), task)
    expected = answers(protonet(encoder=ENCODER, objective="classification", num_outputs=3), params, task)
    np.testing.assert_allclose(answers(learner, params, task), expected, rtol=1e-5, atol=1e-5)


def test_adapts_as_maml_does_from_a_layer_of_prototypes():
    task = vector_task(jax.random.key(0))
    params = jax.jit(method().init)(jax.random.key(1), task)
    features = ENCODER.apply(params, task.support.x)
    prototypes = jnp.stack([features[task.support.y == k].mean(0) for k in range(3)])
    head = {"kernel": 2 * prototypes.T, "bias": -(prototypes**2).sum(1)}
    learner = maml(
        model=mlp(num_outputs=3, hidden=[5]),
        objective="classification",
        inner_lr=0.05,
        inner_steps=3,
        query_statistics="support",
    )
    expected = answers(learner, {**params, "head": head}, task)
    found = answers(method(inner_lr=0.05, inner_steps=3), params, task)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(found, answers(method(eval_inner_steps=0), params, task), rtol=1e-2)


def test_gradient_agrees_with_finite_differences_and_flows_through_the_prototypes():
    with jax.enable_x64(True):
        task = vector_task(jax.random.key(0))
        params = jax.jit(method().init)(jax.random.key(1), task)
        gradients = {}
        for first_order in (False, True):
            learner = method(inner_lr=0.05, inner_steps=2, first_order=first_order)
            loss = lambda p: learner.loss(p, task, None)[0]  # noqa: B023
            gradients[first_order], _ = ravel_pytree(jax.jit(jax.grad(loss))(params))
            if not first_order:
                check_grads(jax.jit(loss), (params,), order=1, modes=["rev"])
        assert jnp.linalg.norm(gradients[True] - gradients[False]) > 0.01 * jnp.linalg.norm(gradients[False])

        # With next to no learning rate the gradient is that of a prototypical network, in either order.
        prototypes = protonet(encoder=ENCODER, objective="classification", num_outputs=3)
        expected, _ = ravel_pytree(jax.jit(jax.grad(lambda p: prototypes.loss(p, task, None)[0]))(params))
        for first_order in (False, True):
            learner = method(inner_lr=1e-12, first_order=first_order)
            gradient, _ = ravel_pytree(jax.jit(jax.grad(lambda p: learner.loss(p, task, None)[0]))(params))  # noqa: B023
            np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-9)


def test_rematerialised_steps_give_the_same_gradient():
    task = vector_task(jax.random.key(0))
    params = jax.jit(method().init)(jax.random.key(1), task)
    kept, again = (
        jax.jit(jax.grad(lambda p: method(remat=remat).loss(p, task, None)[0]))(params)  # noqa: B023
        for remat in (False, True)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), kept, again)


@pytest.mark.parametrize(
    "key, value", [("inner_lr", 0), ("inner_steps", 0), ("eval_inner_steps", -1), ("first_order", 1)]
)
def test_a_setting_that_cannot_be_used_is_named(key, value):
    with pytest.raises(ConfigError, match=f"method.{key}={value}"):
        method(**{key: value})
