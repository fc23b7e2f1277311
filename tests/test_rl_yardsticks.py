"""The script that plays the agents which are not learnt, and its verdicts."""

import sys

import numpy as np
import pytest

import rl_yardsticks


def test_a_cell_is_played_and_held_against_what_was_published(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["rl_yardsticks.py", "--trials", "300", "--cells", "bandit:10,5"])
    rl_yardsticks.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == ["random", "gittins", "ucb1", "thompson"]
    assert all("±" in line for line in lines[2:]) and "| yes |" in lines[2]


def test_the_figures_are_those_of_the_published_cells():
    figures = rl_yardsticks.published_figures()
    assert figures["bandit:100,50"] == {"random": 49.8, "gittins": 85.2, "ucb1": 84.3, "thompson": 64.5}
    assert figures["mdp:25"] == {"random": 250.2, "psrl": 408.8, "opsrl": 425.2}
    assert len(figures) == 12


def test_a_cell_that_there_is_not_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["rl_yardsticks.py", "--cells", "bandit:3,3"])
    with pytest.raises(SystemExit):
        rl_yardsticks.main()
    assert "bandit:3,3" in capsys.readouterr().err


def test_a_figure_outside_of_both_intervals_is_told():
    found = np.tile([5.0, 7.0], 500)  # mean 6, standard error 0.032
    assert rl_yardsticks.row("c", "a", 6.1, found).endswith("| yes |")
    assert rl_yardsticks.row("c", "a", 6.4, found).endswith("| +0.40 |")
