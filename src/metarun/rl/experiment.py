"""Meta-reinforcement learning as an experiment: a method and a distribution over tasks become what the runner drives."""

from collections.abc import Mapping, Sequence
from functools import cache, partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metarun.compiled.memory import fastest_that_fits
from metarun.compiled.outer_loop import plan_of, several, shapes_on, traced_at
from metarun.compiled.task_map import Layout, map_tasks, placed
from metarun.rl.environment import Environment
from metarun.rl.meta_learner import MetaLearner, Outcome, Shown
from metarun.rl.trial import outcome
from metarun.trust import checks as check
from metarun.types import Evaluation, Experiment, Inspection, Program, TrainState

METRIC = "reward"
_CHECKS = ("chance_before_adaptation", "chance_without_reward")
_NO_CHANCE = "some ways to act are worth more to one who has seen no reward, so that there is no chance to be at"
_BLOCK = 250  # tasks of one evaluation dispatch: what bounds its memory, and how long a stop signal waits


def meta_rl(
    learners: Mapping[int, MetaLearner],
    environment: Environment,
    layouts: Sequence[Layout],
    *,
    seed: int,
    eval_seed: int,
    meta_batch_size: int,
    protocol: Mapping[str, Any],
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

    def init():
        params = jax.jit(learner.init)(init_key)
        return TrainState(jnp.zeros((), jnp.int32), params, learner.init_opt(params))

    def drawn(root_key, step):
        """The tasks of an outer step, with their keys; the keys of what is played; the key of the method."""
        task_key, play_key, improve_key = jax.random.split(jax.random.fold_in(root_key, step), 3)
        task_keys, keys = (jax.random.split(key, meta_batch_size) for key in (task_key, play_key))
        return task_keys, jax.vmap(lambda key: environment.sample(key, "train"))(task_keys), keys, improve_key

    def outer_step(learner, state, root_key):
        _, tasks, keys, improve_key = drawn(root_key, state.step)
        params, opt_state, metrics = learner.improve(state.params, state.opt_state, tasks, keys, improve_key)
        return TrainState(state.step + 1, params, opt_state), metrics

    def steps(_, chunk):
        run = several(partial(outer_step, learners[chunk]))
        return lambda state, num_steps: run(state, train_key, num_steps)

    @cache
    def fitted():
        arguments = shapes_on(layout, (jax.eval_shape(init), train_key, jnp.int32(0)))

        def compile_fn(variant, chunk):
            run = several(partial(outer_step, learners[chunk]))
            return jax.jit(run, donate_argnums=0).lower(*arguments).compile()

        return fastest_that_fits(compile_fn, [""], list(learners), bytes_available, arguments)

    def step(state, num_steps):
        state, count = placed((state, jnp.int32(num_steps)), layout.replicated)
        return fitted().program(state, train_key, count)

    def inspect(state):
        # Without losses: one of these methods is of all trials together.
        keys, tasks, *_ = jax.jit(drawn)(train_key, placed(state.step, layout.replicated))
        return Inspection(*jax.tree.map(_numbers, (keys, tasks)))

    @partial(jax.jit, static_argnums=(0, 1))
    def outcomes(name, split, params, keys):
        """Outcomes of the learner (""), of it when blind ("blind"), or of a yardstick, on the tasks of `keys`."""

        def one(params, keys):
            task_key, key = keys
            task = environment.sample(task_key, split)
            if name in ("", "blind"):
                return learner.outcome(params, task, key, name == "blind")
            return outcome(environment, environment.yardsticks[name], task, key, False)

        # Whole on every device: the host reads it, of which there may be several.
        return jax.lax.with_sharding_constraint(
            map_tasks(one, layout._replace(chunk=None), params, keys), layout.replicated
        )

    @partial(jax.jit, static_argnums=0)
    def optima(split, task_keys):
        return jax.vmap(lambda key: environment.optimum(environment.sample(key, split)))(task_keys)

    def keys_of(split, block, num_tasks=_BLOCK):
        block_key = jax.random.fold_in(jax.random.fold_in(jax.random.key(eval_seed), split == "test"), block)
        return tuple(jax.random.split(key, _BLOCK)[:num_tasks] for key in jax.random.split(block_key))

    def evaluate(params, split, num_tasks, checks=False):
        params = placed(params, layout.replicated)

        def over_blocks(fn):
            # A test of few tasks is one small block: trials of a simulated body take long.
            blocks = [keys_of(split, block, num_tasks) for block in range(-(-num_tasks // _BLOCK))]
            found = [jax.tree.map(np.asarray, fn(keys)) for keys in blocks]
            return jax.tree.map(lambda *parts: np.concatenate(parts)[:num_tasks], *found)

        def over_tasks(name):
            return over_blocks(partial(outcomes, name, split, params))

        own = over_tasks("")
        verdicts, beside = {}, {}
        if checks:
            yardsticks = {name: over_tasks(name) for name in environment.yardsticks}
            optimum = None
            if environment.optimum is not None:
                optimum = over_blocks(lambda keys: optima(split, keys[0]))
            beside = _beside(own, yardsticks, optimum, learner.curve_over)
            if not learner.trains:
                verdicts = dict.fromkeys(_CHECKS, check.not_checked("this agent has learnt nothing that could leak"))
            elif not environment.exchangeable:
                verdicts = dict.fromkeys(_CHECKS, check.not_checked(_NO_CHANCE))
            else:
                verdicts = _verdicts(own, over_tasks("blind"), yardsticks["random"])
        ci95 = 1.96 * check.standard_error(own.value)
        return Evaluation(METRIC, float(own.value.mean()), ci95, num_tasks, own.value, verdicts, beside)

    goal, body = environment.goal, environment.body

    @jax.jit
    def watched(params, keys):
        def one(task_key, key):
            task = environment.sample(task_key, "test")
            seen = learner.watch(params, task, key)
            limbs = None if body is None else jax.vmap(jax.vmap(body.limbs))(seen.observation)
            return task, None if goal is None else goal(task), limbs, seen

        return jax.vmap(one)(*keys)

    def examples(params, num_tasks):
        keys = keys_of("test", 0, num_tasks)
        tasks, goals, limbs, seen = jax.tree.map(np.asarray, watched(params, keys))
        if body is None:
            return Shown(seen, goals)
        captions = [body.caption(jax.tree.map(itemgetter(number), tasks)) for number in range(num_tasks)]
        return Shown(seen, goals, captions, limbs, body.radii, body.seconds)

    def sizes():
        return {"meta_params": sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(learner.init, init_key)))}

    experiment = Experiment(
        init=init,
        prepare=lambda: plan_of(fitted(), layout, meta_batch_size, False, bytes_available),
        step=step,
        inspect=inspect,
        evaluate=evaluate,
        examples=examples if goal or body else None,
        metric=METRIC,
        maximize=True,
        tasks_per_step=meta_batch_size,
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
        program=Program(steps, [""], list(learners), layout, bytes_available),
    )
    return traced_at(precision, experiment)


def _numbers(leaf: jax.Array) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)


def _beside(
    own: Outcome, yardsticks: Mapping[str, Outcome], optimum: np.ndarray | None, curve_over: str
) -> dict[str, Any]:
    """What a result states beside its value; entries of outcomes have a leading axis of tasks."""
    found = {"yardsticks": {name: _mean(other.value) for name, other in yardsticks.items()}}
    if optimum is not None:
        found["yardsticks"]["optimum"] = _mean(optimum)
    if yardsticks:
        best = max(yardsticks, key=lambda name: yardsticks[name].value.mean())
        found["regret"] = {**_mean(yardsticks[best].value - own.value), "against": best}
    if optimum is not None:
        found["regret_of_optimum"] = _mean(optimum - own.value)
    curves = {"learner": own, **yardsticks}
    found["curves"] = {"over": curve_over} | {
        name: outcome.curve.mean(0).tolist()
        for name, outcome in curves.items()
        if outcome.curve.shape == own.curve.shape
    }
    found["learner_curve_ci95"] = [_mean(point)["ci95"] for point in own.curve.T]
    return found


def _mean(per_task: np.ndarray) -> dict[str, float]:
    return {"value": float(per_task.mean()), "ci95": 1.96 * check.standard_error(per_task)}


def _verdicts(own: Outcome, blind: Outcome, random: Outcome) -> dict[str, Mapping[str, Any]]:
    found = check.is_chance(own.first, random.first), check.is_chance(blind.value, random.value)
    return dict(zip(_CHECKS, found, strict=True))
