"""The best predictor of sinusoids, against draws that happen to agree with what was seen."""

import numpy as np

from sinusoid_bayes import GRID, drawn, errors, of_one_point


def test_after_one_point_it_is_the_mean_of_the_tasks_that_pass_by_it():
    rng = np.random.default_rng(0)
    amplitude, phase = rng.uniform(0.1, 5, 4_000_000), rng.uniform(0, np.pi, 4_000_000)
    x = np.array([-3.0, 0.5, 4.0])
    for x1, y1 in ((0.7, 1.0), (-2.0, -0.3), (3.0, 4.0)):
        near = np.abs(amplitude * np.sin(x1 - phase) - y1) < 0.02
        tasks = amplitude[near, None] * np.sin(x[None] - phase[near, None])
        assert near.sum() > 2000
        spread = tasks.std(0) / np.sqrt(near.sum())
        np.testing.assert_array_less(np.abs(of_one_point(x1, y1, x) - tasks.mean(0)), 5 * spread + 0.01)


def test_without_a_point_the_error_is_the_variance_and_after_two_nothing():
    found = errors(np.random.default_rng(0), 4000, 0)
    second_moment = (5**3 - 0.1**3) / (3 * 4.9) / 2
    mean_cos_squared = 0.5 + np.sin(10) / 20
    expected = second_moment - (2.55 * 2 / np.pi) ** 2 * mean_cos_squared
    assert abs(found.mean() - expected) < 4 * found.std() / np.sqrt(found.size)
    assert errors(np.random.default_rng(0), 200, 2).mean() < 1e-6
    assert errors(np.random.default_rng(0), 300, 1).mean() < found.mean()


def test_tasks_are_those_of_the_data_set():
    x, y = drawn(np.random.default_rng(0), 1000, 50)
    assert np.abs(x).max() <= 5 and np.abs(y).max() <= 5 and GRID > 1000
    # A sinusoid of period 2 pi: y(x) is a sin x + b cos x.
    for row_x, row_y in zip(x[:20], y[:20], strict=True):
        basis = np.stack([np.sin(row_x), np.cos(row_x)], 1)
        np.testing.assert_allclose(basis @ np.linalg.lstsq(basis, row_y, rcond=None)[0], row_y, atol=1e-9)
