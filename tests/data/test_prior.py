"""Tables that are drawn, and functions of a Gaussian process."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from sklearn.linear_model import LogisticRegression
from test_episodes import draw

from metarun.data.gaussian_process import gaussian_process, posterior_mean
from metarun.data.prior import as_features, prior
from metarun.errors import ConfigError
from metarun.testing import check_dataset

NUM_TABLES = 200


@pytest.fixture(scope="module")
def tables():
    return draw(prior(way=[2, 6], shot=[2, 5], query_shot=3, features=[2, 8]).train, NUM_TABLES)


def examples(part, task):
    its = part.mask[task]
    return part.x[task][its], part.y[task][its]


def test_every_query_is_of_a_class_that_was_seen(tables):
    for task in range(NUM_TABLES):
        (_, seen), (_, asked) = (examples(part, task) for part in tables)
        assert {*asked} <= {*seen} and len(seen) <= 6 * 5 and len(asked) <= 6 * 3


def test_rows_features_and_classes_differ_from_table_to_table(tables):
    features = [(np.abs(tables.support.x[task]).max(0) > 0).sum() for task in range(NUM_TABLES)]
    assert {*features} >= {2, 3, 4, 5, 6, 7, 8}
    assert {len({*examples(tables.support, task)[1]}) for task in range(NUM_TABLES)} >= {2, 3, 4, 5, 6}
    assert len({tables.support.mask[task].sum() for task in range(NUM_TABLES)}) > 10


def test_features_are_standardised_by_the_support_rows(tables):
    for task in range(20):
        x, _ = examples(tables.support, task)
        told = np.abs(x).max(0) > 0
        scale = np.sqrt(8 / max(told.sum(), 1))
        # But for columns that are cut off, or have a single value.
        assert np.median(np.abs(x[:, told].mean(0))) < 0.1
        assert np.median(x[:, told].std(0)) == pytest.approx(scale, rel=0.3)


def test_a_real_table_is_brought_to_the_same_form():
    rng = np.random.default_rng(0)
    raw = rng.normal(3, 7, (50, 6)).astype(np.float32)
    found = np.asarray(as_features(jnp.asarray(raw), jnp.asarray(raw[:30]), jnp.arange(6) < 4))
    expected = (raw - raw[:30].mean(0)) / raw[:30].std(0) * np.sqrt(6 / 4)
    np.testing.assert_allclose(found[:, :4], np.clip(expected, -5 * np.sqrt(1.5), 5 * np.sqrt(1.5))[:, :4], rtol=1e-3)
    assert (found[:, 4:] == 0).all()


@pytest.mark.parametrize(
    ("function", "learner"),
    [("linear", LogisticRegression(max_iter=1000)), ("tree", RandomForestClassifier(100, random_state=0))],
)
def test_a_learner_of_the_same_kind_finds_the_function(function, learner):
    data = prior(way=3, shot=60, query_shot=20, features=4, functions=[function], noise=0.0)
    tasks, found, most = draw(data.train, 8), [], []
    for task in range(8):
        (x, y), (asked, truth) = (examples(part, task) for part in tasks)
        found.append(learner.fit(x, y).score(asked, truth))
        most.append((truth == np.bincount(y).argmax()).mean())
    assert np.mean(found) > 0.8 and np.mean(found) > np.mean(most) + 0.2


def test_noise_makes_tables_harder():
    scores = []
    for noise in (0.0, 3.0):
        tasks = draw(prior(way=2, shot=60, query_shot=40, features=3, functions=["linear"], noise=noise).train, 8)
        fitted = [
            LogisticRegression(max_iter=1000).fit(*examples(tasks.support, t)).score(*examples(tasks.query, t))
            for t in range(8)
        ]
        scores.append(np.mean(fitted))
    assert scores[0] > scores[1] + 0.1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"functions": ["forest"]}, "dataset.functions="),
        ({"functions": []}, "dataset.functions="),
        ({"features": [9, 2]}, "dataset.features="),
        ({"noise": -1}, "dataset.noise=-1"),
        ({"way": 1}, "way=1: expected 2 or more"),
    ],
)
def test_a_prior_that_cannot_be_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        prior(**{"way": 3, "shot": 2, "query_shot": 2, **settings})


def test_the_posterior_is_that_of_scikit_learn_and_errs_by_what_it_expects():
    data = gaussian_process(shot=[3, 10], query_shot=12, length_scale=0.5, noise=0.2)
    tasks = draw(data.train, 60)
    found = jax.vmap(lambda support, x: posterior_mean(support, x, 0.5, 0.2))(tasks.support, tasks.query.x)
    errors, expected = [], []
    for task in range(60):
        x, y = examples(tasks.support, task)
        exact = GaussianProcessRegressor(RBF(0.5, "fixed"), alpha=0.2**2, optimizer=None).fit(x, y[:, 0])
        mean, deviation = exact.predict(tasks.query.x[task], return_std=True)
        np.testing.assert_allclose(found[task][:, 0], mean, atol=2e-3)
        errors.append(((mean - tasks.query.y[task][:, 0]) ** 2).mean())
        expected.append((deviation**2).mean() + 0.2**2)
    assert {tasks.support.mask[task].sum() for task in range(60)} >= {3, 10}
    assert abs(np.mean(errors) - np.mean(expected)) < 4 * np.std(np.subtract(errors, expected)) / np.sqrt(60)


def test_a_gaussian_process_with_one_number_of_points_has_no_masks():
    data = gaussian_process(shot=4, query_shot=3, eval_query_shot=5, inputs=2)
    task = data.test.sample((), jax.random.key(0))
    assert task.support.mask is None and task.support.x.shape == (4, 2) and task.query.y.shape == (5, 1)
    assert [*data.varies] == []


@pytest.mark.parametrize("factory", [prior, gaussian_process])
def test_it_keeps_the_contract(factory):
    check_dataset(factory)
