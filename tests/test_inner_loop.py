"""The inner loop against closed forms, exact in float64.

Inner loss 1/2 |t - a|^2 and rate c give theta_k = a + (1 - c)^k (theta - a); with the outer loss 1/2 |theta_k - b|^2 the
meta-gradient is (1 - c)^k (theta_k - b), and theta_k - b in first order.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from metarun.few_shot.inner_loop import gradient_descent, iterate, mixed_mode_gradient, proximal_descent

C = 0.3


def problem():
    return [jnp.array(v, jnp.float64) for v in ([1.0, -2.0, 0.5], [0.2, 0.4, -1.0], [-1.0, 3.0, 2.0])]


def adapted(theta, a, steps, **options):
    inner_loss = lambda params: 0.5 * jnp.sum(jnp.square(params["w"] - a))
    return gradient_descent(inner_loss, {"w": theta}, lr=C, num_steps=steps, **options)["w"]


def outer_loss(theta, a, b, steps, **options):
    return 0.5 * jnp.sum(jnp.square(adapted(theta, a, steps, **options) - b))


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 5, 11, 20])
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


def network_loss(params, steps, remat):
    """Query loss of a small network after inner steps on its support loss, of no closed form."""
    x = jnp.linspace(-1, 1, 12, dtype=jnp.float64).reshape(6, 2)
    loss = lambda p, x: jnp.mean(jnp.square(jnp.tanh(jnp.tanh(x @ p["w"]) @ p["v"]) - jnp.cos(3 * x)))
    return loss(gradient_descent(lambda p: loss(p, x[:4]), params, lr=C, num_steps=steps, remat=remat), x[4:])


@pytest.mark.parametrize("steps", [3, 16, 23])
def test_rematerialisation_changes_no_gradient(steps):
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0))
        params = {"w": jax.random.normal(keys[0], (2, 7)), "v": jax.random.normal(keys[1], (7, 2))}
        kept, again = (jax.grad(network_loss)(params, steps, remat) for remat in (False, True))
        assert float(jnp.abs(kept["w"]).max()) > 1e-3
        for name in params:
            np.testing.assert_allclose(again[name], kept[name], rtol=1e-11, atol=1e-14)
        check_grads(lambda p: network_loss(p, steps, True), (params,), order=1, modes=("rev",))


def test_the_derivative_of_the_gradient_is_that_of_reverse_mode_taken_twice():
    """In the parameters, and in what the loss closes over: other parameters, and whole numbers, which have none."""
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(1), 3)
        params, other, direction = (jax.random.normal(key, (4, 4)) for key in keys)

        def along(gradient_of):
            def value(params, other, labels):
                def loss(params):
                    return jnp.sum(jnp.sin(params @ jnp.tanh(other @ params))[jnp.arange(4), labels])

                return jnp.sum(direction * gradient_of(loss, params))

            return jax.jit(jax.grad(value, (0, 1)))(params, other, jnp.array([3, 0, 1, 1]))

        ours, theirs = along(mixed_mode_gradient), along(lambda loss, params: jax.grad(loss)(params))
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11)


def test_a_loss_without_forward_mode_is_differentiated_as_well():
    """JAX's own example of a custom derivative, whose forward pass calls the function itself."""

    @jax.custom_vjp
    def sine(x):
        return jnp.sin(x)

    sine.defvjp(lambda x: (sine(x), x), lambda x, g: (jnp.cos(x) * g,))
    with jax.enable_x64(True):
        params = {"w": jax.random.normal(jax.random.key(2), (5,))}

        def meta_gradient(function):
            loss = lambda p: jnp.sum(jax.jit(function)(p["w"] * p["w"][::-1]))
            return jax.grad(lambda p: loss(gradient_descent(loss, p, lr=C, num_steps=3)))(params)["w"]

        np.testing.assert_allclose(meta_gradient(sine), meta_gradient(jnp.sin), rtol=1e-12)


def test_kept_steps_keep_their_parameters_and_no_activations():
    x = jnp.linspace(-1, 1, 512 * 32, dtype=jnp.float32).reshape(512, 32)
    params = {"w": jax.ShapeDtypeStruct((32, 32), jnp.float32)}

    def temporary(steps):
        support_loss = lambda p: jnp.mean(jnp.square(jnp.tanh(jnp.tanh(x @ p["w"]) @ p["w"]) - x))
        descent = lambda p: support_loss(gradient_descent(support_loss, p, lr=C, num_steps=steps))
        return jax.jit(jax.grad(descent)).lower(params).compile().memory_analysis().temp_size_in_bytes

    per_step = (temporary(120) - temporary(20)) / 100
    assert per_step < 1.5 * 32 * 32 * 4  # one set of activations has 16 times as much


def test_memory_of_rematerialised_steps_grows_slower_than_their_number():
    x = jnp.linspace(-1, 1, 16 * 64, dtype=jnp.float32).reshape(16, 64)
    params = {"w": jax.ShapeDtypeStruct((64, 64), jnp.float32)}

    def temporary(steps, remat):
        support_loss = lambda p: jnp.mean(jnp.square(jnp.tanh(jnp.tanh(x @ p["w"]) @ p["w"]) - x))
        descent = lambda p: support_loss(gradient_descent(support_loss, p, lr=C, num_steps=steps, remat=remat))
        return jax.jit(jax.grad(descent)).lower(params).compile().memory_analysis().temp_size_in_bytes

    five, twenty, hundred = (temporary(steps, remat=True) for steps in (5, 20, 100))
    assert twenty < 2 * five and hundred < 4 * five
    assert hundred < temporary(100, remat=False) / 3


def test_only_the_named_parameters_are_adapted():
    with jax.enable_x64(True):
        theta, a, b = problem()
        loss = lambda p: 0.5 * jnp.sum(jnp.square(p["head"]["w"] - a)) + jnp.sum(p["body"]["w"])
        params = {"head": {"w": theta}, "body": {"w": b}}
        fast = gradient_descent(loss, params, lr=C, num_steps=2, adapts=lambda name: name == "head/w")
        np.testing.assert_array_equal(fast["body"]["w"], b)
        np.testing.assert_allclose(fast["head"]["w"], a + (1 - C) ** 2 * (theta - a), rtol=1e-12)


def test_a_rate_of_its_own_for_every_parameter():
    with jax.enable_x64(True):
        theta, a, b = problem()
        params, rates = {"w": theta, "v": b}, {"w": jnp.array([0.1, 0.2, 0.3], jnp.float64), "v": jnp.float64(0.5)}
        loss = lambda p: 0.5 * jnp.sum(jnp.square(p["w"] - a)) + 0.5 * jnp.sum(jnp.square(p["v"] - a))
        fast = gradient_descent(loss, params, lr=rates, num_steps=3)
        for name in params:
            np.testing.assert_allclose(fast[name], a + (1 - rates[name]) ** 3 * (params[name] - a), rtol=1e-12)
        partly = gradient_descent(loss, params, lr=rates, num_steps=3, adapts=lambda name: name == "v")
        np.testing.assert_array_equal(partly["v"], fast["v"])
        np.testing.assert_array_equal(partly["w"], theta)


@pytest.mark.parametrize("steps", [0, 4, 16, 23])
def test_rematerialised_steps_read_the_same_inputs_and_write_the_same_outputs(steps):
    with jax.enable_x64(True):
        inputs = jnp.linspace(0.5, 1.5, steps, dtype=jnp.float64)

        def total(start, remat):
            step = lambda carry, x: (jnp.sin(carry * x), {"square": carry**2, "input": x})
            last, outputs = iterate(step, start, inputs, steps, remat=remat)
            return last + jnp.sum(outputs["square"] * inputs), outputs

        start = jnp.float64(0.7)
        (value, outputs), gradient = jax.value_and_grad(total, has_aux=True)(start, False)
        (again, outputs_again), gradient_again = jax.value_and_grad(total, has_aux=True)(start, True)
        np.testing.assert_array_equal(outputs_again["input"], inputs)
        np.testing.assert_allclose(outputs_again["square"], outputs["square"], rtol=1e-12)
        np.testing.assert_allclose((again, gradient_again), (value, gradient), rtol=1e-12)


def proximal_problem():
    """Loss 1/2 phi' H phi - h' phi of two arrays, and the matrix strength (H + strength I)^-1 of its minimum."""
    root = np.array([[1.0, 0.4, 0.0], [0.2, 0.7, -0.5], [0.0, 0.3, 1.1]])
    hessian, strength = root @ root.T, 0.8
    h = np.array([0.3, -1.0, 0.6])
    flat = lambda phi: jnp.concatenate([phi["w"], phi["v"]])
    loss = lambda phi, data: 0.5 * flat(phi) @ data @ flat(phi) - jnp.array(h) @ flat(phi)
    return loss, flat, hessian, h, strength, strength * np.linalg.inv(hessian + strength * np.eye(3))


def test_proximal_minimum_and_its_gradient_have_their_closed_form():
    with jax.enable_x64(True):
        loss, flat, hessian, h, strength, shrink = proximal_problem()
        theta = {"w": jnp.array([1.0, -2.0], jnp.float64), "v": jnp.array([0.5], jnp.float64)}
        g = np.array([1.0, 2.0, -1.0])

        def answer(theta, steps=300, cg_steps=3):
            options = {"strength": strength, "lr": 0.3, "num_steps": steps, "cg_steps": cg_steps}
            return flat(proximal_descent(loss, theta, jnp.array(hessian), **options))

        np.testing.assert_allclose(answer(theta), shrink @ (flat(theta) + h / strength), rtol=1e-10)
        gradient = lambda **options: flat(jax.grad(lambda theta: answer(theta, **options) @ jnp.array(g))(theta))
        np.testing.assert_allclose(gradient(), shrink @ g, rtol=1e-10)
        # It is that of the minimum, not of the path, which here has hardly begun.
        np.testing.assert_allclose(gradient(steps=1), shrink @ g, rtol=1e-10)
        # One step of conjugate gradients: the best multiple of g in the norm of the matrix.
        matrix = np.linalg.inv(shrink)
        np.testing.assert_allclose(gradient(cg_steps=1), (g @ g) / (g @ matrix @ g) * g, rtol=1e-10)


def test_proximal_gradient_agrees_with_finite_differences_of_an_exact_minimum():
    with jax.enable_x64(True):
        x = jnp.linspace(-1, 1, 12, dtype=jnp.float64).reshape(6, 2)
        loss = lambda p, x: jnp.mean(jnp.square(jnp.tanh(x @ p["w"]) - jnp.cos(3 * x)))
        params = {"w": jnp.array([[0.3, -0.8], [0.5, 0.9]], jnp.float64)}
        options = {"strength": 0.5, "lr": 0.5, "num_steps": 200, "cg_steps": 4}
        outer = lambda p: loss(proximal_descent(loss, p, x[:4], **options), x[4:])
        check_grads(outer, (params,), order=1, modes=("rev",), rtol=1e-5)
