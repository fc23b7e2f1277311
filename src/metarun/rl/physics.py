"""Bodies that MuJoCo simulates, by either of its engines: MJX, in JAX, or MuJoCo itself, in C.

On an accelerator, MJX computes all bodies in one program. On a CPU, C is seven times faster for a half-cheetah, and its step
needs no compilation. Both begin from a `State` and end in one, so that what is built on them knows neither.

The models are those that gymnasium brings with it. All of it comes with the extra `physics`.
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

from metarun.compiled.host_calls import on_host
from metarun.errors import MetarunError, one_of
from metarun.rl.simulations import Simulations
from metarun.types import Array

ENGINES = ("auto", "mjx", "mujoco")
# Of MJX's solver, in Newton steps and in steps along each: all bodies wait for the slowest. With MuJoCo's own 100 and 50, steps
# are as far from those of MuJoCo in float64 as with these, and took about three times as long. In C none waits.
_SOLVER = {"mjx": {"iterations": 8, "ls_iterations": 8}, "mujoco": {}}


class State(NamedTuple):
    """All that the next step needs: of MuJoCo's own record of some thousand numbers, the rest follows from it.

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


class Physics(NamedTuple):
    """A simulated body.

    Attributes:
      engine: "mjx" or "mujoco".
      model: the `mujoco.MjModel`.
      start: `(qpos, qvel) -> State`.
      step: `(state, action) -> State`, by `frame_skip` timesteps; `action: [nu]` in [-1, 1].
      limbs: `(qpos) -> (centre, ends)`, of the body `[3]` and of its capsules, `[n, 2, 3]`; a sphere is a capsule both of
        whose ends are its centre.
      radii: of the capsules, `[n]`, in metres.
      start_qpos: `[nq]`, of an animal that stands.
    """

    engine: str
    model: Any
    start: Callable[[Array, Array], State]
    step: Callable[[State, Array], State]
    limbs: Callable[[Array], tuple[Array, Array]]
    radii: np.ndarray
    start_qpos: Array


def engine_here(engine: str) -> str:
    """The engine of `env.engine`: of "auto", "mujoco" where JAX computes on a CPU, and else "mjx".

    Raises:
      ConfigError: for another name.
    """
    chosen = one_of("env.engine", engine, ENGINES)
    if chosen != "auto":
        return chosen
    return "mujoco" if jax.default_backend() == "cpu" else "mjx"


def physics_of(file: str, frame_skip: int, engine: str, **options: Any) -> Physics:
    """The physics of one of gymnasium's model files, of a torso that is body 1.

    States are float32, whichever the engine. In C, each step computes in float64 between them.

    Args:
      file: its name, such as "ant.xml".
      frame_skip: timesteps of an action.
      engine: one of `ENGINES`.
      options: of the model to be set, such as `integrator`.

    Raises:
      ConfigError: for another engine.
      MetarunError: MuJoCo, MJX or gymnasium is not installed.
    """
    engine = engine_here(engine)
    mujoco, mjx, path = _installed(file)
    model = _model(mujoco, path)
    for name, value in {**_SOLVER[engine], **options}.items():
        setattr(model.opt, name, value)
    compiled, blank = mjx.put_model(model, impl="jax"), mjx.make_data(model, impl="jax")

    share = jnp.array(model.body_mass / model.body_mass.sum(), jnp.float32)

    def placed(qpos):
        data = mjx.kinematics(compiled, blank.replace(qpos=qpos))
        return data, share @ data.xipos

    def state_of(qpos, qvel, warmstart):
        # A step leaves the places of what it has moved as they were before. MJX finds them for either engine: many bodies at
        # once, they take a tenth of the time that they take in C.
        data, centre = placed(qpos)
        return State(data.qpos, qvel, warmstart, centre, data.xmat[1].reshape(9))

    def step_of_mjx(state, action):
        moving = blank.replace(qpos=state.qpos, qvel=state.qvel, qacc_warmstart=state.warmstart, ctrl=action)
        moved = lax.fori_loop(0, frame_skip, lambda _, data: mjx.step(compiled, data), moving)
        return state_of(moved.qpos, moved.qvel, moved.qacc_warmstart)

    def in_c():
        simulated = on_host(Simulations(model, frame_skip), model.nq + 2 * model.nv)

        def step(state, action):
            moved = simulated(jnp.concatenate([state.qpos, state.qvel, state.warmstart, action]))
            return state_of(*jnp.split(moved, [model.nq, model.nq + model.nv]))

        return step

    shown = np.flatnonzero(model.geom_bodyid > 0)
    capsule = model.geom_type[shown] == mujoco.mjtGeom.mjGEOM_CAPSULE
    half_length = jnp.array(np.where(capsule, model.geom_size[shown, 1], 0.0), jnp.float32)

    def limbs(qpos):
        data, centre = placed(qpos)
        along = data.geom_xmat[shown, :, 2] * half_length[:, None]
        return centre, jnp.stack([data.geom_xpos[shown] - along, data.geom_xpos[shown] + along], 1)

    return Physics(
        engine=engine,
        model=model,
        start=lambda qpos, qvel: state_of(qpos, qvel, jnp.zeros(model.nv)),
        step=step_of_mjx if engine == "mjx" else in_c(),
        limbs=limbs,
        radii=model.geom_size[shown, 0],
        start_qpos=jnp.array(model.numeric("init_qpos").data if model.nnumeric else model.qpos0, jnp.float32),
    )


def _model(mujoco: Any, path: Any) -> Any:
    """The model of a file. What MuJoCo deprecates in it is done by its functions."""
    tree = ElementTree.parse(path)
    compiler = tree.find("compiler")
    mass = None if compiler is None else compiler.attrib.pop("settotalmass", None)
    model = mujoco.MjModel.from_xml_string(ElementTree.tostring(tree.getroot(), encoding="unicode"))
    if mass is not None:
        mujoco.mj_setTotalmass(model, float(mass))
        mujoco.mj_setConst(model, mujoco.MjData(model))
    return model


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
