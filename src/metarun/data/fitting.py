"""Images of one data set brought to the size and the channels of another, on the device."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from metarun.data.augment import grey
from metarun.errors import ConfigError
from metarun.types import Array, DataSet, Task, TaskSource

RESIZE = "linear, antialiased, proportions not kept"
CHANNELS: dict[tuple[int, ...], str] = {(3, 1): "greys by BT.601", (1, 3): "greys as colours"}


def input_shape(dataset: DataSet) -> tuple[int, ...]:
    """The shape of one input, `[*feature]`."""
    task = jax.eval_shape(dataset.train.sample, dataset.train.data, jax.random.key(0))
    return task.support.x.shape[1:]


def fit_data_set(dataset: DataSet, shape: Sequence[int]) -> DataSet:
    """The data set with inputs of `shape`: the same, or one with its images resized and their channels made to fit.

    In the latter case its protocol has an entry "fitted", which says from what, to what, and how.

    Args:
      dataset: any.
      shape: `[*feature]`; of images `[height, width, channel]`.

    Raises:
      ConfigError: the shapes differ and are not of images, or have other channels than one or three.
    """
    found, shape = input_shape(dataset), tuple(shape)
    if found == shape:
        return dataset
    channels = found[-1:] + shape[-1:]
    if not len(found) == len(shape) == 3 or (channels not in CHANNELS and channels[0] != channels[1]):
        name = dataset.protocol["name"]
        raise ConfigError("dataset", name, f"inputs that can be brought to {list(shape)}, which {list(found)} cannot")

    def fit(task: Task) -> Task:
        return Task(*(split._replace(x=fit_images(split.x, shape)) for split in task))

    sources = {name: getattr(dataset, name) for name in ("train", "val", "test", "train_classes")}
    fitted: dict[str, Any] = {name: _mapped(source, fit) for name, source in sources.items() if source is not None}
    fitted["domains"] = {name: _mapped(source, fit) for name, source in dataset.domains.items()}
    stated = {"from": list(found), "to": list(shape), "how": how_fitted(found, shape)}
    return dataset._replace(**fitted, protocol={**dataset.protocol, "fitted": stated})


def how_fitted(found: Sequence[int], shape: Sequence[int]) -> str:
    """What `fit_images` does to images of the shape `found`, in words; "" where it is nothing."""
    (*size, channels), (*wanted, wanted_channels) = found, shape
    return ", ".join(filter(None, [RESIZE if size != wanted else "", CHANNELS.get((channels, wanted_channels), "")]))


def fit_images(x: Array, shape: Sequence[int]) -> Array:
    """`[n, height, width, channel]` in [0, 1] -> `[n, *shape]`: greys of colours, resized, a grey in every channel."""
    height, width, channels = shape
    if channels == 1:
        x = grey(x)
    if x.shape[1:3] != (height, width):
        x = jax.image.resize(x, (x.shape[0], height, width, x.shape[3]), "linear", antialias=True)
    return jnp.broadcast_to(x, (*x.shape[:3], channels))


def _mapped(source: TaskSource, fit: Callable[[Task], Task]) -> TaskSource:
    """The source whose tasks are passed through `fit`."""
    stream = source.stream
    if stream is not None:
        cut = stream.cut
        stream = stream._replace(cut=lambda items, rest: fit(cut(items, rest)))
    return TaskSource(source.data, lambda data, key: fit(source.sample(data, key)), stream)
