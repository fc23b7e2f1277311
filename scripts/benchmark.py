#!/usr/bin/env python
"""Measures metarun: MAML on fixed random tasks, on the very step that `metarun` trains with.

    python scripts/benchmark.py --config A --json               # speed, memory and start-up, in one line
    python scripts/benchmark.py --config A --check              # loss and meta-gradients, to be held against others'
    python scripts/benchmark.py --config A --peers PYTHON --peer-scripts DIR
    python scripts/benchmark.py --config A --profile DIR        # where the time goes
    python scripts/benchmark.py --scaling DIR --beside PYTHON   # speed and memory by the size of the work
    python scripts/benchmark.py --config C --streaming          # images from the host, held against the device's
    python scripts/benchmark.py --sampler | --evaluation | --methods

The work is 5-way 1-shot, 15 queries a class, exact second order, Conv-4 with the statistics of the set at hand, Adam.
A: 28x28x1, stride 2, 64 filters, 1 inner step, 32 tasks a step. B: A with 5 inner steps. C: 84x84x3, 2x2 max-pool,
32 filters, 5 inner steps, 4 tasks a step.

Compiled programs are kept where `metarun` keeps them; a folder of one's own in JAX_COMPILATION_CACHE_DIR makes a cold
start.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metarun.errors import MetarunError
from metarun.system import backend

# When the process started: until here it has only computed. All that is slow to import comes later.
_BEGAN = time.perf_counter() - time.process_time()
_CONFIGS = ("A", "B", "C")
_CACHE_EVENT = "/jax/compilation_cache/cache_"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one measurement, prints it, and returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        found, text = _measure(options)
    except MetarunError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found) if options.json else text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=_CONFIGS, default="A", help="the work; A by default")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.add_argument("--seconds", type=_positive(float), default=10.0, help="of a measurement after warming up; 10")
    parser.add_argument(
        "--rounds", type=_positive(int), default=5, help="with --peers and --streaming, measurements of each; 5"
    )
    parser.add_argument("--peer-scripts", type=Path, metavar="DIR", help="with --peers, the folder of their scripts")
    parser.add_argument("--beside", metavar="PYTHON", help="with --scaling, a Python with PyTorch, which does the same")
    parser.add_argument("--precision", choices=backend.PRECISIONS, default="float32", help="of products; float32")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="loss and meta-gradient norms, first and second order")
    what.add_argument("--peers", type=Path, metavar="PYTHON", help="the Python of other libraries to run in turn")
    what.add_argument("--profile", type=Path, metavar="DIR", help="trace a few steps, and list the operations by time")
    what.add_argument("--scaling", type=Path, metavar="DIR", help="table and picture over the sizes of A")
    what.add_argument("--sampler", action="store_true", help="drawing tasks alone")
    what.add_argument(
        "--streaming", action="store_true", help="images that stay on the host, and on the device in turn"
    )
    what.add_argument("--evaluation", action="store_true", help="evaluating 600 tasks")
    what.add_argument("--methods", action="store_true", help="the training step of each method")
    return parser


def _positive(kind: type) -> Any:
    def parse(text: str) -> Any:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text}: expected a number above 0")
        return value

    return parse


def _measure(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Returns what was found, as JSON holds it and in words."""
    if options.peers:
        # Without JAX: on Linux a new process begins with its parent's peak memory.
        from bench import peers

        if options.peer_scripts is None:
            raise MetarunError("--peers needs --peer-scripts=DIR, the folder of the scripts that it runs.")
        found = peers.compare(options.config, options.peers, options.peer_scripts, options.rounds, options.seconds)
        return found, peers.table(found)

    from metarun.data.cache import cache_dir

    if options.profile:
        from bench import hotspots

        hotspots.enable_tracing()
    backend.set_up(cache_dir() / "compiled")
    import jax

    jax.config.update("jax_default_matmul_precision", backend.PRECISIONS[options.precision])

    from bench import recipe
    from metarun.compiled.task_map import default_layout
    from metarun.system.machine import device_name

    layout, work = default_layout(), recipe.CONFIGS[options.config]._replace(precision=options.precision)
    if options.profile:
        table = hotspots.profile(recipe.experiment(work, layout), options.profile)
        return {"config": options.config, "table": table}, table
    if options.scaling:
        from bench import scaling

        points = scaling.measure(layout, options.seconds, options.beside)
        scaling.write(points, options.scaling, device_name(layout.mesh.devices.flat))
        return scaling.plain(points), scaling.table(points)
    if options.check:
        from bench import check

        found = {"config": options.config, **check.meta_gradients(work, layout)}
    elif options.sampler or options.streaming or options.evaluation or options.methods:
        from bench import parts

        if options.sampler:
            found = parts.sampler(layout, options.seconds)
        elif options.streaming:
            found = {"config": options.config, **parts.streaming(work, layout, options.rounds, options.seconds)}
        else:
            found = parts.evaluation(layout) if options.evaluation else parts.methods(options.seconds)
    else:
        found = {"config": options.config, **speed(work, layout, options.seconds)}
    width = max(len(name) for name in found)
    return found, "\n".join(f"{name:{width}}  {value}" for name, value in found.items())


def speed(work: Any, layout: Any, seconds: float) -> dict[str, Any]:
    """Measures the training step.

    Args:
      work: the `recipe.Work`.
      layout: where tasks are computed.
      seconds: how long, after warming up.

    Returns:
      The entries of the line of JSON. `first_step_s`: from the start of the process to the end of the first step;
      `compile_s`: of that, what the first step took beyond a later one; `fraction_of_matmul_peak`: FLOP/s of the step
      over `matmul_gflops`, those of the best square matrix product on the same devices; `others_cores`, `steal_cores`: cores that other
      work and the host of a virtual machine took meanwhile.
    """
    import jax

    from bench import flops, meter, recipe
    from metarun.system.machine import device_name, versions

    events: Counter[str] = Counter()
    jax.monitoring.register_event_listener(lambda event, **_: events.update([event]))
    start: dict[str, Any] = {}

    def on_first() -> None:
        loaded, compiled = events[f"{_CACHE_EVENT}hits"], events[f"{_CACHE_EVENT}misses"]
        start["first_step_s"] = time.perf_counter() - _BEGAN
        start["compile_cache"] = ("partly warm" if compiled else "warm") if loaded else "cold"

    timing = meter.time_steps(recipe.experiment(work, layout), seconds, on_first)
    memory = meter.peak_rss_mb(), meter.peak_device_mb()  # before what follows adds its own
    task = jax.tree.map(lambda x: x[0], next(recipe.meta_batches(work)))
    flops_per_task = flops.count_flops(jax.grad(recipe.outer_loss(work)), recipe.weights(work), task)
    peak = meter.matmul_peak(layout)
    found = {
        "tasks_per_s": timing.tasks_per_s,
        "peak_rss_mb": memory[0],
        "peak_device_mb": memory[1],
        "flops_per_task": flops_per_task,
        "matmul_gflops": peak / 1e9,
        "fraction_of_matmul_peak": timing.tasks_per_s * flops_per_task / peak,
        **start,
        "compile_s": timing.first_s - timing.step_s,
        "ms_per_step": 1000 * timing.step_s,
        "steps": timing.steps,
        "last_loss": timing.loss,
        **timing.load,
        "device": device_name(layout.mesh.devices.flat),
        "num_devices": layout.mesh.size,
        "versions": versions(),
    }
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in found.items()}


if __name__ == "__main__":
    sys.exit(main())
