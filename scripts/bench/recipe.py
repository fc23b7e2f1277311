"""The work that is timed: MAML on fixed random tasks from fixed random weights, the same in every framework."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metarun.compiled.task_map import Layout, placed
from metarun.few_shot.experiment import few_shot_experiment
from metarun.few_shot.inner_loop import split_loss
from metarun.few_shot.methods.maml import maml
from metarun.models.conv4 import conv4
from metarun.training.optimizers import adam
from metarun.types import Array, DataSet, Experiment, Method, Params, Split, Task, TaskSource

OUTER_LR = 1e-3
NUM_META_BATCHES = 1  # held on each device, from which a step draws its tasks
_LAYERS = 4


class Work(NamedTuple):
    """MAML with exact second order and Conv-4.

    Attributes:
      image: height, width, channels.
      filters: channels of every layer.
      downsample: "stride" or "max_pool".
      inner_lr: step size of the inner loop.
      inner_steps: inner steps.
      meta_batch_size: tasks of an outer step.
      way: classes of a task.
      shot: support images of a class.
      query_shot: query images of a class.
      precision: of products and convolutions, as in `metarun`.
    """

    image: tuple[int, int, int]
    filters: int
    downsample: str
    inner_lr: float
    inner_steps: int
    meta_batch_size: int
    way: int = 5
    shot: int = 1
    query_shot: int = 15
    precision: str = "float32"


CONFIGS = {
    # Omniglot in MAML.
    "A": Work((28, 28, 1), 64, "stride", inner_lr=0.4, inner_steps=1, meta_batch_size=32),
    "B": Work((28, 28, 1), 64, "stride", inner_lr=0.4, inner_steps=5, meta_batch_size=32),
    # miniImageNet in MAML.
    "C": Work((84, 84, 3), 32, "max_pool", inner_lr=0.01, inner_steps=5, meta_batch_size=4),
}


def meta_batches(work: Work, seed: int = 0) -> Iterator[Task]:
    """Yields meta-batches of NumPy arrays without end: a class is a random image, its examples are 30% noise.

    Yields:
      A `Task` with a leading axis `[meta_batch_size, ...]`; examples lie class by class, `x` is in [0, 1].
    """
    random = np.random.default_rng(seed)
    lead = (work.meta_batch_size, work.way)

    def split(prototypes: np.ndarray, shot: int) -> Split:
        noise = random.random((*lead, shot, *work.image), dtype=np.float32)
        x = (0.7 * prototypes + 0.3 * noise).reshape(lead[0], work.way * shot, *work.image)
        return Split(x, np.tile(np.repeat(np.arange(work.way, dtype=np.int32), shot), (lead[0], 1)))

    while True:
        prototypes = random.random((*lead, 1, *work.image), dtype=np.float32)
        yield Task(split(prototypes, work.shot), split(prototypes, work.query_shot))


def weights(work: Work, seed: int = 1) -> dict[str, dict[str, np.ndarray]]:
    """Returns Conv-4's initial parameters: Glorot-uniform kernels, norms of scale 1 and shift 0, a zero bias."""
    random = np.random.default_rng(seed)

    def glorot(*shape: int) -> np.ndarray:
        receptive = int(np.prod(shape[:-2]))
        limit = np.sqrt(6 / (receptive * (shape[-2] + shape[-1])))
        return random.uniform(-limit, limit, shape).astype(np.float32)

    height, width, channels = work.image
    params = {}
    for layer in range(_LAYERS):
        params[f"conv{layer}"] = {
            "kernel": glorot(3, 3, channels, work.filters),
            "norm_scale": np.ones(work.filters, np.float32),
            "norm_shift": np.zeros(work.filters, np.float32),
        }
        channels = work.filters
        height, width = halved(height, work), halved(width, work)
    params["head"] = {"kernel": glorot(height * width * channels, work.way), "bias": np.zeros(work.way, np.float32)}
    return params


def halved(size: int, work: Work) -> int:
    """The side of a layer's output: pooling drops an odd row, a stride of two keeps it."""
    return size // 2 if work.downsample == "max_pool" else -(-size // 2)


def outer_loss(work: Work) -> Callable[[Params, Task], Array]:
    """The loss on the queries after the inner steps, as the definition has it: its gradient is to be counted, not computed.

    What metarun runs computes some of it again, to keep less; that is no work that is asked for.
    """
    model = conv4(num_outputs=work.way, filters=work.filters, downsample=work.downsample, precision=work.precision)
    loss = split_loss(model.apply, "classification")

    def after_inner_steps(params: Params, task: Task) -> Array:
        for _ in range(work.inner_steps):
            gradient = jax.grad(loss)(params, task.support)
            params = jax.tree.map(lambda leaf, g: leaf - work.inner_lr * g, params, gradient)
        return loss(params, task.query)

    return after_inner_steps


def method(work: Work, *, first_order: bool = False) -> Method:
    """Returns metarun's MAML on Conv-4, beginning at the recipe's weights."""
    learner = maml(
        model=conv4(num_outputs=work.way, filters=work.filters, downsample=work.downsample, precision=work.precision),
        objective="classification",
        inner_lr=work.inner_lr,
        inner_steps=work.inner_steps,
        first_order=first_order,
    )
    return learner._replace(init=lambda key, task: jax.tree.map(jnp.asarray, weights(work)))


def dataset(work: Work, layout: Layout) -> DataSet:
    """Returns the recipe's meta-batches on the devices; a task is one of theirs, picked at random."""
    batches = [batch for batch, _ in zip(meta_batches(work), range(NUM_META_BATCHES), strict=False)]
    tasks = jax.tree.map(lambda *parts: np.concatenate(parts), *batches)
    source = TaskSource(placed(tasks, layout.replicated), _pick)
    return DataSet(source, source, source, "classification", work.way, {"name": "recipe"})


def experiment(work: Work, layout: Layout, tasks: DataSet | None = None, *, stream: bool = False) -> Experiment:
    """Returns what `metarun` would train, on the recipe's tasks or on those of another data set, maybe streamed."""
    return few_shot_experiment(
        {"inner steps kept": method(work)},
        tasks or dataset(work, layout),
        adam(outer_lr=OUTER_LR, steps=1),
        [layout],
        seed=0,
        eval_seed=0,
        meta_batch_size=work.meta_batch_size,
        protocol={},
        precision=work.precision,
        stream=stream,
    )


def _pick(tasks: Any, key: jax.Array) -> Task:
    index = jax.random.randint(key, (), 0, tasks.query.y.shape[0])
    return jax.tree.map(lambda x: x[index], tasks)
