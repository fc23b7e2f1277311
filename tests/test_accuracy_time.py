"""The script that draws accuracy against time: when a level is reached, and which moments are kept."""

import numpy as np
import pytest

import accuracy_time
from accuracy_time import Point


def curve(*values):
    return [Point(10.0 * (i + 1), i + 1, value, 0.01) for i, value in enumerate(values)]


@pytest.mark.parametrize(
    ("level", "seconds"), [(0.5, 10.0), (0.6, 10.0), (0.7, 15.0), (0.8, 20.0), (0.85, 32.5), (0.9, 35.0), (0.95, None)]
)
def test_a_level_is_reached_between_points(level, seconds):
    found = accuracy_time.seconds_to(level, curve(0.6, 0.8, 0.8, 1.0)[: 3 if seconds is None else 4])
    assert found == (seconds if seconds is None else pytest.approx(seconds))


def test_moments_are_closer_together_at_first_and_end_with_the_last_second():
    found = accuracy_time.moments(300.0, 8)
    assert len(found) == 8 and found[0] == 5.0 and found[-1] == 300.0
    assert (np.diff(found, 2) > 0).all()
    assert accuracy_time.moments(4.0, 3) == [2.0, pytest.approx(2.828), 4.0]


def test_the_table_says_who_is_where_when():
    told_by = {"metarun": {"steps": 100, "seconds": 40.0}, "loop": {"steps": 10, "seconds": 40.0}}
    found = accuracy_time.table({"metarun": curve(0.85, 0.95), "loop": curve(0.5, 0.6)}, told_by, 32).splitlines()
    assert found[1].split() == ["metarun", "80", "95.00", "±", "1.00", "15", "20"]
    assert found[2].split() == ["loop", "8", "60.00", "±", "1.00", "-", "-"]
