"""The verdict: by hand, against a library's test, and by simulation; and when two numbers may be compared."""

import math

import numpy as np
import pytest
from scipy import stats

import verdict_rates
from metarun.errors import MetarunError
from metarun.trust.equivalence import (
    NOT_REPRODUCED,
    REPRODUCED,
    UNDECIDED,
    Ours,
    difference_said,
    interval_said,
    over_seeds,
    paired,
    standard_error,
    unpaired,
    verdict,
)
from metarun.trust.protocol import Difference, differences, refuse_different


@pytest.mark.parametrize(
    "value, expected",
    # Both intervals are ± 0.3 points: that of the difference is ± 0.4243.
    [(0.957, REPRODUCED), (0.9555, REPRODUCED), (0.954, UNDECIDED), (0.946, UNDECIDED), (0.9455, NOT_REPRODUCED)],
)
@pytest.mark.parametrize("sign", (-1, 1))
def test_it_is_where_the_interval_of_the_difference_lies(value, expected, sign):
    published = 0.96
    ours = Ours([published + sign * (published - value)], 0.003, 600)
    found = verdict(ours, published, 0.003, 0.01)
    assert found.verdict == expected
    assert found.difference == pytest.approx(sign * (published - value))
    assert found.difference_ci95 == pytest.approx(0.003 * 2**0.5)
    assert found.ci95 == pytest.approx(0.003)


def test_the_interval_over_seeds_is_students():
    """With no error over tasks it is a prediction interval for the paper's seed: t s sqrt(1 + 1/k)."""
    values = [0.950, 0.953, 0.958]
    found = verdict(Ours(values, 1e-9, 600), 0.955, 1e-9, 0.05)
    assert found.difference_ci95 == pytest.approx(stats.t.ppf(0.975, 2) * np.std(values, ddof=1) * (4 / 3) ** 0.5)
    assert found.ci95 == pytest.approx(stats.t.ppf(0.975, 2) * np.std(values, ddof=1) / 3**0.5)


def test_it_agrees_with_two_t_tests_of_a_library():
    """Of two tests of many tasks each, whose one-sided p-values are the library's."""
    draw = np.random.default_rng(0)
    seen = set()
    for shift in np.linspace(-0.03, 0.03, 25):
        ours, theirs = draw.normal(0.9 + shift, 0.1, 4000), draw.normal(0.9, 0.1, 4000)
        half = [1.96 * x.std(ddof=1) / 4000**0.5 for x in (ours, theirs)]
        found = verdict(Ours([ours.mean()], half[0], 4000), theirs.mean(), half[1], 0.015).verdict
        p = {
            (at, side): stats.ttest_ind(ours - at, theirs, alternative=side).pvalue
            for at in (-0.015, 0.015)
            for side in ("less", "greater")
        }
        within = p[-0.015, "greater"] < 0.025 and p[0.015, "less"] < 0.025
        beyond = p[-0.015, "less"] < 0.025 or p[0.015, "greater"] < 0.025
        assert found == (REPRODUCED if within else NOT_REPRODUCED if beyond else UNDECIDED)
        seen.add(found)
    assert seen == {REPRODUCED, NOT_REPRODUCED, UNDECIDED}


def test_what_would_decide_does():
    ours = Ours([0.953], 0.006, 600)
    found = verdict(ours, 0.96, 0.001, 0.01)
    assert found.verdict == UNDECIDED and found.more_seeds is None
    tasks = 600 + found.more_tasks
    for number, expected in ((tasks, REPRODUCED), (0.95 * tasks, UNDECIDED)):
        again = ours._replace(ci95=0.006 * (600 / number) ** 0.5, num_tasks=number)
        assert verdict(again, 0.96, 0.001, 0.01).verdict == expected


def test_what_cannot_decide_is_not_promised():
    assert verdict(Ours([0.953], 0.006, 600), 0.96, 0.004, 0.01).more_tasks is None
    seeds = verdict(Ours([0.95, 0.96, 0.955], 0.0005, 600), 0.955, 0.0005, 0.011)
    assert seeds.verdict == UNDECIDED and seeds.more_tasks is None and seeds.more_seeds > 0


def test_a_figure_without_an_interval_counts_as_uncertain_as_ours():
    assert verdict(Ours([0.96], 0.003, 600), 0.96, None, 0.01).difference_ci95 == pytest.approx(0.003 * 2**0.5)


@pytest.mark.parametrize("seeds, of_seed", [(1, 0.0), (4, 0.002)])
def test_a_wrong_verdict_is_rare(seeds, of_seed):
    """At the margin itself, where it is most often wrong; farther off it is right more and more often."""
    at = verdict_rates.Setting(mean=0.96, times=1.0, margin=0.01, seeds=seeds, of_seed=of_seed, num_tasks=2000)
    found = verdict_rates.rates(at, 1000)
    assert verdict_rates.false_rate(at, found) < 0.05
    same = verdict_rates.rates(at._replace(times=0.0), 200)
    other = verdict_rates.rates(at._replace(times=2.5), 200)
    assert same[REPRODUCED] > 0.5 and same[NOT_REPRODUCED] == 0
    assert other[NOT_REPRODUCED] > 0.5 and other[REPRODUCED] == 0


def test_the_same_tasks_tell_a_small_gain_from_noise():
    draw = np.random.default_rng(0)
    difficulty = draw.normal(0.7, 0.1, 500)
    first, second = (difficulty + draw.normal(shift, 0.01, 500) for shift in (0, 0.003))
    difference, ci95 = paired(first, second)
    low, high = stats.ttest_rel(second, first).confidence_interval(0.95)
    assert (difference - ci95, difference + ci95) == pytest.approx((low, high), abs=1e-5)
    assert 0 < difference - ci95
    unpaired = 1.96 * np.hypot(first.std(ddof=1), second.std(ddof=1)) / 500**0.5
    assert unpaired > 8 * ci95


PROTOCOL = {
    "dataset": {"name": "omniglot", "split": "maml", "rotations": {"test": True}, "sha256": "ab"},
    "method": {"query_statistics": "query", "eval_inner_steps": 3, "inner_reduction": "mean"},
    "eval_seed": 0,
    "way": 5,
    "shot": 1,
    "query_shot": 15,
    "eval_tasks": 600,
    "selection": "best validation",
    "ensemble": 1,
}
# Everything in the literature that moves a number without being the method.
PLANTED = {
    "method.query_statistics": "support",
    "query_shot": 1,
    "dataset.rotations.test": False,
    "method.inner_reduction": "class_sum",
    "method.eval_inner_steps": 10,
    "selection": "last",
    "ensemble": 5,
    "dataset.split": "lake",
    "eval_tasks": 1000,
    "eval_seed": 1,
}


def planted(key, value):
    protocol = {name: dict(entry) if isinstance(entry, dict) else entry for name, entry in PROTOCOL.items()}
    *path, last = key.split(".")
    node = protocol
    for name in path:
        node[name] = dict(node[name])
        node = node[name]
    node[last] = value
    return {"method": "maml", "metric": "accuracy", "protocol": protocol}


@pytest.mark.parametrize("key", PLANTED)
def test_a_planted_difference_is_refused_by_its_key(key):
    own = {"method": "maml", "metric": "accuracy", "protocol": PROTOCOL}
    other = planted(key, PLANTED[key])
    refuse_different(own, own, "")
    found = differences(PROTOCOL, other["protocol"], same_method=True)
    assert [difference.key for difference in found] == [key]
    with pytest.raises(MetarunError, match=rf"differ in {key} \({found[0].first} and {PLANTED[key]}\)\. Ask for it"):
        refuse_different(own, other, "Ask for it.")


def test_what_only_one_method_knows_is_its_own():
    protonet = {**PROTOCOL, "method": {"query_statistics": "query"}}
    assert differences(PROTOCOL, protonet, same_method=False) == []
    assert differences(PROTOCOL, protonet, same_method=True) == [
        Difference("method.eval_inner_steps", 3, "absent"),
        Difference("method.inner_reduction", "mean", "absent"),
    ]
    transductive = {**PROTOCOL, "method": {"query_statistics": "support"}}
    assert [found.key for found in differences(PROTOCOL, transductive, same_method=False)] == [
        "method.query_statistics"
    ]


def test_a_difference_of_rounding_alone_is_none():
    assert difference_said(-1.9e-7, 0.2) == "+0.00 ± 0.20"
    assert difference_said(-9.158, 0.88) == "-9.16 ± 0.88" and difference_said(-45.0, 12.3) == "-45 ± 12"
    assert difference_said(0.5, 0.0) == "+0.50 ± 0.00"
    assert difference_said(math.nan, math.nan) == "+nan ± nan"


def test_values_that_differ_by_next_to_nothing_have_an_interval():
    value, ci95 = over_seeds(Ours([0.0, 1e-100, 0.0], 1e-90, 100))  # the square of whose variance is 0
    assert value == pytest.approx(1e-100 / 3) and 0 < ci95 < 1e-80


def test_one_task_has_no_interval():
    one, other = np.array([0.5]), np.array([0.75])
    assert np.isnan(standard_error(one))
    for compare in (paired, unpaired):
        difference, half = compare(one, other)
        assert difference == 0.25 and np.isnan(half)
    assert difference_said(25.0, math.nan) == "+25.00 (one task, no interval)"
    assert [interval_said(half, ".2g", 100, "%") for half in (0.012, None, math.nan)] == [" ± 1.2%", "", ""]
    value, half = over_seeds(Ours([0.5, 0.7], math.nan, 1))
    assert value == pytest.approx(0.6) and np.isnan(half)
