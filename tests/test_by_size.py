"""What a result says of tasks of each size."""

import numpy as np
import pytest

from metarun.few_shot.by_size import by_size

VALUES = np.array([0.5, 1.0, 0.0, 0.25])
NAN = np.nan


def test_tasks_are_grouped_by_way_and_by_mean_shot():
    counts = np.array([[2, 2, 0], [2, 2, 2], [4, 4, 0], [1, 1, 1]])
    found = by_size(VALUES, counts, np.zeros((4, 3)), ["way", "shot"])
    assert {field: {size: [*its] for size, its in of.items()} for field, of in found.items()} == {
        "by_way": {"2": [0.5, 0.0], "3": [1.0, 0.25]},
        "by_shot": {"1": [0.25], "2": [0.5, 1.0], "4": [0.0]},
    }


def test_classes_of_a_task_count_by_their_own_shot_once_a_task():
    counts = np.array([[1, 5, 5], [1, 1, 5], [2, 5, 0], [3, 3, 0]])
    of_classes = np.array([[0.2, 0.6, 0.8], [0.0, 0.5, 1.0], [0.4, NAN, NAN], [0.1, 0.3, NAN]])
    found = by_size(VALUES, counts, of_classes, ["way", "shot"])["by_class_shot"]
    assert {size: pytest.approx([*its]) for size, its in found.items()} == {
        "1": [0.2, 0.25],
        "2": [0.4],
        "3": [0.2],
        "5": [0.7, 1.0],
    }


def test_one_size_says_nothing():
    assert by_size(VALUES, np.full((4, 3), 2), np.zeros((4, 3)), ["way", "shot"]) == {}
    regression = by_size(VALUES, np.array([[3], [5], [3], [4]]), None, ["shot"])
    assert {size: [*its] for size, its in regression["by_shot"].items()} == {"3": [0.5, 0.0], "4": [0.25], "5": [1.0]}
