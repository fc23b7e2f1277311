"""Several functions that compute the same with other numbers, as one function of these numbers.

How it works: JAX traces each function to a jaxpr, a list of equations. The jaxprs are laid beside each other, equation by
equation. Where a constant differs, it becomes an input of one function, which evaluates the equations of the first jaxpr
with the given numbers in these places. Loops, branches and calls are gone through likewise. Functions that do not differ at
all are their first, and nothing is evaluated by hand.

When it refuses, with `NotTheSame`: other equations, other shapes or types, other wiring, other settings of an equation; or a
number that differs within a primitive that has a jaxpr and is none of those in `_CALLS` and `_apply`.

What it is for: numbers that a method closes over, such as an inner learning rate. Seeds are no such: they are arguments.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.sharding import PartitionSpec

from metarun.types import Array

# Of a primitive that calls: where its function is.
_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "checkpoint": "jaxpr", "remat2": "jaxpr"}
_CALLS |= {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}
# Where a number stands: the number of an equation, a parameter of it, the number of an equation in there, ...
_Path = tuple[Any, ...]


class NotTheSame(Exception):
    """The functions differ in more than numbers."""


def unified(functions: Sequence[Callable[..., Any]], *shapes: Any) -> tuple[Callable[..., Any], list[Array]]:
    """Returns one function for several, and the numbers that make it each of them.

    Args:
      functions: of the same arguments; what they close over counts as their numbers.
      *shapes: of the arguments.

    Returns:
      `function(numbers, *args)` and the numbers in which the functions differ, arrays with a leading axis of functions:
      with `numbers` the k-th of each, it is the k-th function.

    Raises:
      NotTheSame: they differ in more than numbers.
    """
    pairs = [jax.make_jaxpr(function, return_shape=True)(*shapes) for function in functions]
    closed, out = [each for each, _ in pairs], jax.tree.structure(pairs[0][1])
    different = compare(closed)
    keys = list(different)
    if not keys:
        return (lambda numbers, *args: functions[0](*args)), []

    def function(numbers: Sequence[Any], *args: Any) -> Any:
        given = dict(zip(keys, numbers, strict=True))
        return jax.tree.unflatten(out, _evaluate((), closed[0], given, jax.tree.leaves(args)))

    return function, [numbers_of(values) for values in different.values()]


def traced(function: Callable[..., Any], *shapes: Any) -> ClosedJaxpr:
    """The equations of a function, to be compared with those of another."""
    return jax.make_jaxpr(function)(*shapes)


def compare(closed: Sequence[ClosedJaxpr]) -> dict[_Path, Sequence[Any]]:
    """Returns the numbers in which several functions differ, by where they stand; raises `NotTheSame` as `unified`."""
    different: dict[_Path, Sequence[Any]] = {}
    _compare_closed((), closed, different)
    return different


def numbers_of(values: Sequence[Any]) -> Array:
    """Stacks arrays or keys, by way of NumPy, which knows nothing of where a constant was traced."""
    plain = jax.numpy.asarray(np.stack([_plain(value) for value in values]))
    return jax.random.wrap_key_data(plain, impl=jax.random.key_impl(values[0])) if _is_key(values[0]) else plain


def _is_key(value: Any) -> bool:
    return isinstance(value, jax.Array) and jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key)


def _plain(value: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(value) if _is_key(value) else value)


# ---- Where they differ.


def _compare_closed(path: _Path, closed: Sequence[ClosedJaxpr], different: dict[_Path, Sequence[Any]]) -> None:
    _same([len(each.consts) for each in closed])
    for place, values in enumerate(zip(*(each.consts for each in closed), strict=True)):
        _compare_values((*path, "const", place), values, different)
    _compare(path, [each.jaxpr for each in closed], different)


def _compare(path: _Path, jaxprs: Sequence[Jaxpr], different: dict[_Path, Sequence[Any]]) -> None:
    _same([len(jaxpr.eqns) for jaxpr in jaxprs])
    numbers: list[dict[Any, int]] = [{} for _ in jaxprs]

    def compare_atoms(at: _Path, rows: Sequence[Sequence[Any]]) -> None:
        _same([len(row) for row in rows])
        for place, atoms in enumerate(zip(*rows, strict=True)):
            _same([isinstance(atom, Literal) for atom in atoms])
            if isinstance(atoms[0], Literal):
                _same([str(atom.aval) for atom in atoms])
                _compare_values((*at, place), [atom.val for atom in atoms], different)
            else:  # wired the same if each was first met at the same time
                _same([met.setdefault(atom, len(met)) for met, atom in zip(numbers, atoms, strict=True)])

    compare_atoms(path, [[*jaxpr.constvars, *jaxpr.invars] for jaxpr in jaxprs])
    for index, eqns in enumerate(zip(*(jaxpr.eqns for jaxpr in jaxprs), strict=True)):
        at, name = (*path, index), eqns[0].primitive.name
        _same([eqn.primitive for eqn in eqns])
        compare_atoms(at, [eqn.invars for eqn in eqns])
        # Of a function with a derivative of its own, the derivative has been taken, or is of no interest.
        for param in [_CALLS[name]] if name.startswith("custom_") and name in _CALLS else eqns[0].params:
            _compare_params((*at, param), [eqn.params[param] for eqn in eqns], different)
        compare_atoms(at, [eqn.outvars for eqn in eqns])
    compare_atoms((*path, "out"), [jaxpr.outvars for jaxpr in jaxprs])


def _compare_params(path: _Path, values: Sequence[Any], different: dict[_Path, Sequence[Any]]) -> None:
    if isinstance(values[0], ClosedJaxpr):
        _compare_closed(path, values, different)
    elif isinstance(values[0], Jaxpr):
        _compare(path, values, different)
    elif isinstance(values[0], (tuple, list)):
        _same([len(value) for value in values])
        for place, parts in enumerate(zip(*values, strict=True)):
            _compare_params((*path, place), parts, different)
    elif not callable(values[0]):
        _same(values)


def _compare_values(path: _Path, values: Sequence[Any], different: dict[_Path, Sequence[Any]]) -> None:
    if not same_numbers(values):
        different[path] = values


def same_numbers(values: Sequence[Any]) -> bool:
    """Whether arrays or keys are equal to the bit; raises `NotTheSame` for other shapes or types."""
    if all(value is values[0] for value in values):
        return True
    plain = [_plain(value) for value in values]
    _same([(value.shape, value.dtype) for value in plain])
    return all(value.tobytes() == plain[0].tobytes() for value in plain)


def _same(values: Sequence[Any]) -> None:
    other = next((value for value in values[1:] if value != values[0]), None)
    if other is not None:
        raise NotTheSame(f"{values[0]} and {other}")


# ---- The first of them, with given numbers in these places.


def _evaluate(path: _Path, function: Any, given: dict[_Path, Any], args: Sequence[Any]) -> list[Any]:
    jaxpr, consts = (function.jaxpr, function.consts) if isinstance(function, ClosedJaxpr) else (function, ())
    consts = [given.get((*path, "const", place), value) for place, value in enumerate(consts)]
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(at, atoms):
        return [
            given.get((*at, place), atom.val) if isinstance(atom, Literal) else values[atom]
            for place, atom in enumerate(atoms)
        ]

    for index, eqn in enumerate(jaxpr.eqns):
        at = (*path, index)
        with eqn.ctx.manager:  # as it was traced, see `shared_rows`
            values |= zip(eqn.outvars, _apply(at, eqn, given, read(at, eqn.invars)), strict=True)
    return read((*path, "out"), jaxpr.outvars)


def _apply(path: _Path, eqn: Any, given: dict[_Path, Any], ins: list[Any]) -> list[Any]:
    params, name = eqn.params, eqn.primitive.name
    within = [key for key in given if key[: len(path)] == path and len(key) > len(path) + 1]
    if not within:
        bound = eqn.primitive.get_bind_params(params)
        functions, rest = bound if isinstance(bound, tuple) else ((), bound)
        out = eqn.primitive.bind(*functions, *ins, **rest)
        return list(out) if eqn.primitive.multiple_results else [out]

    def call(param, args, given=given, place=()):
        function = params[param][place[0]] if place else params[param]
        return _evaluate((*path, param, *place), function, given, args)

    if name in _CALLS:
        return call(_CALLS[name], ins)
    if name == "scan":
        consts, carry, xs = _split(ins, params["num_consts"], params["num_carry"])

        def body(carry, x):
            outs = call("jaxpr", [*consts, *carry, *x])
            return outs[: len(carry)], outs[len(carry) :]

        carry, ys = lax.scan(body, carry, xs, params["length"], params["reverse"], params["unroll"])
        return [*carry, *ys]
    if name == "while":
        cond_consts, body_consts, carry = _split(ins, params["cond_nconsts"], params["body_nconsts"])
        return lax.while_loop(
            lambda carry: call("cond_jaxpr", [*cond_consts, *carry])[0],
            lambda carry: call("body_jaxpr", [*body_consts, *carry]),
            carry,
        )
    if name == "cond":
        places = range(len(params["branches"]))
        return lax.switch(
            ins[0], [lambda *args, place=place: call("branches", args, place=(place,)) for place in places], *ins[1:]
        )
    if name == "shard_map":
        # Numbers go in as arguments, the same on every device.
        def on_device(*args):
            return tuple(call("jaxpr", args[: len(ins)], dict(zip(within, args[len(ins) :], strict=True))))

        mapped = jax.shard_map(
            on_device,
            mesh=params["mesh"],
            in_specs=(*params["in_specs"], *[PartitionSpec()] * len(within)),
            out_specs=tuple(params["out_specs"]),
            check_vma=params["check_vma"],
        )
        return list(mapped(*ins, *(given[key] for key in within)))
    raise NotTheSame(f"numbers within {name}")


def _split(values: list[Any], *sizes: int) -> list[list[Any]]:
    """The first of so many values, the next, and the rest."""
    first, second = sizes
    return [values[:first], values[first : first + second], values[first + second :]]
