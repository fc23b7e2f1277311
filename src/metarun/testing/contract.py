"""How a contract is held: promises in turn, and one error that names each that is broken."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from metarun.assembly.keys import factory_of
from metarun.assembly.returned import in_sentences
from metarun.errors import MetarunError, in_a_line


class ContractError(AssertionError):
    """What is promised and does not hold.

    Args:
      what: that was checked, by name.
      broken: name of a promise -> what was found, and how to mend it.
    """

    def __init__(self, what: str, broken: Mapping[str, str]):
        self.what, self.broken = what, dict(broken)
        super().__init__(
            "\n".join([f"{what} breaks its contract:", *(f"- {name}: {text}" for name, text in broken.items())])
        )


@contextmanager
def compiled_quickly() -> Iterator[None]:
    """Has JAX optimise little: what is checked computes for moments, and would be compiled for a minute."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def hold(what: str, promises: Mapping[str, Callable[[], Iterator[str]]], only: Collection[str] | None = None) -> None:
    """Checks promises in their order.

    Args:
      what: is checked, by name.
      promises: name -> what yields the faults. Once the types and shapes are wrong, under the first name, nothing else is
        asked.
      only: names of those to be checked, besides the first; None: all.

    Raises:
      ContractError: one is broken.
      ValueError: there is none of a name.
    """
    if unknown := [name for name in only or () if name not in promises]:
        raise ValueError(f"{what} promises nothing called {', '.join(unknown)}: there are {', '.join(promises)}")
    broken: dict[str, str] = {}
    for number, (name, faults) in enumerate(promises.items()):
        if number and only is not None and name not in only:
            continue
        try:
            found = in_sentences(faults())
        except (Exception, SystemExit) as error:  # of what is checked, which may raise anything
            found = f"It fails: {in_a_line(error)[:500]}."
        if found:
            broken[name] = found
            if number == 0:
                break
    if broken:
        raise ContractError(what, broken)


def made(
    factory: Callable[..., Any], group: str, part: str, given: Mapping[str, Any], settings: Mapping[str, Any]
) -> Any:
    """What a factory makes of settings and of what it asks for; it is called as a run calls it.

    Raises:
      ContractError: it fails, or returns another type than its group's.
    """
    name = name_of(factory)
    if not callable(factory):
        raise ContractError(name, {"factory": "It is not callable: expected the function that makes it, by its keys."})
    try:
        return factory_of(factory, name, group, part).bound(settings, given)()
    except MetarunError as error:
        raise ContractError(name, {"factory": str(error)}) from error
    except (Exception, SystemExit) as error:
        raise ContractError(name, {"factory": f"It fails: {in_a_line(error)[:500]}."}) from error


def name_of(factory: Any) -> str:
    """A factory in words; of what is none, its value."""
    if not callable(factory):
        return f"{factory!r:.100}"
    its = getattr(factory, "func", factory)  # of a partial
    return f"{its.__module__}.{getattr(its, '__qualname__', type(its).__name__)}"


def retraced(name: str, function: Callable[..., Any], *arguments: Any) -> Iterator[str]:
    """A fault where a function, traced twice, is not the same both times: it keeps something, or draws without a key."""
    mend = "Return what is to be kept, and draw random numbers by jax.random from the key that is given."
    try:
        first, second = (jax.make_jaxpr(lambda *given: function(*given))(*arguments) for _ in range(2))
        pairs = zip(_consts(first), _consts(second), strict=True)
        same = str(first.jaxpr) == str(second.jaxpr) and all(_equal(a, b) for a, b in pairs)
    except jax.errors.JAXTypeError:
        yield f"{name} uses what an earlier call has left behind. {mend}"
        return
    if not same:
        yield f"{name} computes something else when it is called again. {mend}"


def _consts(closed: Any) -> list[np.ndarray]:
    """The constants of a traced function; of keys, their words."""

    def plain(const: Any) -> np.ndarray:
        is_key = jax.dtypes.issubdtype(getattr(const, "dtype", np.float32), jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(const) if is_key else const)

    return [plain(const) for const in closed.consts]


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


def not_finite(tree: Any) -> list[str]:
    """Where in a tree of arrays something is not finite."""
    found = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    return [jax.tree_util.keystr(path) or "the value" for path, leaf in found if not np.isfinite(leaf).all()]


def differ(one: Any, other: Any, tolerance: float) -> bool:
    """Whether two trees of arrays differ by more than a part of their size."""
    pairs = zip(*map(jax.tree.leaves, jax.device_get((one, other))), strict=True)
    return any(np.linalg.norm(a - b) > tolerance * np.linalg.norm(b) + 1e-5 for a, b in pairs)
