"""Parameters that answer together: worked by hand, and in an experiment against the mean of each one's answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metarun.compiled.task_map import default_layout
from metarun.data.sinusoid import sinusoid
from metarun.few_shot.experiment import few_shot_experiment
from metarun.few_shot.methods.maml import maml
from metarun.models.mlp import mlp
from metarun.training.ensemble import Ensemble, answered, ensemble_of, members_of
from metarun.training.optimizers import adam


def test_outputs_are_averaged_and_a_single_one_is_left_as_it_is():
    answer = lambda params: jnp.array([[1.0, 2.0], [3.0, 5.0]]) * params["scale"]
    one, other = {"scale": jnp.float32(1)}, {"scale": jnp.float32(4)}
    assert ensemble_of([one]) is one and members_of(one) == (one,)
    assert ensemble_of([one, other]) == Ensemble((one, other)) and members_of(ensemble_of([one, other])) == (one, other)
    np.testing.assert_array_equal(answered(one, answer), answer(one))
    np.testing.assert_array_equal(answered(Ensemble((one, other)), answer), [[2.5, 5.0], [7.5, 12.5]])


def test_an_ensemble_is_tested_by_the_mean_of_its_outputs():
    method = maml(model=mlp(num_outputs=1, hidden=[8]), objective="regression", inner_lr=0.01)
    settings = {"seed": 0, "eval_seed": 0, "meta_batch_size": 2, "protocol": {}}
    dataset, optimizer = sinusoid(shot=5, query_shot=5), adam(outer_lr=0.01, steps=10)
    experiment = few_shot_experiment({"": method}, dataset, optimizer, [default_layout()], **settings)
    first = experiment.init().params
    second = jax.tree.map(lambda leaf: 2 * leaf + 0.1, first)
    both = Ensemble((first, second))

    (tasks, _, of_first), (_, _, of_second), (_, before, after) = (
        experiment.examples(params, 8) for params in (first, second, both)
    )
    np.testing.assert_allclose(after, (of_first + of_second) / 2, rtol=1e-6)
    assert np.abs(of_first - of_second).max() > 0.1 and not np.allclose(before, after)
    found = experiment.evaluate(both, "test", 8, checks=True)
    np.testing.assert_allclose(found.per_task, ((after - tasks.query.y) ** 2).mean((1, 2)), rtol=1e-5)
    assert found.checks["query_order"]["passed"]
    same = experiment.evaluate(Ensemble((first, first)), "test", 8)
    assert same.value == pytest.approx(experiment.evaluate(first, "test", 8).value, rel=1e-6)
