"""Meta-reinforcement learning through the runner's seam: every choice, determinism, and an honest account of a test."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting_environment import counting
from small_run import and_slowly

from metarun.assembly.rl_run import build
from metarun.compiled.task_map import default_layout
from metarun.config.composing import composed
from metarun.config.schema import RL
from metarun.config.search_path import conf_dir
from metarun.errors import MetarunError
from metarun.report.rl_pictures import pictures
from metarun.rl.environment import Body, Discrete, random_agent
from metarun.rl.environments.bandits import bernoulli_bandit
from metarun.rl.experiment import rl_experiment
from metarun.rl.meta_learner import Outcome
from metarun.rl.methods.yardstick import yardstick
from metarun.training import runner

SMALL = ["meta_batch_size=8", "steps=4", "steps_per_dispatch=2", "eval_tasks=8", "val_tasks=8"]
TINY = ["method.hidden=4", "method.minibatches=2"]
# What lets a choice be had in seconds.
SHORT = {
    "tabular_mdp": ["env.states=3", "env.actions=2", "env.horizon=3", "env.episodes=2"],
    "point_navigation": ["env.horizon=5", "env.episodes=2"],
    "dependent_bandit": ["env.episodes=5"],
    "restless_bandit": ["env.pulls=5"],
    "two_step": ["env.rounds=3"],
    "maze": ["env.horizon=5"],
}
# What needs a library of an extra, in test files of their own, which skip where it is missing.
OF_EXTRAS = {"gymnax", "cheetah_velocity", "cheetah_direction", "ant_velocity", "ant_direction"}
OF_ENV = {"informed": "informative_bandit", "psrl": "tabular_mdp", "opsrl": "tabular_mdp"}


def choices_of(group):
    return sorted(file.stem for file in (conf_dir(RL) / group).glob("*.yaml"))


def built(*overrides):
    return build(*composed([*SMALL, *overrides], RL))


@pytest.mark.parametrize("env", and_slowly(sorted({*choices_of("env")} - OF_EXTRAS), ("bernoulli_bandit", "two_step")))
def test_every_environment_is_learnt_in_and_stated(env, tmp_path):
    run = built(f"env={env}", *SHORT.get(env, []), *TINY)
    result = runner.run(run.experiment, run.settings, tmp_path, facts=run.facts, identity=run.identity)
    assert (result["metric"], result["env"], result["num_tasks"], result["steps"]) == ("reward", env, 8, 4)
    assert result["protocol"]["environment"] == env and result["protocol"]["selection"] == "last"
    assert "random" in result["yardsticks"] and result["regret"]["against"] in result["yardsticks"]
    best = max(result["yardsticks"][name]["value"] for name in result["yardsticks"] if name != "optimum")
    assert result["regret"]["value"] == pytest.approx(best - result["value"], abs=1e-4)
    assert len(result["curves"]["learner"]) == len(result["curves"]["random"])
    assert sum(result["curves"]["learner"]) == pytest.approx(result["value"], rel=1e-4)


SMALLEST = {
    "rl2": TINY,
    "snail": ["method.filters=2", "method.attention=[[2,2],[2,2]]"],
    "maml": ["env.horizon=5", "method.hidden=[4]", "method.rollouts=3", "meta_batch_size=2"],
    "maml_trial": ["env=tabular_mdp", *SHORT["tabular_mdp"], "method.hidden=[4]", "method.minibatches=2"],
}


@pytest.mark.parametrize("method", SMALLEST)
def test_every_learner_learns_and_resumes_in_its_own_environment(method, tmp_path):
    run = built(f"method={method}", *SMALLEST[method])
    result = runner.run(run.experiment, run.settings, tmp_path, facts=run.facts, identity=run.identity)
    assert np.isfinite(result["value"]) and result["sizes"]["meta_params"] > 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["train/reward"]) for line in lines)
    # What the directory holds is what a run that is asked for again begins with.
    again = runner.run(run.experiment, run.settings, tmp_path, facts=run.facts, identity=run.identity)
    assert again["value"] == result["value"]


def test_maml_states_its_returns_by_inner_step():
    run = built("method=maml", *SMALLEST["maml"])
    tested = run.experiment.evaluate(run.experiment.init().params, "test", 8, checks=True)
    assert tested.beside["curves"]["over"] == "inner step" and len(tested.beside["curves"]["learner"]) == 4
    assert tested.beside["curves"]["learner"][-1] == pytest.approx(tested.value, rel=1e-5)
    assert tested.beside["learner_curve_ci95"][-1] == pytest.approx(tested.ci95, rel=1e-5)
    assert run.experiment.protocol["method"]["eval_inner_steps"] == 3


@pytest.mark.parametrize("method", and_slowly(sorted({*choices_of("method")} - {*SMALLEST}), ("random", "ucb1")))
def test_every_yardstick_is_a_method_that_finds_itself(method, tmp_path):
    env = OF_ENV.get(method, "bernoulli_bandit")
    run = built(f"method={method}", f"env={env}", *SHORT.get(env, []))
    result = runner.run(run.experiment, run.settings, tmp_path, facts=run.facts, identity=run.identity)
    assert result["value"] == pytest.approx(result["yardsticks"][method]["value"], rel=1e-6)
    assert result["steps"] == 1 and result["sizes"] == {"meta_params": 0}
    assert len(result["checks"]) == 2
    assert all(check["passed"] is None and check["reason"] for check in result["checks"].values())


def test_an_extra_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(MetarunError, match=r"mujoco is not installed; .* pip install '\.\[physics\]'"):
        built("env=ant_velocity")


def test_a_body_is_drawn(tmp_path):
    """Its limb is where it is observed to be, and its picture is beside the others."""

    def limbs(observation):
        place = jnp.concatenate([observation, jnp.zeros(1), jnp.ones(1)])
        return jnp.stack([place, place - 0.5])[None]

    body = Body(limbs, np.array([0.1]), lambda task: f"to count by {task:.0f}", 0.5)
    environment = counting(horizon=3, episodes=2)._replace(body=body, yardsticks={"random": random_agent(Discrete(3))})
    learner = yardstick(environment=environment, agent="random")
    layout = default_layout()._replace(chunk=None)
    learners = {layout.chunk_of(2): learner}
    experiment = rl_experiment(learners, environment, [layout], seed=0, eval_seed=0, meta_batch_size=2, protocol={})
    params = experiment.init().params
    shown = experiment.examples(params, 2)
    assert shown.captions == ["to count by 1"] * 2 and shown.goals is None and shown.seconds == 0.5
    np.testing.assert_array_equal(shown.limbs[0, 0, :, 0, 0, 0], [0, 1, 2, 0, 1, 2])
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0}\n')
    made = pictures(experiment)(tmp_path, params, None, experiment.evaluate(params, "test", 2, checks=True))
    assert list(made) == ["learning_curve.png", "rewards.png", "strip.png"]
    for draw in made.values():
        draw()
    assert (tmp_path / "plots" / "strip.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "plots" / "paths.png").exists()


def test_how_steps_are_grouped_changes_nothing():
    # `step` consumes its state, so each grouping begins from one of its own.
    run = built(*TINY)
    at_once, _ = run.experiment.step(run.experiment.init(), 4)
    state = run.experiment.init()
    for number in (1, 3):
        state, metrics = run.experiment.step(state, number)
    assert np.isfinite(float(metrics["loss"]))
    jax.tree.map(np.testing.assert_array_equal, state.params, at_once.params)


def test_a_test_has_the_same_tasks_whatever_the_seed():
    found = [built(*TINY, f"seed={seed}") for seed in (0, 1)]
    evaluations = [run.experiment.evaluate(run.experiment.init().params, "test", 8, checks=True) for run in found]
    yardsticks = [evaluation.beside["yardsticks"] for evaluation in evaluations]
    assert yardsticks[0] == yardsticks[1] and evaluations[0].value != evaluations[1].value


def test_the_checks_find_a_learner_that_is_told_the_task():
    run = built(*TINY, "env.arms=2")
    honest = run.experiment.evaluate(run.experiment.init().params, "test", 250, checks=True)
    assert set(honest.checks) == {"chance_before_adaptation", "chance_without_reward"}
    assert all(check["passed"] for check in honest.checks.values())

    def pulls_the_best(params, task, key, blind):
        earned = 10 * task.max()
        return Outcome(earned, jnp.full(10, task.max()), task.max())

    environment = bernoulli_bandit(arms=2, episodes=10)
    layout = default_layout()._replace(chunk=None)
    told = yardstick(environment=environment, agent="random")._replace(outcome=pulls_the_best, trains=True)
    settings = {"seed": 0, "eval_seed": 0, "meta_batch_size": 8, "protocol": {}}
    experiment = rl_experiment({layout.chunk_of(8): told}, environment, [layout], **settings)
    found = experiment.evaluate({}, "test", 250, checks=True)
    assert not any(check["passed"] for check in found.checks.values())
    assert found.value == pytest.approx(found.beside["yardsticks"]["optimum"]["value"])


def test_validation_selects_where_it_is_asked_for(tmp_path):
    run = built(*TINY, "eval_every=2")
    result = runner.run(run.experiment, run.settings, tmp_path, facts=run.facts, identity=run.identity)
    assert result["protocol"]["selection"] == "best validation" and result["selected_steps"] in ([2], [4])


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["method=gittins", "env=tabular_mdp"], "method=gittins: expected for this env one that learns, or of random"),
        (["env.arms=0"], "env.arms=0"),
        (["method.minibatches=3"], "method.minibatches=3: expected a divisor of meta_batch_size=8"),
        (["memory.chunk=0"], "memory.chunk=0"),
        (["+method.depth=3"], "method.depth is read by nothing"),
        (["+colour=red"], "colour=red is read by nothing"),
    ],
)
def test_a_mistake_is_named(overrides, words):
    with pytest.raises(MetarunError, match=words.replace("(", r"\(")):
        built(*overrides)


def test_the_schedule_ends_with_the_last_gradient_of_the_run():
    run = built(*TINY, "optimizer.schedule=linear", "method.epochs=2")
    state, _ = run.experiment.step(run.experiment.init(), 4)
    at_the_end = jax.tree.map(np.array, state.params)
    after, _ = run.experiment.step(state, 1)  # after 4 outer steps of 2 x 2 gradients the rate is 0
    jax.tree.map(np.testing.assert_array_equal, after.params, at_the_end)
    before, _ = run.experiment.step(run.experiment.init(), 3)
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (before.params, at_the_end)), strict=True))


def test_runs_that_are_built_one_after_the_other_keep_their_precision():
    words = {"float32": "HIGHEST", "tensorfloat32": "HIGH"}
    runs = {precision: built(*TINY, f"precision={precision}").experiment for precision in words}
    for precision, word in words.items():
        program = runs[precision].program
        steps = program.steps(program.variants[0], program.chunks[0])
        text = str(jax.make_jaxpr(steps)(jax.eval_shape(runs[precision].init), *program.given, jnp.int32(1)))
        assert f"Precision.{word}," in text
        assert not [other for other in words.values() if other != word and f"Precision.{other}," in text]
