"""Counting on the terminal, which must neither lose nor hold back what it counts."""

import itertools

from metarun.system.progress import counted


def test_what_is_counted_comes_through_one_by_one():
    asked = []
    numbers = counted((asked.append(n) or n for n in itertools.count()), "numbers")
    assert next(numbers) == 0 and next(numbers) == 1 and len(asked) == 2
    assert list(counted("abc", "letters", 3)) == ["a", "b", "c"]


def test_a_terminal_is_shown_how_many_there_were(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich's word for: this is a terminal
    monkeypatch.setenv("TERM", "xterm")
    assert list(counted(range(7), "classes", 7)) == list(range(7))
    assert "7/7" in capsys.readouterr().err


def test_a_log_gets_nothing(capsys):
    assert list(counted(range(7), "classes")) == list(range(7))
    assert capsys.readouterr().err == ""
