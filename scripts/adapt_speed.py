#!/usr/bin/env python
"""Measures how long a trained learner takes to adapt and to answer, from Python: `learner = metarun.load(DIR).adapt(x, y)`.

    python scripts/adapt_speed.py [--methods maml,protonet] [--shots 1,5] [--filters 64] [--repeats 200]

Tasks are of the size of Omniglot: pictures of 28x28, 5 ways, 15 queries a class; conv4. MAML and its kin take 5 inner steps. A
run of two outer steps is trained for each method: speed does not depend on what was learnt. Every adaptation is of other
pictures, from NumPy arrays, and is waited for. Prints a table.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import metarun
from metarun.system.machine import device_name

STEPWISE = ("maml", "fomaml", "anil", "boil", "meta_sgd", "cavia", "imaml", "proto_maml")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", default="maml,protonet")
    parser.add_argument("--shots", default="1,5")
    parser.add_argument("--filters", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=200)
    arguments = parser.parse_args()
    table = Table("method", "task", "first, s", "adapt, ms", "slowest", "75 answers, ms", box=None, pad_edge=False)
    with tempfile.TemporaryDirectory() as folder:
        for method in arguments.methods.split(","):
            settings: dict[str, Any] = {"model.filters": arguments.filters, "eval_query_shot": 5}
            if method in STEPWISE:
                settings["method.eval_inner_steps"] = 5
            place = Path(folder) / method
            run = metarun.train(f"method={method}", directory=place, steps=2, eval_every=0, eval_tasks=1, **settings)
            for shot in map(int, arguments.shots.split(",")):
                table.add_row(method, f"5-way {shot}-shot", *measured(run, shot, arguments.repeats))
    Console().print(f"{device_name(jax.devices())}, {arguments.repeats} adaptations each, medians")
    Console().print(table)


def measured(run: metarun.Run, shot: int, repeats: int) -> list[str]:
    """The cells of a row."""
    draw = np.random.default_rng(0)
    y = np.tile(np.arange(5), shot)

    def adapted() -> Any:
        learner = run.adapt(draw.random((5 * shot, 28, 28, 1), np.float32), y)
        jax.block_until_ready(learner.adapted)
        return learner

    first = seconds_of(adapted)
    each = [seconds_of(adapted) for _ in range(repeats)]
    learner, queries = adapted(), draw.random((75, 28, 28, 1), np.float32)
    learner.predict(queries)  # compiles
    answers = [seconds_of(lambda: learner.predict(queries)) for _ in range(repeats)]
    return [
        f"{first:.1f}",
        f"{1000 * statistics.median(each):.1f}",
        f"{1000 * max(each):.1f}",
        f"{1000 * statistics.median(answers):.1f}",
    ]


def seconds_of(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
