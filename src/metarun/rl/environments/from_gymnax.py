"""The environments of gymnax, and others that have its interface, as distributions over tasks."""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metarun.config.named_code import imported
from metarun.errors import ConfigError, MetarunError, one_of, positive_int, true_or_false
from metarun.rl import task_space
from metarun.rl.environment import Continuous, Discrete, Environment, Step, random_agent
from metarun.types import Array

# Those whose reset samples what is not observed and has to be found out: arms, or a goal.
_RESET_SAMPLES_TASK = (
    "SimpleBandit-bsuite",
    "MetaMaze-misc",
    "PointRobot-misc",
    "BernoulliBandit-misc",
    "GaussianBandit-misc",
)
_TIME_LIMIT = "max_steps_in_episode"


class GymnaxTask(NamedTuple):
    """A task.

    Attributes:
      params: those that vary, by name.
      start: a number that the key of every reset is made of; () where resets are random.
    """

    params: Mapping[str, Array]
    start: Array | tuple[()]


class Held(NamedTuple):
    """A state with what is observed of it, which in gymnax may be sampled anew each time that one looks.

    Attributes:
      state: gymnax's.
      observation: `[observation_size]`.
    """

    state: Any
    observation: Array


def from_gymnax(
    *,
    name: str = "CartPole-v1",
    vary: Mapping[str, Any] | None = None,
    same_start: bool | None = None,
    horizon: int | None = None,
    episodes: int = 1,
) -> Environment:
    """An environment of gymnax; a task is a set of its params.

    Observations are flattened, a number of `Discrete` ones one-hot. An action in [-1, 1] goes from the lower to the upper
    bound of a box. gymnax's time limit truncates an episode; only what its `step_env` says terminates one.

    Args:
      name: as `gymnax.make` takes it; or `MODULE:FUNCTION`, a function without arguments that returns an environment with
        gymnax's interface and its params. Modules are looked for in the working directory, too.
      vary: name of a param -> [low, high], of which each task has its own: uniform, and a whole number where the default
        is one. Splits never share one. None: the one task of the default params, for training and test alike.
      same_start: whether all episodes of a trial begin by the same sample of the environment's reset, by numbers that splits
        never share. Needed where the reset samples what makes the task. None: for gymnax's own of this kind.
      horizon: steps of an episode, at most; None: the default of the params.
      episodes: of a trial.

    Raises:
      ConfigError: for a value that is not allowed.
      MetarunError: gymnax is not installed, or the environment cannot be made.

    Source: Lange 2022, gymnax: A JAX-based Reinforcement Learning Environment Library.
    """
    environment, default = _made(name)
    steps = getattr(default, _TIME_LIMIT) if horizon is None else horizon
    horizon, episodes = positive_int("env.horizon", steps), positive_int("env.episodes", episodes)
    default = replace(default, **{_TIME_LIMIT: type(getattr(default, _TIME_LIMIT))(horizon)})
    samplers = {param: _sampler(param, bounds, default) for param, bounds in _ranges(vary, default).items()}
    samples_task = name in _RESET_SAMPLES_TASK
    same_start = samples_task if same_start is None else true_or_false("env.same_start", same_start)
    if samples_task and not same_start:
        raise ConfigError("env.same_start", same_start, f"true or null: every reset of {name} samples another task")
    actions, brought = _actions(name, environment, default)
    flat, observation_size = _observations(environment, default)
    # Compiled apart, as gymnax does, so that numbers among the params and states are arrays to it.
    reset_env = jax.jit(lambda *given: environment.reset_env(*given))
    step_env = jax.jit(lambda *given: environment.step_env(*given))

    def sample(key, split):
        start_key, *keys = jax.random.split(key, len(samplers) + 1)
        params = {param: sampler(key, split) for (param, sampler), key in zip(samplers.items(), keys, strict=True)}
        start = task_space.one_of(start_key, split, len(task_space.SPLITS) * task_space.CELLS) if same_start else ()
        return GymnaxTask(params, start)

    def reset(task, key):
        if same_start:
            key = jax.random.fold_in(jax.random.key(0), task.start)
        observation, state = reset_env(key, replace(default, **task.params))
        return Held(state, flat(observation))

    def step(task, held, action, key):
        params = replace(default, **task.params)
        observation, state, reward, terminated, _ = step_env(key, held.state, brought(action, params), params)
        return Step(Held(state, flat(observation)), reward.astype(jnp.float32), terminated)

    return Environment(
        sample=sample,
        reset=reset,
        observe=lambda task, held: held.observation,
        step=step,
        actions=actions,
        observation_size=observation_size,
        horizon=horizon,
        episodes=episodes,
        protocol={
            "name": name,
            "gymnax": version("gymnax"),
            "vary": dict(vary or {}),
            "same_start": same_start,
        },
        yardsticks={"random": random_agent(actions)},
    )


from_gymnax.code_keys = ("name",)  # type: ignore[attr-defined]


def _made(name: str) -> tuple[Any, Any]:
    """The environment of a name, and its default params."""
    try:
        import gymnax
    except ModuleNotFoundError as error:
        raise MetarunError(f"env=gymnax needs {error.name}: pip install '.[gymnax]' in a clone of metarun.") from error
    if ":" in str(name):
        return _imported(name)
    if name not in gymnax.registered_envs:
        raise ConfigError("env.name", name, f"MODULE:FUNCTION, or one of {', '.join(gymnax.registered_envs)}")
    try:
        return gymnax.make(name)
    except OSError as error:  # there are some that download what they show
        raise MetarunError(f"env.name={name} cannot be made: {error}.") from error


def _imported(name: str) -> tuple[Any, Any]:
    """What the function of `MODULE:FUNCTION` returns."""
    made = imported("env.name", name)()
    if not (isinstance(made, tuple) and len(made) == 2 and hasattr(made[0], "step_env") and is_dataclass(made[1])):
        allowed = "a function that returns an environment with gymnax's interface and its params, a dataclass"
        raise ConfigError("env.name", name, f"{allowed}; this one returns {type(made).__name__}")
    return made


def _ranges(vary: object, params: Any) -> dict[str, Any]:
    """`vary` as a dict, its names those of numbers among the params."""
    if vary is None:
        return {}
    numbers = [f.name for f in fields(params) if f.name != _TIME_LIMIT and _is_number(getattr(params, f.name))]
    if not isinstance(vary, Mapping):
        raise ConfigError("env.vary", vary, f"{{PARAM: [LOW, HIGH]}} with params of {', '.join(numbers) or 'none'}")
    for param in vary:
        one_of("env.vary", param, numbers)
    return dict(vary)


def _is_number(default: Any) -> bool:
    return np.ndim(default) == 0 and np.asarray(default).dtype.kind in "fi"


def _sampler(param: str, bounds: Any, params: Any) -> Callable[[Array, str], Array]:
    """`(key, split) -> number`, of the range of a param."""
    whole = np.asarray(getattr(params, param)).dtype.kind == "i"
    allowed = "[LOW, HIGH], at least three whole numbers" if whole else "[LOW, HIGH], one number below the other"
    try:
        low, high = bounds
        if whole:
            if low != int(low) or high != int(high) or high - low < 2:
                raise ValueError
            least, count = int(low), int(high) - int(low) + 1
            return lambda key, split: least + task_space.one_of(key, split, count)
        return task_space.between(float(low), float(high))
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ConfigError(f"env.vary.{param}", bounds, allowed) from error


def _actions(name: str, environment: Any, params: Any) -> tuple[Discrete | Continuous, Callable[[Array, Any], Array]]:
    """What actions there are, and `(action, params) -> action of gymnax`."""
    from gymnax.environments import spaces

    space = environment.action_space(params)
    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n)), lambda action, params: action
    if not isinstance(space, spaces.Box) or not np.isfinite(np.hstack([space.low, space.high])).all():
        raise ConfigError("env.name", name, f"an environment with Discrete actions or a bounded Box; this has {space}")

    def brought(action, params):
        box = environment.action_space(params)  # whose bounds may be among what varies
        share = (jnp.clip(action, -1, 1).reshape(space.shape) + 1) / 2
        return (box.low + share * (box.high - box.low)).astype(space.dtype)

    return Continuous(int(np.prod(space.shape))), brought


def _observations(environment: Any, params: Any) -> tuple[Callable[[Any], Array], int]:
    """`(observation of gymnax) -> [observation_size]` float32, and that size."""
    from gymnax.environments import spaces

    space = environment.observation_space(params)
    if isinstance(space, spaces.Discrete):
        return lambda observation: jax.nn.one_hot(observation, space.n), int(space.n)

    def flat(observation):
        return jnp.concatenate([jnp.ravel(leaf).astype(jnp.float32) for leaf in jax.tree.leaves(observation)])

    seen = jax.eval_shape(lambda key: flat(environment.reset_env(key, params)[0]), jax.random.key(0))
    return flat, seen.size
