"""One of the workloads of `workloads.py` in PyTorch, as its users write it. It needs PyTorch and NumPy alone.

    PYTHON torch_workloads.py FOLDER --layout contiguous|channels_last --seconds S

FOLDER is what `workloads.py` has written: settings, tasks and initial parameters. Tasks are in memory before the clock starts. Prints a
line of JSON with the rate, and the loss of the first task before training.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch_maml import EPSILON, LAYERS, from_flax, gradient

LEAK = 0.1
WARM_UP = 2  # steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layout", choices=("contiguous", "channels_last"), required=True)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    layout = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}[options.layout]
    settings = json.loads((options.folder / "settings.json").read_text())
    with np.load(options.folder / "start.npz") as start:
        params = {name: from_flax(name, array).requires_grad_() for name, array in start.items()}
    with np.load(options.folder / "tasks.npz") as arrays:
        tasks = [
            tuple(
                torch.from_numpy(arrays[name][number].transpose(0, 3, 1, 2).copy()).to(memory_format=layout)
                if name.endswith("x")
                else torch.from_numpy(arrays[name][number].astype(np.int64))
                for name in ("support_x", "support_y", "query_x", "query_y")
            )
            for number in range(len(arrays["support_x"]))
        ]
    network, loss = NETWORKS[settings["network"]], LOSSES[settings["method"]]
    optimizer = torch.optim.Adam(params.values(), settings["outer_lr"])
    meta_batch, steps = settings["meta_batch_size"], 0
    first_loss = loss(network, params, tasks[0], settings).item()
    began = time.perf_counter()
    while steps <= WARM_UP or time.perf_counter() - began < options.seconds:
        if steps == WARM_UP:
            began = time.perf_counter()
        optimizer.zero_grad()
        for place in range(meta_batch):
            value = loss(network, params, tasks[(steps * meta_batch + place) % len(tasks)], settings)
            (value / meta_batch).backward()
        optimizer.step()
        steps += 1
    rate = (steps - WARM_UP) * meta_batch / (time.perf_counter() - began)
    print(json.dumps({"tasks_per_s": rate, "first_loss": first_loss, "torch": torch.__version__}))


def norm(x, params, name):
    return F.batch_norm(
        x, None, None, params[f"{name}/norm_scale"], params[f"{name}/norm_shift"], training=True, eps=EPSILON
    )


def conv4(params, x, settings):
    pooled = settings["downsample"] == "max_pool"
    for i in range(LAYERS):
        x = F.conv2d(x, params[f"conv{i}/kernel"], stride=1 if pooled else 2, padding=1)
        x = F.relu(norm(x, params, f"conv{i}"))
        x = F.max_pool2d(x, 2) if pooled else x
    return (
        F.linear(x.flatten(1), params["head/kernel"], params["head/bias"]) if "head/kernel" in params else x.flatten(1)
    )


def resnet12(params, x, settings):
    for block in range(sum(name.endswith("shortcut/kernel") for name in params)):
        name, y = f"block{block}", x
        for i in range(3):
            y = norm(F.conv2d(y, params[f"{name}/conv{i}/kernel"], padding=1), params, f"{name}/conv{i}")
            y = F.leaky_relu(y, LEAK) if i < 2 else y
        y = y + norm(F.conv2d(x, params[f"{name}/shortcut/kernel"]), params, f"{name}/shortcut")
        x = F.max_pool2d(F.leaky_relu(y, LEAK), 2)
    return x.mean((2, 3))


def of_maml(network, params, task, settings):
    """Exact second order, `torch.autograd.grad` with its graph kept."""
    support_x, support_y, query_x, query_y = task
    adapted = params
    inner_loss = lambda adapted: F.cross_entropy(network(adapted, support_x, settings), support_y)
    for _ in range(settings["inner_steps"]):
        found = gradient(inner_loss, adapted)
        adapted = {name: value - settings["inner_lr"] * found[name] for name, value in adapted.items()}
    return F.cross_entropy(network(adapted, query_x, settings), query_y)


def of_protonet(network, params, task, settings):
    support_x, support_y, query_x, query_y = task
    features, queries = network(params, support_x, settings), network(params, query_x, settings)
    shown = F.one_hot(support_y).to(features.dtype)
    prototypes = (shown.T @ features) / shown.sum(0)[:, None]
    return F.cross_entropy(-torch.cdist(queries, prototypes).square(), query_y)


NETWORKS = {"conv4": conv4, "resnet12": resnet12}
LOSSES = {"maml": of_maml, "protonet": of_protonet}


if __name__ == "__main__":
    main()
