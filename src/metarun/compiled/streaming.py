"""Items that stay on the host: gathered for the tasks of given keys, and ahead of the step that wants them."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from metarun.errors import MetarunError
from metarun.types import Array, Stream

_AHEAD = 2  # outer steps: one is on its way to the device while the next is gathered


def host_device() -> jax.Device:
    """The processor of the host: computing there does not wait for the steps that an accelerator has queued."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        return jax.local_devices()[0]


def gatherer(stream: Stream) -> Callable[[Array], tuple[np.ndarray, Any]]:
    """Returns `keys: [n] -> (items: [n, k, *item], rest)`, what `stream.cut` needs for the tasks of these keys."""
    host = host_device()
    index = jax.device_put(stream.index, host)
    choose = jax.jit(jax.vmap(stream.choose, (None, 0)))

    def gather(keys):
        rows, rest = choose(index, jax.device_put(keys, host))
        return stream.items[np.asarray(rows)], rest

    return gather


class Prefetch:
    """`fetch(0)`, `fetch(1)`, ... computed in a thread, ahead of being asked for.

    Asking for another number than the next one is allowed, and begins anew from there. An error of `fetch` is raised
    where its result is asked for, as a `MetarunError`: what was saved is whole, and the same command continues.
    """

    def __init__(self, fetch: Callable[[int], Any]):
        self._fetch = fetch
        self._thread = ThreadPoolExecutor(1, "prefetch")
        self._begun: dict[int, Future] = {}

    def __call__(self, number: int) -> Any:
        wanted = range(number, number + 1 + _AHEAD)
        for other in set(self._begun) - set(wanted):
            self._begun.pop(other).cancel()
        for each in wanted:
            if each not in self._begun:
                self._begun[each] = self._thread.submit(self._fetch, each)
        try:
            return self._begun.pop(number).result()
        except (OSError, ValueError, RuntimeError) as error:
            raise MetarunError(
                f"The images of step {number + 1} cannot be read ({error}). Once they can, the same command continues from "
                "the newest checkpoint."
            ) from error
