"""The contract of an environment."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metarun.assembly.returned import environment_faults
from metarun.config.schema import RL
from metarun.rl.environment import Discrete, Environment, random_agent
from metarun.rl.trial import play
from metarun.testing.contract import compiled_quickly, differ, hold, made, name_of, not_finite, retraced
from metarun.trust.equivalence import standard_error

_SIGMAS = 4


@compiled_quickly()
def check_environment(
    factory: Callable[..., Environment], settings: Mapping[str, Any] | None = None, *, num_tasks: int = 64
) -> None:
    """Holds an environment to what every environment of metarun promises.

    - types and shapes: its functions return what `rl.environment.Environment` says, and a step keeps the state's types;
    - no memory: a function called again computes the same;
    - drawn by the key: the same key gives the same task, another key another one, and another split other tasks;
    - finite: observations and rewards of random trials are finite numbers;
    - alone and together: a trial under `jax.vmap` is the trial alone;
    - optimum: where it is stated, random actions do not earn more;
    - exchangeable: where it is stated, every first action is worth the same.

    Args:
      factory: what `env=NAME` would call.
      settings: its keys.
      num_tasks: in which trials are played.

    Raises:
      ContractError: a promise is broken, with what was found and how to mend it.
    """
    environment = made(factory, "env", RL, {}, settings or {})
    words = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(1), num_tasks)))
    kept: dict[str, Any] = {}

    def keys(number: Any = slice(None)) -> Any:
        return jax.random.wrap_key_data(jnp.asarray(words[number]))

    def once(name: str, make: Callable[[], Any]) -> Any:
        if name not in kept:
            kept[name] = make()
        return kept[name]

    def tasks(split: str) -> Any:
        return once(split, lambda: jax.jit(jax.vmap(lambda key: environment.sample(key, split)))(keys()))

    def trial(task: Any, key: Any) -> Any:
        return play(environment, random_agent(environment.actions), task, key)

    def trials() -> Any:
        return once("trials", lambda: jax.device_get(jax.jit(jax.vmap(trial))(tasks("train"), keys())))

    def memory() -> Iterator[str]:
        task = environment.sample(keys(0), "train")
        yield from retraced("sample", lambda key: environment.sample(key, "train"), keys(0))
        yield from retraced("reset", environment.reset, task, keys(0))
        state = environment.reset(task, keys(0))
        action = (
            jnp.zeros((), jnp.int32)
            if isinstance(environment.actions, Discrete)
            else jnp.zeros(environment.actions.size)
        )
        yield from retraced("step", environment.step, task, state, action, keys(0))

    def by_key() -> Iterator[str]:
        leaves = {
            split: [np.asarray(leaf) for leaf in jax.tree.leaves(tasks(split))] for split in ("train", "val", "test")
        }
        if not leaves["train"]:
            return
        for split, arrays in leaves.items():
            if all((leaf == leaf[:1]).all() for leaf in arrays):
                yield f"sample gives the same task of {split} for every key: draw it from the key."
        for split in ("val", "test"):
            if all(map(np.array_equal, leaves["train"], leaves[split])):
                yield f"sample gives the tasks of train for {split}: fold the split into the key, or divide the tasks."

    def finite() -> Iterator[str]:
        if where := not_finite((trials().seen.observation, trials().reward)):
            yield f"Random trials have observations or rewards that are not finite, at {', '.join(where)}."

    def together() -> Iterator[str]:
        alone = jax.jit(trial)(jax.tree.map(lambda leaf: leaf[0], tasks("train")), keys(0))
        if differ(alone.reward, jax.tree.map(lambda leaf: leaf[0], trials()).reward, 1e-3):
            yield "A trial under jax.vmap earns something else than the same trial alone."

    def optimum() -> Iterator[str]:
        assert environment.optimum is not None
        best = np.asarray(jax.jit(jax.vmap(environment.optimum))(tasks("train")))
        gained = trials().reward.reshape(num_tasks, -1).sum(1) - best
        if np.mean(gained) > _SIGMAS * standard_error(gained) + 1e-6 * np.abs(best).max():
            yield f"Random actions earn {np.mean(gained):.3g} more than the stated optimum."

    def exchangeable() -> Iterator[str]:
        action, reward = trials().action.reshape(num_tasks, -1)[:, 0], trials().reward.reshape(num_tasks, -1)[:, 0]
        groups = [reward[action == each] for each in np.unique(action) if (action == each).sum() > 1]
        for its in groups:
            error = np.hypot(standard_error(its), standard_error(reward))
            if abs(its.mean() - reward.mean()) > _SIGMAS * error + 1e-6:
                yield f"A first action earns {its.mean():.3g} where all earn {reward.mean():.3g}: it is not exchangeable."
                return

    promises: dict[str, Callable[[], Iterator[str]]] = {
        "types and shapes": lambda: environment_faults(environment),
        "no memory": memory,
        "drawn by the key": by_key,
        "finite": finite,
        "alone and together": together,
    }
    if environment.optimum is not None:
        promises["optimum"] = optimum
    if environment.exchangeable:
        promises["exchangeable"] = exchangeable
    hold(name_of(factory), promises)
