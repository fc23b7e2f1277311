"""MuJoCo in C behind an environment: against MuJoCo itself, and whatever the threads, the batches and the devices."""

import dataclasses
import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metarun.assembly.rl_run import build
from metarun.compiled.host_calls import on_host
from metarun.compiled.task_map import default_layout, map_tasks
from metarun.config.composing import composed
from metarun.config.schema import RL
from metarun.rl.environment import random_agent
from metarun.rl.environments import locomotion
from metarun.rl.physics import State, physics_of
from metarun.rl.simulations import Simulations
from metarun.rl.trial import play
from metarun.training import checkpoint, runner

mujoco = pytest.importorskip("mujoco")
pytest.importorskip("gymnasium")
BODIES = [("half_cheetah.xml", {}), ("ant.xml", {"integrator": 0})]


@pytest.fixture(autouse=True, scope="module")
def as_mjx_is_written():
    """MJX adds numbers to vectors and vectors to matrices without saying so."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def states(model, number, seed=0):
    """Rows of float32: qpos, qvel, warmstart and controls of bodies near the ground, in motion."""
    random = np.random.default_rng(seed)
    start = model.numeric("init_qpos").data if model.nnumeric else model.qpos0
    qpos = start + 0.05 * random.normal(size=(number, model.nq))
    qpos[:, 2 if model.nq > model.nv else 1] -= random.uniform(0, 0.2, number)  # some touch it
    if model.nq > model.nv:  # as a step leaves it
        qpos[:, 3:7] /= np.linalg.norm(qpos[:, 3:7], axis=1, keepdims=True)
    motion = random.normal(size=(number, 2 * model.nv))
    actions = random.uniform(-1, 1, (number, model.nu))
    return np.concatenate([qpos, motion, actions], 1).astype(np.float32)


def stepped(model, row, frame_skip):
    """What `mj_step` makes of a row, in float64."""
    data = mujoco.MjData(model)
    ends = np.cumsum([model.nq, model.nv, model.nv])
    data.qpos[:], data.qvel[:], data.qacc_warmstart[:], data.ctrl[:] = np.split(row.astype(np.float64), ends)
    for _ in range(frame_skip):
        mujoco.mj_step(model, data)
    return np.concatenate([data.qpos, data.qvel, data.qacc_warmstart]), data


@pytest.mark.parametrize("file, options", BODIES)
def test_a_step_is_mj_step(file, options):
    physics = physics_of(file, 2, "mujoco", **options)
    model = physics.model
    assert (model.opt.iterations, model.opt.ls_iterations) == (100, 50), "MuJoCo's own"
    rows = states(model, 30)
    state, action = np.split(rows, [model.nq + 2 * model.nv], 1)

    def step(state, action):
        qpos, qvel, warmstart = jnp.split(state, [model.nq, model.nq + model.nv])
        return physics.step(State(qpos, qvel, warmstart, jnp.zeros(3), jnp.zeros(9)), action)

    after = jax.jit(jax.vmap(step))(state, action)
    touched = 0
    for number, row in enumerate(rows):
        exact, data = stepped(model, row, 2)
        touched += data.ncon > 0
        found = np.concatenate([after.qpos[number], after.qvel[number], after.warmstart[number]])
        np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-6)
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        np.testing.assert_allclose(after.centre[number], data.subtree_com[1], atol=1e-5)
        np.testing.assert_allclose(after.frame[number], data.xmat[1], atol=1e-5)
    assert touched > 5


@pytest.mark.parametrize("file, options", BODIES)
def test_a_step_follows_from_its_row_alone(file, options, monkeypatch):
    """Not from what was stepped before or beside it, from threads, or from who steps at the same time."""
    physics = physics_of(file, 1, "mujoco", **options)
    rows = states(physics.model, 64)
    steps = Simulations(physics.model, 1)
    once = steps(rows)
    steps(states(physics.model, 64, seed=1))
    np.testing.assert_array_equal(steps(rows), once)
    np.testing.assert_array_equal(np.concatenate([steps(row[None]) for row in rows]), once)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8), raising=False)
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    several = Simulations(physics.model, 1)
    assert several._threads == 8
    np.testing.assert_array_equal(several(rows), once)

    wrong = []
    orders = [np.random.default_rng(seed).permutation(64) for seed in range(4)]
    work = lambda order: wrong.extend(k for k in range(20) if (steps(rows[order]) != once[order]).any())
    threads = [threading.Thread(target=work, args=(order,)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("file, options", BODIES)
def test_what_is_not_finite_stays_so_in_silence_and_alone(file, options, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)  # where MuJoCo would write of it
    physics = physics_of(file, 1, "mujoco", **options)
    rows = states(physics.model, 9)
    steps = Simulations(physics.model, 1)
    once = steps(rows)
    nq, nv = physics.model.nq, physics.model.nv
    bad = {1: (0, np.nan), 2: (0, np.inf), 3: (nq, np.nan), 4: (nq + nv, np.nan), 5: (nq + 2 * nv, np.nan)}
    bad |= {6: (nq, 1e30), 7: (nq + 2, -3e38)}
    for row, (column, value) in bad.items():
        rows[row, column] = value
    found = steps(rows)
    assert np.isnan(found[[1, 2, 3, 4, 5]]).all()
    np.testing.assert_array_equal(found[[0, 8]], once[[0, 8]])
    for _ in range(10):  # what is merely too large bursts, and does not stand up again
        found = steps(np.concatenate([found, rows[:, nq + 2 * nv :]], 1))
    assert (~np.isfinite(found[[6, 7]]).all(1) | (np.abs(found[[6, 7]]).max(1) > 1e9)).all()
    assert not list(tmp_path.iterdir()) and capfd.readouterr() == ("", "")


def test_what_mujoco_gives_up_is_burst(monkeypatch):
    physics = physics_of("half_cheetah.xml", 1, "mujoco")
    steps = Simulations(physics.model, 1)
    rows = states(physics.model, 4)
    once = steps(rows)
    batch = steps._idle[4].get()
    step = batch.step

    def gives_up(**given):
        step(**given)
        raise steps._error(np.array([2]), "the stack is full")

    monkeypatch.setattr(batch, "step", gives_up, raising=False)
    steps._idle[4].put(batch)
    found = steps(rows)
    assert np.isnan(found[2]).all()
    np.testing.assert_array_equal(found[[0, 1, 3]], once[[0, 1, 3]])


@pytest.mark.parametrize("name", ["cheetah_velocity", pytest.param("ant_direction", marks=pytest.mark.slow)])
def test_chunks_and_devices_change_nothing(name):
    environment = getattr(locomotion, name)(horizon=4, engine="mujoco")
    agent = random_agent(environment.actions)
    keys = jax.random.split(jax.random.key(0), 4)

    def one(_, key):
        each = jax.vmap(lambda key: play(environment, agent, jnp.float32(1), key))
        trial = each(jax.random.split(key, 3))
        return trial.seen.observation, trial.reward

    layout = default_layout()._replace(chunk=None)
    assert layout.mesh.size == 2
    whole = jax.jit(lambda keys: map_tasks(one, layout, (), keys))(jax.random.clone(keys))
    in_turn = jax.jit(lambda keys: jax.lax.map(lambda key: one((), key), keys))(keys)
    for found, expected in zip(whole, in_turn, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_host_is_called_once_for_all_rows_and_never_handed_too_much():
    """More than 100 KiB in one array would have two devices of a CPU wait for each other for ever."""
    calls = []

    def doubled(rows):
        calls.append(rows.shape)
        return 2 * rows[:, :2]

    call = on_host(doubled, 2)
    rows = np.arange(2 * 40 * 60 * 25, dtype=np.float32).reshape(2, 40, 60, 25)

    def on_device(_, rows):
        moved = jax.lax.fori_loop(0, 3, lambda _, rows: rows + call(rows).sum() * 0, rows)
        return call(moved)

    each = jax.vmap(jax.vmap(on_device, (None, 0)), (None, 0))
    layout = default_layout()._replace(chunk=None)
    found = jax.jit(lambda rows: map_tasks(lambda shared, task: each(shared, task[None])[0], layout, (), rows))(rows)
    np.testing.assert_array_equal(found, 2 * rows[..., :2])
    assert calls == [(2400, 25)] * 8
    assert not jax.grad(lambda row: call(row).sum())(jnp.ones(25)).any(), "it is a constant"


SMALL = [
    *("method=rl2", "env=cheetah_velocity", "env.horizon=4", "method.hidden=4", "method.minibatches=1"),
    *("method.algorithm=a2c", "meta_batch_size=2", "steps=2", "steps_per_dispatch=1", "eval_tasks=2"),
]


def built(*overrides):
    return build(*composed([*SMALL, *overrides], RL))


def test_a_run_that_is_continued_ends_as_one_that_was_not(tmp_path):
    made = built("optimizer.schedule=constant")

    def run(directory, steps):
        settings = dataclasses.replace(made.settings, steps=steps)
        return runner.run(made.experiment, settings, directory, facts=made.facts, identity=made.identity)

    whole = run(tmp_path / "whole", 2)
    assert whole["protocol"]["env"]["physics"] == "MuJoCo in C, Euler"
    run(tmp_path / "parts", 1)
    assert run(tmp_path / "parts", 2)["value"] == whole["value"]
    kept = [checkpoint.newest(tmp_path / name / "checkpoints", pytest.fail) for name in ("whole", "parts")]
    assert kept[0].step == 2 and kept[0].arrays == kept[1].arrays, "with their hashes"


def test_no_run_goes_on_with_another_engine(monkeypatch):
    here = built().identity
    assert here["env.engine"] == "auto" and here["env.physics"] == "MuJoCo in C, Euler"
    before = built("env.engine=mjx").identity  # as of runs that do not say it
    assert not {"env.engine", "env.physics"} & {*before}
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    elsewhere = built().identity
    assert {key for key in {**here, **elsewhere} if here.get(key) != elsewhere.get(key)} == {"env.physics"}
