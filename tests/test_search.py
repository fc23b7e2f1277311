"""A search by Optuna: what it tries, what it is told, what it does not wait for, and what it says in the end.

The points are no runs here but a function of their settings, but for the tests in `test_sweep.py`.
"""

import json
import shutil
import sqlite3
import threading

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from many_runs import write_run
from omegaconf import OmegaConf
from test_cli import SMALL, metarun

from metarun.commands.search import TRIAL, judge_of, search, space_of
from metarun.commands.sweep import Points
from metarun.commands.sweep_table import _Watch, watched
from metarun.config.composing import conf_dir, register
from metarun.config.hydra_versions import BASE
from metarun.errors import ConfigError, Diverged, MetarunError, Pruned
from metarun.report.search import Trial, picture

optuna = pytest.importorskip("optuna")
LOG = "outer_lr=tag(log,interval(1e-4,1e-2))"


@pytest.fixture(scope="module")
def composed():
    register()
    with initialize_config_dir(str(conf_dir()), **BASE):
        return compose("config", ["hydra/sweeper=optuna", "hydra.sweep.dir=unset"], return_hydra_config=True)


class Fake(Launcher):
    """A launcher whose points are `outcome(number, settings)`: a value, or the error that they end in."""

    def __init__(self, config, outcome):
        self.config, self._outcome = config, outcome
        self.launched, self.ended = [], []

    def setup(self, **_):
        pass

    def launch(self, job_overrides, initial_job_idx):
        self.launched.append(list(range(initial_job_idx, initial_job_idx + len(job_overrides))))
        returns = []
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            own = [override for override in overrides if "hydra." not in override]
            point = JobReturn()
            directory = f"{self.config.hydra.sweep.dir}/{number}"
            point.overrides, point.hydra_cfg = own, OmegaConf.create({"hydra": {"runtime": {"output_dir": directory}}})
            try:
                point.return_value = self._outcome(number, dict(override.split("=", 1) for override in overrides))
                point.status = JobStatus.COMPLETED
            except Exception as error:
                point.return_value, point.status = error, JobStatus.FAILED
            self.ended.append(number)
            returns.append(point)
        return returns


def searched(composed, tmp_path, outcome, arguments=(LOG,), launcher="basic", **keys):
    """Searches with a fake launcher. Returns it, and the trials of the study."""
    config = composed.copy()
    keys = {"storage": f"sqlite:///{tmp_path}/s.db", "study_name": "s", **keys}
    for key, value in keys.items():
        OmegaConf.update(config, f"hydra.sweeper.{key}", value, merge=False, force_add=True)
    OmegaConf.update(config, "hydra.sweep.dir", str(tmp_path / "sweep"))
    OmegaConf.update(config, "hydra.runtime.choices", {"hydra/launcher": launcher}, force_add=True)
    fake = Fake(config, outcome)
    failed = None
    try:
        search(config, fake, list(arguments))
    except BaseException as error:
        failed = error
    trials = []
    if (tmp_path / "s.db").exists():
        trials = optuna.load_study(study_name="s", storage=keys["storage"]).trials
    return fake, trials, failed


def result_at(tmp_path):
    """An outcome that leaves a result, as a run does; its value is the learning rate's."""

    def outcome(number, settings):
        write_run(tmp_path / "sweep" / str(number), val=float(settings["outer_lr"]))
        return float(settings["outer_lr"])

    return outcome


def test_what_is_varied_and_what_is_not():
    d = optuna.distributions
    space = space_of(
        ["shot=1,5", "way=interval(2,9)"],
        [
            "method=maml,anil",
            LOG,
            "way=5",
            "steps=range(10,50,20)",
            "meta_batch_size=tag(log,int(interval(1,64)))",
            "model.hidden=[8],[16,16]",
            "memory.stream=true,null",
            "method.inner_lr=range(0.5,1.5,0.5)",
            "~logger",
        ],
    )
    assert space.fixed == ["way=5", "~logger"]  # the command line counts
    assert space.parameters == {
        "shot": d.CategoricalDistribution([1, 5]),
        "method": d.CategoricalDistribution(["maml", "anil"]),
        "outer_lr": d.FloatDistribution(1e-4, 1e-2, log=True),
        "steps": d.IntDistribution(10, 30, step=20),
        "meta_batch_size": d.IntDistribution(1, 64, log=True),
        "model.hidden": d.CategoricalDistribution(["[8]", "[16,16]"]),
        "memory.stream": d.CategoricalDistribution([True, None]),
        "method.inner_lr": d.CategoricalDistribution([0.5, 1.0]),
    }
    with pytest.raises(ConfigError, match="something to search for"):
        space_of([], ["way=5"])
    with pytest.raises(ConfigError, match="outer_lr=tag"):
        space_of([], ["outer_lr=tag(log,interval(0,1))"])


def test_every_trial_is_told_of_and_what_was_found_is_said(composed, tmp_path, capsys):
    def outcome(number, settings):
        if number == 1:
            raise Diverged(7, "The loss is nan")
        if number == 2:
            raise Pruned(3, 0.001)
        return result_at(tmp_path)(number, settings)

    fake, trials, failed = searched(composed, tmp_path, outcome, n_trials=7, arguments=[LOG, "shot=1,5", "way=3"])
    assert failed is None and fake.launched == [[number] for number in range(7)]  # no batches
    states = [trial.state.name for trial in trials]
    assert states == ["COMPLETE", "FAIL", "PRUNED", *["COMPLETE"] * 4]
    complete = [trial for trial in trials if trial.value is not None]
    assert [trial.value for trial in complete] == [trial.params["outer_lr"] for trial in complete]
    assert trials[3].user_attrs["directory"] == str(tmp_path / "sweep" / "3")
    best = max(complete, key=lambda trial: trial.value)
    said = capsys.readouterr().out
    assert f"Best of 5 complete, 1 pruned, 1 failed: {best.value:.4g} in validation, trial {best.number}" in said
    assert "Importance for the validation, by PED-ANOVA: " in said and "pruned at step 3" in said
    found = OmegaConf.load(tmp_path / "sweep" / "optimization_results.yaml")
    assert (found.best_value, found.best_params) == (best.value, best.params)
    assert set(found.importance) == {"outer_lr", "shot"} and sum(found.importance.values()) == pytest.approx(1)
    assert (tmp_path / "sweep" / "search.png").stat().st_size > 10_000
    rows = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert [row["outcome"] for row in rows][:4] == ["finished", "diverged", "pruned", "finished"]

    # The same command adds to it.
    fake, trials, _ = searched(composed, tmp_path, result_at(tmp_path), arguments=[LOG, "shot=1,5"], n_trials=1)
    assert fake.launched == [[7]] and len(trials) == 8


def test_no_trial_waits_for_others(composed, tmp_path):
    others = threading.Event()

    def outcome(number, settings):
        if number == 0:
            assert others.wait(60)  # the first ends last
        elif number == 4:
            others.set()
        return result_at(tmp_path)(number, settings)

    fake, trials, failed = searched(composed, tmp_path, outcome, launcher="submitit_slurm", n_trials=5, n_jobs=2)
    assert failed is None and fake.ended[:3] == [1, 2, 3]
    assert {trial.state.name for trial in trials} == {"COMPLETE"}


def test_trials_that_are_trained_together_are_launched_together(composed, tmp_path):
    outcome = result_at(tmp_path)
    fake, _, failed = searched(composed, tmp_path, outcome, launcher="together", n_trials=5, n_jobs=2)
    assert failed is None and fake.launched == [[0, 1], [2, 3], [4]]


def test_a_trial_that_does_worse_is_pruned_from_whatever_process(composed, tmp_path):
    told = {}

    def outcome(number, settings):
        node = config.hydra.sweeper
        judge = judge_of(node, tmp_path, settings[f"+hydra.job.env_set.{TRIAL}"].strip('"'))
        told[number] = [judge(step, 0.1 if number == 6 else 0.5 + number / 100) for step in (500, 1000)]
        assert not judge(1500, float("nan"))
        if any(told[number]):
            raise Pruned(500, 0.1)
        return result_at(tmp_path)(number, settings)

    config = composed.copy()
    OmegaConf.update(config, "hydra.sweeper.storage", f"sqlite:///{tmp_path}/s.db")
    OmegaConf.update(config, "hydra.sweeper.study_name", "s")
    _, trials, failed = searched(composed, tmp_path, outcome, n_trials=7)
    assert failed is None and told[5] == [False, False] and told[6] == [True, True]
    assert trials[6].state.name == "PRUNED" and trials[6].intermediate_values == {500: 0.1, 1000: 0.1}


def test_a_search_that_is_refused_leaves_nothing(composed, tmp_path):
    def outcome(number, settings):
        raise ConfigError("way", 0, "more")

    fake, trials, failed = searched(composed, tmp_path, outcome)
    assert isinstance(failed, ConfigError) and fake.launched == [[0]] and not list(tmp_path.iterdir())
    _, _, failed = searched(composed, tmp_path, outcome, launcher="submitit_slurm", n_jobs=3)
    assert isinstance(failed, ConfigError) and not list(tmp_path.iterdir())
    study = optuna.create_study(study_name="s", storage=f"sqlite:///{tmp_path}/s.db", direction="maximize")
    study.add_trial(optuna.trial.create_trial(value=0.5))
    _, trials, failed = searched(composed, tmp_path, outcome)  # of what was there, nothing goes
    assert isinstance(failed, ConfigError) and [trial.state.name for trial in trials] == ["COMPLETE", "FAIL"]


def test_a_trial_that_is_interrupted_is_tried_again(composed, tmp_path):
    def outcome(number, settings):
        if number == 1:
            raise KeyboardInterrupt
        return result_at(tmp_path)(number, settings)

    _, trials, failed = searched(composed, tmp_path, outcome)
    assert isinstance(failed, KeyboardInterrupt)
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "WAITING"]
    _, trials, failed = searched(composed, tmp_path, result_at(tmp_path), n_trials=1)
    assert failed is None and trials[2].state.name == "COMPLETE" and trials[2].params == trials[1].params


def test_a_grid_is_gone_through_once(composed, tmp_path):
    grid = OmegaConf.create({"_target_": "optuna.samplers.GridSampler", "seed": None})
    arguments = ["outer_lr=0.1,0.2", "steps=range(1,4)"]
    fake, trials, failed = searched(composed, tmp_path, result_at(tmp_path), arguments, sampler=grid)
    assert failed is None and len(trials) == 6
    assert {tuple(trial.params.values()) for trial in trials} == {(lr, k) for lr in (0.1, 0.2) for k in (1, 2, 3)}
    _, _, failed = searched(composed, tmp_path, result_at(tmp_path), [LOG], sampler=grid)
    assert "hydra/sweeper/sampler=grid: expected single values of outer_lr" in str(failed)


@pytest.mark.parametrize(
    "keys, words",
    [
        ({"n_trials": 0}, "hydra.sweeper.n_trials=0: expected a whole number"),
        ({"direction": "up"}, "hydra.sweeper.direction=up: expected one of maximize, minimize"),
        ({"sampler": {"_target_": "optuna.samplers.TPESampler", "n_ei_candidates": "x", "popsize": 3}}, "popsize=3"),
        ({"sampler": {"_target_": "optuna.samplers.GPSampler"}}, "the package torch, which it needs"),
        ({"sampler": {"_target_": "optuna.samplers.No"}}, "hydra/sweeper/sampler=No: expected a sampler"),
        ({"pruner": {"_target_": "optuna.pruners.MedianPruner", "n_warmup_steps": -1}}, "n_warmup_steps=-1"),
    ],
)
def test_keys_that_cannot_be_used_are_named(composed, tmp_path, keys, words, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    _, _, failed = searched(composed, tmp_path, result_at(tmp_path), **keys)
    assert isinstance(failed, ConfigError) and words in str(failed), failed


def test_a_study_of_another_version_or_of_other_parameters_is_refused(composed, tmp_path):
    outcome = result_at(tmp_path)
    assert searched(composed, tmp_path, outcome, ["outer_lr=0.1,0.2"], n_trials=1)[2] is None
    for other in ("outer_lr=0.1,0.3", LOG):
        failed = searched(composed, tmp_path, outcome, [other], n_trials=1)[2]
        assert "hydra.sweeper.study_name=s: expected a study of the same parameters" in str(failed), failed
    failed = searched(composed, tmp_path, outcome, ["outer_lr=0.1,0.2"], direction="minimize")[2]
    assert "hydra.sweeper.direction=minimize: expected maximize" in str(failed)
    # As the storage of Optuna 2.10 says which version it is of.
    shutil.copy(tmp_path / "s.db", tmp_path / "old.db")
    with sqlite3.connect(tmp_path / "old.db") as database:
        database.execute("update alembic_version set version_num = 'v2.6.0.a'")
        database.execute("update version_info set library_version = '2.10.1'")
    config = composed.copy()
    old = f"sqlite:///{tmp_path}/old.db"
    OmegaConf.update(config, "hydra.sweeper.storage", old)
    with pytest.raises(ConfigError, match=f"optuna storage upgrade --storage {old}"):
        judge_of(config.hydra.sweeper, tmp_path, "0 s")


@pytest.mark.parametrize("storage", ["no://where", "sqlite:////no/such/folder/s.db", "s.db", "/no/such/folder/s.log"])
def test_a_storage_that_cannot_be_opened_is_named(composed, tmp_path, storage):
    config = composed.copy()
    OmegaConf.update(config, "hydra.sweeper.storage", storage)
    with pytest.raises(ConfigError, match="hydra.sweeper.storage="):
        judge_of(config.hydra.sweeper, tmp_path, "0 s")


def test_a_picture_is_drawn_of_text_and_of_few_trials(tmp_path):
    trials = [
        Trial(0, 0.5, "complete", {"method": "maml", "outer_lr": 0.1}),
        Trial(1, None, "fail", {"method": "anil"}),
    ]
    picture(trials, {}, tmp_path / "few.png", maximize=True)
    assert (tmp_path / "few.png").stat().st_size > 5_000


@pytest.mark.slow
def test_points_of_a_search_are_pruned_in_one_program_and_in_other_processes(tmp_path):
    point = ["method=protonet", "model=mlp", "model.hidden=[8]", *SMALL[1:]]
    always = [
        "hydra/sweeper/pruner=percentile",
        "hydra.sweeper.pruner.percentile=0",
        "hydra.sweeper.pruner.n_startup_trials=1",
    ]
    for launcher in ("together", "joblib"):
        keys = ["hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=2", f"hydra/launcher={launcher}"]
        done = metarun(
            "-m",
            *point,
            "hydra/sweeper=optuna",
            *keys,
            *always,
            LOG,
            f"hydra.sweep.dir={launcher}",
            cwd=tmp_path,
            fresh=True,
        )
        assert done.returncode == 0, done.stderr
        rows = json.loads((tmp_path / launcher / "sweep.json").read_text())
        pruned = [row for row in rows if row["outcome"] == "pruned"]
        assert pruned and all((tmp_path / launcher / row["point"] / "pruned.json").exists() for row in pruned)
        assert not any((tmp_path / launcher / row["point"] / "result.json").exists() for row in pruned)


# ---- The table of a sweep.


def test_the_table_says_what_the_points_have_left_in_their_directories(composed, tmp_path):
    config = composed.copy()
    OmegaConf.update(config, "hydra.sweeper", {})
    points = Points(Fake(config, lambda number, settings: 0.0))
    watch = _Watch(points, tmp_path, 6)
    points.on_launch(0, [["way=5", f"seed={seed}", "hydra.sweep.dir=x"] for seed in range(5)])
    write_run(tmp_path / "0", val=0.75, seed=0)
    write_run(tmp_path / "1", val=0.875, seed=1)
    (write_run(tmp_path / "2") / "result.json").unlink()
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "pruned.json").write_text('{"step": 20, "value": 0.5}')
    rows = watch.rows()
    assert [(row.settings, row.state) for row in rows] == [
        ("seed=0", "done"),
        ("seed=1", "done"),
        ("seed=2", "running"),
        ("seed=3", "pruned"),
        ("seed=4", "waiting"),
    ]
    assert (rows[2].step, rows[2].val) == (3000, pytest.approx(0.9 - 1 / 300)) and rows[3].val == 0.5
    assert watch.counts(rows) == "2 of 6 points done, 1 running, 0 failed, 1 pruned, best validation 0.875 (point 1)"


def test_where_there_is_no_terminal_each_change_is_a_line(composed, tmp_path, capsys):
    def outcome(number, settings):
        if number == 1:
            raise MetarunError("no")
        write_run(tmp_path / str(number), val=0.5)
        return 0.5

    config = composed.copy()
    OmegaConf.update(config, "hydra.sweep.dir", str(tmp_path))
    points = Points(Fake(config, outcome))
    with watched(points, tmp_path):
        points.launched([["seed=0"], ["seed=1"]], 0)
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == "sweep: 1 of 2 points done, 0 running, 1 failed, best validation 0.5 (point 0)"
