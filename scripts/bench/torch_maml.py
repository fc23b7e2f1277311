"""MAML in PyTorch as its users write it, on tasks that were drawn before. It needs PyTorch and NumPy alone.

    PYTHON torch_maml.py FOLDER --mode loop|vmap --seconds S --moments 5,10,20

loop: task by task, `torch.autograd.grad` with its graph kept, a backward pass for each. vmap: all tasks of a step at once,
with `torch.func`. FOLDER is that of `accuracy_time.Work`; the parameters of each moment are written into FOLDER/MODE.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

BEGAN = time.perf_counter() - time.process_time()
EPSILON = 1e-5
LAYERS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mode", choices=("loop", "vmap"), required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--moments", required=True)
    options = parser.parse_args()
    settings = json.loads((options.folder / "settings.json").read_text())
    images = np.load(options.folder / "images.npy", mmap_mode="r")
    labels = np.load(options.folder / "labels.npy", mmap_mode="r")
    with np.load(options.folder / "start.npz") as start:
        params = {name: from_flax(name, array).requires_grad_() for name, array in start.items()}
    optimizer = torch.optim.Adam(params.values(), settings["outer_lr"])
    step = {"loop": step_by_task, "vmap": step_of_all}[options.mode]
    output = options.folder / options.mode
    output.mkdir()
    moments, losses = [float(each) for each in options.moments.split(",")], []
    for number in range(len(images)):
        x = torch.from_numpy(images[number].astype(np.float32) / 255)[:, :, None]
        y = torch.from_numpy(labels[number].astype(np.int64))
        optimizer.zero_grad()
        losses.append(step(params, x, y, settings))
        optimizer.step()
        now = time.perf_counter() - BEGAN
        if moments and now >= moments[0]:
            kept = {name: to_flax(name, value.detach().numpy()) for name, value in params.items()}
            np.savez(output / f"{number + 1:07d}.npz", seconds=now, **kept)
            moments = [each for each in moments if each > now]
        if now >= options.seconds:
            break
    print(json.dumps({"steps": len(losses), "seconds": now, "first_loss": losses[0], "torch": torch.__version__}))


def step_by_task(params, x, y, settings):
    total = 0.0
    for task in range(len(x)):
        loss = outer_loss(params, x[task], y[task], settings, gradient)
        (loss / len(x)).backward()
        total += loss.item()
    return total / len(x)


def step_of_all(params, x, y, settings):
    losses = torch.func.vmap(lambda x, y: outer_loss(params, x, y, settings, gradient_in_vmap))(x, y)
    losses.mean().backward()
    return losses.mean().item()


def gradient(loss, adapted):
    return dict(zip(adapted, torch.autograd.grad(loss(adapted), adapted.values(), create_graph=True), strict=True))


def gradient_in_vmap(loss, adapted):
    return torch.func.grad(loss)(adapted)


def outer_loss(params, x, y, settings, gradient):
    """The loss on the queries after the inner steps, in which the shifts of the normalisation are not adapted."""
    support, fixed = settings["support"], {name: value for name, value in params.items() if "shift" in name}
    adapted = {name: value for name, value in params.items() if name not in fixed}

    def inner_loss(adapted):
        # Summed over the classes, all of which have as many examples.
        return settings["way"] * F.cross_entropy(conv4({**adapted, **fixed}, x[:support]), y[:support])

    for _ in range(settings["inner_steps"]):
        found = gradient(inner_loss, adapted)
        adapted = {name: value - settings["inner_lr"] * found[name] for name, value in adapted.items()}
    return F.cross_entropy(conv4({**adapted, **fixed}, x[support:]), y[support:])


def conv4(params, x):
    for i in range(LAYERS):
        x = F.conv2d(x, params[f"conv{i}/kernel"], stride=2, padding=1)
        x = F.relu(F.batch_norm(x, None, None, bias=params[f"conv{i}/norm_shift"], training=True, eps=EPSILON))
    return F.linear(x.flatten(1), params["head/kernel"], params["head/bias"])


def from_flax(name, array, filters=64):
    """A parameter in PyTorch's layout: kernels `[out, in, height, width]`, and a last layer that reads channels first."""
    if name == "head/kernel":
        side = round((len(array) / filters) ** 0.5)
        array = array.reshape(side, side, filters, -1).transpose(3, 2, 0, 1).reshape(array.shape[1], -1)
    elif array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(array))


def to_flax(name, array):
    """The inverse of `from_flax`."""
    if name == "head/kernel":
        side = round((array.shape[1] / 64) ** 0.5)
        return array.reshape(-1, 64, side, side).transpose(2, 3, 1, 0).reshape(array.shape[1], -1)
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


if __name__ == "__main__":
    main()
