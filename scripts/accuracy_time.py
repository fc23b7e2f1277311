#!/usr/bin/env python
"""Test accuracy against seconds: metarun, and the same MAML in PyTorch, on the same stream of tasks.

    python scripts/accuracy_time.py --source DIR --output DIR --peers PYTHON [--seconds 300]

The work is `experiment=finn2017/maml_omniglot_5w1s`: Omniglot 5-way 1-shot with the settings of the authors' code (Finn et
al. 2017). PyTorch does it as its users write it (bench/torch_maml.py), once task by task and once with all tasks of a step
together. All begin with the same parameters, and read the same tasks in the same order.

Each trains in a process of its own, one after the other, on all cores. The clock starts with the process, so that
imports and compiling count. Parameters are kept on the way. In the end metarun tests all of them on the same test tasks.
Writes accuracy.png and accuracy.json, and prints a table.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metarun.commands.console import told, whole
from metarun.errors import MetarunError, positive_float
from metarun.types import Experiment

_BEGAN = time.perf_counter() - time.process_time()
EXPERIMENT = "finn2017/maml_omniglot_5w1s"
OURS = "metarun"
PEERS = ("loop", "vmap")
_FIRST = 5.0  # seconds, of the first moment
_DISPATCH = 20  # outer steps, after which the clock is read
_SEED = 0


class Point(NamedTuple):
    """Parameters of a moment: seconds since the process began, outer steps, test accuracy with half its 95% interval."""

    seconds: float
    steps: int
    value: float
    ci95: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, metavar="DIR", help="of Omniglot's archives, as dataset.source")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a folder that is new")
    parser.add_argument(
        "--peers", type=Path, metavar="PYTHON", help="a Python that has PyTorch; left out: metarun alone"
    )
    parser.add_argument("--seconds", type=float, default=300.0, help="of each; 300")
    parser.add_argument(
        "--stream", default="4000", metavar="STEPS", help="outer steps whose tasks PyTorch may read; 4000"
    )
    parser.add_argument("--moments", default="16", help="at which parameters are kept; 16")
    parser.add_argument("--eval-tasks", default="600", help="test tasks; 600")
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)  # as the process of metarun
    sys.exit(told(lambda: _run(parser.parse_args())))


def _run(options: argparse.Namespace) -> None:
    seconds = positive_float("--seconds", options.seconds)
    spread = moments(seconds, whole("--moments", options.moments))
    if options.train:
        return _train(options.source, options.output, spread, seconds)
    stream, tasks = whole("--stream", options.stream), whole("--eval-tasks", options.eval_tasks)
    try:
        options.output.mkdir(parents=True)
    except FileExistsError:
        raise MetarunError(f"--output={options.output}: expected a folder that is not there yet.") from None
    common = ["--source", options.source, "--output", str(options.output), "--seconds", str(seconds)]
    commands = {OURS: [sys.executable, __file__, *common, "--moments", options.moments, "--train"]}
    if options.peers:
        script = Path(__file__).parent / "bench" / "torch_maml.py"
        for mode in PEERS:
            said = ["--mode", mode, "--seconds", str(seconds), "--moments", ",".join(map(str, spread))]
            commands[mode] = [str(options.peers), str(script), str(options.output), *said]
    experiment = built(options.source)
    first_loss = write_work(experiment, options.source, options.output, stream)
    told_by = {}
    for name, command in commands.items():
        print(f"{name}: {seconds:g} seconds", file=sys.stderr, flush=True)
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise MetarunError(f"{name} failed: {done.stderr.strip()[-2000:]}")
        told_by[name] = json.loads(done.stdout.splitlines()[-1])
        if not math.isclose(told_by[name]["first_loss"], first_loss, rel_tol=1e-3):
            raise MetarunError(
                f"{name} is at work of another kind: its first loss is {told_by[name]['first_loss']}, not {first_loss}."
            )
    curves = {name: tested(experiment, options.output / name, tasks) for name in commands}
    found = {name: {**told_by[name], "points": [point._asdict() for point in curves[name]]} for name in commands}
    (options.output / "accuracy.json").write_text(json.dumps(found, indent=1))
    draw(curves, options.output / "accuracy.png")
    print(table(curves, told_by, experiment.tasks_per_step))


def moments(seconds: float, number: int) -> list[float]:
    """Moments up to the last second, closer together at first."""
    first = min(_FIRST, seconds / 2)
    return [round(float(each), 3) for each in np.geomspace(first, seconds, number)]


def built(source: str) -> Experiment:
    """The experiment, as `metarun` makes it."""
    from metarun.assembly.few_shot_run import build
    from metarun.config.composing import composed
    from metarun.data.cache import cache_dir
    from metarun.system import backend

    backend.set_up(cache_dir() / "compiled")
    settings = [f"experiment={EXPERIMENT}", f"dataset.source={source}", f"seed={_SEED}"]
    return build(*composed(settings)).experiment


def write_work(experiment: Experiment, source: str, folder: Path, steps: int) -> float:
    """Writes what PyTorch needs: the tasks of the first outer steps, the parameters that it begins with, and the settings.

    Returns:
      The loss of the first outer step.

    Raises:
      MetarunError: the tasks are not those that metarun trains on.
    """
    import jax
    import jax.numpy as jnp

    from metarun.config.composing import composed
    from metarun.data.omniglot import omniglot
    from metarun.few_shot.meta_training import task_keys

    config = composed([f"experiment={EXPERIMENT}", f"dataset.source={source}"])[0]
    train = omniglot(
        way=config.way,
        shot=config.shot,
        query_shot=config.query_shot,
        source=source,
        test_rotations=True,
        rotations=True,
    ).train
    root_key = jax.random.split(jax.random.key(_SEED))[1]
    index = jnp.arange(config.meta_batch_size)

    @jax.jit
    def drawn(data: Any, step: Any) -> Any:
        return jax.vmap(lambda i: train.sample(data, task_keys(root_key, step, i)[0]))(index)

    state = experiment.init()
    begins = experiment.inspect(state)
    for part, ours in zip(begins.tasks, drawn(train.data, jnp.int32(0)), strict=True):
        if not np.array_equal(part.x, ours.x) or not np.array_equal(part.y, ours.y):
            raise MetarunError("The tasks that would be written are not those of the first outer step.")
    shape = len(index), config.way * (config.shot + config.query_shot)
    images = np.lib.format.open_memmap(
        folder / "images.npy", "w+", np.uint8, (steps, *shape, *begins.tasks.support.x.shape[2:4])
    )
    labels = np.lib.format.open_memmap(folder / "labels.npy", "w+", np.int32, (steps, *shape))
    for step in range(steps):
        task = drawn(train.data, jnp.int32(step))
        images[step] = np.rint(255 * np.concatenate([part.x[..., 0] for part in task], 1))
        labels[step] = np.concatenate([part.y for part in task], 1)
    np.savez(folder / "start.npz", **flattened(state.params))
    settings = {
        "way": config.way,
        "support": config.way * config.shot,
        "inner_lr": config.method.inner_lr,
        "inner_steps": config.method.inner_steps,
        "outer_lr": config.outer_lr,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    return float(begins.loss.mean())


def flattened(params: Any) -> dict[str, np.ndarray]:
    """Parameters by their places, such as "conv0/kernel"."""
    from flax.traverse_util import flatten_dict

    return {name: np.asarray(leaf) for name, leaf in flatten_dict(params, sep="/").items()}


def _train(source: str, folder: Path, spread: Sequence[float], seconds: float) -> None:
    """metarun's process: trains, and keeps the parameters of each moment."""
    experiment = built(source)
    state, left, output = experiment.init(), list(spread), folder / OURS
    output.mkdir()
    first_loss = None
    now = 0.0
    while now < seconds:
        state, metrics = experiment.step(state, 1 if first_loss is None else _DISPATCH)
        first_loss = float(metrics["loss"]) if first_loss is None else first_loss
        steps = int(state.step)
        now = time.perf_counter() - _BEGAN
        if left and now >= left[0]:
            np.savez(output / f"{steps:07d}.npz", seconds=now, **flattened(state.params))
            left = [each for each in left if each > now]
    print(json.dumps({"steps": steps, "seconds": now, "first_loss": first_loss}))


def tested(experiment: Experiment, folder: Path, tasks: int) -> list[Point]:
    """The test accuracy of all parameters that were kept in a folder."""
    from flax.traverse_util import unflatten_dict

    points = []
    for file in sorted(folder.glob("*.npz")):
        with np.load(file) as arrays:
            params = unflatten_dict({name: array for name, array in arrays.items() if name != "seconds"}, sep="/")
            found = experiment.evaluate(params, "test", tasks)
            points.append(Point(float(arrays["seconds"]), int(file.stem), found.value, found.ci95))
    return points


def seconds_to(level: float, curve: Sequence[Point]) -> float | None:
    """When a curve first reaches a level, between its points on a straight line; None: never."""
    before = Point(0.0, 0, 0.0, 0.0)
    for point in curve:
        if point.value >= level:
            if before.steps == 0:
                return point.seconds
            return before.seconds + (point.seconds - before.seconds) * (level - before.value) / (
                point.value - before.value
            )
        before = point
    return None


def table(curves: Mapping[str, Sequence[Point]], told_by: Mapping[str, Mapping[str, Any]], tasks_per_step: int) -> str:
    """Of each, tasks a second, the last accuracy, and seconds to 90% and 95%."""
    lines = [f"{'':10}{'tasks/s':>9}{'at the end':>16}{'s to 90%':>10}{'s to 95%':>10}"]
    for name, curve in curves.items():
        rate = told_by[name]["steps"] * tasks_per_step / told_by[name]["seconds"]
        last = f"{100 * curve[-1].value:.2f} ± {100 * curve[-1].ci95:.2f}" if curve else "-"
        reached = [seconds_to(level, curve) for level in (0.90, 0.95)]
        lines.append(
            f"{name:10}{rate:9.0f}{last:>16}" + "".join(f"{'-' if s is None else round(s):>10}" for s in reached)
        )
    return "\n".join(lines)


def draw(curves: Mapping[str, Sequence[Point]], output: Path) -> None:
    """The picture: accuracy against seconds, with intervals over tasks."""
    from matplotlib.ticker import LogFormatter, PercentFormatter

    from metarun.report.figure import LABEL_SIZE, PALETTE, panels, quiet, save

    figure, (axes,) = panels(1, width=6.5, height=4.2)
    quiet(axes, "MAML on Omniglot, 5-way 1-shot: test accuracy by time")
    words = {OURS: "metarun", "loop": "PyTorch, task by task", "vmap": "PyTorch, torch.func.vmap"}
    for (name, curve), color in zip(curves.items(), PALETTE, strict=False):
        seconds, values = [point.seconds for point in curve], [point.value for point in curve]
        axes.errorbar(
            seconds, values, [point.ci95 for point in curve], color=color, marker="o", markersize=3, label=words[name]
        )
    axes.axhline(0.95, color="#767676", linewidth=0.8, linestyle="--")
    axes.set_xscale("log")
    for of_axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        of_axis(LogFormatter(minor_thresholds=(2, 0.5), labelOnlyBase=False))
    axes.set_xlabel("seconds since Enter", fontsize=LABEL_SIZE)
    axes.set_ylabel("accuracy", fontsize=LABEL_SIZE)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend(frameon=False, fontsize=LABEL_SIZE)
    save(figure, output)


if __name__ == "__main__":
    main()
