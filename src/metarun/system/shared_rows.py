"""One task computed by several devices, each of which has some rows of the task's arrays.

`by_rows` tells XLA so, whose partitioner does the rest. What goes over rows in a loop would have to wait for all of them at
every turn: it asks `sharing`, and lets each device go over its own.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.sharding import (
    AbstractMesh,
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    get_abstract_mesh,
    use_abstract_mesh,
)

ENOUGH = 16  # rows of a device: with fewer, devices wait for each other more than they compute


def enough(rows: int, devices: int) -> bool:
    """Whether an array of so many rows is worth sharing."""
    return rows >= ENOUGH * devices


def by_rows(fn: Callable[[Any], Any], mesh: Mesh) -> Callable[[Any], Any]:
    """`fn` of a pytree of arrays `[n, ...]`, with the same result but for rounding, computed by all devices of a mesh together.

    Each has some rows of those arrays that have enough, and of what is computed from them; all others it has whole.
    """
    rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    shared = lambda x: lax.with_sharding_constraint(x, rows) if enough(x.shape[0], mesh.size) else x

    def call(tree: Any) -> Any:
        with use_abstract_mesh(mesh.abstract_mesh):
            return fn(jax.tree.map(shared, tree))

    return call


def sharing(rows: int) -> AbstractMesh | None:
    """The devices that share arrays of so many rows in what is being traced; None where every device has them whole."""
    mesh = get_abstract_mesh()
    alone = mesh.empty or AxisType.Manual in mesh.axis_types or not enough(rows, mesh.size)
    return None if alone else mesh
