#!/usr/bin/env python
"""The speed of training steps that users run, beside PyTorch on the same tasks and from the same parameters.

    python scripts/workloads.py [NAME ...] [--peers PYTHON] [--rounds 3] [--seconds 10] [--json FILE]

    protonet_60   prototypical network, 60-way 1-shot episodes with 5 queries a class, Conv-4 with pooling, 28x28
    maml_20w5s    MAML with exact second order, 20-way 5-shot, 5 queries a class, 5 inner steps, Conv-4, 28x28
    resnet12      prototypical network, 5-way 1-shot, 15 queries a class, ResNet-12, 84x84 in colour

PYTHON is an interpreter with PyTorch. The peer is a loop over tasks in plain PyTorch, see `bench/torch_workloads.py`, with each of two layouts of
memory; the faster counts. Its loss of the first task has to be ours. Metarun draws its tasks within the step; the peer finds them in memory. All
are measured in turn, each in a process of its own.

Prints tasks a second, medians over rounds, the ratio with its range by round, and the share of the rate of the machine's matrix product, by the
multiplications that the method asks for.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.peers import OURS, line_of
from metarun.commands.console import told, whole
from metarun.errors import MetarunError

LAYOUTS = ("contiguous", "channels_last")
_TASKS = 16  # for the peer
# What both sides are told: the sizes of a task and of a step, the network and the method.
WORKLOADS: dict[str, dict[str, Any]] = {
    "protonet_60": {
        **{"method": "protonet", "network": "conv4", "downsample": "max_pool"},
        **{"way": 60, "shot": 1, "query_shot": 5, "meta_batch_size": 1, "image_size": 28, "outer_lr": 0.001},
    },
    "maml_20w5s": {
        **{"method": "maml", "network": "conv4", "downsample": "stride", "inner_steps": 5, "inner_lr": 0.1},
        **{"way": 20, "shot": 5, "query_shot": 5, "meta_batch_size": 4, "image_size": 28, "outer_lr": 0.001},
    },
    "resnet12": {
        **{"method": "protonet", "network": "resnet12"},
        **{"way": 5, "shot": 1, "query_shot": 15, "meta_batch_size": 2, "image_size": 84, "outer_lr": 0.001},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="workloads; all")
    parser.add_argument("--peers", metavar="PYTHON", help="an interpreter that has PyTorch")
    parser.add_argument("--rounds", default="3", help="measurements of each; 3")
    parser.add_argument("--seconds", default="10", help="of a measurement, after warming up; 10")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where every measurement is written")
    parser.add_argument("--own", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    sys.exit(told(lambda: _run(parser.parse_args())))


def _run(options: argparse.Namespace) -> None:
    rounds, seconds = (whole(f"--{name}", getattr(options, name)) for name in ("rounds", "seconds"))
    names = options.names or list(WORKLOADS)
    if unknown := [name for name in names if name not in WORKLOADS]:
        raise MetarunError(f"{unknown[0]}: expected one of {', '.join(WORKLOADS)}.")
    if options.own:
        print(json.dumps(_own(WORKLOADS[names[0]], options.own, seconds)))
        return
    found = {}
    print(f"{'workload':<14}{'metarun':>10}{'peer':>10}{'ratio':>8}  {'by round':<16}{'of matmul':>10}")
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = _in_turn(name, Path(folder), options.peers, rounds, seconds)
        print(_row(name, found[name]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


def _in_turn(name: str, folder: Path, peer: str | None, rounds: int, seconds: int) -> dict[str, list[dict[str, Any]]]:
    """Who -> the lines of its measurements."""
    own = [sys.executable, __file__, name, "--own", str(folder), "--seconds", str(seconds)]
    commands = {OURS: own}
    if peer is not None:
        script = str(Path(__file__).parent / "bench" / "torch_workloads.py")
        for layout in LAYOUTS:
            commands[layout] = [peer, script, str(folder), "--layout", layout, "--seconds", str(seconds)]
    lines: dict[str, list[dict[str, Any]]] = {who: [] for who in commands}
    for _ in range(rounds):
        for who, command in commands.items():
            lines[who].append(line_of(command, own=who == OURS))
            ours, theirs = lines[OURS][0]["first_loss"], lines[who][-1]["first_loss"]
            if abs(theirs - ours) > 1e-3 * abs(ours):
                raise MetarunError(f"{name}: the first loss is {ours:g} here and {theirs:g} in PyTorch: no comparison.")
    return lines


def _row(name: str, lines: dict[str, list[dict[str, Any]]]) -> str:
    rates = {who: [line["tasks_per_s"] for line in of] for who, of in lines.items()}
    own, medians = rates.pop(OURS), {who: statistics.median(of) for who, of in rates.items()}
    share = statistics.median(line["of_matmul"] for line in lines[OURS])
    text = f"{name:<14}{statistics.median(own):>10.4g}"
    if medians:
        best = max(medians, key=lambda who: medians[who])
        ratios = [ours / theirs for ours, theirs in zip(own, rates[best], strict=True)]
        text += f"{medians[best]:>10.4g}{statistics.median(own) / medians[best]:>8.2f}"
        text += f"  {f'{min(ratios):.2f} to {max(ratios):.2f}':<16}"
    else:
        text += f"{'':>10}{'':>8}  {'':<16}"
    return text + f"{share:>10.2f}"


def _own(settings: Mapping[str, Any], folder: Path, seconds: int) -> dict[str, Any]:
    """Measures metarun's training step; on the first call it writes into the folder what the peer needs."""
    from metarun.data.cache import cache_dir
    from metarun.system import backend

    backend.set_up(cache_dir() / "compiled")
    import jax
    import numpy as np
    from flax.traverse_util import flatten_dict

    from bench import flops, meter, recipe
    from metarun.compiled.task_map import default_layout
    from metarun.data.glyphs import glyphs
    from metarun.data.mixture import mixture
    from metarun.few_shot.experiment import few_shot_experiment
    from metarun.few_shot.methods.maml import maml
    from metarun.few_shot.methods.protonet import protonet
    from metarun.models.conv4 import conv4
    from metarun.models.resnet12 import resnet12
    from metarun.training.optimizers import adam

    way, sizes = settings["way"], {name: settings[name] for name in ("way", "shot", "query_shot")}
    outputs = way if settings["method"] == "maml" else None
    if settings["network"] == "conv4":
        model, data = conv4(num_outputs=outputs, downsample=settings["downsample"]), glyphs(**sizes)
    else:
        model = resnet12(num_outputs=outputs)
        data = mixture(domains={"glyphs": {}}, image_size=settings["image_size"], channels=3, **sizes)
    shared: dict[str, Any] = {"objective": "classification", "query_statistics": "query"}
    if settings["method"] == "maml":
        inner = {name: settings[name] for name in ("inner_lr", "inner_steps")}
        method = maml(model=model, **shared, **inner)
        of_sizes = {name: settings[name] for name in ("downsample", "meta_batch_size")} | inner | sizes
        counted = recipe.outer_loss(recipe.Work(image=(28, 28, 1), filters=64, **of_sizes))
    else:
        method = protonet(encoder=model, num_outputs=way, **shared)
        counted = lambda params, task: method.loss(params, task, jax.random.key(0))[0]
    layout = default_layout()
    experiment = few_shot_experiment(
        {"": method}, data, adam(outer_lr=settings["outer_lr"], steps=1), [layout], seed=0, eval_seed=0,
        meta_batch_size=settings["meta_batch_size"], protocol={},
    )  # fmt: skip
    params = experiment.init().params
    draw = jax.jit(lambda key: data.train.sample(data.train.data, key))
    tasks = [draw(key) for key in jax.random.split(jax.random.key(1), _TASKS)]
    first_loss = float(jax.jit(method.loss)(params, tasks[0], jax.random.key(0))[0])
    if not (folder / "settings.json").exists():
        named = {name: np.asarray(leaf) for name, leaf in flatten_dict(params, sep="/").items()}
        np.savez(folder / "start.npz", **named)
        parts = {
            f"{part}_{array}": np.stack([np.asarray(getattr(getattr(task, part), array)) for task in tasks])
            for part in ("support", "query")
            for array in ("x", "y")
        }
        np.savez(folder / "tasks.npz", **parts)
        (folder / "settings.json").write_text(json.dumps(settings))
    timing = meter.time_steps(experiment, seconds)
    work = flops.count_flops(jax.grad(counted), params, tasks[0])
    return {
        "tasks_per_s": timing.tasks_per_s,
        "first_loss": first_loss,
        "of_matmul": timing.tasks_per_s * work / meter.matmul_peak(layout),
    }


if __name__ == "__main__":
    main()
