"""Validation and test of meta-reinforcement learning: a learner plays trials beside agents that were not learnt."""

from collections.abc import Callable, Mapping
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import numpy as np

from metarun.compiled.task_map import Layout, map_tasks, placed
from metarun.rl.environment import Environment
from metarun.rl.meta_learner import MetaLearner, Outcome, Shown
from metarun.rl.trial import outcome
from metarun.trust import checks as check
from metarun.types import Array, Evaluation, Params

METRIC = "reward"
_CHECKS = ("chance_before_adaptation", "chance_without_reward")
_NO_CHANCE = "some ways to act are worth more to one who has seen no reward, so that there is no chance to be at"
_BLOCK = 250  # tasks of one evaluation dispatch: what bounds its memory, and how long a stop signal waits


class MetaTest:
    """Tests of a learner's parameters on an environment's validation and test tasks.

    Args:
      learner: the method.
      environment: the distribution over tasks, with the agents that are not learnt.
      layout: where trials are played.
      eval_seed: what the tasks are drawn by.
    """

    def __init__(self, learner: MetaLearner, environment: Environment, layout: Layout, eval_seed: int):
        self._learner, self._environment, self._layout, self._eval_seed = learner, environment, layout, eval_seed
        self._outcomes = jax.jit(self._outcomes_of, static_argnums=(0, 1))
        self._optima = jax.jit(self._optima_of, static_argnums=0)
        self._watched = jax.jit(self._watch)

    def evaluate(self, params: Params, split: str, num_tasks: int, checks: bool = False) -> Evaluation:
        """As `Experiment.evaluate`."""
        params = placed(params, self._layout.replicated)

        def over_blocks(fn: Callable[..., Any]) -> Any:
            # A test of few tasks is one small block: trials of a simulated body take long.
            blocks = [self._keys(split, block, num_tasks) for block in range(-(-num_tasks // _BLOCK))]
            found = [jax.tree.map(np.asarray, fn(keys)) for keys in blocks]
            return jax.tree.map(lambda *parts: np.concatenate(parts)[:num_tasks], *found)

        def over_tasks(name: str) -> Outcome:
            return over_blocks(partial(self._outcomes, name, split, params))

        own = over_tasks("")
        verdicts, beside = {}, {}
        if checks:
            yardsticks = {name: over_tasks(name) for name in self._environment.yardsticks}
            optimum = None
            if self._environment.optimum is not None:
                optimum = over_blocks(lambda keys: self._optima(split, keys[0]))
            beside = _beside(own, yardsticks, optimum, self._learner.curve_over)
            verdicts = self._verdicts(own, lambda: over_tasks("blind"), yardsticks)
        ci95 = 1.96 * check.standard_error(own.value)
        return Evaluation(METRIC, float(own.value.mean()), ci95, num_tasks, own.value, verdicts, beside)

    def examples(self, params: Params, num_tasks: int) -> Shown:
        """As `Experiment.examples`: what the learner did in test tasks."""
        body = self._environment.body
        keys = self._keys("test", 0, num_tasks)
        tasks, goals, limbs, seen = jax.tree.map(np.asarray, self._watched(params, keys))
        if body is None:
            return Shown(seen, goals)
        captions = [body.caption(jax.tree.map(itemgetter(number), tasks)) for number in range(num_tasks)]
        return Shown(seen, goals, captions, limbs, body.radii, body.seconds)

    def _keys(self, split: str, block: int, num_tasks: int = _BLOCK) -> tuple[Array, Array]:
        """The keys of the `block`-th tasks of a split, and of what is played in them."""
        block_key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self._eval_seed), split == "test"), block)
        task_keys, play_keys = (jax.random.split(key, _BLOCK)[:num_tasks] for key in jax.random.split(block_key))
        return task_keys, play_keys

    def _outcomes_of(self, name: str, split: str, params: Params, keys: tuple[Array, Array]) -> Outcome:
        """Outcomes of the learner (""), of it when blind ("blind"), or of a yardstick, on the tasks of `keys`."""

        def one(params, keys):
            task_key, key = keys
            task = self._environment.sample(task_key, split)
            if name in ("", "blind"):
                return self._learner.outcome(params, task, key, name == "blind")
            return outcome(self._environment, self._environment.yardsticks[name], task, key, False)

        outcomes = map_tasks(one, self._layout._replace(chunk=None), params, keys)
        return jax.lax.with_sharding_constraint(outcomes, self._layout.for_host(len(keys[0])))

    def _optima_of(self, split: str, task_keys: Array) -> Array:
        optimum: Any = self._environment.optimum
        return jax.vmap(lambda key: optimum(self._environment.sample(key, split)))(task_keys)

    def _watch(self, params: Params, keys: tuple[Array, Array]) -> Any:
        """Tasks, goals, limbs and what was seen, of one episode a task."""
        goal, body = self._environment.goal, self._environment.body

        def one(task_key, key):
            task = self._environment.sample(task_key, "test")
            seen = self._learner.watch(params, task, key)
            limbs = None if body is None else jax.vmap(jax.vmap(body.limbs))(seen.observation)
            return task, None if goal is None else goal(task), limbs, seen

        return jax.vmap(one)(*keys)

    def _verdicts(
        self, own: Outcome, blind: Callable[[], Outcome], yardsticks: Mapping[str, Outcome]
    ) -> dict[str, Mapping[str, Any]]:
        """Whether the first reward, and a trial without rewards, are at chance."""
        if not self._learner.trains:
            return dict.fromkeys(_CHECKS, check.not_checked("this agent has learnt nothing that could leak"))
        if not self._environment.exchangeable:
            return dict.fromkeys(_CHECKS, check.not_checked(_NO_CHANCE))
        random = yardsticks["random"]
        found = check.is_chance(own.first, random.first), check.is_chance(blind().value, random.value)
        return dict(zip(_CHECKS, found, strict=True))


def _beside(
    own: Outcome, yardsticks: Mapping[str, Outcome], optimum: np.ndarray | None, curve_over: str
) -> dict[str, Any]:
    """What a result states beside its value; entries of outcomes have a leading axis of tasks."""
    found: dict[str, Any] = {"yardsticks": {name: _mean(other.value) for name, other in yardsticks.items()}}
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


def _mean(per_task: np.ndarray | Array) -> dict[str, float]:
    return {"value": float(per_task.mean()), "ci95": 1.96 * check.standard_error(per_task)}
