"""Few-shot learning as an experiment: a method, a data set and an outer optimiser become what the runner drives."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metarun.compiled.outer_loop import OuterLoop
from metarun.compiled.streaming import gatherer, host_device
from metarun.compiled.task_map import Layout, placed
from metarun.few_shot.meta_test import MetaTest
from metarun.few_shot.meta_training import MetaTraining
from metarun.few_shot.task_sources import held, sampler, stream_of
from metarun.system.backend import jit_quickly
from metarun.types import DataSet, Experiment, Inspection, Method, Params, TrainState


def few_shot_experiment(
    variants: Mapping[str, Method],
    dataset: DataSet,
    optimizer: optax.GradientTransformation,
    layouts: Sequence[Layout],
    *,
    seed: int,
    eval_seed: int,
    meta_batch_size: int,
    protocol: Mapping[str, Any],
    start: Callable[[Params], Params] | None = None,
    precision: str = "float32",
    bytes_available: int | None = None,
    stream: bool = False,
) -> Experiment:
    """Meta-trains a method on `dataset`: every outer step draws tasks and follows the mean of their outer gradients.

    Args:
      variants: words -> the meta-learner, functions of one task; the variants compute the same, the fastest first and
        the most frugal last. Evaluation, which keeps nothing for a backward pass, uses the first.
      dataset: sources of training, validation and test tasks.
      optimizer: outer optimiser.
      layouts: where tasks are computed, of one mesh, the fastest first.
      seed: of the initial parameters and the training tasks.
      eval_seed: of the validation and test tasks, the same for every training seed.
      meta_batch_size: tasks of an outer step.
      protocol: further facts to state beside the data set's and the method's.
      start: `(drawn parameters) -> those that training begins with`; None: the drawn ones.
      precision: of products of float32 arrays, see `backend.PRECISIONS`; the models of `variants` have been made for it.
      bytes_available: memory of a device, which decides between variants and layouts; None: the first will do.
      stream: whether images stay on the host, and those of an outer step's tasks are sent when their step comes. The
        tasks are the same.

    Returns:
      An `Experiment`. Its `prepare` raises `MetarunError` if no variant in any layout fits. Its `examples` are tasks, and
      the outputs on their queries before and after adaptation, `[num_tasks, num_query, num_outputs]`.
    """
    method, layout = next(iter(variants.values())), layouts[0]
    # Keys are arguments of every compiled program, so that other seeds do not compile it again.
    init_key, train_key = jax.random.split(jax.random.key(seed))
    train = dataset.train_classes if method.trains_on == "classes" else dataset.train
    if train is None:
        raise ValueError("the method trains on classes, and the data set has none")
    task_shape = jax.eval_shape(train.sample, train.data, jax.random.key(0))

    def drawn() -> Params:
        return jit_quickly(method.init)(init_key, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), task_shape))

    def init() -> TrainState:
        params = drawn() if start is None else start(drawn())
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    if start is not None:
        start(jax.eval_shape(drawn))  # raises what does not fit

    def sizes() -> dict[str, int]:
        params = jax.eval_shape(method.init, init_key, task_shape)
        return {"meta_params": sum(leaf.size for leaf in jax.tree.leaves(params)), **method.sizes(params, task_shape)}

    gather: Any = gatherer(stream_of(train)) if stream else None
    host_key: Any = jax.device_put(train_key, host_device()) if stream else None
    train, val, test, *of_domains = held((train, dataset.val, dataset.test, *dataset.domains.values()), layout, stream)
    train_key = placed(train_key, layout.replicated)
    rows = max(part.x.shape[0] for part in task_shape)
    of_steps = [candidate.of_few(meta_batch_size, rows) for candidate in layouts]
    by_chunk = {candidate.chunk_of(meta_batch_size): candidate for candidate in of_steps}
    padded = task_shape.support.mask is not None
    training = MetaTraining(variants, train, optimizer, by_chunk, meta_batch_size, padded)

    def fetch(step: int) -> Any:
        return placed(gather(training.sample_keys(host_key, step)), layout.of_tasks(meta_batch_size))

    loop = OuterLoop(
        init,
        training.outer_step,
        (train.data, train_key),
        list(variants),
        by_chunk,
        meta_batch_size=meta_batch_size,
        bytes_available=bytes_available,
        fetch=fetch if stream else None,
    )

    def inspect(state: TrainState) -> Inspection:
        items = loop.fetched(int(state.step)) if loop.fetched is not None else None
        return training.inspect(loop.fit, state, train.data, train_key, items)

    tested = MetaTest(
        method,
        dataset,
        {name: sampler(source, layout, stream) for name, source in (("val", val), ("test", test))},
        {name: sampler(source, layout, stream) for name, source in zip(dataset.domains, of_domains, strict=True)},
        layout,
        lambda: loop.eval_layout,
        eval_seed=eval_seed,
        precision=precision,
    )
    return loop.experiment(
        precision,
        inspect=inspect,
        evaluate=tested.evaluate,
        examples=tested.examples,
        metric=tested.score.metric,
        maximize=tested.score.maximize,
        protocol={
            "dataset": dict(dataset.protocol),
            "method": dict(method.protocol),
            "eval_seed": eval_seed,
            **protocol,
        },
        sizes=sizes,
    )
