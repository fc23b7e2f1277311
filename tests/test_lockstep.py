"""Points of a sweep that are trained by one program: each is the run that it would have been alone."""

import signal

import jax
import numpy as np
import pytest
from test_cli import metarun
from test_experiment import blobs, experiment
from test_processes import assert_same_arrays, await_checkpoint
from test_replay import learner
from test_slurm import numbers
from warm_commands import Started

from metarun.compiled import lockstep
from metarun.compiled.task_map import default_layout
from metarun.errors import ConfigError

SMALL = ["method=maml", "model=mlp", "model.hidden=[8]", "meta_batch_size=3", "steps=60", "steps_per_dispatch=10"]
SMALL += ["eval_every=20", "val_tasks=20", "eval_tasks=40", "checkpoint_every=20", "log_every=10"]
POINTS = ["seed=0,1", "method.inner_lr=0.4,0.1"]


def assert_same_points(found, expected):
    for point in range(4):
        assert_same_arrays(found / str(point), expected / str(point))
        assert numbers(found / str(point)) == numbers(expected / str(point))


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("apart")
    done = metarun("-m", *SMALL, *POINTS, "hydra.sweep.dir=sweep", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "sweep"


@pytest.mark.slow
def test_each_point_is_what_it_is_alone_bit_for_bit(apart, tmp_path):
    done = metarun("-m", *SMALL, *POINTS, "hydra/launcher=together", "hydra.sweep.dir=sweep", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4 runs together" in done.stderr and "seed=1 method.inner_lr=0.1" in done.stdout
    assert_same_points(tmp_path / "sweep", apart)


@pytest.mark.slow
def test_stopped_and_continued_they_are_too(apart, tmp_path):
    command = ["-m", *SMALL, "steps_per_dispatch=1", *POINTS, "hydra/launcher=together", "hydra.sweep.dir=sweep"]
    started = Started("metarun", command, cwd=tmp_path)
    await_checkpoint(tmp_path / "sweep" / "0", started)
    started.send_signal(signal.SIGTERM)
    _, said = started.communicate(timeout=120)
    assert started.returncode == 75 and said.count("metarun: Stopped by SIGTERM") == 1, said
    done = metarun(*command, cwd=tmp_path)
    assert done.returncode == 0 and "Resuming at step" in done.stderr, done.stderr
    for point in range(4):
        assert_same_arrays(tmp_path / "sweep" / str(point), apart / str(point))


@pytest.mark.slow
def test_points_that_differ_in_more_are_trained_in_groups_and_that_is_said(tmp_path):
    quick = [*SMALL[:-5], "steps=4", "steps_per_dispatch=2", "eval_every=2", "val_tasks=4", "eval_tasks=4"]
    points = ["model.hidden=[8],[4]", "seed=0,1", "outer_lr=0.002"]
    done = metarun("-m", *quick, *points, "hydra/launcher=together", "hydra.sweep.dir=sweep", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4 points in 2 groups, one after the other: 0 1; 2 3" in done.stderr
    assert done.stderr.count("2 runs together") == 2 and "gains nothing" not in done.stderr
    assert done.stdout.count("query order") == 4  # the checks of each
    alone = metarun(*quick, "model.hidden=[4]", "seed=1", "hydra.run.dir=alone", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    assert_same_arrays(tmp_path / "sweep" / "3", tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("points, parts", [("shot=1,5", 2), ("method=maml,reptile", 2), ("memory.stream=true", 1)])
def test_it_is_said_that_together_gains_nothing(tmp_path, points, parts):
    seeds = ["seed=0,1"] * (parts == 1)
    done = metarun("-m", *SMALL, points, *seeds, "hydra/launcher=together", "hydra.sweep.dir=sweep", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "hydra/launcher=together gains nothing: no two of 2 points have one program" in done.stderr


def test_groups_are_those_that_differ_in_numbers_alone():
    trials = [experiment(learner(), blobs(), seed=seed) for seed in range(2)]
    larger = experiment(learner(), blobs(), meta_batch_size=5)
    streamed = trials[0]._replace(program=None)
    assert lockstep.groups([trials[0], larger, trials[1], streamed]) == [[0, 2], [1], [3]]
    with pytest.raises(lockstep.Apart, match="streamed"):
        lockstep.train([trials[0], streamed], lambda number, trial: None)


@pytest.mark.slow
def test_those_behind_catch_up_and_those_that_leave_are_not_waited_for():
    trials = [experiment(learner(), blobs(), seed=seed) for seed in range(3)]
    dispatches = {0: [5, 5, 5, 5], 1: [5, 5], 2: [2, 3, 5, 4, 1, 5]}

    def drive(number, trial):
        state = trial.init()
        if number == 2:
            state, _ = trials[2].step(state, 3)
        for count in dispatches[number]:
            state, metrics = trial.step(state, count)
        return state, metrics

    for number, (state, metrics) in enumerate(lockstep.train(trials, drive)):
        steps = sum(dispatches[number]) + 3 * (number == 2)
        expected = trials[number].init()
        expected, _ = trials[number].step(expected, steps - dispatches[number][-1])
        expected, last = trials[number].step(expected, dispatches[number][-1])
        assert int(state.step) == steps
        for found, leaf in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(found, leaf)
        np.testing.assert_array_equal(metrics["loss"], last["loss"])


def test_on_an_accelerator_they_are_computed_at_once():
    layout = default_layout()._replace(chunk=None)
    trials = [experiment(learner(), blobs(), layouts=[layout], seed=seed) for seed in range(2)]
    found = lockstep.train(trials, lambda number, trial: trial.step(trial.init(), 4))
    for trial, (state, metrics) in zip(trials, found, strict=True):
        expected, last = trial.step(trial.init(), 4)
        np.testing.assert_allclose(metrics["loss"], last["loss"], rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), state.params, expected.params)


def test_an_error_of_one_costs_the_others_nothing():
    trials = [experiment(learner(), blobs(), seed=seed) for seed in range(2)]

    def drive(number, trial):
        state, _ = trial.step(trial.init(), 2)
        if number == 1:
            raise ConfigError("seed", 1, "another")
        return trial.step(state, 2)

    (state, _), error = lockstep.train(trials, drive)
    assert isinstance(error, ConfigError) and error.key == "seed"
    expected, _ = trials[0].step(trials[0].init(), 2)
    expected, _ = trials[0].step(expected, 2)
    for found, leaf in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(found, leaf)

    def interrupted(number, trial):
        drive(0, trial)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lockstep.train(trials, interrupted)
