"""Counting the arithmetic of a function: multiplications and additions of its matrix products and convolutions."""

from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from metarun.errors import MetarunError
from metarun.models.bilinear import computation


def count_flops(fn: Callable[..., Any], *args: Any) -> int:
    """Counts the operations of `fn(*args)`, two a multiply-add; what the result does not need is not counted.

    Args:
      fn: a function that JAX can trace.
      *args: its arguments, arrays or `jax.ShapeDtypeStruct`s.

    Raises:
      MetarunError: the number of turns of a loop is not known before it runs.
    """
    jaxpr = jax.make_jaxpr(fn)(*args).jaxpr
    return _count(jaxpr, [True] * len(jaxpr.outvars))


def _count(jaxpr: Jaxpr, needed: list[bool]) -> int:
    """Walks from the outputs that are `needed` back to the inputs."""
    live = {var for var, is_needed in zip(jaxpr.outvars, needed, strict=True) if is_needed and _is_var(var)}
    total = 0
    for eqn in reversed(jaxpr.eqns):
        needed = [var in live for var in eqn.outvars]
        if any(needed):
            total += _flops(eqn, needed)
            live.update(var for var in eqn.invars if _is_var(var))
    return total


def _flops(eqn: Any, needed: list[bool]) -> int:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        x = eqn.invars[0].aval.shape
        return 2 * prod(eqn.outvars[0].aval.shape) * prod(x[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, out_features = eqn.invars[1].aval.shape, params["dimension_numbers"].rhs_spec[0]
        return 2 * prod(eqn.outvars[0].aval.shape) * prod(kernel) // kernel[out_features]
    if form := computation(eqn.primitive):
        operands = (jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in eqn.invars)
        return count_flops(partial(form, **params), *operands)
    inner = list(_jaxprs(params))
    if name == "cond":
        return max(_count(branch, needed) for branch in inner)
    if name == "scan":  # what one turn leaves out, the next may need
        return params["length"] * _count(inner[0], [True] * len(inner[0].outvars))
    total = sum(_count(one, needed if len(one.outvars) == len(needed) else [True] * len(one.outvars)) for one in inner)
    if name == "while" and total:
        raise MetarunError("A loop of unknown length cannot be counted: give it a fixed number of turns.")
    return total


def _jaxprs(params: dict[str, Any]) -> Iterator[Jaxpr]:
    for value in params.values():
        for one in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(one, ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, Jaxpr):
                yield one


def _is_var(atom: Any) -> bool:
    return not isinstance(atom, Literal)
