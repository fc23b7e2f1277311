"""Numbers of tasks: their distribution, and that no two splits share one."""

import jax
import numpy as np
import pytest
from scipy import stats

from metarun.rl import task_space
from metarun.rl.task_space import SPLITS

DRAWS = 200_000


@pytest.fixture(scope="module")
def numbers():
    return {split: np.asarray(task_space.uniform(jax.random.key(0), split, (DRAWS,))) for split in SPLITS}


def test_no_two_splits_share_a_number(numbers):
    for split, drawn in numbers.items():
        for other in set(SPLITS) - {split}:
            assert not np.isin(drawn, numbers[other]).any()
        cell = np.floor(drawn.astype(np.float64) * len(SPLITS) * task_space.CELLS)
        assert set(cell % len(SPLITS)) == {SPLITS.index(split)}


def test_the_extreme_cells_of_the_splits_stay_apart(monkeypatch):
    # Neighbouring cells at the upper end, where float32 is coarsest.
    last = task_space.CELLS - 1
    monkeypatch.setattr(task_space.jax.random, "randint", lambda key, shape, low, high: jax.numpy.full(shape, last))
    found = [float(task_space.uniform(jax.random.key(0), split)) for split in SPLITS]
    assert found == sorted(set(found)) and found[-1] < 1


@pytest.mark.parametrize("low, high", [(-1.0, 2.0), (9.8, 9.801), (1e6, 1e6 + 10), (-3e-9, -1e-9)])
def test_numbers_of_a_range_stay_apart_and_within(low, high):
    draw = task_space.between(low, high)
    found = {}
    for split in SPLITS:
        keys = jax.random.split(jax.random.key(0), 2000)
        found[split] = np.asarray(jax.vmap(lambda key, split=split: draw(key, split))(keys), np.float64)
        assert low <= found[split].min() and found[split].max() <= high
        assert found[split].mean() == pytest.approx((low + high) / 2, abs=0.05 * (high - low))
    assert not set(found["train"]) & set(found["test"]) and not set(found["train"]) & set(found["val"])
    assert not set(found["val"]) & set(found["test"])


@pytest.mark.parametrize("low, high", [(1.0, 1.0), (2.0, 1.0), (1.0, 1.0000003), (0.0, float("nan"))])
def test_a_range_without_room_is_refused(low, high):
    with pytest.raises(ValueError):
        task_space.between(low, high)


@pytest.mark.parametrize("split", SPLITS)
def test_the_numbers_are_uniform_and_normal(numbers, split):
    assert stats.kstest(numbers[split], "uniform").pvalue > 1e-4
    normal = np.asarray(task_space.normal(jax.random.key(1), split, (DRAWS,)))
    assert np.isfinite(normal).all() and stats.kstest(normal, "norm").pvalue > 1e-4


def test_a_finite_family_is_dealt_to_the_splits():
    def of(split):
        keys = jax.random.split(jax.random.key(0), 200)
        return set(jax.vmap(lambda key: task_space.one_of(key, split, 10))(keys).tolist())

    drawn = {split: of(split) for split in SPLITS}
    assert drawn == {"train": {0, 3, 6, 9}, "val": {1, 4, 7}, "test": {2, 5, 8}}
    with pytest.raises(ValueError, match="2 tasks"):
        task_space.one_of(jax.random.key(0), "test", 2)
