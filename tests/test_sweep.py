"""Sweeps and searches as a user has them: their points, their end, and what continues them."""

import json
import pickle
import time

import numpy as np
import pytest
from many_runs import write_run
from test_cli import SMALL, metarun, refused
from warm_commands import Started

from metarun.commands.sweep import PointOutcome, _in_words, distribution_of, table_of, told
from metarun.config.directories import run_dir, sweep_dir
from metarun.errors import ConfigError, Diverged, MetarunError
from metarun.report.collection import collect

POINT = ["method=protonet", "model=mlp", "model.hidden=[8]", *SMALL[1:]]


def only(paths):
    (path,) = paths
    return path


def results(sweep):
    return {path.parent.name: json.loads(path.read_text())["value"] for path in sweep.glob("*/result.json")}


@pytest.mark.slow
def test_a_sweep_says_what_came_of_its_points_and_the_next_is_a_new_one(tmp_path):
    done = metarun("-m", *POINT, "seed=0,1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    sweep = only(tmp_path.glob("multirun/*/*"))
    found = json.loads((sweep / "sweep.json").read_text())
    assert [(point["point"], "seed=1" in point["overrides"]) for point in found] == [("0", False), ("1", True)]
    assert {point["point"]: point["value"] for point in found} == results(sweep)
    row = next(line for line in done.stdout.splitlines() if line.startswith("1 "))
    assert "seed=1" in row and "steps" not in row and f"{100 * found[1]['value']:.4g}% ±" in row
    assert metarun("-m", *POINT, "seed=0,1", cwd=tmp_path).returncode == 0
    assert len(list(tmp_path.glob("multirun/*/*"))) == 2


def rows(sweep):
    """What `sweep.json` says, by point."""
    return {row["point"]: row for row in json.loads((sweep / "sweep.json").read_text())}


def test_a_bad_point_costs_no_other_and_the_same_command_tries_it_again(tmp_path):
    arguments = ["-m", *POINT, "outer_lr=-1,0.001"]
    for attempt in range(2):
        done = metarun(*arguments, cwd=tmp_path)
        refused(done, "1 of 2 points", "outer_lr=-1", "above 0")
        assert done.returncode == 1 and ("is complete" in done.stderr) == bool(attempt)
        sweep = only(tmp_path.glob("multirun/*/*"))
        assert [*results(sweep)] == ["1"] and rows(sweep)["1"]["value"] == results(sweep)["1"]
        assert (rows(sweep)["0"]["outcome"], rows(sweep)["0"]["value"]) == ("failed", None)
        assert "failed: outer_lr=-1.0:" in done.stdout


@pytest.mark.slow
def test_a_signal_ends_a_sweep_and_the_same_command_continues_it(tmp_path):
    long = ["-m", *POINT, "steps=400", "log_every=2", "eval_every=0", "seed=0,1"]
    process = Started("metarun", long, cwd=tmp_path)
    deadline = time.monotonic() + 240
    while not any(path.stat().st_size for path in tmp_path.glob("multirun/*/*/0/metrics.jsonl")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75 and "Stopped by SIGTERM at step" in errors, errors
    assert "Traceback" not in errors and "Error executing" not in errors
    sweep = only(tmp_path.glob("multirun/*/*"))
    assert not (sweep / "1").exists()

    again = metarun(*long, cwd=tmp_path)
    assert again.returncode == 0 and "Resuming at step" in again.stderr, again.stderr
    assert only(tmp_path.glob("multirun/*/*")) == sweep and set(results(sweep)) == {"0", "1"}


@pytest.mark.slow
def test_points_in_parallel_are_those_in_turn(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    # What joblib starts is told of the modules of the process that starts it, so that is the console script's.
    parallel = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    for name, launcher, fresh in (("turn", [], False), ("parallel", parallel, True)):
        done = metarun("-m", *POINT, "seed=0,1", *launcher, f"hydra.sweep.dir={name}", cwd=tmp_path, fresh=fresh)
        assert done.returncode == 0, done.stderr
    assert results(tmp_path / "parallel") == results(tmp_path / "turn")
    bad = metarun("-m", *POINT, "outer_lr=-1,-2", "hydra/launcher=joblib", cwd=tmp_path, fresh=True)
    refused(bad, "outer_lr=-1", "above 0")


@pytest.mark.slow
def test_a_search_goes_by_validation_and_goes_on_from_its_storage(tmp_path):
    optuna = pytest.importorskip("optuna")
    storage = f"sqlite:///{tmp_path}/search.db"
    kept = [f"hydra.sweeper.storage={storage}", "hydra.sweeper.study_name=lr", "hydra.sweeper.n_trials=2"]
    search = ["-m", "hydra/sweeper=optuna", *kept, *POINT, "outer_lr=tag(log,interval(1e-4,1e-2))"]
    for _ in range(2):
        done = metarun(*search, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    trials = optuna.load_study(study_name="lr", storage=storage).trials
    values = {}
    for path in tmp_path.glob("multirun/*/*/*/result.json"):
        overrides = (path.parent / ".hydra" / "overrides.yaml").read_text()
        values[next(line for line in overrides.splitlines() if "outer_lr" in line)] = json.loads(path.read_text())[
            "val"
        ]
    assert values == {f"- outer_lr={trial.params['outer_lr']}": trial.value for trial in trials}
    assert len(trials) == 4
    regression = ["dataset=sinusoid", "model=mlp", "hydra.sweeper.direction=minimize"]
    other = metarun(*[argument for argument in search if argument not in POINT], *regression, cwd=tmp_path)
    refused(other, "hydra.sweeper.direction", "hydra.sweeper.study_name")

    free = [argument for argument in search if "storage" not in argument]
    refused(metarun(*free, "eval_every=0", cwd=tmp_path), "eval_every=0", "not by the test")
    refused(metarun(*free, "hydra.sweeper.direction=minimize", cwd=tmp_path), "direction=minimize", "maximize")


@pytest.mark.slow
def test_a_search_counts_a_trial_that_diverges_as_failed_and_goes_on(tmp_path):
    optuna = pytest.importorskip("optuna")
    storage = f"sqlite:///{tmp_path}/search.db"
    search = ["-m", "hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", f"hydra.sweeper.storage={storage}", *POINT]
    done = metarun(
        *search, "hydra.sweeper.study_name=a", "outer_lr=choice(1e38,0.001)", "hydra.sweep.dir=a", cwd=tmp_path
    )
    assert done.returncode == 0 and "diverged at step" in done.stdout, done.stderr
    trials = optuna.load_study(study_name="a", storage=storage).trials
    states = {trial.params["outer_lr"]: (trial.state.name, trial.value) for trial in trials}
    (row,) = [row for row in rows(tmp_path / "a").values() if row["outcome"] == "finished"]
    assert states == {1e38: ("FAIL", None), 0.001: ("COMPLETE", row["val"])}

    done = metarun(
        *search, "hydra.sweeper.study_name=b", "outer_lr=choice(1e38,1e37)", "hydra.sweep.dir=b", cwd=tmp_path
    )
    refused(done, "2 of 2 points have no result", "The loss is nan", "Lower outer_lr")
    assert done.returncode == 1 and {row["outcome"] for row in rows(tmp_path / "b").values()} == {"diverged"}


class Launched:
    """Points as a sweeper has launched them, in a directory, each with a result or the error that has ended it."""

    def __init__(self, directory, *errors):
        self.outcomes = []
        for number, error in enumerate(errors):
            write_run(directory / str(number), seed=number, value=0.25 * (number + 1))
            self.outcomes.append(PointOutcome(directory / str(number), [f"seed={number}"], error))


def ended(directory, *errors, search=False, raises=None):
    with told(Launched(directory, *errors), directory, search=search):
        if raises is not None:
            raise raises


def test_a_sweep_with_points_that_have_no_result_ends_in_its_table_and_exit_code_1(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:  # what lies in the directory of a point that failed is not its result
        ended(tmp_path, None, Diverged(7, "The loss is nan in step 7"), ConfigError("way", 0, "more"))
    said = capsys.readouterr()
    assert stopped.value.code == 1 and said.err == (
        "metarun: 2 of 3 points have no result.\n  1: The loss is nan in step 7\n  2: way=0: expected more.\n"
    )
    told_of = [(row["value"], row["outcome"], row["step"]) for row in rows(tmp_path).values()]
    assert told_of == [(0.25, "finished", None), (None, "diverged", 7), (None, "failed", None)]
    assert "diverged at step 7" in said.out and "failed: way=0: expected more." in said.out
    assert not (tmp_path / "seeds.json").exists()


def test_a_result_that_does_not_fit_its_schema_is_a_failed_point(tmp_path, capsys):
    launched = Launched(tmp_path, None, None)
    (tmp_path / "1" / "result.json").write_text('{"value": "abc"}')
    with pytest.raises(SystemExit), told(launched, tmp_path, search=False):
        pass
    assert "1/result.json is no result of a run" in capsys.readouterr().err
    assert [row["outcome"] for row in rows(tmp_path).values()] == ["finished", "failed"]


def test_where_every_point_is_refused_the_command_is_and_nothing_is_written(tmp_path):
    for search in (False, True):
        with pytest.raises(ConfigError, match="way=0"):
            ended(tmp_path / str(search), ConfigError("way", 0, "more"), MetarunError("other"), search=search)
        assert not [*tmp_path.glob("*/*.json")]


def test_a_search_is_done_where_some_trial_has_a_result_and_says_where_none_has(tmp_path, capsys):
    ended(tmp_path / "a", Diverged(7, "The loss is nan"), None, search=True)
    assert "metarun: " not in capsys.readouterr().err
    with pytest.raises(SystemExit):
        ended(tmp_path / "b", Diverged(7, "The loss is nan"), search=True)
    assert "1 of 1 points have no result" in capsys.readouterr().err and len(rows(tmp_path / "b")) == 1


def test_an_error_of_the_program_or_of_the_sweeper_is_raised_after_the_table(tmp_path):
    for name, errors, raises in (("a", (None, KeyError("x")), None), ("b", (None, Diverged(1, "y")), KeyError("x"))):
        with pytest.raises(KeyError):
            ended(tmp_path / name, *errors, raises=raises)
        assert len(rows(tmp_path / name)) == 2
    with pytest.raises(ConfigError):  # before anything was launched
        ended(tmp_path, raises=ConfigError("way", 0, "more"))
    assert not (tmp_path / "sweep.json").exists()


def test_a_sweep_with_a_point_without_a_result_is_continued_by_the_same_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["metarun", "-m", "seed=0,1"])
    directory = sweep_dir()
    (tmp_path / directory / "sweep.json").write_text('[{"outcome": "finished"}, {"outcome": "diverged"}]')
    assert sweep_dir() == directory
    (tmp_path / directory / "sweep.json").write_text('[{"outcome": "finished"}]')
    assert sweep_dir() != directory


def test_a_run_that_diverged_before_it_saved_is_found_by_the_same_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = tmp_path / run_dir(["seed=1"])
    (directory / ".hydra").mkdir()
    (directory / ".hydra" / "overrides.yaml").write_text("- seed=1\n")
    assert tmp_path / run_dir(["seed=1"]) != directory
    (directory / "diverged").mkdir()
    assert tmp_path / run_dir(["seed=1"]) == directory
    assert tmp_path / run_dir(["seed=1", "resume=false"]) != directory


@pytest.mark.parametrize(
    "launcher", ["basic", *(pytest.param(name, marks=pytest.mark.slow) for name in ("together", "joblib"))]
)
def test_a_point_that_diverges_is_a_row_and_costs_no_other(tmp_path, launcher):
    if launcher == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    points = ["-m", *POINT, "outer_lr=1e38,0.001", f"hydra/launcher={launcher}", "hydra.sweep.dir=sweep"]
    done = metarun(*points, cwd=tmp_path, fresh=launcher == "joblib", COLUMNS="200")
    refused(done, "1 of 2 points have no result", "metarun-replay run=", "resume=false")
    assert done.returncode == 1
    sweep, found = tmp_path / "sweep", rows(tmp_path / "sweep")
    step = found["0"]["step"]
    assert (found["0"]["outcome"], found["0"]["value"]) == ("diverged", None) and 1 <= step <= 4
    assert f"diverged at step {step}" in done.stdout and f"{100 * found['1']['value']:.4g}% ±" in done.stdout
    records, _ = collect([str(sweep)])
    assert [record.unfinished and record.unfinished.state for record in records] == [f"diverged at step {step}", None]
    if launcher == "together":  # what is left is what it would have been
        alone = metarun(*POINT, "outer_lr=0.001", "hydra.run.dir=alone", cwd=tmp_path)
        assert alone.returncode == 0, alone.stderr
        result, single = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("sweep/1", "alone"))
        assert (result["value"], result["val"]) == (single["value"], single["val"])
    if launcher == "basic":  # the same command trains neither again
        before = {
            path: path.read_bytes() for path in sweep.glob("?/**/*") if path.is_file() and ".hydra" not in path.parts
        }
        again = metarun(*points, cwd=tmp_path)
        refused(again, "1 of 2 points have no result")
        assert again.returncode == 1 and "is complete" in again.stderr and rows(sweep) == found
        assert {path: path.read_bytes() for path in before} == before


def test_a_user_mistake_comes_back_from_another_process():
    error = pickle.loads(pickle.dumps(ConfigError("way", 0, "a whole number, 1 or more")))
    assert (str(error), error.key) == ("way=0: expected a whole number, 1 or more.", "way")
    error = pickle.loads(pickle.dumps(Diverged(3, "The loss is nan")))
    assert (str(error), error.step) == ("The loss is nan", 3)


def test_seeds_are_trained_together_each_as_it_would_be_alone_and_their_distribution_is_said(tmp_path):
    done = metarun(*POINT, "seeds=3", "seed=4", "hydra.run.dir=seeds", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3 runs together" in done.stderr
    found = json.loads((tmp_path / "seeds" / "seeds.json").read_text())
    values = [results(tmp_path / "seeds")[name] for name in ("0", "1", "2")]
    assert found["seeds"] == [4, 5, 6] and found["values"] == values
    assert found["value"] == pytest.approx(np.mean(values)) and found["sd"] == pytest.approx(np.std(values, ddof=1))
    assert f"3 seeds: accuracy {100 * found['value']:.4g}% ± " in done.stdout
    alone = metarun(*POINT, "seed=5", "hydra.run.dir=alone", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    result, single = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("seeds/1", "alone"))
    assert (result["value"], result["ci95"]) == (single["value"], single["ci95"])
    again = metarun(*POINT, "seeds=2", "seed=4", "hydra.run.dir=seeds", cwd=tmp_path)
    assert again.returncode == 0 and again.stderr.count("is complete") >= 1
    # Only what was asked for counts: what the first command has left beside is said, and as it was.
    fewer = json.loads((tmp_path / "seeds" / "seeds.json").read_text())
    assert (fewer["seeds"], fewer["values"]) == ([4, 5], values[:2]) and "2 seeds: accuracy" in again.stdout
    assert list(rows(tmp_path / "seeds")) == ["0", "1"] and results(tmp_path / "seeds")["2"] == values[2]
    assert "Of another command, and so not counted: 2 in" in again.stdout
    records, faults = collect([str(tmp_path / "seeds")])
    assert [record.result["seed"] for record in records] == [4, 5] and "left out: 2" in faults[0]


@pytest.mark.parametrize("wrong", ["seeds=0", "seeds=few", "seeds=2 seed=x"])
def test_wrong_seeds_are_refused(tmp_path, wrong):
    refused(metarun(*POINT, *wrong.split(), cwd=tmp_path), wrong.split()[-1])


def test_points_that_differ_in_more_than_seeds_have_no_distribution(tmp_path):
    found = [{"point": str(k), "overrides": [f"seed={k}", f"shot={k}"], "value": 0.5} for k in (1, 2)]
    assert distribution_of(tmp_path, found) is None
    assert distribution_of(tmp_path, found[:1]) is None


def test_seeds_over_one_task_have_no_interval(tmp_path):
    found = []
    for seed, value in enumerate((0.5, 0.7)):
        file = write_run(tmp_path / str(seed), seed=seed) / "result.json"
        result = json.loads(file.read_text()) | {"num_tasks": 1, "value": value, "ci95": None}
        file.write_text(json.dumps(result))
        point = {"point": str(seed), "overrides": [f"seed={seed}"], "val": None, "outcome": "finished"}
        found.append(point | {key: result[key] for key in ("metric", "value", "ci95")})
    distribution = distribution_of(tmp_path, found)
    assert distribution["value"] == pytest.approx(0.6) and np.isnan(distribution["ci95"])
    assert "accuracy 60%, without an interval, on 1 task;" in _in_words(distribution)
    assert table_of(found).row_count == 2
    assert [str(cell) for cell in table_of(found).columns[3].cells] == ["50%", "70%"]
