"""How a function of one task becomes one of a meta-batch: chunks of tasks in turn, sharded over the devices.

On a CPU, one task at a time on each core is fastest: its activations stay in the cache, and convolutions whose kernels
differ between tasks never become grouped ones. On an accelerator all tasks of a device go at once. Where there are fewer
tasks than cores, all cores compute one task after the other, each with some of its examples.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from metarun.system.shared_rows import enough
from metarun.types import Array, Metrics, Params

_AXIS = "task"


class Layout(NamedTuple):
    """Where tasks are computed.

    Attributes:
      mesh: the devices of all processes, along one axis.
      chunk: tasks that a device computes at once; None: all of them.
      together: whether all devices compute a gradient task by task, each with some of the task's rows, see `shared_rows`.
    """

    mesh: Mesh
    chunk: int | None
    together: bool = False

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of what every device needs whole: parameters, data."""
        return NamedSharding(self.mesh, PartitionSpec())

    def of_tasks(self, num_tasks: int) -> NamedSharding:
        """The sharding of `num_tasks` tasks along their leading axis; whole where they do not divide evenly."""
        even = num_tasks % self.mesh.size == 0
        return NamedSharding(self.mesh, PartitionSpec(_AXIS)) if even else self.replicated

    def for_host(self, num_tasks: int) -> NamedSharding:
        """The sharding of what the host reads of `num_tasks` tasks: where it was computed, and no core waits for another.

        Whole on every device where other processes hold some of them.
        """
        return self.of_tasks(num_tasks) if self.replicated.is_fully_addressable else self.replicated

    def chunk_of(self, num_tasks: int) -> int:
        """Tasks that a device computes at once, of a meta-batch of `num_tasks`."""
        if self.together:
            return 1
        share = -(-num_tasks // self.mesh.size)
        return min(self.chunk or share, share)

    def of_few(self, num_tasks: int, rows: int) -> "Layout":
        """The layout, or where `num_tasks` are too few for the cores of a CPU, that in which these compute them together.

        `rows` are those of a task's larger set. Cores of several processes do not: a task takes dozens of messages, and
        between processes each takes milliseconds.
        """
        one_cpu = self.mesh.devices.flat[0].platform == "cpu" and self.replicated.is_fully_addressable
        return self._replace(together=one_cpu and num_tasks < self.mesh.size and enough(rows, self.mesh.size))

    def cached(self, num_tasks: int, at_once: int) -> "Layout":
        """The layout with chunks of no more than `at_once` tasks on a CPU, so that what is kept of them fits its cache.

        Of the sizes up to `at_once`, it is the largest that parts a device's share of `num_tasks` evenly.
        """
        if self.mesh.devices.flat[0].platform != "cpu":
            return self
        share = -(-num_tasks // self.mesh.size)
        most = min(self.chunk_of(num_tasks), at_once)
        return self._replace(chunk=max(size for size in range(1, most + 1) if share % size == 0))


def placed(tree: Any, sharding: NamedSharding) -> Any:
    """Arrays as they are on the devices of `sharding`, some of which other processes may hold.

    Args:
      tree: pytree of arrays, of which every process has the same.
      sharding: of each of them.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def place(leaf):
        if getattr(leaf, "sharding", None) == sharding:
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, whole.__getitem__)

    return jax.tree.map(place, tree)


def default_layout() -> Layout:
    """All devices; tasks one by one on a CPU's cores, together on an accelerator."""
    devices = jax.devices()
    mesh = jax.make_mesh((len(devices),), (_AXIS,), axis_types=(AxisType.Auto,), devices=devices)
    return Layout(mesh, 1 if devices[0].platform == "cpu" else None)


def frugal_layouts(layout: Layout, num_tasks: int) -> list[Layout]:
    """Returns `layout` and ever more frugal ones for `num_tasks`: its chunk, halves of it, and so on down to 1."""
    chunk = layout.chunk_of(num_tasks)
    layouts = [layout._replace(chunk=chunk)]
    while chunk > 1:
        chunk = -(-chunk // 2)
        layouts.append(layout._replace(chunk=chunk))
    return layouts


def map_tasks(fn: Callable[..., Any], layout: Layout, shared: Any, tasks: Any) -> Any:
    """Stacks `fn(shared, task)` over a leading task axis of any length.

    Args:
      fn: function of what the tasks share and of one task.
      layout: where to compute.
      shared: pytree that every call gets whole.
      tasks: pytree with a leading axis `[num_tasks, ...]`.

    Returns:
      What `fn` returns, with a leading axis `[num_tasks, ...]`.
    """
    chunks, num_tasks = _chunks(layout, layout.mesh.size, tasks)

    def on_device(shared, chunks):
        return lax.map(lambda chunk: _each(lambda task: fn(shared, task), chunk), chunks)

    out = _sharded(on_device, layout, 1, stacked=True)(shared, chunks)
    return jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])[:num_tasks], out)


def mean_gradient(
    loss_fn: Callable[[Params, Any, Any], tuple[Array, Metrics]],
    layout: Layout,
    params: Params,
    shared: Any,
    tasks: Any,
) -> tuple[Params, Metrics]:
    """Gradient of the mean of `loss_fn(params, shared, task)[0]` over tasks, and the mean of its metrics.

    The gradient is accumulated chunk by chunk, so that memory is that of one chunk a device.

    Args:
      loss_fn: `(params, shared, task) -> (scalar, metrics)`.
      layout: where to compute; if devices do so together, `loss_fn` parts its work by `shared_rows.by_rows`.
      params: what to differentiate in.
      shared: pytree that every call gets whole.
      tasks: pytree with a leading axis `[num_tasks, ...]`.

    Returns:
      `(gradient, metrics)`, the gradient of `params`' structure.
    """
    parts = 1 if layout.together else layout.mesh.size
    chunks, num_tasks = _chunks(layout, parts, tasks)
    counted, _ = _chunks(layout, parts, jnp.ones(num_tasks), padding=jnp.zeros)

    def on_device(params, shared, chunks, counted):
        def chunk_loss(params, chunk, counted):
            losses, metrics = _each(lambda task: loss_fn(params, shared, task), chunk)
            total = lambda x: jnp.where(counted > 0, x, 0).sum()
            return total(losses), jax.tree.map(total, metrics)

        def add(sums, chunk_and_count):
            (_, metrics), gradient = jax.value_and_grad(chunk_loss, has_aux=True)(params, *chunk_and_count)
            return jax.tree.map(jnp.add, sums, (gradient, metrics)), None

        first = jax.tree.map(lambda x: x[0], (chunks, counted))
        _, metrics = jax.eval_shape(chunk_loss, params, *first)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (params, metrics))
        sums, _ = lax.scan(add, zeros, (chunks, counted))
        return jax.tree.map(lambda x: x / num_tasks, _over_devices(sums) if parts > 1 else sums)

    mapped = on_device if layout.together else _sharded(on_device, layout, 2, stacked=False)
    return mapped(params, shared, chunks, counted)


def _each(fn, chunk):
    """vmap over a chunk; a chunk of one task is computed unbatched, which keeps its convolutions ungrouped."""
    if jax.tree.leaves(chunk)[0].shape[0] > 1:
        return jax.vmap(fn)(chunk)
    return jax.tree.map(lambda x: x[None], fn(jax.tree.map(lambda x: x[0], chunk)))


def _over_devices(sums):
    """Sums over the devices, in one message for each dtype: between machines, every message costs its latency."""
    leaves, structure = jax.tree.flatten(sums)
    for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
        places = [place for place, leaf in enumerate(leaves) if leaf.dtype == dtype]
        joined, split = ravel_pytree([leaves[place] for place in places])
        for place, leaf in zip(places, split(lax.psum(joined, _AXIS)), strict=True):
            leaves[place] = leaf
    return structure.unflatten(leaves)


def _chunks(layout, parts, tasks, padding=None):
    """`[num_tasks, ...]` -> `[num_chunks, chunk, ...]`, num_chunks a multiple of `parts`; the last task fills up."""
    num_tasks = jax.tree.leaves(tasks)[0].shape[0]
    chunk = layout.chunk_of(num_tasks)
    missing = -num_tasks % (chunk * parts)

    def reshape(x):
        if missing == 0:
            return x.reshape(-1, chunk, *x.shape[1:])
        fill = padding((missing, *x.shape[1:]), x.dtype) if padding else jnp.repeat(x[-1:], missing, axis=0)
        return jnp.concatenate([x, fill]).reshape(-1, chunk, *x.shape[1:])

    return jax.tree.map(reshape, tasks), num_tasks


def _sharded(fn, layout, num_shared, *, stacked):
    """`fn` on every device: its first `num_shared` arguments whole, the others split along their first axis."""
    split = PartitionSpec(_AXIS)

    def call(*args):
        specs = tuple(PartitionSpec() if i < num_shared else split for i in range(len(args)))
        out = split if stacked else PartitionSpec()
        return jax.shard_map(fn, mesh=layout.mesh, in_specs=specs, out_specs=out, check_vma=False)(*args)

    return call
