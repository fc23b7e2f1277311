"""Gradient descent on the support loss, differentiable in its starting point."""

from collections.abc import Callable
from math import isqrt
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.extend.core import subjaxprs
from jax.scipy.sparse.linalg import cg

from metarun.errors import non_negative_int, one_of, positive_int
from metarun.few_shot.losses import OBJECTIVES, REDUCTIONS, reduce_loss
from metarun.types import Array, Params, Split

# What an inner loop adapts, by the names of the parameters.
INNER_PARAMS: dict[str, Callable[[str], bool]] = {
    "all": lambda name: True,
    "no_norm": lambda name: "norm" not in name,
    "head": lambda name: name.startswith("head/"),
    "body": lambda name: not name.startswith("head/"),
}
_FEW = 10  # copies of the parameters, a few: with more inner steps than this, rematerialisation has two levels
_RESIDUAL = 1e-9  # of the right-hand side's norm: where conjugate gradients have nothing left to improve


def numbers_of_steps(inner_steps: int, eval_inner_steps: int | None, *, none: bool = False) -> tuple[int, int]:
    """Returns the inner steps of training and of evaluation, which are the same where `eval_inner_steps` is None.

    Args:
      inner_steps, eval_inner_steps: as they were set.
      none: whether there may be none in training.

    Raises:
      ConfigError: for other than whole numbers, of at least 1 in training, or 0 with `none`, and 0 in evaluation.
    """
    train_steps = (non_negative_int if none else positive_int)("method.inner_steps", inner_steps)
    if eval_inner_steps is None:
        return train_steps, train_steps
    return train_steps, non_negative_int("method.eval_inner_steps", eval_inner_steps)


def split_loss(
    apply: Callable[..., Array], objective: str, reduction: str = "mean"
) -> Callable[[Params, Split], Array]:
    """Returns `(params, split) -> scalar`, the loss of a labelled set that an inner loop descends.

    Args:
      apply: `(params, x: [n, *feature], reference=None) -> outputs: [n, num_outputs]`, see `Model`; it is given a
        reference where the set has a mask alone.
      objective: "classification" or "regression".
      reduction: how the losses of the examples become a scalar, see `losses.reduce_loss`.

    Raises:
      ConfigError: for another reduction, as a value of `method.inner_reduction`.
    """
    one_of("method.inner_reduction", reduction, REDUCTIONS)
    score = OBJECTIVES[objective]

    def loss(params, split):
        outputs = apply(params, split.x) if split.mask is None else apply(params, split.x, split.mask)
        return reduce_loss(score.loss(outputs, split.y), outputs.shape[-1], reduction, split.mask)

    return loss


def partition(params: Params, chosen: Callable[[str], bool]) -> tuple[list[Array], Callable[[list[Array]], Params]]:
    """Takes some parameters out of a pytree of nested dicts.

    Args:
      params: the pytree.
      chosen: whether to take the parameter of that name ("layer/kernel").

    Returns:
      Those parameters, and a function that puts a list of such into their places in `params`.
    """
    named, structure = jax.tree_util.tree_flatten_with_path(params)
    taken = [chosen("/".join(str(entry.key) for entry in path)) for path, _ in named]
    leaves = [leaf for _, leaf in named]

    def merge(new):
        new = iter(new)
        return structure.unflatten([next(new) if t else leaf for leaf, t in zip(leaves, taken, strict=True)])

    return [leaf for leaf, t in zip(leaves, taken, strict=True) if t], merge


def descend(
    loss_fn: Callable[[Params], Array], params: Params, lr: float | Params, *, first_order: bool = False
) -> Params:
    """One step, theta - lr * grad loss_fn(theta).

    Args:
      loss_fn: loss of the parameters, a scalar.
      params: theta, a pytree of arrays.
      lr: step size; or one for each parameter, in a pytree of the same structure with scalars or arrays of the
        parameters' shapes.
      first_order: treat the gradient as a constant.
    """
    gradient = lax.stop_gradient(jax.grad(loss_fn)(params)) if first_order else mixed_mode_gradient(loss_fn, params)
    if jax.tree.structure(lr) != jax.tree.structure(params):
        return jax.tree.map(lambda leaf, g: leaf - lr * g, params, gradient)
    return jax.tree.map(lambda leaf, rate, g: leaf - rate * g, params, lr, gradient)


def mixed_mode_gradient(loss_fn: Callable[[Params], Array], params: Params) -> Params:
    """grad loss_fn(theta), whose own derivative is taken in forward mode.

    Let g = grad L(theta). The backward pass of g at a cotangent v is the Hessian times v, which is the derivative of the gradient of L
    along v, for the Hessian is symmetric. So the pass computes the loss again, with its derivative along v beside it. Reverse mode twice
    would keep all that a gradient computes; this keeps theta alone. Where the loss calls a `jax.custom_vjp`, which has no forward mode,
    it is reverse mode twice after all.

    Args:
      loss_fn: loss of the parameters, a scalar. What else it closes over gets its derivatives likewise.
      params: theta, a pytree of arrays.

    Returns:
      The gradient, of the structure of `params`.

    Source: Kemaev et al. 2025, Scalable Meta-Learning via Mixed-Mode Differentiation, arXiv 2505.00793.
    """
    traced = jax.make_jaxpr(loss_fn)(params)
    if "custom_vjp_call" in _primitives(traced.jaxpr):
        return jax.grad(loss_fn)(params)
    loss, inexact, exact = _closed(traced)

    @jax.custom_vjp
    def gradient(params, inexact, exact):
        return jax.grad(loss)(params, inexact, exact)

    def forward(*args):
        return gradient(*args), args

    def backward(saved, v):
        params, inexact, exact = saved
        gradients = lambda params: jax.grad(loss, (0, 1))(params, inexact, exact)
        return *jax.jvp(gradients, (params,), (v,))[1], None

    gradient.defvjp(forward, backward)
    return gradient(params, inexact, exact)


def _closed(traced):
    """A traced loss of parameters and of all arrays that it closes over: those that have derivatives, and the others."""
    differentiable = [jnp.issubdtype(array.dtype, jnp.inexact) for array in traced.consts]

    def loss(params, inexact, exact):
        parts = iter(inexact), iter(exact)
        consts = [next(parts[0] if has_derivative else parts[1]) for has_derivative in differentiable]
        return jax.core.eval_jaxpr(traced.jaxpr, consts, *jax.tree.leaves(params))[0]

    of_kind = lambda kind: [array for array, its in zip(traced.consts, differentiable, strict=True) if its is kind]
    return loss, of_kind(True), of_kind(False)


def _primitives(jaxpr):
    """The names of the operations of a trace, those within loops, branches and calls too."""
    names = {equation.primitive.name for equation in jaxpr.eqns}
    return names.union(*(_primitives(inner) for inner in subjaxprs(jaxpr)))


def iterate(
    step: Callable[[Any, Any], tuple[Any, Any]], start: Any, inputs: Any, num_steps: int, *, remat: bool = False
) -> tuple[Any, Any]:
    """`lax.scan`, which can save memory when it is differentiated.

    Args:
      step: `(carry, input) -> (carry, output)`.
      start: the first carry.
      inputs: pytree with a leading axis `[num_steps, ...]`, or None.
      num_steps: number of steps.
      remat: compute the steps again in the backward pass instead of keeping what they computed: memory of one step
        and of about 2 sqrt(num_steps) copies of the carry, for a quarter to two thirds more time.

    Returns:
      The last carry and the outputs, with a leading axis `[num_steps, ...]`.
    """
    if remat:
        return _rematerialised(step, start, inputs, num_steps)
    # Scanned, so that the compile time is that of one step; as fast as unrolled.
    return lax.scan(step, start, inputs, length=num_steps)


def gradient_descent(
    loss_fn: Callable[[Params], Array],
    params: Params,
    *,
    lr: float | Params,
    num_steps: int,
    first_order: bool = False,
    remat: bool = False,
    adapts: Callable[[str], bool] = INNER_PARAMS["all"],
) -> Params:
    """theta_{i+1} = theta_i - lr * grad loss_fn(theta_i), `num_steps` times.

    Args:
      loss_fn: support loss of the parameters, a scalar.
      params: theta_0, a pytree of arrays.
      lr: step size; or one for each parameter, a pytree of the structure of `params`, see `descend`.
      num_steps: number of steps; 0 returns `params`.
      first_order: treat the gradients as constants, so that d theta_k / d theta_0 is the identity.
      remat: trade time for memory, see `iterate`.
      adapts: whether the parameter of that name ("layer/kernel") is adapted; the others stay as they are.

    Returns:
      theta_k, of the same structure.

    Source: Finn et al. 2017, Model-Agnostic Meta-Learning, equation 1; first order: section 5.2.
    """
    start, merge = partition(params, adapts)
    if jax.tree.structure(lr) == jax.tree.structure(params):
        lr, _ = partition(lr, adapts)

    def step(fast, _):
        return descend(lambda leaves: loss_fn(merge(leaves)), fast, lr, first_order=first_order), None

    return merge(iterate(step, start, None, num_steps, remat=remat)[0])


def optimised(
    loss_fn: Callable[[Params, Any], Array],
    params: Params,
    inputs: Any,
    *,
    optimizer: optax.GradientTransformation,
    num_steps: int,
) -> Params:
    """`num_steps` of an optimiser that starts anew; not meant to be differentiated.

    Args:
      loss_fn: `(params, input) -> scalar`.
      params: where it starts, a pytree of arrays.
      inputs: pytree with a leading axis `[num_steps, ...]`, or None.
      optimizer: the optimiser.
      num_steps: number of steps.
    """

    def step(carry, x):
        params, opt_state = carry
        gradient = jax.grad(loss_fn)(params, x)
        with jax.numpy_dtype_promotion("standard"):  # optax multiplies its integer counts by floats
            updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    return lax.scan(step, (params, optimizer.init(params)), inputs, length=num_steps)[0][0]


def proximal_descent(
    loss_fn: Callable[[Params, Any], Array],
    params: Params,
    data: Any,
    *,
    strength: float,
    lr: float,
    num_steps: int,
    cg_steps: int,
    damping: float = 0.0,
) -> Params:
    """argmin over phi of loss_fn(phi, data) + strength / 2 |phi - theta|^2, differentiable in theta alone.

    Gradient descent from theta finds phi. The derivative is that of the exact minimum, whatever path led there: where
    the gradient of the objective vanishes, d phi / d theta = (I + H / strength)^-1, with H the Hessian of `loss_fn` at
    phi. A gradient is multiplied by it by solving (I + H / strength) v = g, with products by H alone.

    Where few steps leave phi short of the minimum, or H has directions that bend down, that system may be far from
    solved or have no meaning; `damping` divides H by strength + damping instead, towards the first-order gradient.

    Args:
      loss_fn: `(phi, data) -> scalar`.
      params: theta, a pytree of arrays.
      data: what else the loss reads, a pytree; no gradient flows to it.
      strength: lambda, of the regularisation.
      lr: step size of the descent.
      num_steps: of the descent.
      cg_steps: of the conjugate gradient method.
      damping: delta >= 0; 0 is exact.

    Source: Rajeswaran et al. 2019, Meta-Learning with Implicit Gradients, equations 3 and 6, algorithm 2.
    """

    @jax.custom_vjp
    def minimum(theta, data):
        def objective(phi):
            distance = jax.tree.map(lambda a, b: jnp.sum(jnp.square(a - b)), phi, theta)
            return loss_fn(phi, data) + 0.5 * strength * sum(jax.tree.leaves(distance))

        return gradient_descent(objective, theta, lr=lr, num_steps=num_steps)

    def forward(theta, data):
        phi = minimum(theta, data)
        return phi, (phi, data)

    def backward(saved, g):
        phi, data = saved
        # The Hessian is symmetric: its transposed product, which needs no forward-mode derivative, is the product.
        _, hessian = jax.vjp(jax.grad(lambda phi: loss_fn(phi, data)), phi)
        product = lambda v: jax.tree.map(lambda v, hv: v + hv / (strength + damping), v, hessian(v)[0])
        return cg(product, g, tol=_RESIDUAL, maxiter=cg_steps)[0], None

    minimum.defvjp(forward, backward)
    return minimum(params, data)


def _rematerialised(step, start, inputs, num_steps):
    """Scans `step` `num_steps` times; the backward pass keeps copies of its carry alone, and computes all else again.

    Many steps fall into segments of about sqrt(num_steps): between segments a copy each is kept, and while a segment
    is differentiated one for each of its steps. Scans are never unrolled here: XLA would merge steps and their
    recomputations, and keep the activations after all.
    """

    def scan(body, carry, inputs, length):
        return lax.scan(jax.checkpoint(body, prevent_cse=False), carry, inputs, length=length)

    segment = isqrt(num_steps) if num_steps > _FEW else 1
    if segment == 1:
        return scan(step, start, inputs, num_steps)
    segments = num_steps // segment
    whole = segments * segment
    first = jax.tree.map(lambda x: x[:whole].reshape(segments, segment, *x.shape[1:]), inputs)
    carry, outputs = scan(lambda carry, part: scan(step, carry, part, segment), start, first, segments)
    carry, last = scan(step, carry, jax.tree.map(lambda x: x[whole:], inputs), num_steps - whole)
    joined = lambda a, b: jnp.concatenate([a.reshape(whole, *a.shape[2:]), b])
    return carry, jax.tree.map(joined, outputs, last)
