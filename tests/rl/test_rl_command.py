"""`metarun-rl` as a user has it: in a process of its own, with its files, its words and its refusals."""

import json
import signal
import time

import pytest
from small_run import call, refused
from test_cli import metarun
from warm_commands import Started

from metarun.commands import cli
from metarun.training.result import faults_of

SMALL = ["meta_batch_size=8", "method.hidden=4", "steps=4", "steps_per_dispatch=2", "eval_tasks=8", "env.episodes=4"]


def ran(command, *arguments, cwd, fresh=False):
    done = metarun(*arguments, cwd=cwd, command=command, fresh=fresh, timeout=300)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Where a small run has finished in `run`, and what it said."""
    cwd = tmp_path_factory.mktemp("finished")
    code, out, err = ran("metarun-rl", *SMALL, "hydra.run.dir=run", cwd=cwd)
    assert code == 0, err
    return cwd, out


def test_a_run_leaves_what_it_promises(finished):
    cwd, out = finished
    result = json.loads((cwd / "run" / "result.json").read_text())
    assert faults_of(result) == []
    assert (result["metric"], result["method"], result["env"]) == ("reward", "rl2", "bernoulli_bandit")
    assert {"value", "ci95", "protocol_id", "yardsticks", "regret", "curves", "checks", "seed", "versions"} <= {*result}
    for picture in ("learning_curve.png", "rewards.png"):
        assert (cwd / "run" / "plots" / picture).read_bytes().startswith(b"\x89PNG")
    steps = [json.loads(line) for line in (cwd / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1]["step"] == 4 and {"train/loss", "train/reward"} <= {*steps[-1]}
    for words in ("rl2 on bernoulli_bandit, 4 pulls", "test reward", "gittins", "regret", "chance without reward"):
        assert words in out


def test_the_same_command_finds_its_run_complete(finished):
    cwd, _ = finished
    code, _, err = ran("metarun-rl", *SMALL, "hydra.run.dir=run", cwd=cwd)
    assert code == 0 and "Nothing to do" in err


def test_a_killed_run_continues_to_the_same_result(finished, tmp_path):
    cwd, _ = finished
    arguments = [*SMALL, "checkpoint_every=2", "hydra.run.dir=run"]
    process = Started("metarun-rl", arguments, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "checkpoints" / "2").is_dir() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    code, _, err = ran("metarun-rl", *arguments, cwd=tmp_path)
    assert code == 0, err
    results = [json.loads((folder / "run" / "result.json").read_text()) for folder in (cwd, tmp_path)]
    assert results[0]["value"] == results[1]["value"] and results[0]["curves"] == results[1]["curves"]


@pytest.mark.parametrize(
    "entry, arguments, words",
    [
        (cli.rl_main, ["method=gittins", "env=tabular_mdp"], ["method=gittins: expected", "psrl"]),
        (cli.rl_main, ["env.arm=3"], ["env.arm: there is no such key", "env.arms", "metarun-rl --help"]),
        (cli.rl_main, ["+env.arm=3"], ["env.arm is read by nothing", "env.arms, env.episodes"]),
        (cli.rl_main, ["method=maml_plus_plus"], ["maml_plus_plus", "rl2"]),
        (cli.rl_main, ["env.arms=one"], ["env.arms=one: expected a whole number"]),
        (cli.reproduce_main, ["duan2016/random_mdp_10", "env=1"], ["env=1: expected", "metarun-rl --help"]),
        (cli.predict_main, ["run=run", "support=.", "query=."], ["run=run: expected", "one of metarun-rl"]),
    ],
)
def test_a_mistake_is_one_message(finished, entry, arguments, words, capsys, monkeypatch):
    monkeypatch.chdir(finished[0])
    refused(call(entry, capsys, monkeypatch, *arguments), *words)


def test_help_has_its_own_groups_and_keys(tmp_path):
    code, out, _ = ran("metarun-rl", "--help", cwd=tmp_path, fresh=True)
    assert (
        code == 0
        and "tabular_mdp" in out
        and "env.episodes" in out
        and "protonet" not in out
        and "optimizer: adam" in out
    )
