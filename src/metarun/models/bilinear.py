"""Operations that are linear in each of two arguments, with forms of their own for themselves and for their transposes.

JAX would derive the derivatives of an operation from how it is computed, and they can be slow. A product has such derivatives as are
products again. Where a few products name each other as their transposes, differentiation of any order, in reverse or forward, never
leaves them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from metarun.types import Array

# `(g, other, like, **settings)` -> an array of the shape of `like`, linear in the cotangent g and in the other argument.
_Transpose = Callable[..., Array]
_OF_PRIMITIVES: "dict[Primitive, Bilinear]" = {}


class Bilinear:
    """An operation `(a, b, **settings) -> array` that is linear in `a` and in `b`.

    Args:
      name: as traces show it.
      form: how it is computed, a function of the same arguments.
    """

    def __init__(self, name: str, form: Callable[..., Array]) -> None:
        self._form = form
        self._primitive = Primitive(name)
        _OF_PRIMITIVES[self._primitive] = self
        self._primitive.def_impl(lambda a, b, **its: jax.jit(partial(self._compute, **its))(a, b))
        self._primitive.def_abstract_eval(self._shape)
        batching.primitive_batchers[self._primitive] = self._batch
        mlir.register_lowering(self._primitive, mlir.lower_fun(self._compute, multiple_results=False))

    def __call__(self, a: Array, b: Array, **settings: Any) -> Array:
        return self._primitive.bind(a, b, mapped=(), **settings)

    def has_transposes(self, in_a: _Transpose, in_b: _Transpose | None = None) -> None:
        """States its transposes; that in `b` may be missing where `b` is never differentiated in, as whole numbers are not."""

        def transpose_in_b(g: Any, a: Any, b: Any, **its: Any) -> Array:
            assert in_b is not None
            return _transposed(in_b, g, b.aval, a, 1, **its)

        ad.defbilinear(
            self._primitive, lambda g, a, b, **its: _transposed(in_a, g, a.aval, b, 0, **its), transpose_in_b
        )

    # `mapped` has an entry for each `jax.vmap` around the operation, the outermost first: which of the two arguments has that axis. All
    # such axes lead. So a batch of operations is one as well, with the same transposes.

    def _compute(self, a: Array, b: Array, *, mapped: tuple[tuple[bool, bool], ...], **settings: Any) -> Array:
        return _over(partial(self._form, **settings), mapped)(a, b)

    def _shape(self, a: Any, b: Any, **its: Any) -> Any:
        shapes = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (a, b))
        out = jax.eval_shape(partial(self._compute, **its), *shapes)
        return jax.core.ShapedArray(out.shape, out.dtype)

    def _batch(self, args: Any, axes: Any, *, mapped: Any, **settings: Any) -> tuple[Array, int]:
        a, b = (x if axis is None else jax.numpy.moveaxis(x, axis, 0) for x, axis in zip(args, axes, strict=True))
        has_axis = tuple(axis is not None for axis in axes)
        return self._primitive.bind(a, b, mapped=(has_axis, *mapped), **settings), 0


def computation(primitive: Primitive) -> Callable[..., Array] | None:
    """How a primitive of a trace is computed, a function of its operands and of its parameters by name; None for JAX's own."""
    operation = _OF_PRIMITIVES.get(primitive)
    return None if operation is None else operation._compute


def _over(function, mapped):
    for has_axis in reversed(mapped):
        function = jax.vmap(function, tuple(0 if has else None for has in has_axis))
    return function


def _transposed(transpose, g, aval, other, place, *, mapped, **settings):
    """The cotangent of the argument at `place`, of the shape of `aval`: summed up over the axes that this argument has not."""
    own = sum(has_axis[place] for has_axis in mapped)
    like = jax.ShapeDtypeStruct(aval.shape[own:], aval.dtype)
    of_g_and_other = tuple((True, has_axis[1 - place]) for has_axis in mapped)
    out = _over(lambda g, other: transpose(g, other, like, **settings), of_g_and_other)(g, other)
    return out.sum(tuple(axis for axis, has_axis in enumerate(mapped) if not has_axis[place]))
