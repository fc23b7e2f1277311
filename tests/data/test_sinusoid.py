"""Sinusoids: what a task holds, and that its points lie on one wave."""

import jax
import numpy as np

from metarun.data.sinusoid import sinusoid


def test_points_lie_on_one_wave_and_training_has_its_own_number_of_them():
    dataset = sinusoid(shot=5, query_shot=4, eval_query_shot=50, train_shot=9)
    train, test = (source.sample(source.data, jax.random.key(3)) for source in (dataset.train, dataset.test))
    assert (train.support.x.shape, train.query.x.shape) == ((9, 1), (4, 1))
    assert (test.support.x.shape, test.query.y.shape) == ((5, 1), (50, 1))
    x, y = (np.concatenate([test.support[k], test.query[k]])[:, 0] for k in (0, 1))
    waves = np.stack([np.sin(x), np.cos(x)], 1)  # A sin(x - phase) is a sum of these
    weights, residual, _, _ = np.linalg.lstsq(waves, y, rcond=None)
    assert 0.1 <= np.hypot(*weights) <= 5 and residual[0] < 1e-6
    same = sinusoid(shot=5, query_shot=4)
    assert same.train.sample((), jax.random.key(0)).support.x.shape == (5, 1)


def test_the_number_of_support_points_may_differ():
    dataset = sinusoid(shot=[3, 6], query_shot=4, train_shot=9)
    assert [*dataset.varies] == ["shot"] and [*sinusoid(shot=3, query_shot=4).varies] == []
    tasks = jax.vmap(dataset.test.sample, (None, 0))((), jax.random.split(jax.random.key(0), 400))
    number = np.asarray(tasks.support.mask).sum(1)
    assert {*number} == {3, 4, 5, 6} and np.bincount(number)[3:].min() > 60
    assert (np.diff(np.asarray(tasks.support.mask).astype(int)) <= 0).all() and np.asarray(tasks.query.mask).all()
    assert dataset.train.sample((), jax.random.key(0)).support.mask is None
