"""Runs whose numbers stop being finite: which step, which tasks; and the step again."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_cli import metarun, refused
from test_experiment import blobs, experiment

from metarun.errors import MetarunError
from metarun.few_shot.methods.maml import maml
from metarun.models.mlp import mlp
from metarun.training import checkpoint, runner
from metarun.training.run_state import RunState
from metarun.training.settings import RunSettings

SMALL = [
    "method=maml",
    "model=mlp",
    "model.hidden=[8]",
    "meta_batch_size=4",
    "steps=40",
    "steps_per_dispatch=5",
    "eval_every=0",
]


def is_bad(key):
    return jax.random.uniform(jax.random.fold_in(key, 77)) < 0.05


def poisoned():
    """A data set that has, now and then, a task with an infinite input."""
    good = blobs()

    def sample(data, key):
        task = good.train.sample(data, key)
        x = jnp.where(is_bad(key), jnp.inf, task.support.x)
        return task._replace(support=task.support._replace(x=x))

    return good._replace(train=good.train._replace(sample=sample))


def learner():
    model = mlp(hidden=[8], num_outputs=3)
    return maml(model=model, objective="classification", inner_lr=0.1, inner_steps=1)


def test_the_tasks_that_did_it_are_named_and_can_be_drawn_again(tmp_path):
    trial = experiment(learner(), poisoned(), meta_batch_size=4, seed=9)
    settings = RunSettings(steps=100, steps_per_dispatch=7, checkpoint_every=3, eval_tasks=4)
    with pytest.raises(MetarunError) as raised:
        runner.run(trial, settings, tmp_path, facts={}, identity={"seed": 0})

    # The same, task by task, by the scheme of keys that the experiment states.
    root = jax.random.split(jax.random.key(9))[1]
    step, bad = next(
        (step, bad)
        for step in range(100)
        if (
            bad := [
                index
                for index in range(4)
                if is_bad(jax.random.split(jax.random.fold_in(jax.random.fold_in(root, step), index))[0])
            ]
        )
    )
    assert f"in step {step + 1} of the run in {tmp_path}" in str(raised.value)
    assert f"that did it (of 4: {', '.join(map(str, bad))})" in str(raised.value)
    kept = checkpoint.newest(tmp_path / "checkpoints", pytest.fail)
    assert f"the checkpoint of step {kept.step} is kept" in str(raised.value)

    saved = checkpoint.newest(tmp_path / "diverged", pytest.fail)
    assert saved.step == step and list(saved.metadata["seeds"]) == [str(index) for index in bad]
    for words in saved.metadata["seeds"].values():
        key = jax.random.wrap_key_data(np.array(words, np.uint32))
        assert not np.isfinite(poisoned().train.sample((), key).support.x).all()

    # What was saved is the state that the step begins from.
    state = trial.init()
    if step:
        state, _ = trial.step(state, step)
    before = checkpoint.load(saved, RunState(state, state.params)).train
    assert int(before.step) == step
    for found, expected in zip(jax.tree.leaves(before), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_each_task_by_itself_adds_up_to_the_step():
    trial = experiment(learner(), meta_batch_size=4)
    state, _ = trial.step(trial.init(), 3)
    found = trial.inspect(state)
    method = learner()
    losses, norms = [], []
    for index in range(4):
        task = jax.tree.map(lambda x, index=index: x[index], found.tasks)
        value, gradient = jax.value_and_grad(lambda p, task=task: method.loss(p, task, jax.random.key(0))[0])(
            state.params
        )
        losses.append(value)
        norms.append(np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(gradient))))
    np.testing.assert_allclose(found.loss, losses, rtol=1e-4)
    np.testing.assert_allclose(found.gradient_norm, norms, rtol=1e-4)
    _, metrics = trial.step(state, 1)
    np.testing.assert_allclose(np.mean(found.loss), metrics["loss"], rtol=1e-5)


def ran(command, *arguments, cwd):
    return metarun(*arguments, cwd=cwd, command=command, COLUMNS="200")


@pytest.mark.slow
def test_the_step_again_and_with_other_settings(tmp_path):
    refused(ran("metarun", *SMALL, "method.inner_lr=1e20", "hydra.run.dir=run", cwd=tmp_path), "metarun-replay run=")
    replay = partial(ran, "metarun-replay", "run=run", cwd=tmp_path)
    done = replay()
    assert done.returncode == 1 and not done.stderr, done.stderr
    assert "Step 1 of the run" in done.stdout and "nan" in done.stdout and "not finite: " in done.stdout
    with np.load(tmp_path / "run" / "diverged" / "tasks.npz") as tasks:
        assert tasks["seed"].shape == (len(tasks["task"]), 2)
        assert tasks["support/x"].shape[:2] == (len(tasks["task"]), 5)
        assert not np.isfinite(tasks["loss"] + tasks["gradient_norm"]).any()
    done = replay("method.inner_lr=0.01")
    assert done.returncode == 0 and "nan" not in done.stdout and "all are finite" in done.stdout
    for mistake, word in (
        ("nothing=1", "nothing=1"),
        ("method=reptile", "a single key"),
        ("method.foo=1", "method.foo"),
    ):
        refused(replay(mistake), word)


def test_of_reinforcement_learning(tmp_path):
    small = ["method.hidden=4", "meta_batch_size=4", "steps=20", "steps_per_dispatch=2", "eval_every=0"]
    refused(ran("metarun-rl", *small, "outer_lr=1e38", "hydra.run.dir=run", cwd=tmp_path), "metarun-replay run=")
    done = ran("metarun-replay", "run=run", cwd=tmp_path)
    assert done.returncode == 1 and "of the run" in done.stdout, done.stderr
    with np.load(tmp_path / "run" / "diverged" / "tasks.npz") as tasks:
        assert tasks["seed"].shape == (4, 2)


def test_a_run_that_has_not_diverged_is_named(tmp_path):
    assert ran("metarun", *SMALL, "steps=5", "hydra.run.dir=run", cwd=tmp_path).returncode == 0
    refused(ran("metarun-replay", "run=run", cwd=tmp_path), "The run in run has not diverged")
    refused(ran("metarun-replay", "run=other", cwd=tmp_path), "run=other")
