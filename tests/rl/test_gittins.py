"""The Gittins index against published tables, against its definition, and against what it is optimal for."""

from functools import cache

import numpy as np
import pytest

from metarun.rl.gittins import bernoulli_index

# Gittins, Glazebrook and Weber 2011, tables of the Bernoulli reward process: discount -> {(a, b): index}.
PUBLISHED = {
    0.9: {(1, 1): 0.7029, (1, 2): 0.5001, (1, 3): 0.3796, (2, 1): 0.8001, (2, 2): 0.6346, (3, 2): 0.7072},
    0.99: {(1, 1): 0.8699, (1, 2): 0.7005, (2, 1): 0.9102, (2, 2): 0.7844},
}


@pytest.mark.parametrize("discount", PUBLISHED)
def test_the_index_is_that_of_the_published_tables(discount):
    index = bernoulli_index(discount, 5)
    for (a, b), expected in PUBLISHED[discount].items():
        assert index[a - 1, b - 1] == pytest.approx(expected, abs=1.5e-4), (a, b)


def test_a_well_known_arm_is_worth_its_mean_and_an_unknown_one_more():
    index = bernoulli_index(0.9, 200)
    assert index[100, 100] == pytest.approx(0.5, abs=0.02) and index[100, 100] > 0.5
    for successes in range(5):
        for failures in range(5):
            assert index[successes, failures] > (successes + 1) / (successes + failures + 2)
    assert np.isnan(index[200, 1])


def optimal_value(arms, discount, depth):
    """Bayes-optimal discounted reward of `depth` pulls of Bernoulli arms with uniform priors, by enumeration."""

    @cache
    def value(state, left):
        if left == 0:
            return 0.0
        best = 0.0
        for arm, (a, b) in enumerate(state):
            p = a / (a + b)
            won, lost = ((*state[:arm], new, *state[arm + 1 :]) for new in ((a + 1, b), (a, b + 1)))
            best = max(best, p * (1 + discount * value(won, left - 1)) + (1 - p) * discount * value(lost, left - 1))
        return best

    return value(((1, 1),) * arms, depth)


def index_value(arms, discount, depth):
    """The same of always pulling the arm of the highest index."""
    index = bernoulli_index(discount, depth)

    @cache
    def value(state, left):
        if left == 0:
            return 0.0
        arm = max(range(len(state)), key=lambda k: index[state[k][0] - 1, state[k][1] - 1])
        a, b = state[arm]
        p = a / (a + b)
        won, lost = ((*state[:arm], new, *state[arm + 1 :]) for new in ((a + 1, b), (a, b + 1)))
        return p * (1 + discount * value(won, left - 1)) + (1 - p) * discount * value(lost, left - 1)

    return value(((1, 1),) * arms, depth)


def test_pulling_by_index_is_bayes_optimal():
    # With a discount of 0.5, what comes after 16 pulls weighs less than 2e-5.
    assert index_value(2, 0.5, 16) == pytest.approx(optimal_value(2, 0.5, 16), abs=1e-4)
