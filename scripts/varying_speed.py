#!/usr/bin/env python
"""What tasks of varying size cost: training tasks a second beside those of the mean size, where all have it.

    python scripts/varying_speed.py                             # prototypical networks, way=[5,20], glyphs
    python scripts/varying_speed.py --size shot=1,10 method=maml dataset=omniglot dataset.source=DIR

Rounds alternate between the range and the fixed numbers on either side of its mean. A rate is the median over rounds, by
the clock and by processor time, which other work on the machine does not lengthen as much.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median

import jax

from metarun.assembly.few_shot_run import build
from metarun.commands.console import told, whole
from metarun.config.composing import composed
from metarun.data.cache import cache_dir
from metarun.errors import ConfigError, positive_range
from metarun.system import backend

DEFAULT = ("method=protonet", "shot=1", "query_shot=5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="way=5,20", metavar="KEY=LOW,HIGH", help="what varies: way or shot")
    parser.add_argument("--rounds", default="5", help="how often each is measured; 5")
    parser.add_argument("--steps", default="50", help="outer steps of a measurement; 50")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where every round is written")
    parser.add_argument("settings", nargs="*", default=DEFAULT, metavar="KEY=VALUE", help="of metarun")
    sys.exit(told(lambda: _run(parser.parse_intermixed_args())))


def _run(options: argparse.Namespace) -> None:
    """Measures as the options ask for, and prints the table."""
    rounds, steps = (whole(f"--{name}", getattr(options, name)) for name in ("rounds", "steps"))
    key, _, ends = options.size.partition("=")
    numbers = [int(end) if end.isdecimal() else end for end in ends.split(",")]
    if key not in ("way", "shot") or len(numbers) != 2:
        raise ConfigError("--size", options.size, "such as way=5,20 or shot=1,10")
    low, high = positive_range(f"--size {key}", numbers)
    backend.set_up(cache_dir() / "compiled")
    middle = (low + high) / 2
    fixed = sorted({math.floor(middle), math.ceil(middle)})
    of = {f"{key}=[{low},{high}]": f"{key}=[{low},{high}]"} | {f"{key}={size}": f"{key}={size}" for size in fixed}
    measured = {name: _stepper([*options.settings, size], steps) for name, size in of.items()}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in of}
    for _ in range(rounds):
        for name, once in measured.items():
            found[name].append(once())
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    rates = {name: [median(each[i] for each in its) for i in range(2)] for name, its in found.items()}
    print(f"{'tasks/s, by clock and processor':<34}")
    for name, (clock, processor) in rates.items():
        print(f"{name:<34}{clock:9.1f}{processor:9.1f}")
    varying, *of_fixed = rates.values()
    # A task of the mean size takes the mean of the times of its neighbours.
    ratios = [varying[i] * mean(1 / each[i] for each in of_fixed) for i in range(2)]
    print(f"{'ratio to the mean size':<34}{ratios[0]:9.2f}{ratios[1]:9.2f}")


def _stepper(settings: Sequence[str], steps: int) -> Callable[[], tuple[float, float]]:
    """Returns what takes so many outer steps and says the tasks a second, by the clock and by processor time."""
    experiment = build(*composed(settings)).experiment
    state, _ = experiment.step(experiment.init(), steps)
    jax.block_until_ready(state)
    kept = [state]

    def once() -> tuple[float, float]:
        began, used = time.perf_counter(), time.process_time()
        state, _ = experiment.step(kept[0], steps)
        kept[0] = jax.block_until_ready(state)
        tasks = steps * experiment.tasks_per_step
        return tasks / (time.perf_counter() - began), tasks / (time.process_time() - used)

    return once


if __name__ == "__main__":
    main()
