#!/usr/bin/env python
"""Time and memory of MAML's meta-gradient, by how an inner step is differentiated.

    python scripts/second_order.py [--model A|C|R] [--steps 1 5 20 100] [--rounds 5]

The task has 5 classes, one support image and 15 queries of each. A: Conv-4 with 64 filters and stride, on 28x28x1. C: Conv-4 with 32
filters and pooling, on 84x84x3. R: ResNet-12 on 84x84x3. Three ways:

    twice      reverse mode twice, all activations of all inner steps kept
    again      reverse mode twice, each inner step computed again
    mixed      what metarun does: the gradient's derivative in forward mode, from the parameters of each step

Prints the least processor time of a call on one device, the temporary memory by XLA's account, and how far the meta-gradient is from the first way's,
as a share of its norm. The ways are measured in turn.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from metarun.data.cache import cache_dir
from metarun.few_shot.inner_loop import gradient_descent, iterate, split_loss
from metarun.models.conv4 import conv4
from metarun.models.resnet12 import resnet12
from metarun.system import backend
from metarun.types import Array, Params, Split

WAY, QUERY_SHOT, LR = 5, 15, 0.01
MODELS: dict[str, tuple[Callable[[], Any], tuple[int, int, int]]] = {
    "A": (lambda: conv4(num_outputs=WAY), (28, 28, 1)),
    "C": (lambda: conv4(num_outputs=WAY, filters=32, downsample="max_pool"), (84, 84, 3)),
    "R": (lambda: resnet12(num_outputs=WAY), (84, 84, 3)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="A", help="network and images; %(default)s")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 5, 20, 100], help="inner steps; 1 5 20 100")
    parser.add_argument("--rounds", type=int, default=5, help="calls of each; %(default)s")
    options = parser.parse_args()
    backend.set_up(cache_dir() / "compiled")
    print(f"{'inner steps':<12}{'way':<8}{'cpu-ms':>10}{'MB':>10}{'differs by':>12}")
    for steps in options.steps:
        for way, (milliseconds, megabytes, difference) in _measured(options.model, steps, options.rounds).items():
            print(f"{steps:<12}{way:<8}{milliseconds:>10.1f}{megabytes:>10.1f}{difference:>12.1e}", flush=True)


def _twice(remat: bool) -> Callable[..., Params]:
    """Gradient descent whose gradients are differentiated as any function is."""

    def descent(loss: Callable[[Params], Array], params: Params, *, lr: float, num_steps: int) -> Params:
        step = lambda params, _: (jax.tree.map(lambda leaf, g: leaf - lr * g, params, jax.grad(loss)(params)), None)
        return iterate(step, params, None, num_steps, remat=remat)[0]

    return descent


def _measured(name: str, steps: int, rounds: int) -> dict[str, tuple[float, float, float]]:
    """Way -> the least processor time of a call in milliseconds, temporary memory in megabytes, and the difference."""
    make, shape = MODELS[name]
    model, draw = make(), np.random.default_rng(0)
    labels = np.arange(WAY, dtype=np.int32)
    support = Split(jnp.asarray(draw.normal(size=(WAY, *shape)), jnp.float32), labels)
    queries = draw.normal(size=(WAY * QUERY_SHOT, *shape))
    query = Split(jnp.asarray(queries, jnp.float32), np.repeat(labels, QUERY_SHOT))
    loss = split_loss(model.apply, "classification")
    params = model.init(jax.random.key(0), support.x)

    def compiled(descent: Callable[..., Params]) -> Any:
        def outer(params: Params, support: Split, query: Split) -> Array:
            fast = descent(lambda params: loss(params, support), params, lr=LR, num_steps=steps)
            return loss(fast, query)

        return jax.jit(jax.value_and_grad(outer)).lower(params, support, query).compile()

    ways: Sequence[tuple[str, Callable[..., Params]]] = (
        ("twice", _twice(False)),
        ("again", _twice(True)),
        ("mixed", gradient_descent),
    )
    programs = {way: compiled(descent) for way, descent in ways}
    flat = lambda program: ravel_pytree(program(params, support, query)[1])[0]
    first = flat(programs["twice"])
    differences = {way: jnp.linalg.norm(flat(program) - first) for way, program in programs.items()}
    seconds: dict[str, list[float]] = {way: [] for way in programs}
    for _ in range(rounds):
        for way, program in programs.items():
            begun = time.process_time()
            jax.block_until_ready(program(params, support, query))
            seconds[way].append(time.process_time() - begun)
    return {
        way: (
            min(seconds[way]) * 1e3,
            program.memory_analysis().temp_size_in_bytes / 1e6,
            float(differences[way] / jnp.linalg.norm(first)),
        )
        for way, program in programs.items()
    }


if __name__ == "__main__":
    main()
