"""Animals that learn to run at a velocity or in a direction: the half-cheetah and the ant, in MuJoCo's physics.

The physics is that of `rl/physics.py`: MuJoCo in C, of which a compiled rollout asks each step of all its episodes at once, or
MJX, MuJoCo in JAX, which is part of the program. The models are those that gymnasium brings with it. All come with the
extra `physics`.

Source: Finn et al. 2017, Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks, section 5.3, and the code
published with it, for rllab, of which goals, rewards, starts, seconds of an action and, but for contact forces,
observations are. What differs: rllab has an older MuJoCo, in C, and states are float32 here between two steps, so returns
will not agree to the last digit. MJX computes all in float32. It also turns the pyramid that stands for a cone of friction,
so that steps of an ant that slides are not quite those of C. gymnasium's half-cheetah has the numbers of rllab's; its
ant has another `solimp` and half of its timestep. An action of the ant lasts two timesteps, which is as long as
rllab's one, and the integrator is Euler instead of RK4: two evaluations of the dynamics an action, not eight.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metarun.errors import positive_int
from metarun.rl import task_space
from metarun.rl.environment import Body, Continuous, Environment, Step, random_agent
from metarun.rl.physics import Physics, State, physics_of
from metarun.types import Array

# The default of `engine` is what it was before there was another: so that a run that was saved then is read as it was trained.
_SPREAD_OF_POSITION, _SPREAD_OF_VELOCITY = 0.01, 0.1  # standard deviations at the start of an episode
_NAMES = {"mjx": "MJX", "mujoco": "MuJoCo in C"}
_UPRIGHT = (0.2, 1.0)  # heights of the ant's torso, in metres, outside of which it has fallen


class Goals(NamedTuple):
    """The tasks of an environment, each a scalar g.

    Attributes:
      sample: `(key, split) -> g`.
      reward: `(g, v) -> scalar`, of a velocity v in m/s.
      caption: `(g) -> str`, for people.
      said: of their distribution in the protocol.
    """

    sample: Callable[[Array, str], Array]
    reward: Callable[[Array, Array], Array]
    caption: Callable[[Any], str]
    said: str


def cheetah_velocity(*, horizon: int = 200, episodes: int = 1, frame_skip: int = 1, engine: str = "mjx") -> Environment:
    """A half-cheetah, in a vertical plane, that is to run at a velocity g, uniform in (0, 2) m/s and not observed.

    The reward is -|v - g| - 0.05 |a|^2, with v of the centre of mass over the step.

    Args:
      horizon: steps of an episode.
      episodes: of a trial.
      frame_skip: timesteps of 0.01 s of an action; 1 as in rllab, where gymnasium has 5.
      engine: of the physics, one of `physics.ENGINES`.

    Raises:
      ConfigError: for a value that is not allowed.
      MetarunError: the extra `physics` is not installed.
    """
    return _cheetah(_velocities(2.0), horizon, episodes, frame_skip, engine)


def cheetah_direction(
    *, horizon: int = 200, episodes: int = 1, frame_skip: int = 1, engine: str = "mjx"
) -> Environment:
    """A half-cheetah that is to run forwards, g = 1, or backwards, g = -1: the reward is g v - 0.05 |a|^2.

    These two are all tasks there are, in training and in a test: what is tested is adaptation to either.

    Args, Raises: as of `cheetah_velocity`.
    """
    return _cheetah(_directions(), horizon, episodes, frame_skip, engine)


def ant_velocity(*, horizon: int = 200, episodes: int = 1, frame_skip: int = 2, engine: str = "mjx") -> Environment:
    """An ant that is to run along x at a velocity g, uniform in (0, 3) m/s and not observed.

    The reward is 1.05 - |v - g| - 0.005 |a|^2, with v of the centre of mass over the step. An episode is terminated
    where the torso leaves heights from 0.2 to 1 m. rllab takes off a cost of contact forces, of at most 0.042, and observes
    these forces.

    Args:
      horizon: steps of an episode, at most.
      episodes: of a trial.
      frame_skip: timesteps of 0.01 s of an action; 2 are the 0.02 s of rllab, where gymnasium has 5.
      engine: of the physics, one of `physics.ENGINES`.

    Raises:
      ConfigError: for a value that is not allowed.
      MetarunError: the extra `physics` is not installed.
    """
    return _ant(_velocities(3.0, alive=1.0), horizon, episodes, frame_skip, engine)


def ant_direction(*, horizon: int = 200, episodes: int = 1, frame_skip: int = 2, engine: str = "mjx") -> Environment:
    """An ant that is to run forwards along x, g = 1, or backwards, g = -1: the reward is 0.05 + g v - 0.005 |a|^2.

    These two are all tasks there are, in training and in a test. The rest is as of `ant_velocity`.

    Args, Raises: as of `ant_velocity`.
    """
    return _ant(_directions(), horizon, episodes, frame_skip, engine)


def _velocities(most: float, alive: float = 0.0) -> Goals:
    return Goals(
        sample=lambda key, split: most * task_space.uniform(key, split),
        reward=lambda goal, v: alive - jnp.abs(v - goal),
        caption=lambda goal: f"to run at {goal:.2f} m/s",
        said=f"velocities uniform in (0, {most:g}) m/s, dealt to the splits",
    )


def _directions() -> Goals:
    return Goals(
        sample=lambda key, split: jnp.where(jax.random.bernoulli(key), 1.0, -1.0),
        reward=lambda goal, v: goal * v,
        caption=lambda goal: "to run " + ("forwards" if goal > 0 else "backwards"),
        said="forwards or backwards, in every split",
    )


def _cheetah(goals: Goals, horizon: int, episodes: int, frame_skip: int, engine: str) -> Environment:
    physics = physics_of("half_cheetah.xml", positive_int("env.frame_skip", frame_skip), engine)

    def observe(_, state):
        return jnp.concatenate([state.qpos[1:], state.qvel, state.centre])

    def limbs(observation):
        # How far along it is, is in what is observed by the centre of mass.
        centre, ends = physics.limbs(jnp.concatenate([jnp.zeros(1), observation[: physics.model.nq - 1]]))
        return ends + (observation[-3:] - centre)

    return _environment(physics, goals, observe, limbs, horizon, episodes, frame_skip, cost=0.05)


def _ant(goals: Goals, horizon: int, episodes: int, frame_skip: int, engine: str) -> Environment:
    # 0 is mujoco.mjtIntegrator.mjINT_EULER.
    physics = physics_of("ant.xml", positive_int("env.frame_skip", frame_skip), engine, integrator=0)

    def observe(_, state):
        return jnp.concatenate([state.qpos, state.qvel, state.frame, state.centre])

    def limbs(observation):
        return physics.limbs(observation[: physics.model.nq])[1]

    return _environment(
        physics, goals, observe, limbs, horizon, episodes, frame_skip, cost=0.005, bonus=0.05, heights=_UPRIGHT
    )


def _environment(
    physics: Physics,
    goals: Goals,
    observe: Callable[[Any, State], Array],
    limbs: Callable[[Array], Array],
    horizon: int,
    episodes: int,
    frame_skip: int,
    *,
    cost: float,
    bonus: float = 0.0,
    heights: tuple[float, float] | None = None,
) -> Environment:
    """An environment; `cost` is of |a|^2, `bonus` of every step; outside of `heights` of `qpos[2]`, it ends."""
    horizon, episodes = positive_int("env.horizon", horizon), positive_int("env.episodes", episodes)
    model, actions = physics.model, Continuous(physics.model.nu)
    seconds = frame_skip * model.opt.timestep

    def reset(task, key):
        del task
        noise = jax.random.normal(key, (model.nq + model.nv,))
        qpos = physics.start_qpos + _SPREAD_OF_POSITION * noise[: model.nq]
        return physics.start(qpos, _SPREAD_OF_VELOCITY * noise[model.nq :])

    def step(goal, state, action, key):
        del key
        action = jnp.clip(action, -1, 1)
        moved = physics.step(state, action)
        velocity = (moved.centre[0] - state.centre[0]) / seconds
        reward = goals.reward(goal, velocity) - cost * (action**2).sum() + bonus
        # A simulation that has burst is over, and says nothing.
        burst = ~jnp.isfinite(jnp.concatenate([moved.qpos, moved.qvel, velocity[None]])).all()
        fallen = jnp.bool_(False)
        if heights is not None:
            fallen = (moved.qpos[2] < heights[0]) | (moved.qpos[2] > heights[1])
        return Step(moved, jnp.where(burst, 0.0, reward), burst | fallen)

    return Environment(
        sample=goals.sample,
        reset=reset,
        observe=observe,
        step=step,
        actions=actions,
        observation_size=jax.eval_shape(lambda key: observe(None, reset(None, key)), jax.random.key(0)).shape[0],
        horizon=horizon,
        episodes=episodes,
        protocol={
            "goals": goals.said,
            "seconds_of_an_action": seconds,
            "timestep": model.opt.timestep,
            "action_cost": cost,
            "bonus": bonus,
            "terminated_outside_heights": heights,
            "physics": f"{_NAMES[physics.engine]}, Euler",
        },
        yardsticks={"random": random_agent(actions)},
        body=Body(limbs, physics.radii, goals.caption, seconds),
    )
