"""gymnax's environments against gymnax itself, and tasks of them."""

import json
import sys
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_rl_command import ran

from metarun.errors import ConfigError, MetarunError
from metarun.rl.environment import Agent
from metarun.rl.environments.from_gymnax import from_gymnax
from metarun.rl.task_space import SPLITS
from metarun.rl.trial import play

gymnax = pytest.importorskip("gymnax")


@pytest.fixture(autouse=True)
def as_users_have_it():
    """gymnax adds integers to floats and vectors to matrices, which the strictness of our own tests forbids."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def tasks(environment, split, number):
    keys = jax.random.split(jax.random.key(0), number)
    return jax.vmap(lambda key: environment.sample(key, split))(keys)


def task_of(environment, split="train"):
    return environment.sample(jax.random.key(0), split)


def doing(action):
    return Agent(lambda key: (), lambda memory, seen, key: (memory, action, ()))


# One of each kind of observation and action: vectors, pictures, numbers of states, what is drawn when one looks.
KINDS = ["CartPole-v1", "Pendulum-v1", "Catch-bsuite", "FrozenLake-misc", "UmbrellaChain-bsuite", "PointRobot-misc"]


@pytest.mark.parametrize("name", KINDS)
def test_an_episode_is_that_of_gymnax(name):
    ours, (theirs, params) = from_gymnax(name=name), gymnax.make(name)
    task = task_of(ours)
    draw = jax.jit(ours.yardsticks["random"].act)
    reset_key, *keys = jax.random.split(jax.random.key(1), 12)
    if ours.protocol["same_start"]:
        their_key = jax.random.fold_in(jax.random.key(0), task.start)
    else:
        their_key = jax.random.clone(reset_key)
    held = ours.reset(task, reset_key)
    observation, state = theirs.reset(their_key, params)
    flat = lambda x: np.eye(16)[x] if name == "FrozenLake-misc" else np.ravel(x)
    for key in keys:
        seen = ours.observe(task, held)
        np.testing.assert_allclose(seen, flat(observation), rtol=1e-5)
        assert seen.dtype == jnp.float32 and seen.shape == (ours.observation_size,)
        _, action, _ = draw((), None, jax.random.fold_in(key, 0))
        scale = {"Pendulum-v1": 2, "PointRobot-misc": 0.1}.get(name, 1)
        # Theirs begins anew by itself, and has what it had come to in `info`.
        observation, state, reward, terminated, truncated, info = theirs.step(
            jax.random.clone(key), state, scale * action, params
        )
        after = ours.step(task, held, action, jax.random.split(key)[0])
        np.testing.assert_allclose(ours.observe(task, after.state), flat(info["final_observation"]), rtol=1e-5)
        np.testing.assert_allclose(after.reward, reward, rtol=1e-5)
        assert bool(after.terminated) == bool(terminated) and not truncated
        assert after.reward.dtype == jnp.float32 and after.terminated.dtype == bool
        if terminated:
            break
        held = after.state


# Not MNIST's, which is downloaded.
@pytest.mark.parametrize("name", sorted({*gymnax.registered_envs} - {"MNISTBandit-bsuite"}))
def test_every_environment_can_be_played_in(name):
    environment = from_gymnax(name=name, horizon=3, episodes=2)
    agent, task = environment.yardsticks["random"], task_of(environment)
    shapes = jax.eval_shape(lambda key: play(environment, agent, task, key), jax.random.key(0))
    assert shapes.seen.observation.shape == (6, environment.observation_size)
    assert shapes.reward.shape == (6,)


def test_tasks_are_sets_of_params_that_splits_do_not_share():
    environment = from_gymnax(vary={"gravity": [9.0, 10.0], "length": [0.3, 0.8]})
    drawn = {split: tasks(environment, split, 5000).params for split in SPLITS}
    for name, low, high in (("gravity", 9, 10), ("length", 0.3, 0.8)):
        for split in SPLITS:
            values = np.asarray(drawn[split][name])
            assert low < values.min() < low + 0.01 and high - 0.01 < values.max() < high
            others = np.concatenate([drawn[other][name] for other in SPLITS if other != split])
            assert not np.isin(values, others).any()
    # A task's params are those that its steps are made with.
    task = environment.sample(jax.random.key(3), "test")
    theirs, params = gymnax.make("CartPole-v1")
    held = environment.reset(task, jax.random.key(0))
    expected = theirs.step_env(jax.random.key(1), held.state, 1, params.replace(**task.params))[0]
    found = environment.step(task, held, jnp.int32(1), jax.random.key(1)).state.observation
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert not np.allclose(found, theirs.step_env(jax.random.key(1), held.state, 1, params)[0], rtol=1e-6)


def test_params_that_are_whole_numbers_are_drawn_as_such():
    environment = from_gymnax(name="UmbrellaChain-bsuite", vary={"chain_length": [5, 13]})
    drawn = {split: set(tasks(environment, split, 100).params["chain_length"].tolist()) for split in SPLITS}
    assert drawn == {"train": {5, 8, 11}, "val": {6, 9, 12}, "test": {7, 10, 13}}
    task = task_of(environment)
    trajectory = play(environment, doing(jnp.int32(0)), task, jax.random.key(0))
    assert int(trajectory.live.sum()) == int(task.params["chain_length"])


def test_without_vary_there_is_one_task():
    environment = from_gymnax()
    assert not jax.tree.leaves(task_of(environment))
    assert environment.protocol["vary"] == {} and (environment.horizon, environment.episodes) == (500, 1)


def test_what_the_task_ends_is_kept_apart_from_what_time_ends():
    pushed = doing(jnp.int32(1))
    found = play(from_gymnax(horizon=50), pushed, task_of(from_gymnax()), jax.random.key(0))
    steps = int(found.live.sum())
    assert 5 < steps < 15 and found.terminated[steps - 1] and not found.truncated.any()
    cut = play(from_gymnax(horizon=3, episodes=2), pushed, task_of(from_gymnax()), jax.random.key(0))
    assert not cut.terminated.any() and cut.truncated.tolist() == [False, False, True] * 2
    # Their own limit is never the task's end.
    theirs, params = gymnax.make("Pendulum-v1")
    environment = from_gymnax(name="Pendulum-v1")
    assert environment.horizon == params.max_steps_in_episode == 200
    swung = play(environment, doing(jnp.zeros(1)), task_of(environment), jax.random.key(0))
    assert not swung.terminated.any() and swung.truncated.sum() == 1 and swung.truncated[-1]


@pytest.mark.parametrize("action, torque", [(-3.0, -2.0), (-1.0, -2.0), (0.25, 0.5), (1.0, 2.0), (7.0, 2.0)])
def test_actions_go_from_bound_to_bound(action, torque):
    environment = from_gymnax(name="Pendulum-v1")
    task = task_of(environment)
    held = environment.reset(task, jax.random.key(0))
    after = environment.step(task, held, jnp.array([action]), jax.random.key(1))
    assert float(after.state.state.last_u) == pytest.approx(torque)


def test_bounds_of_actions_may_vary():
    environment = from_gymnax(name="Pendulum-v1", vary={"max_torque": [1, 3]})
    task = task_of(environment)
    held = environment.reset(task, jax.random.key(0))
    after = environment.step(task, held, jnp.ones(1), jax.random.key(1))
    assert float(after.state.state.last_u) == pytest.approx(float(task.params["max_torque"]))


def goals(environment, split="train", number=40):
    """Goals at the start of two episodes, `[number, 2, 2]`."""

    def both(task):
        return jnp.stack([environment.reset(task, jax.random.key(k)).state.goal for k in range(2)])

    return np.asarray(jax.vmap(both)(tasks(environment, split, number)))


def test_a_trial_keeps_the_task_that_reset_draws():
    found = goals(from_gymnax(name="MetaMaze-misc", episodes=2))
    np.testing.assert_array_equal(found[:, 0], found[:, 1])
    assert len(np.unique(found[:, 0], axis=0)) > 10
    starts = {s: set(tasks(from_gymnax(name="MetaMaze-misc"), s, 500).start.tolist()) for s in SPLITS}
    assert not starts["train"] & starts["test"] and not starts["train"] & starts["val"]
    with pytest.raises(ConfigError, match="env.same_start=False: expected true or null: every reset of MetaMaze-misc"):
        from_gymnax(name="MetaMaze-misc", same_start=False)


def test_episodes_begin_differently_unless_asked_not_to():
    begun = [
        [environment.reset(task_of(environment), jax.random.key(k)).observation.tolist() for k in range(2)]
        for environment in (from_gymnax(), from_gymnax(same_start=True))
    ]
    assert begun[0][0] != begun[0][1] and begun[1][0] == begun[1][1]


OWN = """
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces

@struct.dataclass
class Params(environment.EnvParams):
    step: float = 1.0
    max_steps_in_episode: int = 7

class Walk(environment.Environment):
    def reset_env(self, key, params):
        state = environment.EnvState(time=0)
        return {"place": jnp.zeros(2), "time": 0}, state

    def step_env(self, key, state, action, params):
        state = state.replace(time=state.time + 1)
        seen = {"place": params.step * action.sum() * jnp.ones(2), "time": state.time}
        return seen, state, params.step * action.sum(), state.time > 3, {}

    def action_space(self, params):
        return spaces.Box(jnp.zeros((2, 2)), jnp.ones((2, 2)), (2, 2))

    def observation_space(self, params):
        return spaces.Dict({"place": spaces.Box(-1, 1, (2,)), "time": spaces.Discrete(7)})

def make():
    return Walk(), Params()

def unbounded():
    walk = Walk()
    walk.action_space = lambda params: spaces.Box(-jnp.inf, jnp.inf, (1,))
    return walk, Params()

def nothing():
    return None
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_walk.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return "own_walk:make"


def test_an_environment_of_ones_own(own):
    environment = from_gymnax(name=own, vary={"step": [1, 2]}, episodes=2)
    assert (environment.actions.size, environment.observation_size, environment.horizon) == (4, 3, 7)
    task = task_of(environment)
    trajectory = play(environment, doing(jnp.zeros(4)), task, jax.random.key(0))
    step = float(task.params["step"])
    np.testing.assert_allclose(trajectory.reward[:8], 2 * step, rtol=1e-6)
    np.testing.assert_allclose(trajectory.seen.observation[3], [2 * step, 2 * step, 3], rtol=1e-6)
    assert trajectory.terminated.tolist()[:8] == [False, False, False, True] * 2


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"name": "Cartpole"}, ["env.name=Cartpole: expected", "CartPole-v1", "MetaMaze-misc", "MODULE:FUNCTION"]),
        ({"name": "no_such_module:make"}, ["env.name=no_such_module:make", "No module named"]),
        ({"name": "own_walk:none"}, ["env.name=own_walk:none", "no attribute 'none'"]),
        ({"name": "own_walk:nothing"}, ["env.name=own_walk:nothing", "returns NoneType"]),
        ({"name": "own_walk:unbounded"}, ["env.name=own_walk:unbounded", "bounded Box", "inf"]),
        ({"vary": {"mass": [1, 2]}}, ["env.vary=mass", "masspole", "gravity"]),
        ({"vary": {"max_steps_in_episode": [1, 9]}}, ["env.vary=max_steps_in_episode"]),
        ({"vary": {"gravity": [2, 1]}}, ["env.vary.gravity=[2, 1]: expected [LOW, HIGH]"]),
        ({"vary": {"gravity": [9.8, 9.8000001]}}, ["env.vary.gravity=[9.8, 9.8000001]"]),
        ({"vary": {"gravity": [1, "x"]}}, ["env.vary.gravity"]),
        ({"vary": {"gravity": [1, float("inf")]}}, ["env.vary.gravity"]),
        ({"vary": {"gravity": 3}}, ["env.vary.gravity=3"]),
        ({"vary": "gravity"}, ["env.vary=gravity: expected {PARAM: [LOW, HIGH]}"]),
        ({"name": "DeepSea-bsuite", "vary": {"deterministic": [0, 1]}}, ["env.vary=deterministic"]),
        ({"name": "UmbrellaChain-bsuite", "vary": {"chain_length": [5, 6]}}, ["three whole numbers"]),
        ({"horizon": 0}, ["env.horizon=0"]),
        ({"episodes": 1.5}, ["env.episodes=1.5"]),
        ({"same_start": "yes"}, ["env.same_start=yes"]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_mistake_is_named(own, settings, words):
    with pytest.raises(ConfigError) as raised:
        from_gymnax(**settings)
    for word in words:
        assert word in str(raised.value)


def test_where_gymnax_is_missing_the_way_to_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnax", None)
    with pytest.raises(MetarunError, match=r"pip install '\.\[gymnax\]'"):
        from_gymnax()


@pytest.mark.slow
def test_rl2_learns_to_balance_poles_of_different_lengths(tmp_path):
    small = ["meta_batch_size=32", "steps=30", "method.hidden=16", "eval_tasks=50", "env.horizon=50"]
    code, out, err = ran(
        "metarun-rl", "env=gymnax", "env.vary={length: [0.3, 0.8]}", *small, "hydra.run.dir=run", cwd=tmp_path
    )
    assert code == 0 and "rl2 on gymnax, 1 episode of 50 steps" in out, err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["value"] > 40 > 30 > result["yardsticks"]["random"]["value"]
    stated = result["protocol"]["env"]
    assert (stated["name"], stated["vary"]) == ("CartPole-v1", {"length": [0.3, 0.8]})
    assert stated["gymnax"] == version("gymnax")
