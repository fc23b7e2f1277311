#!/usr/bin/env python
"""Loss and meta-gradient of five methods by PyTorch: the reference of tests/methods/test_golden.py.

    python scripts/golden.py tests/methods/golden.json

Needs PyTorch and NumPy, and nothing of metarun: networks, losses and inner loops are written here once more.
"""

import argparse
import json
from pathlib import Path

import torch
from torch.func import grad, grad_and_value
from torch.nn.functional import conv2d, cross_entropy, relu

from golden_inputs import INNER_LR, INNER_STEPS, WAY, params, task


def body(theta, x, num_reference=None):
    """Four blocks; each channel gets the mean and variance of the first `num_reference` images (all if None)."""
    x = x.permute(0, 3, 1, 2)
    for i in range(4):
        layer = theta[f"conv{i}"]
        x = conv2d(x, layer["kernel"].permute(3, 2, 0, 1), stride=2, padding=1)
        of = x[:num_reference]
        mean, variance = of.mean((0, 2, 3), keepdim=True), of.var((0, 2, 3), unbiased=False, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-5)
        x = relu(x * layer["norm_scale"].view(1, -1, 1, 1) + layer["norm_shift"].view(1, -1, 1, 1))
    return x.permute(0, 2, 3, 1).flatten(1)


def network_loss(theta, split):
    x, y = split
    return cross_entropy(body(theta, x) @ theta["head"]["kernel"] + theta["head"]["bias"], y)


def adapted(theta, support, adapts):
    """Gradient descent on the support loss in the layers for which `adapts` holds."""
    for _ in range(INNER_STEPS):
        gradient = grad(network_loss)(theta, support)
        theta = {
            name: {key: value - INNER_LR * gradient[name][key] for key, value in layer.items()}
            if adapts(name)
            else layer
            for name, layer in theta.items()
        }
    return theta


def maml(theta, splits, adapts=lambda name: True):
    return grad_and_value(lambda theta: network_loss(adapted(theta, splits["support"], adapts), splits["query"]))(theta)


def fomaml(theta, splits):
    """The query loss's gradient at the adapted parameters (Finn et al. 2017, section 5.2)."""
    return grad_and_value(network_loss)(adapted(theta, splits["support"], lambda name: True), splits["query"])


def anil(theta, splits):
    return maml(theta, splits, lambda name: name == "head")


def boil(theta, splits):
    return maml(theta, splits, lambda name: name != "head")


def protonet(theta, splits):
    """-|f(x) - c_k|^2 written out; queries are normalised by the support set's statistics."""
    (support_x, support_y), (query_x, query_y) = splits["support"], splits["query"]

    def loss(theta):
        prototypes = torch.stack([body(theta, support_x)[support_y == k].mean(0) for k in range(WAY)])
        features = body(theta, torch.cat([support_x, query_x]), len(support_x))[len(support_x) :]
        return cross_entropy(-((features[:, None] - prototypes[None]) ** 2).sum(2), query_y)

    return grad_and_value(loss)({name: layer for name, layer in theta.items() if name != "head"})


METHODS = (maml, fomaml, anil, boil, protonet)


def in_numbers(gradient):
    """Of each array its norm, its first entries, and its inner product with cos(0), cos(1), ..., which sees all."""
    found = {}
    for name, layer in gradient.items():
        for key, leaf in layer.items():
            flat = leaf.flatten()
            wave = torch.cos(torch.arange(flat.numel(), dtype=flat.dtype))
            found[f"{name}.{key}"] = {
                "norm": flat.norm().item(),
                "first": flat[:4].tolist(),
                "wave": (flat @ wave).item(),
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    output = parser.parse_args().output
    theta = {name: {key: torch.tensor(value) for key, value in layer.items()} for name, layer in params().items()}
    splits = {name: (torch.tensor(x), torch.tensor(y)) for name, (x, y) in task().items()}
    numbers = {"torch": torch.__version__, "methods": {}}
    for method in METHODS:
        gradient, loss = method(theta, splits)
        numbers["methods"][method.__name__] = {"loss": loss.item(), "gradient": in_numbers(gradient)}
    output.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
