"""Vibrations of machines: a class is a fault, known by the frequencies that it adds. Signals are drawn in the compiled step."""

import jax
import jax.numpy as jnp
import numpy as np

from metarun.errors import ConfigError, non_negative_float, positive_int
from metarun.types import DataSet, Split, Task, TaskSource

CLASSES = {"train": 60, "val": 20, "test": 30}
TONES = 3


def faults(*, way, shot, query_shot, eval_query_shot=None, length=128, noise=0.5):
    """x_t = sum over three tones of a sin(2 pi f t + phase) + noise; f is the class's, a and the phase the example's own.

    Args:
      way: classes of a task.
      shot, query_shot: examples of each in the support and the query set.
      eval_query_shot: queries of each class in evaluation; None: as in training.
      length: samples of a signal.
      noise: standard deviation of what is added to each sample.

    Returns:
      A `DataSet` of inputs `[length, 1]`.
    """
    sizes = {"train": query_shot, "eval": query_shot if eval_query_shot is None else eval_query_shot}
    sizes = {name: positive_int("query_shot", size) for name, size in sizes.items()}
    way, shot, length = positive_int("way", way), positive_int("shot", shot), positive_int("dataset.length", length)
    noise = non_negative_float("dataset.noise", noise)
    if way > min(CLASSES.values()):
        raise ConfigError("way", way, f"{min(CLASSES.values())} or less: there are no more classes in validation")
    frequencies = np.random.default_rng(0).uniform(2, length / 2.5, (sum(CLASSES.values()), TONES)).astype(np.float32)
    ends = np.cumsum(list(CLASSES.values()))[:-1]
    of_split = dict(zip(CLASSES, np.split(frequencies, ends), strict=True))

    def source(split, query_shot):
        each = shot + query_shot

        def sample(data, key):
            class_key, tone_key, phase_key, noise_key, *order_keys = jax.random.split(key, 6)
            classes = jax.random.permutation(class_key, data.shape[0])[:way]
            tones = data[classes][:, None, :, None]
            size = jax.random.uniform(tone_key, (way, each, TONES, 1), minval=0.5, maxval=1.5)
            phase = jax.random.uniform(phase_key, (way, each, TONES, 1), maxval=2 * jnp.pi)
            time = jnp.arange(length)[None, None, None] / length
            signal = (size * jnp.sin(2 * jnp.pi * tones * time + phase)).sum(2)
            x = (signal + noise * jax.random.normal(noise_key, signal.shape))[..., None]

            def split_of(part, order_key):
                y = jnp.repeat(jnp.arange(way, dtype=jnp.int32), part.shape[1])
                order = jax.random.permutation(order_key, y.size)
                return Split(part.reshape(y.size, length, 1)[order], y[order])

            return Task(split_of(x[:, :shot], order_keys[0]), split_of(x[:, shot:], order_keys[1]))

        return TaskSource(jnp.asarray(of_split[split]), sample)

    return DataSet(
        train=source("train", sizes["train"]),
        val=source("val", sizes["eval"]),
        test=source("test", sizes["eval"]),
        objective="classification",
        num_outputs=way,
        protocol={"name": "faults", "length": length, "noise": noise, "classes": CLASSES},
    )
