"""Animals that learn to run at a velocity or in a direction: the half-cheetah and the ant, in MuJoCo's physics.

The physics is MJX, MuJoCo in JAX, so that a rollout compiles into one program like any other. The models are those that
gymnasium brings with it. Both come with the extra `physics`.

Source: Finn et al. 2017, Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks, section 5.3, and the code
published with it, for rllab, of which goals, rewards, starts, seconds of an action and, but for contact forces,
observations are. What differs: rllab has an older MuJoCo, in C, this is MJX in float32, so returns will not agree to
the last digit. MJX also turns the pyramid that stands for a cone of friction, so that steps of an ant that slides are
not quite those of C. gymnasium's half-cheetah has the numbers of rllab's; its ant has another `solimp` and half of its
timestep. An action of the ant lasts two timesteps, which is as long as rllab's one, and the integrator is Euler
instead of RK4: two evaluations of the dynamics an action, not eight.
"""

import contextlib
import io
from collections.abc import Callable
from importlib import resources
from typing import Any, NamedTuple
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from metarun.errors import MetarunError, positive_int
from metarun.rl import task_space
from metarun.rl.environment import Body, Continuous, Environment, Step, random_agent
from metarun.types import Array

_SPREAD_OF_POSITION, _SPREAD_OF_VELOCITY = 0.01, 0.1  # standard deviations at the start of an episode
# Of MuJoCo's solver, in Newton steps and in steps along each: all tasks wait for the slowest. With its own 100 and 50, steps
# are as far from those of MuJoCo in float64 as with these, and took about three times as long.
_SOLVER = {"iterations": 8, "ls_iterations": 8}
_UPRIGHT = (0.2, 1.0)  # heights of the ant's torso, in metres, outside of which it has fallen


class State(NamedTuple):
    """All that the next step needs: of MJX's own record of some thousand numbers, the rest follows from it.

    Attributes:
      qpos: `[nq]`, generalised positions, in metres, radians and quaternions.
      qvel: `[nv]`, generalised velocities.
      warmstart: `[nv]`, accelerations that the solver of contacts begins with.
      centre: `[3]`, the body's centre of mass, in metres.
      frame: `[9]`, rotation matrix of the torso, row by row.
    """

    qpos: Array
    qvel: Array
    warmstart: Array
    centre: Array
    frame: Array


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


class Physics(NamedTuple):
    """A simulated body.

    Attributes:
      model: the `mujoco.MjModel`.
      start: `(qpos, qvel) -> State`.
      step: `(state, action) -> State`, by `frame_skip` timesteps; `action: [nu]` in [-1, 1].
      limbs: `(qpos) -> (centre, ends)`, of the body `[3]` and of its capsules, `[n, 2, 3]`; a sphere is a capsule both of
        whose ends are its centre.
      radii: of the capsules, `[n]`, in metres.
      start_qpos: `[nq]`, of an animal that stands.
    """

    model: Any
    start: Callable[[Array, Array], State]
    step: Callable[[State, Array], State]
    limbs: Callable[[Array], tuple[Array, Array]]
    radii: np.ndarray
    start_qpos: Array


def physics_of(file: str, frame_skip: int, **options: Any) -> Physics:
    """The physics of one of gymnasium's model files, of a torso that is body 1.

    Args:
      file: its name, such as "ant.xml".
      frame_skip: timesteps of an action.
      options: of the model to be set, such as `integrator`.

    Raises:
      MetarunError: MJX or gymnasium is not installed.
    """
    mujoco, mjx, path = _installed(file)
    tree = ElementTree.parse(path)
    # What MuJoCo deprecates in the files is done by its functions.
    compiler = tree.find("compiler")
    mass = None if compiler is None else compiler.attrib.pop("settotalmass", None)
    model = mujoco.MjModel.from_xml_string(ElementTree.tostring(tree.getroot(), encoding="unicode"))
    if mass is not None:
        mujoco.mj_setTotalmass(model, float(mass))
        mujoco.mj_setConst(model, mujoco.MjData(model))
    for name, value in {**_SOLVER, **options}.items():
        setattr(model.opt, name, value)
    compiled, blank = mjx.put_model(model, impl="jax"), mjx.make_data(model, impl="jax")

    share = jnp.array(model.body_mass / model.body_mass.sum(), jnp.float32)

    def placed(qpos):
        data = mjx.kinematics(compiled, blank.replace(qpos=qpos))
        return data, share @ data.xipos

    def state_of(qpos, qvel, warmstart):
        # A step of MJX leaves the places of what it has moved as they were before.
        data, centre = placed(qpos)
        return State(data.qpos, qvel, warmstart, centre, data.xmat[1].reshape(9))

    def step(state, action):
        moving = blank.replace(qpos=state.qpos, qvel=state.qvel, qacc_warmstart=state.warmstart, ctrl=action)
        moved = lax.fori_loop(0, frame_skip, lambda _, data: mjx.step(compiled, data), moving)
        return state_of(moved.qpos, moved.qvel, moved.qacc_warmstart)

    shown = np.flatnonzero(model.geom_bodyid > 0)
    capsule = model.geom_type[shown] == mujoco.mjtGeom.mjGEOM_CAPSULE
    half_length = jnp.array(np.where(capsule, model.geom_size[shown, 1], 0.0), jnp.float32)

    def limbs(qpos):
        data, centre = placed(qpos)
        along = data.geom_xmat[shown, :, 2] * half_length[:, None]
        return centre, jnp.stack([data.geom_xpos[shown] - along, data.geom_xpos[shown] + along], 1)

    return Physics(
        model=model,
        start=lambda qpos, qvel: state_of(qpos, qvel, jnp.zeros(model.nv)),
        step=step,
        limbs=limbs,
        radii=model.geom_size[shown, 0],
        start_qpos=jnp.array(model.numeric("init_qpos").data if model.nnumeric else model.qpos0, jnp.float32),
    )


def _installed(file: str) -> tuple[Any, Any, Any]:
    """MuJoCo, MJX and the path of a model file."""
    try:
        import mujoco

        with contextlib.redirect_stdout(io.StringIO()):  # MJX says of each backend that it was not installed with
            import mujoco.mjx as mjx

        return mujoco, mjx, resources.files("gymnasium") / "envs" / "mujoco" / "assets" / file
    except ModuleNotFoundError as missing:
        raise MetarunError(
            f"{missing.name} is not installed; this environment needs it: pip install '.[physics]' in a clone of metarun"
        ) from missing


def cheetah_velocity(*, horizon: int = 200, episodes: int = 1, frame_skip: int = 1) -> Environment:
    """A half-cheetah, in a vertical plane, that is to run at a velocity g, uniform in (0, 2) m/s and not observed.

    The reward is -|v - g| - 0.05 |a|^2, with v of the centre of mass over the step.

    Args:
      horizon: steps of an episode.
      episodes: of a trial.
      frame_skip: timesteps of 0.01 s of an action; 1 as in rllab, where gymnasium has 5.

    Raises:
      ConfigError: for a value that is not allowed.
      MetarunError: the extra `physics` is not installed.
    """
    return _cheetah(_velocities(2.0), horizon, episodes, frame_skip)


def cheetah_direction(*, horizon: int = 200, episodes: int = 1, frame_skip: int = 1) -> Environment:
    """A half-cheetah that is to run forwards, g = 1, or backwards, g = -1: the reward is g v - 0.05 |a|^2.

    These two are all tasks there are, in training and in a test: what is tested is adaptation to either.

    Args, Raises: as of `cheetah_velocity`.
    """
    return _cheetah(_directions(), horizon, episodes, frame_skip)


def ant_velocity(*, horizon: int = 200, episodes: int = 1, frame_skip: int = 2) -> Environment:
    """An ant that is to run along x at a velocity g, uniform in (0, 3) m/s and not observed.

    The reward is 1.05 - |v - g| - 0.005 |a|^2, with v of the centre of mass over the step. An episode is terminated
    where the torso leaves heights from 0.2 to 1 m. rllab takes off a cost of contact forces, of at most 0.042, and observes
    these forces; MJX does not compute them.

    Args:
      horizon: steps of an episode, at most.
      episodes: of a trial.
      frame_skip: timesteps of 0.01 s of an action; 2 are the 0.02 s of rllab, where gymnasium has 5.

    Raises:
      ConfigError: for a value that is not allowed.
      MetarunError: the extra `physics` is not installed.
    """
    return _ant(_velocities(3.0, alive=1.0), horizon, episodes, frame_skip)


def ant_direction(*, horizon: int = 200, episodes: int = 1, frame_skip: int = 2) -> Environment:
    """An ant that is to run forwards along x, g = 1, or backwards, g = -1: the reward is 0.05 + g v - 0.005 |a|^2.

    These two are all tasks there are, in training and in a test. The rest is as of `ant_velocity`.

    Args, Raises: as of `ant_velocity`.
    """
    return _ant(_directions(), horizon, episodes, frame_skip)


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


def _cheetah(goals: Goals, horizon: int, episodes: int, frame_skip: int) -> Environment:
    physics = physics_of("half_cheetah.xml", positive_int("env.frame_skip", frame_skip))

    def observe(_, state):
        return jnp.concatenate([state.qpos[1:], state.qvel, state.centre])

    def limbs(observation):
        # How far along it is, is in what is observed by the centre of mass.
        centre, ends = physics.limbs(jnp.concatenate([jnp.zeros(1), observation[: physics.model.nq - 1]]))
        return ends + (observation[-3:] - centre)

    return _environment(physics, goals, observe, limbs, horizon, episodes, frame_skip, cost=0.05)


def _ant(goals: Goals, horizon: int, episodes: int, frame_skip: int) -> Environment:
    # 0 is mujoco.mjtIntegrator.mjINT_EULER.
    physics = physics_of("ant.xml", positive_int("env.frame_skip", frame_skip), integrator=0)

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
            "physics": "MJX, Euler",
        },
        yardsticks={"random": random_agent(actions)},
        body=Body(limbs, physics.radii, goals.caption, seconds),
    )
