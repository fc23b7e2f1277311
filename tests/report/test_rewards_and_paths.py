"""The pictures of reinforcement learning: that each line is drawn where the numbers say."""

import numpy as np
from matplotlib.colors import to_hex

from metarun.report.figure import BLUE
from metarun.report.paths import draw_paths, episodes, paths
from metarun.report.rewards import draw_reward_curves, reward_curves

CURVES = {"over": "episode", "learner": [0.5, 0.7, 0.8], "random": [0.5, 0.5, 0.5], "epsilon_greedy": [0.5, 0.6, 0.7]}


def test_every_agent_has_a_line_that_is_named(tmp_path):
    figure = draw_reward_curves(CURVES)
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    assert (
        set(lines) == {"learner", "random", "epsilon greedy"} and to_hex(lines["learner"].get_color()) == BLUE.lower()
    )
    assert len({to_hex(line.get_color()) for line in lines.values()}) == 3
    np.testing.assert_array_equal(lines["learner"].get_xydata(), [[1, 0.5], [2, 0.7], [3, 0.8]])
    reward_curves(CURVES, tmp_path / "rewards.png")
    assert (tmp_path / "rewards.png").read_bytes().startswith(b"\x89PNG")


def test_inner_steps_are_counted_from_the_start():
    (axes,) = draw_reward_curves({"over": "inner step", "learner": [-40.0, -12.0]}).axes
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[0, -40], [1, -12]])


def test_episodes_are_cut_where_they_ended():
    positions = np.arange(10.0).reshape(1, 5, 2)
    live, ended = np.array([[True] * 4 + [False]]), np.array([[False, True, False, True, False]])
    assert [len(piece) for piece in episodes(positions, live, ended)] == [2, 2]
    np.testing.assert_array_equal(episodes(positions, live, ended)[1], positions[0, 2:4])
    # Stages are apart, whether or not an episode ended in them.
    twice = np.concatenate([positions, positions])
    assert len(episodes(twice, np.ones((2, 5), bool), np.zeros((2, 5), bool))) == 2


def test_a_task_has_its_paths_and_its_goal(tmp_path):
    goals = np.array([[0.3, -0.2], [0.1, 0.4]])
    positions = np.cumsum(np.random.default_rng(0).normal(size=(2, 3, 4, 2)), 2)
    live, ended = np.ones((2, 3, 4), bool), np.zeros((2, 3, 4), bool)
    figure = draw_paths(goals, positions, live, ended, of="inner step")
    for number, axes in enumerate(figure.axes):
        *drawn, start, goal = [line.get_xydata() for line in axes.lines]
        np.testing.assert_array_equal(drawn, positions[number])
        np.testing.assert_array_equal(goal, goals[number : number + 1])
        np.testing.assert_array_equal(start, positions[number, 0, :1])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts] == [
        "inner step 0",
        "inner step 1",
        "inner step 2",
        "start",
        "goal",
    ]
    paths(goals, positions, live, ended, tmp_path / "paths.png", of="episode")
    assert (tmp_path / "paths.png").read_bytes().startswith(b"\x89PNG")
