"""States of gated recurrent units over a sequence, and their derivatives with one product for all steps."""

import jax
import jax.numpy as jnp
from jax import lax

from metarun.types import Array


def _gates(from_input: Array, recurrent: Array, bias: Array) -> tuple[Array, Array, Array]:
    """r, z and n, from what the input and the last state give to them, `[3 * hidden]` each."""
    for_r, for_z, for_n = jnp.split(from_input, 3)
    of_r, of_z, of_n = jnp.split(recurrent, 3)
    r, z = jax.nn.sigmoid(for_r + of_r), jax.nn.sigmoid(for_z + of_z)
    return r, z, jnp.tanh(for_n + r * (of_n + bias))


@jax.custom_vjp
def gated_states(from_inputs: Array, kernel: Array, bias: Array) -> Array:
    """h_t = (1 - z) n + z h_{t-1} from h_0 = 0, of r, z = sigmoid(x + h W), n = tanh(x + r (h W + b)), each of its columns.

    Differentiated by JAX, the gradient in W would be summed up step by step, in the loop over time. Here the loop
    passes back the states' gradients alone, and that in W is one product over all steps. Reverse mode, once.

    Args:
      from_inputs: x, what the inputs give to r, z and n, `[length, 3 * hidden]`.
      kernel: W, `[hidden, 3 * hidden]`.
      bias: b, `[hidden]`.

    Returns:
      `[length, hidden]`.

    Source: Cho et al. 2014, section 2.3, with r applied after the product, as in flax's `GRUCell`.
    """
    return _forward(from_inputs, kernel, bias)[0]


def _forward(from_inputs, kernel, bias):
    def advance(h, x):
        recurrent = h @ kernel
        r, z, n = _gates(x, recurrent, bias)
        after = (1 - z) * n + z * h
        return after, (after, r, z, n, recurrent[-h.size :] + bias)

    states, *gates = lax.scan(advance, jnp.zeros_like(bias), from_inputs)[1]
    return states, (states, *gates, kernel)


def _backward(kept, of_states):
    states, r, z, n, of_n, kernel = kept
    before = jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]])
    transposed = kernel.T

    def back(of_h, step):
        of_state, h, r, z, n, of_n = step
        of_h = of_h + of_state
        to_n = of_h * (1 - z) * (1 - n**2)
        to_z = of_h * (h - n) * z * (1 - z)
        to_r = to_n * of_n * r * (1 - r)
        to_recurrent = jnp.concatenate([to_r, to_z, to_n * r])
        return of_h * z + to_recurrent @ transposed, (to_recurrent, to_n)

    steps = (of_states, before, r, z, n, of_n)
    to_recurrent, to_n = lax.scan(back, jnp.zeros_like(states[0]), steps, reverse=True)[1]
    hidden = to_n.shape[1]
    to_inputs = jnp.concatenate([to_recurrent[:, : 2 * hidden], to_n], 1)
    return to_inputs, before.T @ to_recurrent, to_recurrent[:, 2 * hidden :].sum(0)


gated_states.defvjp(_forward, _backward)
