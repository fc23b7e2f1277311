"""Functions that differ in numbers, as one function of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from metarun.compiled.unify import NotTheSame, unified


@jax.custom_vjp
def scaled(x, factor):
    return x * factor


scaled.defvjp(lambda x, factor: (x * factor, factor), lambda factor, g: (g * factor, jnp.zeros_like(factor)))


def sums(rate, key, turns=3):
    """A function of everything that a training step is made of, with numbers at every depth."""
    mesh = jax.make_mesh((2,), ("task",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])

    @jax.jit
    def inner(x):
        return jnp.sin(rate * x) + 1.0

    def on_device(x):
        y, steps = lax.scan(lambda c, t: (c - rate * inner(c) * t, c.sum()), x, jnp.arange(turns, dtype=x.dtype))
        return lax.psum(y.sum() + steps.sum(), "task")[None]

    def function(x):
        x = x + jax.random.normal(key, x.shape)
        x = lax.while_loop(lambda c: jnp.abs(c).max() > rate, lambda c: c * 0.5, x)
        x = lax.cond(x.sum() > 0, lambda x: x * rate, lambda x: x - rate, x)
        gradient = jax.grad(lambda x: jnp.sum(scaled(jax.checkpoint(inner)(x), jnp.float32(rate)) ** 2))(x)
        mapped = jax.shard_map(on_device, mesh=mesh, in_specs=PartitionSpec("task"), out_specs=PartitionSpec())
        return {"x": x, "gradient": gradient, "sum": mapped(jnp.stack([x, gradient]))}

    return function


POINTS = [(0.5, 0), (0.25, 1), (0.5, 2)]
X = np.linspace(-1, 3, 4, dtype=np.float32)


@pytest.mark.parametrize("how", ["map", "vmap"])
def test_each_function_comes_out(how):
    functions = [sums(rate, jax.random.key(seed)) for rate, seed in POINTS]
    function, numbers = unified(functions, X)
    assert {number.shape[0] for number in numbers} == {3}
    if how == "map":
        found = jax.jit(lambda numbers: lax.map(lambda each: function(each, X), numbers))(numbers)
    else:
        found = jax.jit(jax.vmap(lambda numbers: function(numbers, X)))(numbers)
    for number, each in enumerate(functions):
        for name, expected in jax.jit(each)(X).items():
            np.testing.assert_allclose(found[name][number], expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_what_is_equal_needs_no_number():
    functions = [sums(0.5, jax.random.key(3)) for _ in range(2)]
    assert unified(functions, X)[1] == []


@pytest.mark.parametrize(
    "others",
    [
        lambda x: jnp.cos(x) * 2.0,  # another operation
        lambda x: jnp.sin(x) * 2.0 * x,  # one more
        lambda x: jnp.sin(x) * jnp.full((4,), 2.0),  # a number of another shape
        lambda x: x * jnp.sin(x) * 2.0,
        lambda x: 2.0 * lax.fori_loop(0, 2, lambda _, x: jnp.sin(x), x),
    ],
)
def test_what_differs_in_more_is_refused(others):
    with pytest.raises(NotTheSame):
        unified([lambda x: jnp.sin(x) * 2.0, others], X)


def test_other_wiring_is_refused():
    with pytest.raises(NotTheSame):
        unified([lambda x: (x + 1.0) - (x * 2.0), lambda x: (x * 2.0) - (x + 1.0)], X)
    with pytest.raises(NotTheSame):
        unified([lambda x: jnp.sin(x) - jnp.sin(jnp.sin(x)), lambda x: jnp.sin(jnp.sin(x)) - jnp.sin(x)], X)


def test_one_function_of_the_first_may_be_two_of_another():
    @jax.jit
    def times(x, y):
        return x * y

    def of(first, second):
        inner = [jax.jit(lambda x, rate=rate: jnp.sin(x) * rate) for rate in (first, second)]
        if first == second:
            inner[1] = inner[0]
        return lambda x: times(inner[0](x), inner[1](x))

    function, numbers = unified([of(0.5, 0.5), of(0.5, 0.25)], X)
    for number, expected in enumerate([of(0.5, 0.5), of(0.5, 0.25)]):
        own = [each[number] for each in numbers]
        np.testing.assert_allclose(function(own, X), expected(X), rtol=1e-6)
