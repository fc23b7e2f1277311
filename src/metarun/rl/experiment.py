"""Meta-reinforcement learning as an experiment: a method and a distribution over tasks become what the runner drives."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metarun.compiled.outer_loop import OuterLoop
from metarun.compiled.task_map import Layout, placed
from metarun.rl.environment import Environment
from metarun.rl.meta_learner import MetaLearner
from metarun.rl.meta_test import METRIC, MetaTest
from metarun.system.backend import jit_quickly
from metarun.types import Experiment, Inspection, Params, TrainState


def rl_experiment(
    learners: Mapping[int, MetaLearner],
    environment: Environment,
    layouts: Sequence[Layout],
    *,
    seed: int,
    eval_seed: int,
    meta_batch_size: int,
    protocol: Mapping[str, Any],
    start: Callable[[Params], Params] | None = None,
    precision: str = "float32",
    bytes_available: int | None = None,
) -> Experiment:
    """Meta-trains a method on an environment's tasks, and tests it beside agents that were not learnt.

    Args:
      learners: chunk of a layout -> the method, computed in it.
      environment: the distribution over tasks.
      layouts: where trials are computed, of one mesh, the fastest first.
      seed: of the initial parameters and the training tasks.
      eval_seed: of the validation and test tasks, the same for every training seed.
      meta_batch_size: tasks of an outer step.
      protocol: further facts to state beside the environment's and the method's.
      start: `(drawn parameters) -> those that training begins with`; None: the drawn ones.
      precision: of products of float32 arrays, see `backend.PRECISIONS`.
      bytes_available: memory of a device; None: the first layout will do.

    Returns:
      An `Experiment` whose metric is the mean total reward of a trial. Its tests state, beside the value, `yardsticks`:
      for each agent that was not learnt the same quantity on the same tasks; `regret`, how far the learner stays behind
      the best of these; and `curves`, how the rewards came about. Its `examples`, of environments in the plane or
      with a body, are what the learner did in test tasks, a `Shown`.
    """
    layout = layouts[0]
    learner = learners[layout.chunk_of(meta_batch_size)]
    init_key, train_key = jax.random.split(jax.random.key(seed))
    train_key = placed(train_key, layout.replicated)

    def init() -> TrainState:
        params = jit_quickly(learner.init)(init_key)
        params = params if start is None else start(params)
        return TrainState(jnp.zeros((), jnp.int32), params, learner.init_opt(params))

    if start is not None:
        start(jax.eval_shape(learner.init, init_key))  # raises what does not fit

    def drawn(root_key, step):
        """The tasks of an outer step, with their keys; the keys of what is played; the key of the method."""
        task_key, play_key, improve_key = jax.random.split(jax.random.fold_in(root_key, step), 3)
        task_keys, keys = (jax.random.split(key, meta_batch_size) for key in (task_key, play_key))
        return task_keys, jax.vmap(lambda key: environment.sample(key, "train"))(task_keys), keys, improve_key

    def outer_step(_: str, chunk: int):
        improve = learners[chunk].improve

        def outer_step(state, root_key):
            _, tasks, keys, improve_key = drawn(root_key, state.step)
            params, opt_state, metrics = improve(state.params, state.opt_state, tasks, keys, improve_key)
            return TrainState(state.step + 1, params, opt_state), metrics

        return outer_step

    loop = OuterLoop(
        init,
        outer_step,
        (train_key,),
        [""],
        {candidate.chunk_of(meta_batch_size): candidate for candidate in layouts},
        meta_batch_size=meta_batch_size,
        bytes_available=bytes_available,
    )

    def inspect(state: TrainState) -> Inspection:
        # Without losses: one of these methods is of all trials together.
        keys, tasks, *_ = jax.jit(drawn)(train_key, placed(state.step, layout.replicated))
        return Inspection(*jax.tree.map(_numbers, (keys, tasks)))

    def sizes() -> dict[str, int]:
        return {"meta_params": sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(learner.init, init_key)))}

    tested = MetaTest(learner, environment, layout, eval_seed)
    return loop.experiment(
        precision,
        inspect=inspect,
        evaluate=tested.evaluate,
        examples=tested.examples if environment.goal or environment.body else None,
        metric=METRIC,
        maximize=True,
        protocol={
            "env": {
                "episodes": environment.episodes,
                "horizon": environment.horizon,
                **environment.protocol,
            },
            "method": dict(learner.protocol),
            "eval_seed": eval_seed,
            **protocol,
        },
        sizes=sizes,
    )


def _numbers(leaf: jax.Array) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
