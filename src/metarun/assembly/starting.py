"""Where a run's parameters begin that does not begin with drawn ones: at those that another run has selected."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metarun.config.schema import INIT_FROM, INIT_SHA256
from metarun.errors import ConfigError, MetarunError
from metarun.system.files import canonical_json
from metarun.training import checkpoint
from metarun.training.run_state import Ledger
from metarun.types import Params


class Start(NamedTuple):
    """Parameters to begin with.

    Attributes:
      sha256: of their names, shapes, types and values.
      params: `(drawn) -> params`, given parameters that were drawn, whose shapes they have to have; raises `MetarunError`
        naming the first leaf that differs.
    """

    sha256: str
    params: Callable[[Params], Params]

    @property
    def protocol(self) -> dict[str, Any]:
        """What a protocol says of it."""
        return {INIT_FROM: {"sha256": self.sha256}}


def start_of(directory: object, begun: Mapping[str, Any] | None) -> Start | None:
    """Returns the parameters that `init_from=DIR` asks for; None without it.

    Args:
      directory: DIR, of a run, finished or not; what it calls is not looked at.
      begun: the identity of a checkpoint of the run that is to begin or goes on. Where that says that it began at DIR, DIR is
        not read again: it may be gone, or further by now.

    Raises:
      ConfigError: DIR is no run.
      MetarunError: it has no checkpoint that can be read.
    """
    if directory is None:
        return None
    if begun and begun.get(INIT_FROM) == directory and isinstance(begun.get(INIT_SHA256), str):
        return Start(begun[INIT_SHA256], lambda drawn: drawn)  # which the checkpoint's take the place of
    root = Path(str(directory)).expanduser()
    found = checkpoint.newest(root / "checkpoints", lambda text: None)
    if found is None:
        raise ConfigError(
            INIT_FROM, directory, "the directory of a run that has saved parameters, such as outputs/DATE/TIME"
        )
    leaves = _selected(found)
    digest = hashlib.sha256()
    for name, leaf in leaves.items():
        digest.update(canonical_json([name, list(leaf.shape), str(leaf.dtype)]).encode() + leaf.tobytes())

    def params(drawn: Params) -> Params:
        wanted = checkpoint.named_leaves(drawn)
        for name in {**wanted, **leaves}:
            here, there = (_in_words(each.get(name)) for each in (wanted, leaves))
            if here != there:
                raise MetarunError(
                    f"{INIT_FROM}={directory}: its parameters do not fit: {name} is {there} there and {here} here. Give the model "
                    "and the way of that run, and a method with the same parameters; or leave init_from out."
                )
        return jax.tree.unflatten(jax.tree.structure(drawn), [jnp.array(leaves[name]) for name in wanted])

    return Start(digest.hexdigest(), params)


def identity_of(start: Start | None) -> dict[str, str]:
    """What the identity of a run says of it beside the key."""
    return {INIT_SHA256: start.sha256} if start else {}


def _in_words(leaf: Any) -> str:
    return "absent" if leaf is None else f"{leaf.dtype} {list(leaf.shape)}"


def _selected(saved: checkpoint.Saved) -> dict[str, np.ndarray]:
    """The leaves of the parameters that a run has selected, by their names; of several, the best."""
    prefix = "selected/members/0/" if len(Ledger.of(saved).best) > 1 else "selected/"
    # A tree of names alone: of which network they are is not asked.
    template: dict[str, Any] = {}
    try:
        for name, (shape, dtype) in saved.leaves.items():
            if name.startswith(prefix):
                node = template
                *above, last = name.split("/")
                for part in above:
                    node = node.setdefault(part, {})
                node[last] = jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
    except (TypeError, AttributeError) as error:  # what a stranger may have written there
        raise MetarunError(f"Checkpoint {saved.path} is not one of a run: its leaves have other names.") from error
    found = checkpoint.named_leaves(checkpoint.load(saved, template, partial=True))
    return {name.removeprefix(prefix): leaf for name, leaf in found.items()}
