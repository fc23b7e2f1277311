#!/usr/bin/env python
"""What it is worth to normalise a test by statistics of training images, as networks with running statistics do.

    python scripts/training_statistics.py RUN [--tasks 300] [--images 400]

RUN is a directory of a learner that passes its inputs through an encoder, such as `method=protonet`, trained as one likes. Its
parameters answer the same test tasks twice: normalised as the run's method says, and by the mean and variance, in each layer, of images of
meta-training. The latter stand for the running ones of other libraries, which metarun does not have. Prints both accuracies and their paired
difference, in points, with 95% intervals over tasks.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import metarun
from metarun.assembly.keys import Keys
from metarun.config.schema import FEW_SHOT
from metarun.errors import ConfigError, MetarunError
from metarun.trust.equivalence import difference_said, interval_said, paired, standard_error
from metarun.types import Array, Method, Model, Task, TaskSource


def by_images(encoder: Model, images: Array) -> Model:
    """The encoder, normalised by the statistics of `images: [k, *feature]`, whatever else it is given."""

    def apply(params: Any, x: Array, reference: Any = None) -> Array:
        return encoder.apply(params, jnp.concatenate([images, x]), len(images))[len(images) :]

    return Model(encoder.init, apply)


def images_of(source: TaskSource, number: int) -> Array:
    """So many inputs of tasks' support sets, `[number, *feature]`."""
    draw = jax.jit(lambda key: source.sample(source.data, key).support.x)
    of_task = len(draw(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), -(-number // of_task))
    return jnp.concatenate([draw(key) for key in keys])[:number]


def accuracies(method: Method, params: Any, source: TaskSource, num_tasks: int) -> np.ndarray:
    """The accuracy on each test task, `[num_tasks]`: the same tasks for every method."""

    @jax.jit
    def accuracy(data: Any, key: Array) -> Array:
        task: Task = source.sample(data, key)
        answers = method.predict(method.adapt(params, task.support, key), task.query.x)
        return jnp.mean(answers.argmax(-1) == task.query.y)

    keys = jax.random.split(jax.random.key(0), num_tasks)
    return np.array([accuracy(source.data, key) for key in keys])


def measured(run: metarun.Run, num_tasks: int, num_images: int) -> tuple[np.ndarray, np.ndarray]:
    """The accuracies on the same tasks, `[num_tasks]` each: as the run's method says, and by training images.

    Raises:
      MetarunError: the run's method has no encoder, or its tasks are no classes.
    """
    keys = Keys.of(run.saved.config, run.choices, FEW_SHOT)
    if not keys.factory("method").takes("encoder"):
        raise ConfigError(
            "RUN", run.directory, f"a run whose method has an encoder; method={run.choices['method']} has none"
        )
    dataset = keys.call("dataset", test_only=False)
    if dataset.objective != "classification":
        raise ConfigError("RUN", run.directory, f"a run on classes; dataset={run.choices['dataset']} is of numbers")
    encoder = keys.call("model", num_outputs=None)
    given = {name: getattr(dataset, name) for name in ("objective", "num_outputs", "num_train_classes")}
    make: Callable[[Model], Method] = lambda encoder: keys.call("method", encoder=encoder, **given)
    methods = make(encoder), make(by_images(encoder, images_of(dataset.train, num_images)))
    first, second = (accuracies(method, run.params, dataset.test, num_tasks) for method in methods)
    return first, second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="a run's directory")
    parser.add_argument("--tasks", type=int, default=300, help="of the test; 300")
    parser.add_argument("--images", type=int, default=400, help="of meta-training; 400")
    options = parser.parse_args()
    try:
        first, second = measured(metarun.load(options.run), options.tasks, options.images)
    except MetarunError as error:
        sys.exit(f"training_statistics: {error}")
    for words, found in (("as the run's method says", first), (f"by {options.images} images of training", second)):
        print(f"{words}: {100 * found.mean():.2f}%{interval_said(1.96 * standard_error(found), '.2f', 100, '%')}")
    difference, ci95 = paired(first, second)
    print(f"difference: {difference_said(100 * difference, 100 * ci95)} points")


if __name__ == "__main__":
    main()
