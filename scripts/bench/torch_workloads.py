"""One of the workloads of `workloads.py` in PyTorch, as its users write it. It needs PyTorch and NumPy alone.

    PYTHON torch_workloads.py FOLDER --mode contiguous|channels_last|vmap --seconds S --precision P

contiguous, channels_last: task by task, arrays laid out so. vmap: all tasks of a step at once, by `torch.func`; of MAML alone. FOLDER is
what `workloads.py` has written: settings, tasks and initial parameters. Tasks are in memory before the clock starts: of a GPU where there is
one. Prints a line of JSON with the rate, and the loss of the first task before training.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch_maml import EPSILON, LAYERS, from_flax, gradient, gradient_in_vmap

LEAK = 0.1
WARM_UP = 2  # steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mode", choices=("contiguous", "channels_last", "vmap"), required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--precision", choices=("float32", "tensorfloat32", "bfloat16"), default="float32")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.precision != "float32"
    layout = torch.channels_last if options.mode == "channels_last" else torch.contiguous_format
    settings = json.loads((options.folder / "settings.json").read_text())
    filters = settings.get("filters", 64)
    with np.load(options.folder / "start.npz") as start:
        params = {name: from_flax(name, array, filters).to(device).requires_grad_() for name, array in start.items()}
    with np.load(options.folder / "tasks.npz") as arrays:
        tasks = [
            tuple(
                torch.from_numpy(arrays[name][number].transpose(0, 3, 1, 2).copy()).to(device, memory_format=layout)
                if name.endswith("x")
                else torch.from_numpy(arrays[name][number].astype(np.int64)).to(device)
                for name in ("support_x", "support_y", "query_x", "query_y")
            )
            for number in range(len(arrays["support_x"]))
        ]
    network, loss = NETWORKS[settings["network"]], LOSSES[settings["method"]]
    optimizer = torch.optim.Adam(params.values(), settings["outer_lr"])
    meta_batch, steps = settings["meta_batch_size"], 0

    def of_one(task):
        (loss(network, params, task, settings, gradient) / meta_batch).backward()

    def of_all(batch):
        stacked = [torch.stack(arrays) for arrays in zip(*batch, strict=True)]
        losses = torch.func.vmap(lambda *task: loss(network, params, task, settings, gradient_in_vmap))(*stacked)
        losses.mean().backward()

    def now():
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    with torch.autocast(device, torch.bfloat16, enabled=options.precision == "bfloat16"):
        first_loss = loss(network, params, tasks[0], settings, gradient).item()
        began = now()
        while steps <= WARM_UP or now() - began < options.seconds:
            if steps == WARM_UP:
                began = now()
            optimizer.zero_grad()
            batch = [tasks[(steps * meta_batch + place) % len(tasks)] for place in range(meta_batch)]
            if options.mode == "vmap":
                of_all(batch)
            else:
                for task in batch:
                    of_one(task)
            optimizer.step()
            steps += 1
    rate = (steps - WARM_UP) * meta_batch / (now() - began)
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


def of_maml(network, params, task, settings, gradient):
    """Exact second order."""
    support_x, support_y, query_x, query_y = task
    adapted = params
    inner_loss = lambda adapted: F.cross_entropy(network(adapted, support_x, settings), support_y)
    for _ in range(settings["inner_steps"]):
        found = gradient(inner_loss, adapted)
        adapted = {name: value - settings["inner_lr"] * found[name] for name, value in adapted.items()}
    return F.cross_entropy(network(adapted, query_x, settings), query_y)


def of_protonet(network, params, task, settings, gradient):
    support_x, support_y, query_x, query_y = task
    features, queries = network(params, support_x, settings), network(params, query_x, settings)
    shown = F.one_hot(support_y).to(features.dtype)
    prototypes = (shown.T @ features) / shown.sum(0)[:, None]
    return F.cross_entropy(-torch.cdist(queries, prototypes).square(), query_y)


NETWORKS = {"conv4": conv4, "resnet12": resnet12}
LOSSES = {"maml": of_maml, "protonet": of_protonet}


if __name__ == "__main__":
    main()
