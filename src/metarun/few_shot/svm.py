"""Multi-class support vector machines, solved in their dual and differentiable in their kernel."""

import jax
import jax.numpy as jnp
from jax import lax

from metarun.types import Array

_CENTERING = 0.1  # share of the complementarity at which a step aims
_BACKOFF = 0.99  # share of the way to the boundary that a step may go
_LEAST = {4: 1e-10, 8: 1e-20}  # by bytes of a number: complementarity over C at which the path ends, below rounding
_ITERATIONS = {4: 25, 8: 50}  # by bytes of a number: enough to get there


def crammer_singer(kernel: Array, targets: Array, penalty: float, mask: Array | None = None) -> Array:
    """The dual weights of Crammer and Singer's support vector machine.

    They minimise 1/2 sum_k alpha_k^T M alpha_k - sum_k y_k^T alpha_k over alpha, with M the kernel, alpha_k and y_k the
    columns of class k, subject to alpha <= penalty * y and sum_k alpha_k = 0.

    A primal-dual interior-point method solves it. Slacks s = penalty * y - alpha, their multipliers z and those of the
    sums, nu, start strictly feasible and follow s z = mu down to rounding. Each Newton step couples the classes through
    nu alone: it takes one factorisation of size n for each class instead of one of size n * way.

    Args:
      kernel: M, `[n, n]`, positive definite.
      targets: y, `[n, way]`, probabilities of the classes; held constant.
      penalty: C, above 0.
      mask: which rows are examples, `[n]`; of the others the kernel has no more than its diagonal. With it, classes without
        examples are left out, whose alpha is 0. None: all are.

    Returns:
      alpha, `[n, way]`. Its derivative in `kernel` is that of the optimality conditions (the implicit function
      theorem), and is right to first order alone.

    Source: Crammer and Singer 2001, section 4; as in Lee et al. 2019, MetaOptNet, equation 8.
    """
    targets, constant_kernel = lax.stop_gradient((targets, kernel))
    there = jnp.ones_like(targets[0])
    if mask is not None:
        there = (targets > 0).any(0).astype(targets.dtype)
        # Padding of every class alike: nothing pulls its alpha away from 0.
        targets = jnp.where(mask[:, None], targets, (there / there.sum())[None])
    s, z, nu = _interior_point(constant_kernel, targets, penalty, there)
    alpha = (penalty * targets - s) * there[None]
    # One more Newton step, whose matrix is constant: its value is rounding, its derivative that of the solution.
    residual = kernel @ alpha - targets + z + nu[:, None]
    step, _ = _solve(_inverses(constant_kernel, z / s, there), -residual, jnp.zeros_like(nu))
    return alpha + step


def _interior_point(kernel, targets, penalty, there):
    """Slacks, their multipliers and those of the sums; of a class that is not `there`, slack and multiplier stay 1."""
    way, dtype = there.sum(), kernel.dtype
    least = _LEAST[dtype.itemsize] * penalty

    def gradient(s):
        return kernel @ ((penalty * targets - s) * there[None]) - targets

    def step(_, state):
        s, z, nu = state
        mu = jnp.maximum(_CENTERING * ((s * z) @ there).mean() / way, least)
        # With ds = -d alpha and dz = mu / s - z + (z / s) d alpha, d alpha solves
        # (M + diag(z_k / s_k)) d alpha_k + d nu = -(gradient_k + nu + mu / s_k), sum_k d alpha_k = -sum_k alpha_k.
        weights = z / s
        right = -(gradient(s) + nu[:, None] + mu / s)
        sums = ((s - penalty * targets) * there[None]).sum(1)
        d_alpha, d_nu = _solve(_inverses(kernel, weights, there), right, sums)
        d_s, d_z = -d_alpha, (mu / s - z + weights * d_alpha) * there[None]
        nearest = jnp.minimum(_to_boundary(s, d_s), _to_boundary(z, d_z))
        length = jnp.minimum(1, _BACKOFF * nearest)
        return s + length * d_s, z + length * d_z, nu + length * d_nu

    s = jnp.where(there[None] > 0, jnp.broadcast_to(penalty / way, targets.shape), 1)
    # nu + z = -gradient with the least multiplier of each example at 1, the margin.
    nu = -jnp.where(there[None] > 0, gradient(s), -jnp.inf).max(1) - 1
    z = jnp.where(there[None] > 0, -gradient(s) - nu[:, None], 1)
    return lax.fori_loop(0, _ITERATIONS[dtype.itemsize], step, (s, z, nu))


def _to_boundary(x, d_x):
    """The largest t for which x + t d_x >= 0."""
    return jnp.where(d_x < 0, -x / jnp.where(d_x < 0, d_x, -1), jnp.inf).min()


def _inverses(kernel, weights, there):
    """(M + diag(weights_k))^-1 for each class k: `[way, n, n]`; 0 for one that is not there, so that no step is of it."""
    eye = jnp.eye(kernel.shape[0], dtype=kernel.dtype)

    def inverse(weights):
        return jax.scipy.linalg.solve(kernel + eye * weights[None], eye, assume_a="pos")

    return jax.vmap(inverse, in_axes=1)(weights) * there[:, None, None]


def _solve(inverses, right, sums):
    """x, `[n, way]`, and w, `[n]`, with inverses_k^-1 x_k + w = right_k and sum_k x_k = sums."""
    x = jnp.einsum("kij,jk->ik", inverses, right)
    w = jax.scipy.linalg.solve(inverses.sum(0), x.sum(1) - sums, assume_a="pos")
    return x - jnp.einsum("kij,j->ik", inverses, w), w
