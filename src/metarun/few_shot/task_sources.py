"""Sources of tasks as an experiment uses them: their data on the devices, or streamed from the host."""

from collections.abc import Callable, Sequence

import jax

from metarun.compiled.streaming import gatherer
from metarun.compiled.task_map import Layout, placed
from metarun.errors import MetarunError
from metarun.system.backend import jit_quickly
from metarun.types import Array, Stream, Task, TaskSource


def held(sources: Sequence[TaskSource], layout: Layout, stream: bool) -> list[TaskSource]:
    """The sources with their data where they stay: on the devices, an array that several share placed once; or nowhere."""
    if stream:
        return [source._replace(data=()) for source in sources]
    found = {}

    def place(leaf):
        if id(leaf) not in found:
            found[id(leaf)] = placed(leaf, layout.replicated)
        return found[id(leaf)]

    return [source._replace(data=jax.tree.map(place, source.data)) for source in sources]


def stream_of(source: TaskSource) -> Stream:
    """The stream of a source that has one.

    Raises:
      MetarunError: it has none.
    """
    if source.stream is None:
        raise MetarunError("The tasks of this data set cannot be streamed from the host: give memory.stream=false.")
    return source.stream


def sampler(source: TaskSource, layout: Layout, stream: bool) -> Callable[[Array], Task]:
    """Returns `keys: [n] -> tasks`, with a leading axis `[n]`."""
    if stream:
        streamed = stream_of(source)
        gather, cut = gatherer(streamed), jax.jit(jax.vmap(streamed.cut))
        return lambda keys: cut(*placed(gather(keys), layout.replicated))
    sample = jit_quickly(jax.vmap(source.sample, (None, 0)))
    return lambda keys: sample(source.data, keys)
