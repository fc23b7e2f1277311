"""Sources of tasks as an experiment uses them: their data on the devices, or streamed from the host."""

from collections.abc import Callable, Sequence

import jax

from metarun.compiled.streaming import gatherer
from metarun.compiled.task_map import Layout, placed
from metarun.types import Array, Task, TaskSource


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


def sampler(source: TaskSource, layout: Layout, stream: bool) -> Callable[[Array], Task]:
    """Returns `keys: [n] -> tasks`, with a leading axis `[n]`."""
    if stream:
        gather, cut = gatherer(source.stream), jax.jit(jax.vmap(source.stream.cut))
        return lambda keys: cut(*placed(gather(keys), layout.replicated))
    sample = jax.jit(jax.vmap(source.sample, (None, 0)))
    return lambda keys: sample(source.data, keys)
