"""Half-cheetah and ant against MuJoCo itself, in C and float64, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metarun.errors import ConfigError
from metarun.rl.environment import random_agent
from metarun.rl.environments import locomotion
from metarun.rl.physics import ENGINES, State, physics_of
from metarun.rl.trial import play

pytest.importorskip("gymnasium")
with pytest.MonkeyPatch.context() as silent:
    silent.setattr("builtins.print", lambda *_: None)
    pytest.importorskip("mujoco.mjx")

import mujoco


@pytest.fixture(autouse=True, scope="module")
def as_mjx_is_written():
    """MJX adds numbers to vectors and vectors to matrices without saying so."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module", params=["mujoco", pytest.param("mjx", marks=pytest.mark.slow)])
def made(request):
    return {
        "cheetah_velocity": locomotion.cheetah_velocity(horizon=5, engine=request.param),
        "ant_velocity": locomotion.ant_velocity(horizon=5, engine=request.param),
    }


def walked(model, steps, seed=0):
    """States `[steps + 1, n]` of C MuJoCo and the actions that led from each to the next: a walk of random actions."""
    random = np.random.default_rng(seed)
    data = mujoco.MjData(model)
    if model.nnumeric:
        data.qpos[:] = model.numeric("init_qpos").data
    actions = random.uniform(-1, 1, (steps, model.nu))
    states = [(data.qpos.copy(), data.qvel.copy(), data.qacc_warmstart.copy())]
    for action in actions:
        data.ctrl[:] = action
        mujoco.mj_step(model, data)
        states.append((data.qpos.copy(), data.qvel.copy(), data.qacc_warmstart.copy()))
    return [np.stack(column) for column in zip(*states, strict=True)], actions


@pytest.mark.parametrize(
    "file, options",
    [
        ("half_cheetah.xml", {}),
        # The pyramid that stands for a cone of friction is turned about the normal in MJX; a cone has no sides.
        ("ant.xml", {"integrator": 0, "cone": 1}),
    ],
)
def test_a_step_of_mjx_is_that_of_mujoco_in_c(file, options):
    physics = physics_of(file, 1, "mjx", **options)
    exact = physics_of(file, 1, "mjx", **options, iterations=100, ls_iterations=50)
    (qpos, qvel, warmstart), actions = walked(exact.model, 120)

    def step(qpos, qvel, warmstart, action):
        return physics.step(State(qpos, qvel, warmstart, jnp.zeros(3), jnp.zeros(9)), action)

    before = (jnp.asarray(x, jnp.float32) for x in (qpos[:-1], qvel[:-1], warmstart[:-1], actions))
    after = jax.jit(lambda *states: jax.lax.map(lambda one: step(*one), states))(*before)
    contact = np.abs(np.diff(qvel, axis=0)).max(1) > 1
    assert contact.sum() > 10, "the walk has to touch the ground"
    np.testing.assert_allclose(after.qpos, qpos[1:], atol=1e-3)
    np.testing.assert_allclose(after.qvel, qvel[1:], atol=0.1)
    assert np.median(np.abs(after.qvel - qvel[1:])) < 1e-4

    data = mujoco.MjData(physics.model)
    data.qpos[:] = qpos[-1]
    mujoco.mj_forward(physics.model, data)
    np.testing.assert_allclose(after.centre[-1], data.subtree_com[1], atol=2e-3)
    np.testing.assert_allclose(after.frame[-1], data.xmat[1], atol=2e-2)


def test_the_cheetah_s_model_is_the_file_s():
    mass = physics_of("half_cheetah.xml", 1, "mjx").model.body_mass
    assert mass.sum() == pytest.approx(14) and (mass[1:] > 0).all()


@pytest.mark.parametrize(
    "goals, goal, velocity, reward",
    [
        (locomotion._velocities(2.0), 1.5, 0.25, -1.25),
        (locomotion._velocities(3.0, alive=1.0), 2.0, 2.5, 0.5),
        (locomotion._directions(), -1.0, 0.75, -0.75),
    ],
)
def test_what_a_velocity_is_worth(goals, goal, velocity, reward):
    assert float(goals.reward(jnp.float32(goal), jnp.float32(velocity))) == pytest.approx(reward)


def test_a_cheetah_s_trials_by_hand_as_one_compiled_call(made):
    """Rewards, from what is observed of the centre of mass and from actions, some of which a body cannot do."""
    environment = made["cheetah_velocity"]
    within = random_agent(environment.actions)

    def act(memory, seen, key):
        return memory, 2 * within.act(memory, seen, key)[1], ()

    @jax.jit
    def trials(key):
        task_key, play_key = jax.random.split(key)
        tasks = jax.vmap(lambda key: environment.sample(key, "train"))(jax.random.split(task_key, 3))
        play_one = lambda task, key: play(environment, within._replace(act=act), task, key)
        trial = jax.vmap(play_one)(tasks, jax.random.split(play_key, 3))
        return tasks, trial, environment.body.limbs(trial.seen.observation[0, 2])

    tasks, trial, ends = trials(jax.random.key(0))
    place = np.asarray(trial.seen.observation[:, :, -3])
    action = np.clip(trial.action[:, :-1], -1, 1)
    assert np.abs(trial.action).max() > 1
    by_hand = -np.abs(np.diff(place, axis=1) / 0.01 - tasks[:, None]) - 0.05 * (action**2).sum(-1)
    np.testing.assert_allclose(trial.reward[:, :-1], by_hand, atol=2e-3)
    assert trial.seen.observation.shape == (3, 5, environment.observation_size) == (3, 5, 20)
    assert not trial.terminated.any() and trial.truncated[:, -1].all()
    # A cheetah is a metre long, and is where its centre of mass is.
    assert ends.shape == (8, 2, 3) and 1 < np.ptp(ends[..., 0]) < 1.5
    assert float(ends[..., 0].mean()) == pytest.approx(float(place[0, 2]), abs=0.2)
    trials(jax.random.key(1))
    assert trials._cache_size() == 1


def test_an_ant_is_paid_until_it_has_fallen_or_its_simulation_has_burst(made):
    environment, upside_down = made["ant_velocity"], jnp.array([0.0, 1.0, 0.0, 0.0])
    action = jnp.full(8, 0.5)

    @jax.jit
    def at(height, velocity, turned, goal):
        start = environment.reset(None, jax.random.key(0))
        qpos = start.qpos.at[2].set(height)
        qpos = jnp.where(turned, qpos.at[3:7].set(upside_down), qpos)
        state = start._replace(qpos=qpos, qvel=jnp.zeros_like(start.qvel).at[2].set(velocity))
        return state.centre, environment.step(goal, state, action, None)

    centre, stands = at(0.55, 0.0, False, 1.5)
    assert not stands.terminated and environment.observe(None, stands.state).shape == (
        environment.observation_size,
    ) == (41,)
    velocity = float(stands.state.centre[0] - centre[0]) / 0.02
    assert float(stands.reward) == pytest.approx(1.05 - abs(velocity - 1.5) - 0.005 * 8 * 0.25, abs=1e-4)
    for height, velocity, turned in ((0.5, -40.0, True), (1.5, 0.0, False), (jnp.nan, 0.0, False)):
        _, fallen = at(height, velocity, turned, 1.5)
        assert fallen.terminated and np.isfinite(fallen.reward), (height, fallen.state.qpos[2])


def test_velocities_are_dealt_to_the_splits_and_directions_are_two(made):
    keys = iter(jax.random.split(jax.random.key(0), 7))
    many = lambda goals, split: np.asarray(
        jax.vmap(lambda key: goals(key, split))(jax.random.split(next(keys), 20_000))
    )
    for name, most in (("cheetah_velocity", 2.0), ("ant_velocity", 3.0)):
        goals = [many(made[name].sample, split) for split in ("train", "val", "test")]
        assert all(0 < g.min() < 0.01 and most - 0.01 < g.max() < most for g in goals)
        sets = [set(g.tolist()) for g in goals]
        assert not sets[0] & sets[1] and not sets[0] & sets[2] and not sets[1] & sets[2]
    directions = many(locomotion._directions().sample, "test")
    assert set(directions.tolist()) == {-1.0, 1.0} and abs(directions.mean()) < 0.05


def test_what_is_not_allowed_is_named():
    for setting in ("horizon", "episodes", "frame_skip"):
        with pytest.raises(ConfigError, match=f"env.{setting}=0: expected"):
            locomotion.cheetah_velocity(**{setting: 0})
    with pytest.raises(ConfigError, match=r"env\.engine=bullet: expected .*auto.*mjx.*mujoco"):
        locomotion.ant_velocity(engine="bullet")


def test_the_engine_is_chosen_by_the_device_and_stated(monkeypatch):
    stated = {engine: locomotion.cheetah_velocity(engine=engine).protocol["physics"] for engine in ENGINES}
    assert stated == {"auto": "MuJoCo in C, Euler", "mjx": "MJX, Euler", "mujoco": "MuJoCo in C, Euler"}
    assert locomotion.cheetah_velocity().protocol["physics"] == "MJX, Euler", "as runs were that do not say it"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert locomotion.cheetah_velocity(engine="auto").protocol["physics"] == "MJX, Euler"


@pytest.mark.slow
def test_both_engines_walk_alike():
    """Episodes of random actions, which soon differ between the engines as chaos has it, have the same distribution."""
    found = []
    for seed, engine in enumerate(("mujoco", "mjx", "mujoco")):
        environment = locomotion.cheetah_direction(horizon=60, engine=engine)
        keys = jax.random.split(jax.random.key(seed), 400)
        agent = random_agent(environment.actions)
        trial = jax.jit(jax.vmap(lambda key: play(environment, agent, jnp.float32(1), key)))(keys)  # noqa: B023
        height, turned = trial.seen.observation[:, -1, 0], trial.seen.observation[:, -1, 1]
        found.append(np.stack([trial.reward.sum(1), height, turned], 1))
    for other in found[1:]:
        pooled = np.sqrt((found[0].var(0) + other.var(0)) / 400)
        assert (np.abs(found[0].mean(0) - other.mean(0)) < 4 * pooled).all()
        np.testing.assert_allclose(found[0].std(0), other.std(0), rtol=0.2)
