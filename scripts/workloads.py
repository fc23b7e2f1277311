#!/usr/bin/env python
"""The speed of training steps that users run, beside PyTorch on the same tasks and from the same parameters.

    python scripts/workloads.py [NAME ...] [--peers PYTHON] [--rounds 3] [--seconds 10] [--precision P ...] [--json FILE]
    python scripts/workloads.py NAME --profile FOLDER        # the operations of its step by their time

    A, B, C       MAML as in benchmark.py, on glyphs
    protonet_60   prototypical network, 60-way 1-shot episodes with 5 queries a class, Conv-4 with pooling, 28x28
    maml_20w5s    MAML with exact second order, 20-way 5-shot, 5 queries a class, 5 inner steps, Conv-4, 28x28
    resnet12      prototypical network, 5-way 1-shot, 15 queries a class, ResNet-12, 84x84 in colour
    snail         SNAIL, 5-way 1-shot, the network that Mishra et al. 2018 have for Omniglot, 32 tasks a step
    rl2           RL2 on bandits of 5 arms, trials of 100 pulls, as Duan et al. 2016 train it

The last two have no peer. PYTHON is an interpreter with PyTorch. The peer is a loop over tasks in plain PyTorch, see
`bench/torch_workloads.py`, with each of two layouts of memory, and of MAML by `torch.func.vmap` over tasks as well; the fastest counts whose
loss of the first task is ours. Metarun draws its tasks within the step; the peer finds them in memory. All are measured in turn, each in a
process of its own, on a GPU where JAX and PyTorch have one. There this says how far metarun is from the card and from PyTorch:

    python scripts/workloads.py A B C resnet12 --precision float32 tensorfloat32 bfloat16 --peers PYTHON --rounds 1 --seconds 5

Prints tasks a second, medians over rounds, the ratio with its range by round, and the share of the rate of the machine's matrix product, by the
multiplications that the method asks for.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench import torch_peer
from bench.hotspots import enable_tracing, profile
from bench.peers import OURS, line_of
from metarun.commands.console import told, whole
from metarun.config.schema import FEW_SHOT, RL
from metarun.errors import MetarunError
from metarun.system.backend import PRECISIONS, matmul_precision, set_up

# Commands of `metarun` and `metarun-rl`, which have no peer.
COMMANDS = {
    "snail": (FEW_SHOT, ["experiment=mishra2018/snail_omniglot_5w1s", "dataset=glyphs"]),
    "rl2": (RL, ["experiment=duan2016/rl2_bandit_5_100"]),
}
_TASKS = 16  # for the peer
_MAML = {"method": "maml", "network": "conv4", "outer_lr": 0.001}
_A = {"downsample": "stride", "inner_steps": 1, "inner_lr": 0.4, "meta_batch_size": 32, "image_size": 28}
_SIZES = {"way": 5, "shot": 1, "query_shot": 15}
# What both sides are told: the sizes of a task and of a step, the network and the method.
WORKLOADS: dict[str, dict[str, Any]] = {
    "A": {**_MAML, **_A, **_SIZES},
    "B": {**_MAML, **_A, **_SIZES, "inner_steps": 5},
    "C": {
        **{**_MAML, **_SIZES, "downsample": "max_pool", "filters": 32, "inner_steps": 5, "inner_lr": 0.01},
        **{"meta_batch_size": 4, "image_size": 84},
    },
    "protonet_60": {
        **{"method": "protonet", "network": "conv4", "downsample": "max_pool"},
        **{"way": 60, "shot": 1, "query_shot": 5, "meta_batch_size": 1, "image_size": 28, "outer_lr": 0.001},
    },
    "maml_20w5s": {
        **{**_MAML, **_A, "inner_steps": 5, "inner_lr": 0.1},
        **{"way": 20, "shot": 5, "query_shot": 5, "meta_batch_size": 4},
    },
    "resnet12": {
        **{"method": "protonet", "network": "resnet12"},
        **{**_SIZES, "meta_batch_size": 2, "image_size": 84, "outer_lr": 0.001},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="workloads; all")
    parser.add_argument("--peers", metavar="PYTHON", help="an interpreter that has PyTorch")
    parser.add_argument("--rounds", default="3", help="measurements of each; 3")
    parser.add_argument("--seconds", default="10", help="of a measurement, after warming up; 10")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["float32"], help="of products; float32")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where every measurement is written")
    parser.add_argument("--profile", type=Path, metavar="FOLDER", help="trace a few steps of one workload into it")
    parser.add_argument("--own", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    sys.exit(told(lambda: _run(parser.parse_args())))


def _run(options: argparse.Namespace) -> None:
    rounds, seconds = (whole(f"--{name}", getattr(options, name)) for name in ("rounds", "seconds"))
    known = [*WORKLOADS, *COMMANDS]
    names = options.names or known
    if unknown := [name for name in names if name not in known]:
        raise MetarunError(f"{unknown[0]}: expected one of {', '.join(known)}.")
    if options.profile and len(names) > 1:
        raise MetarunError(f"--profile takes one workload, of {', '.join(known)}.")
    if options.own:
        print(json.dumps(_own(names[0], options.own, seconds, options.precision[0])))
        return
    if options.profile:
        enable_tracing()
        with tempfile.TemporaryDirectory() as folder:
            print(profile(_prepared(names[0], Path(folder), options.precision[0]).experiment, options.profile))
        return
    found = {}
    print(f"{'workload':<28}{'metarun':>10}{'peer':>10}{'ratio':>8}  {'by round':<16}{'of matmul':>10}")
    for name in names:
        for precision in options.precision:
            with tempfile.TemporaryDirectory() as folder:
                lines = _in_turn(name, Path(folder), options.peers, rounds, seconds, precision)
            found[f"{name}, {precision}"] = lines
            print(_row(f"{name}, {precision}", lines), flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


def _in_turn(
    name: str, folder: Path, peer: str | None, rounds: int, seconds: int, precision: str
) -> dict[str, list[dict[str, Any]]]:
    """Who -> the lines of its measurements."""
    own = ["--own", str(folder), "--seconds", str(seconds), "--precision", precision]
    commands = {OURS: [sys.executable, __file__, name, *own]}
    if peer is not None and name in WORKLOADS:
        commands |= torch_peer.commands(peer, folder, WORKLOADS[name]["method"], seconds, precision)
    lines: dict[str, list[dict[str, Any]]] = {who: [] for who in commands}
    for _ in range(rounds):
        for who in list(lines):
            try:
                lines[who].append(line_of(commands[who], own=who == OURS))
                if who != OURS:
                    torch_peer.check_same(lines[OURS][0]["first_loss"], lines[who][-1]["first_loss"], precision)
            except MetarunError as error:
                if who == OURS:
                    raise
                print(f"{name} in PyTorch, {who}, is left out: {str(error).splitlines()[-1]}", file=sys.stderr)
                del lines[who]
    return lines


def _row(name: str, lines: dict[str, list[dict[str, Any]]]) -> str:
    rates = {who: [line["tasks_per_s"] for line in of] for who, of in lines.items()}
    own, medians = rates.pop(OURS), {who: statistics.median(of) for who, of in rates.items()}
    share = statistics.median(line["of_matmul"] for line in lines[OURS])
    text = f"{name:<28}{statistics.median(own):>10.4g}"
    if medians:
        best = max(medians, key=lambda who: medians[who])
        ratios = [ours / theirs for ours, theirs in zip(own, rates[best], strict=True)]
        text += f"{medians[best]:>10.4g}{statistics.median(own) / medians[best]:>8.2f}"
        text += f"  {f'{min(ratios):.2f} to {max(ratios):.2f}':<16}"
    else:
        text += f"{'':>10}{'':>8}  {'':<16}"
    return text + f"{share:>10.2f}"


class Prepared(NamedTuple):
    """A workload of metarun's, with the operations of a task by the definition, and the loss of the first task."""

    experiment: Any
    work: float
    first_loss: float | None


def _own(name: str, folder: Path, seconds: int, precision: str) -> dict[str, Any]:
    """Measures metarun's training step; on the first call it writes into the folder what the peer needs."""
    prepared = _prepared(name, folder, precision)
    from bench import meter
    from metarun.compiled.task_map import default_layout

    timing = meter.time_steps(prepared.experiment, seconds)
    with matmul_precision(precision):
        peak = meter.matmul_peak(default_layout())
    return {
        "tasks_per_s": timing.tasks_per_s,
        "first_loss": prepared.first_loss,
        "of_matmul": timing.tasks_per_s * prepared.work / peak,
    }


def _prepared(name: str, folder: Path, precision: str) -> Prepared:
    from metarun.data.cache import cache_dir

    set_up(cache_dir() / "compiled")
    if name in COMMANDS:
        part, settings = COMMANDS[name]
        return _of_command(part, [*settings, f"precision={precision}"])
    return _beside_a_peer(WORKLOADS[name], folder, precision)


def _of_command(part: str, settings: Sequence[str]) -> Prepared:
    import jax
    import numpy as np

    from bench import flops
    from metarun.api.training import built
    from metarun.config.composing import composed

    experiment = built(part, *composed(settings, part), Path("no run")).experiment
    program = experiment.program
    steps = program.steps(program.variants[0], program.chunks[0])
    one_step = lambda state: steps(state, *program.given, np.int32(1))
    # A device's part is what the trace has.
    work = flops.count_flops(one_step, jax.eval_shape(experiment.init)) * program.layout.mesh.size
    return Prepared(experiment, work / experiment.tasks_per_step, None)


def _beside_a_peer(settings: Mapping[str, Any], folder: Path, precision: str) -> Prepared:
    import jax

    from bench import flops, recipe
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
    side, filters = settings["image_size"], settings.get("filters", 64)
    image = (side, side, 1 if side == 28 else 3)
    if settings["network"] == "conv4":
        downsample = settings["downsample"]
        model = conv4(num_outputs=outputs, filters=filters, downsample=downsample, precision=precision)
    else:
        model = resnet12(num_outputs=outputs, precision=precision)
    if side == 28:
        data = glyphs(**sizes)
    else:
        data = mixture(domains={"glyphs": {}}, image_size=side, channels=3, **sizes)
    shared: dict[str, Any] = {"objective": "classification", "query_statistics": "query"}
    if settings["method"] == "maml":
        inner = {name: settings[name] for name in ("inner_lr", "inner_steps")}
        method = maml(model=model, **shared, **inner)
        of_sizes = {name: settings[name] for name in ("downsample", "meta_batch_size")} | inner | sizes
        counted = recipe.outer_loss(recipe.Work(image=image, filters=filters, **of_sizes))
    else:
        method = protonet(encoder=model, num_outputs=way, **shared)
        counted = lambda params, task: method.loss(params, task, jax.random.key(0))[0]
    experiment = few_shot_experiment(
        {"": method}, data, adam(outer_lr=settings["outer_lr"], steps=1), [default_layout()], seed=0, eval_seed=0,
        meta_batch_size=settings["meta_batch_size"], protocol={}, precision=precision,
    )  # fmt: skip
    params = experiment.init().params
    draw = jax.jit(lambda key: data.train.sample(data.train.data, key))
    tasks = [draw(key) for key in jax.random.split(jax.random.key(1), _TASKS)]
    with matmul_precision(precision):
        first_loss = float(jax.jit(method.loss)(params, tasks[0], jax.random.key(0))[0])
    if not (folder / "settings.json").exists():
        torch_peer.write(folder, settings, params, tasks)
    return Prepared(experiment, flops.count_flops(jax.grad(counted), params, tasks[0]), first_loss)


if __name__ == "__main__":
    main()
