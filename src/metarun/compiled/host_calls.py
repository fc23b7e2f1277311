"""Functions of the host in compiled programs, called once for all that is computed side by side."""

from collections.abc import Callable

import jax
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from metarun.types import Array

# Bytes of an array that the host is handed. JAX copies those above 100 KiB in threads of its own, and where all of these
# wait for the host, as several devices of a CPU do, they wait for ever.
_MOST = 64 * 1024


def on_host(fn: Callable[[np.ndarray], np.ndarray], size: int) -> Callable[[Array], Array]:
    """Makes a function of one row of what computes many rows on the host.

    Under any number of `vmap`s the host is called once on each device, for all of its rows. Derivatives are those of a constant.

    Args:
      fn: `[n, width]` float32 -> `[n, size]` float32, each row from its own alone. It must not raise, which would end the
        process. Several threads call it at once where a CPU has several devices.
      size: of a row of the result.

    Returns:
      `[width]` -> `[size]`, both float32.
    """

    def joined(*blocks: Array) -> np.ndarray:
        return fn(np.concatenate([np.asarray(block) for block in blocks]))

    @custom_vmap
    def call(rows: Array) -> Array:
        *batch, width = rows.shape
        flat = rows.reshape(-1, width)
        step = max(1, _MOST // (flat.dtype.itemsize * width))
        blocks = [flat[begin : begin + step] for begin in range(0, len(flat), step)]
        shape = jax.ShapeDtypeStruct((len(flat), size), flat.dtype)
        return jax.pure_callback(joined, shape, *blocks).reshape(*batch, size)

    @call.def_vmap
    def _(axis_size: int, in_batched: list[bool], rows: Array) -> tuple[Array, bool]:
        del axis_size, in_batched  # the one argument is batched
        return call(rows), True

    return lambda row: call(lax.stop_gradient(row))
