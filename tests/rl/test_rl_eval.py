"""`metarun-eval` of a run of `metarun-rl`, as a user calls it."""

import json
import shutil

import pytest
from small_run import call, refused

from metarun.commands import cli

SMALL = ["meta_batch_size=8", "method.hidden=4", "steps=4", "steps_per_dispatch=2", "eval_tasks=8", "env.episodes=4"]


def trained(directory, *arguments):
    """The directory of a finished run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["metarun-rl", *arguments, f"hydra.run.dir={directory}"])
        with pytest.raises(SystemExit) as stopped:
            cli.rl_main()
    assert not stopped.value.code
    return directory


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    # Validated, so that the tested parameters need not be the last ones.
    return trained(tmp_path_factory.mktemp("finished") / "run", *SMALL, "eval_every=2", "val_tasks=8")


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def evaluate(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    return lambda *arguments: call(cli.eval_main, capsys, monkeypatch, *arguments)


def evaluation_of(run):
    (file,) = (run / "evaluations").glob("*.json")
    return file.stem, json.loads(file.read_text())


def test_the_test_of_the_run_is_reproduced_to_the_last_bit(run, evaluate):
    before = (run / "result.json").read_bytes()
    code, out, err = evaluate(f"run={run}")
    assert code == 0, err
    assert (run / "result.json").read_bytes() == before
    ours, (name, found) = json.loads(before), evaluation_of(run)
    assert name == f"bernoulli_bandit-{ours['protocol_id']}"
    shared = set(ours) & set(found) - {"seconds"}
    assert {"value", "ci95", "num_tasks", "protocol", "checks", "yardsticks", "regret", "curves", "env"} <= shared
    assert {key: found[key] for key in shared} == {key: ours[key] for key in shared}
    assert (found["run"], found["trained_on"], found["steps"]) == (str(run), "bernoulli_bandit", 4)
    assert f"rl2 on bernoulli_bandit, 4 pulls, seed 0, on {ours['device']}" in out
    assert f"Trained on bernoulli_bandit, 4 steps; parameters of step {ours['selected_steps'][0]}." in out
    for words in (f"test reward {ours['value']:.4g} ±", "gittins", "regret", "chance without reward", "Written to"):
        assert words in out


def test_tasks_may_be_more_and_drawn_anew(run, evaluate):
    code, _, err = evaluate(f"run={run}", "eval_tasks=12", "eval_seed=1", "memory.chunk=2")
    assert code == 0, err
    _, found = evaluation_of(run)
    assert found["num_tasks"] == 12 and found["protocol"]["eval_seed"] == 1
    assert found["yardsticks"] != json.loads((run / "result.json").read_text())["yardsticks"]


def test_a_trial_may_be_longer(run, evaluate):
    code, out, err = evaluate(f"run={run}", "env.episodes=6")
    assert code == 0 and "rl2 on bernoulli_bandit, 6 pulls" in out, err
    _, found = evaluation_of(run)
    assert len(found["curves"]["learner"]) == 6 and found["protocol"]["env"]["episodes"] == 6


def test_another_environment_whose_sizes_are_the_same(run, evaluate):
    code, out, err = evaluate(f"run={run}", "env=gaussian_bandit", "env.noise=0.5")
    assert code == 0 and "Trained on bernoulli_bandit" in out, err
    name, found = evaluation_of(run)
    assert name.startswith("gaussian_bandit-") and (found["env"], found["trained_on"]) == (
        "gaussian_bandit",
        "bernoulli_bandit",
    )
    assert found["protocol"]["env"]["noise"] == 0.5 and found["protocol"]["environment"] == "gaussian_bandit"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["method=snail"], ["method=snail", "only these may be changed", "env=OTHER", "eval_tasks", "`metarun-rl`"]),
        (["shot=3"], ["shot=3", "only these may be changed"]),
        (["method.hidden=8"], ["method.hidden=8", "another learner"]),
        (["seed=1"], ["seed=1"]),
        (["env.arms=3"], ["env.arms=3: observations or actions have other sizes", "env=bernoulli_bandit"]),
        (["env=maze"], ["env=maze: observations or actions have other sizes"]),
        (["env=chess"], ["chess", "bernoulli_bandit", "maze"]),
        (["env={a:1}"], ["env={'a': 1}", "the name of an environment"]),
        (["env.arms=one"], ["env.arms=one: expected a whole number"]),
        (["env.noise=1"], ["env.noise", "read by nothing", "env=bernoulli_bandit"]),
        (["method.eval_inner_steps=3"], ["method.eval_inner_steps", "read by nothing"]),
        (["eval_tasks=0"], ["eval_tasks=0"]),
    ],
    ids=lambda value: " ".join(value) if "=" in value[0] else "",
)
def test_a_mistake_is_one_message(finished, evaluate, arguments, words):
    refused(evaluate(f"run={finished}", *arguments), *words)
    assert not (finished / "evaluations").exists()


@pytest.mark.slow
def test_inner_steps_of_maml(evaluate, tmp_path):
    small = ["method=maml", "env.horizon=5", "method.hidden=[4]", "method.rollouts=2", "meta_batch_size=2"]
    quick = ["method.outer=ppo", "method.epochs=1", "method.first_order=true", "method.eval_inner_steps=2"]
    run = trained(tmp_path / "run", *small, *quick, "steps=1", "eval_tasks=4")
    code, _, err = evaluate(f"run={run}", "method.eval_inner_steps=1")
    assert code == 0, err
    _, found = evaluation_of(run)
    assert len(found["curves"]["learner"]) == 2 and found["protocol"]["method"]["eval_inner_steps"] == 1


@pytest.mark.slow
def test_an_agent_that_was_not_learnt(evaluate, tmp_path):
    run = trained(tmp_path / "run", "method=ucb1", "env.episodes=4", "eval_tasks=8")
    code, _, err = evaluate(f"run={run}", "env.arms=3")
    assert code == 0, err
    _, found = evaluation_of(run)
    assert found["value"] == pytest.approx(found["yardsticks"]["ucb1"]["value"])
