#!/usr/bin/env python
"""Measures how a training step scales with devices and processes, fits a model of its time, and predicts with it.

    python scripts/device_scaling.py [--seconds 2] [--rounds 3] [--json FILE]

The work is A of `scripts/benchmark.py` (MAML, exact second order, Conv-4, 28x28x1), whose gradient has 112,000 numbers; a
smaller one, with 8 filters, shows what is not computation. Every form is measured in processes of its own, in turn.

The model of a step of N tasks on D devices that compute at once:

    seconds = fixed + ceil(N / D) * task + all_reduce(D)
    all_reduce = 2 log2(D) latency + 2 (D - 1) / D bytes / bandwidth

`fixed` and `task` are fitted to one device, `latency` and `bandwidth` to all-reduces alone. The steps of two devices and
of two processes are then predicted, and held against what was measured.
"""

import argparse
import json
import math
import os
import socket
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import nnls

META_BATCHES = (2, 8, 32)
GRADIENTS = tuple(4**power for power in range(4, 14))  # bytes: 256 B to 64 MiB, more than a ResNet-12's
# (processes, devices of each). On two cores, more than two devices show what sharding costs, and no speed.
FORMS = ((1, 1), (1, 2), (2, 1), (1, 4), (1, 8))
FILTERS = (64, 8)


class Model(NamedTuple):
    """Of the seconds of a step.

    Attributes:
      fixed: of a step without tasks.
      task: of one task on one device.
      latency: of one message between devices.
      bandwidth: bytes a second between them.
      gradient: bytes of the gradient.
    """

    fixed: float
    task: float
    latency: float
    bandwidth: float
    gradient: int

    def all_reduce(self, devices: int) -> float:
        if devices == 1:
            return 0.0
        return 2 * math.log2(devices) * self.latency + 2 * (devices - 1) / devices * self.gradient / self.bandwidth

    def terms(self, num_tasks: int, devices: int) -> dict[str, float]:
        """Seconds of what a step consists of; "idle" is what devices wait where tasks do not divide evenly."""
        share = num_tasks / devices
        return {
            "fixed": self.fixed,
            "tasks": share * self.task,
            "idle": (math.ceil(share) - share) * self.task,
            "all-reduce": self.all_reduce(devices),
        }

    def seconds(self, num_tasks: int, devices: int) -> float:
        return sum(self.terms(num_tasks, devices).values())


def fitted(steps: Mapping[int, float], reduced: Mapping[int, float], gradient: int) -> Model:
    """The model of measured seconds: of steps by number of tasks on one device, of all-reduces by bytes between two."""
    fixed, task = _line(steps)
    constant, slope = _line(reduced)
    # Between two: 2 latency + bytes / bandwidth.
    return Model(fixed, task, constant / 2, 1 / slope if slope else math.inf, gradient)


def _line(points: Mapping[int, float]) -> tuple[float, float]:
    """Intercept and slope, each 0 or more, by least squares of relative errors."""
    x, y = np.array(list(points), float), np.array(list(points.values()))
    scale = x.max()  # the two columns are then of one size, as the solver's tolerance asks
    (intercept, slope), _ = nnls(np.stack([1 / y, x / scale / y], 1), np.ones_like(y))
    return float(intercept), float(slope / scale)


def measured(rounds: int, seconds: float) -> dict[str, Any]:
    """Medians over rounds, in each of which every form is measured once."""
    found: list[dict[str, Any]] = []
    for number in range(rounds):
        for processes, devices in FORMS:
            print(f"round {number + 1}: {processes} x {devices}", file=sys.stderr, flush=True)
            found.append(_in_processes(processes, devices, seconds))
    steps = [
        {
            "processes": processes,
            "devices": devices,
            "filters": filters,
            "tasks": num_tasks,
            "seconds": statistics.median(values),
            "spread": [min(values), max(values)],
        }
        for processes, devices in FORMS
        for filters in FILTERS
        for num_tasks in META_BATCHES
        for values in [
            [each["steps"][f"{filters} {num_tasks}"] for each in found if each["form"] == [processes, devices]]
        ]
    ]
    reduced = [
        {"processes": processes, "devices": devices, "bytes": size, "seconds": statistics.median(values)}
        for processes, devices in FORMS
        if processes * devices > 1
        for size in GRADIENTS
        for values in [[each["reduced"][str(size)] for each in found if each["form"] == [processes, devices]]]
    ]
    return {"steps": steps, "reduced": reduced, "gradient": found[0]["gradient"]}


def _in_processes(processes: int, devices: int, seconds: float) -> dict[str, Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    cores = sorted(os.sched_getaffinity(0))
    started = []
    for number in range(processes):
        # As many cores as devices, as far as there are any; each process its own, as a scheduler gives them.
        own = cores[number * devices : (number + 1) * devices] or cores
        command = [sys.executable, __file__, "--child", json.dumps([processes, number, address, seconds])]
        pin = ["taskset", "-c", ",".join(map(str, own))]
        started.append(subprocess.Popen(pin + command, env=environment, stdout=subprocess.PIPE, text=True))
    said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit("A measuring process has failed.")
    # Gloo says things of its own before.
    return {"form": [processes, devices], **json.loads(said[0].splitlines()[-1])}


def child(processes: int, number: int, address: str, seconds: float) -> dict[str, Any]:
    """Measures the steps and all-reduces of this process and its siblings."""
    from metarun.data.cache import cache_dir
    from metarun.system import backend
    from metarun.system.several_processes import join

    backend.set_up(cache_dir() / "compiled")
    if processes > 1:
        join(address, processes, number)
    import jax
    from jax import lax
    from jax.sharding import PartitionSpec

    from bench import recipe
    from metarun.compiled.task_map import default_layout, placed

    layout, steps, gradient = default_layout(), {}, {}
    for filters in FILTERS:
        for num_tasks in META_BATCHES:
            work = recipe.CONFIGS["A"]._replace(filters=filters, meta_batch_size=num_tasks)
            trial = recipe.experiment(work, layout)
            state = trial.init()
            gradient[filters] = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
            steps[f"{filters} {num_tasks}"] = _seconds(
                lambda state, n, trial=trial: trial.step(state, n)[0], state, seconds
            )
    reduced = {}
    for size in GRADIENTS:

        def summed(x, n):
            body = lambda _, x: lax.psum(x, "task") * 0.5
            return jax.shard_map(
                lambda x, n: lax.fori_loop(0, n, body, x),
                mesh=layout.mesh,
                in_specs=(PartitionSpec(), PartitionSpec()),
                out_specs=PartitionSpec(),
                check_vma=False,
            )(x, n)

        program = jax.jit(summed)
        call = lambda x, n, program=program: program(x, placed(np.int32(n), layout.replicated))
        reduced[str(size)] = _seconds(call, placed(np.ones(size // 4, np.float32), layout.replicated), seconds / 4)
    return {"steps": steps, "reduced": reduced, "gradient": gradient}


def _seconds(call: Any, state: Any, seconds: float) -> float:
    """Seconds of one repetition in `call(state, repetitions) -> state`, of as many as take about `seconds`."""
    import time

    import jax

    from metarun.system.several_processes import largest

    def timed(state, number):
        began = time.perf_counter()
        state = jax.block_until_ready(call(state, number))
        return time.perf_counter() - began, state

    _, state = timed(state, 1)
    once, state = timed(state, 2)
    number = largest(max(1, min(2000, int(seconds / (once / 2)))))  # that all of them do the same
    took, _ = timed(state, number)
    return took / number


# What is assumed of accelerators, for want of one to measure: the fraction of the peak that such a step reaches, and the
# network between them. The model's form is what was measured here; these numbers are not.
ASSUMED = {
    "peak": 495e12,  # FLOP/s of an H100's TensorFloat-32, without sparsity, by its data sheet
    "fraction": 0.05,
    "fixed": 50e-6,
    "latency": 5e-6,
    "bandwidth": 50e9,  # bytes/s of one 400 Gbit/s port for each accelerator
}
ACCELERATORS = (1, 8, 64, 512)
FLOPS_A_TASK = 1.4e9  # counted by XLA: `scripts/benchmark.py --config A --profile DIR`


def predicted(gradient: int) -> dict[tuple[int, int], dict[str, float]]:
    """{(tasks, accelerators): terms of the step's seconds}, by assumption."""
    task = FLOPS_A_TASK / (ASSUMED["peak"] * ASSUMED["fraction"])
    model = Model(ASSUMED["fixed"], task, ASSUMED["latency"], ASSUMED["bandwidth"], gradient)
    return {
        (num_tasks, number): model.terms(num_tasks, number) for num_tasks in (32, 512, 8192) for number in ACCELERATORS
    }


def table(found: Mapping[str, Any]) -> str:
    """The measurements beside the model's words, and its predictions, in Markdown."""
    lines = []
    for filters in FILTERS:
        gradient = int(found["gradient"][str(filters)])
        steps = {
            (each["processes"], each["devices"], each["tasks"]): each["seconds"]
            for each in found["steps"]
            if each["filters"] == filters
        }
        alone = {tasks: steps[1, 1, tasks] for tasks in META_BATCHES}
        models = {
            form: fitted(
                alone,
                {e["bytes"]: e["seconds"] for e in found["reduced"] if (e["processes"], e["devices"]) == form},
                gradient,
            )
            for form in ((1, 2), (2, 1))
        }
        between = models[2, 1]
        lines += [
            f"### {filters} filters, a gradient of {gradient / 1e3:.0f} kB",
            "",
            f"Fitted: fixed {1e6 * between.fixed:.0f} us, task {1e3 * between.task:.2f} ms. Between two processes: latency "
            f"{1e6 * between.latency:.0f} us, bandwidth {between.bandwidth / 1e9:.2f} GB/s; between two devices of one: "
            f"{1e6 * models[1, 2].latency:.0f} us, {models[1, 2].bandwidth / 1e9:.2f} GB/s.",
            "",
            "| processes x devices | tasks | tasks/s, measured | ideal | of ideal | model |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for processes, devices in FORMS:
            cores = min(processes * devices, 2)
            for tasks in META_BATCHES:
                took, best = steps[processes, devices, tasks], alone[tasks] / cores
                model = models.get((processes, devices))
                said = (
                    f"{tasks / model.seconds(tasks, 2):.4g}"
                    if model
                    else ""
                    if devices > 1
                    else f"{tasks / between.seconds(tasks, 1):.4g}"
                )
                lines.append(
                    f"| {processes} x {devices} | {tasks} | {tasks / took:.4g} | {tasks / best:.4g} | "
                    f"{100 * best / took:.0f}% | {said} |"
                )
        lines.append("")
    lines += [
        "### Predicted, not measured",
        "",
        "| tasks | accelerators | step | tasks/s | of ideal | limited by |",
        "| ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for (tasks, number), terms in predicted(int(found["gradient"]["64"])).items():
        whole = sum(terms.values())
        limit = max(terms, key=terms.get)
        lines.append(
            f"| {tasks} | {number} | {1e6 * whole:.0f} us | {tasks / whole:,.0f} | {100 * terms['tasks'] / whole:.0f}% | "
            f"{limit} ({100 * terms[limit] / whole:.0f}%) |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement; 2")
    parser.add_argument("--rounds", type=int, default=3, help="in each of which every form is measured once; 3")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="where the measurements go; read from there if it exists"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(child(*json.loads(options.child))))
        return 0
    if options.json and options.json.exists():
        found = json.loads(options.json.read_text())
    else:
        found = json.loads(json.dumps(measured(options.rounds, options.seconds)))
        if options.json:
            options.json.write_text(json.dumps(found) + "\n")
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
