"""What is read off the machine while a step runs: time, memory, other work, and how fast it multiplies matrices."""

import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.sharding import PartitionSpec

from metarun.compiled.task_map import Layout
from metarun.types import Experiment

_MOST_STEPS = 50  # of one dispatch, as in `metarun`
# Of the measurement of matrix products: products of a dispatch, so that the dispatch itself does not count; dispatches,
# of which the fastest counts; sides of the matrices.
_PRODUCTS = 4
_REPEATS = 10
_SIDES = {"cpu": (512, 1024)}
_ACCELERATOR_SIDES = (4096, 8192)
_MIB = 2**20


class Clock(NamedTuple):
    """Seconds since some moment: wall time, this process's CPU time, and the whole machine's busy and stolen time.

    The last two are None on a system that does not tell.
    """

    wall: float
    own: float
    busy: float | None
    stolen: float | None

    @classmethod
    def now(cls) -> "Clock":
        busy = stolen = None
        stat = Path("/proc/stat")
        if stat.exists():
            # user, nice, system, idle, iowait, irq, softirq, steal; see proc_stat(5).
            ticks = [int(field) / os.sysconf("SC_CLK_TCK") for field in stat.read_text().split()[1:9]]
            busy, stolen = sum(ticks[i] for i in (0, 1, 2, 5, 6)), ticks[7]
        return cls(time.perf_counter(), time.process_time(), busy, stolen)

    def load(self, then: "Clock") -> dict[str, float | None]:
        """Cores in use from `then` to now: by this process, by others, and withheld by the host of a virtual machine."""
        wall = self.wall - then.wall
        own = self.own - then.own
        known = self.busy is not None
        return {
            "cpu_over_wall": own / wall,
            "others_cores": max(0.0, self.busy - then.busy - own) / wall if known else None,
            "steal_cores": (self.stolen - then.stolen) / wall if known else None,
        }


class Timing(NamedTuple):
    """How fast a training step is.

    Attributes:
      tasks_per_s: of the timed dispatches.
      first_s: seconds of the first dispatch, one step: tracing, compiling or loading, running.
      step_s: mean seconds of a timed step.
      steps: timed steps.
      loss: mean over the steps of the last dispatch.
      load: see `Clock.load`.
    """

    tasks_per_s: float
    first_s: float
    step_s: float
    steps: int
    loss: float
    load: dict[str, float | None]


def time_steps(experiment: Experiment, seconds: float, on_first: Callable[[], None] = lambda: None) -> Timing:
    """Trains from the start: one step to compile, one dispatch to warm up, then dispatches for about `seconds`.

    Args:
      experiment: what to train.
      seconds: how long; at least one dispatch is timed.
      on_first: called after the first step.
    """
    state = jax.block_until_ready(experiment.init())
    first_s, (state, _) = timed(lambda: experiment.step(state, 1))
    on_first()
    step_s, (state, _) = timed(lambda: experiment.step(state, 1))
    per_dispatch = max(1, min(_MOST_STEPS, int(seconds / 10 / step_s)))
    # Now that the program is in the caches, and long enough to bring an accelerator to its clock.
    _, (state, _) = timed(lambda: experiment.step(state, per_dispatch))
    steps, began = 0, Clock.now()
    while steps == 0 or time.perf_counter() - began.wall < seconds:
        state, metrics = jax.block_until_ready(experiment.step(state, per_dispatch))
        steps += per_dispatch
    ended = Clock.now()
    step_s = (ended.wall - began.wall) / steps
    rate = experiment.tasks_per_step / step_s
    return Timing(rate, first_s, step_s, steps, float(metrics["loss"]), ended.load(began))


def timed(call: Callable[[], object]) -> tuple[float, object]:
    """Returns the seconds until the result of `call()` is there, and the result."""
    began = time.perf_counter()
    result = jax.block_until_ready(call())
    return time.perf_counter() - began, result


def repeat(call: Callable[[], object], seconds: float) -> float:
    """Returns the mean seconds of a `call()`, of as many as fit in about `seconds`, after one to compile."""
    jax.block_until_ready(call())
    calls, began = 0, time.perf_counter()
    while calls == 0 or time.perf_counter() - began < seconds:
        jax.block_until_ready(call())
        calls += 1
    return (time.perf_counter() - began) / calls


def peak_rss_mb() -> float:
    """The most memory that this process has held on the host, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (_MIB if sys.platform == "darwin" else 1024)  # bytes there, KiB elsewhere


def peak_device_mb() -> float | None:
    """The most memory that a device has held, in MiB; None where it does not tell, as a CPU."""
    found = [device.memory_stats() for device in jax.local_devices()]
    return max(stats["peak_bytes_in_use"] for stats in found) / _MIB if all(found) else None


def compiled_step() -> Any:
    """The training step of the one experiment that is alive, XLA's executable: the longest program there is."""
    alive = jax.local_devices()[0].client.live_executables()
    return max(alive, key=lambda program: len(program.hlo_modules()[0].to_string()))


def matmul_peak(layout: Layout) -> float:
    """FLOP/s of the best square float32 matrix product on all devices at once, at JAX's default precision."""
    platform = layout.mesh.devices.flat[0].platform
    return max(_matmul_rate(layout, side) for side in _SIDES.get(platform, _ACCELERATOR_SIDES))


def _matmul_rate(layout: Layout, side: int) -> float:
    def products(x):
        return lax.fori_loop(0, _PRODUCTS, lambda _, y: x @ y, x, unroll=True)

    spec = PartitionSpec(layout.mesh.axis_names)
    sharded = jax.jit(jax.shard_map(products, mesh=layout.mesh, in_specs=spec, out_specs=spec))
    # Of spectral radius one or so, so that no product overflows.
    x = jax.random.normal(jax.random.key(0), (layout.mesh.size * side, side)) / side**0.5
    x = jax.device_put(x, jax.NamedSharding(layout.mesh, spec))
    jax.block_until_ready(sharded(x))
    seconds = min(timed(lambda: sharded(x))[0] for _ in range(_REPEATS))
    return _PRODUCTS * 2 * side**3 * layout.mesh.size / seconds
