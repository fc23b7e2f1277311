"""The words of a run's end."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from metarun.report import rl_pictures
from metarun.report.rl_pictures import regret_in_words
from metarun.report.run_pictures import heading, summary

CHECKS = {
    "query_order": {"passed": True, "value": 0.0},
    "query_count": {
        "passed": True,
        "value": 0.2,
        "alone": 0.75,
        "together": 0.95,
        "changed": 0.25,
        "declared_transductive": True,
    },
    "chance_before_adaptation": {"passed": False, "value": 0.31, "chance": 0.2},
    "relabelling": {"passed": True, "value": -0.001, "changed": 0.02},
    "labels_by_position": {"passed": True, "value": 1.25, "support": 1.25, "query": -0.5},
    "labels_by_class": {"passed": True, "value": -0.0213, "standard_error": 0.034, "known": 1.0},
    "support_apart_from_query": {"passed": True, "value": 0.0004},
    "test_apart_from_train": {"passed": False, "value": 0.15, "images": 0.1512, "val": 0.0},
}
RESULT = {"metric": "accuracy", "value": 0.9512, "ci95": 0.0031, "num_tasks": 600, "selected_steps": [900]}
RESULT |= {"tasks_per_second": 101.4, "checks": CHECKS}


def printed(result):
    console = Console(file=io.StringIO(), width=80)
    console.print(summary(result))
    return console.file.getvalue()


def test_result_interval_and_checks_are_said_in_lines_that_fit_a_terminal():
    text = printed(RESULT)
    assert text.startswith(
        "test accuracy 95.12% ± 0.31%\n95% interval over 600 tasks; parameters of step 900; 101 tasks/s"
    )
    failed, leaked = (line for line in text.splitlines() if "FAILED" in line)
    assert failed.split() == ["chance", "before", "adaptation", "FAILED", "31.00%,", "chance", "is", "20.00%"]
    assert "75.00% alone, 95.00% together, transductive" in text
    assert "0.10% difference; 2.0% of answers change" in text
    assert "FAILED  15.0% of classes, 15.1% of inputs in training" in leaked
    assert "1.2 standard errors above chance" in text
    assert "correlation -0.02, standard error 0.03" in text
    assert "0.04% of queries are support inputs" in text
    assert len(text.splitlines()) == 11


def test_a_value_that_is_not_finite_says_what_to_change():
    checks = {
        "query_count": {"passed": True, "value": None, "alone": None, "changed": 0.0, "declared_transductive": False}
    }
    text = printed(RESULT | {"metric": "mse", "value": None, "ci95": None, "checks": checks})
    assert text.startswith("test mse not finite\n")
    assert "method.eval_inner_steps" in text


@pytest.mark.parametrize("way, setting", [(5, "5-way 1-shot"), (None, "1-shot")])
def test_heading(way, setting):
    facts = {"method": "maml", "dataset": "glyphs", "way": way, "shot": 1, "seed": 3, "device": "2 x cpu"}
    facts["sizes"] = {"meta_params": 1234, "generated": 56}
    assert (
        heading(facts, Path("run"))
        == f"maml on glyphs, {setting}, seed 3, on 2 x cpu\nSizes: meta_params 1,234, generated 56\nrun"
    )


@pytest.mark.parametrize(
    "value, ci95, words",
    [
        (-6.427, 0.5, "regret -6.427 ± 0.5 against optimistic psrl: the learner is better than optimistic psrl"),
        (1.25, 0.5, "regret 1.25 ± 0.5 against optimistic psrl: the learner is worse than optimistic psrl"),
        (
            -0.25,
            0.5,
            "regret -0.25 ± 0.5 against optimistic psrl: the learner and optimistic psrl cannot be told apart",
        ),
        (None, None, "regret not finite against optimistic psrl"),
    ],
)
def test_a_regret_says_which_of_the_two_is_better(value, ci95, words):
    assert regret_in_words({"value": value, "ci95": ci95, "against": "optimistic_psrl"}) == words


def test_a_result_that_a_reader_has_let_through_can_be_said_whatever_it_lacks():
    checks = {"query_count": {"passed": True}, "labels_by_class": {"passed": False, "value": None}}
    assert "test accuracy 95.12%\n" in printed(RESULT | {"ci95": None, "checks": checks, "tasks_per_second": None})
    console = Console(file=io.StringIO(), width=80)
    lacking = {"metric": "reward", "value": None, "ci95": None, "num_tasks": 4, "selected_steps": [1], "checks": {}}
    yardsticks = {"a": {"value": None, "ci95": None}, "b": {"value": 1.5, "ci95": None}}
    console.print(rl_pictures.summary(lacking | {"yardsticks": yardsticks}))
    assert console.file.getvalue().startswith("test reward not finite\n")


def test_a_check_that_was_not_made_says_why_and_has_not_failed():
    entry = {"passed": None, "value": None, "reason": "targets are numbers"}
    text = printed(RESULT | {"checks": {"relabelling": entry}})
    assert text.splitlines()[-1].split() == ["relabelling", "not", "checked", "targets", "are", "numbers"]
    assert "FAILED" not in text


def test_one_task_has_no_interval():
    text = printed(RESULT | {"num_tasks": 1, "ci95": None, "checks": {}})
    assert text.startswith(
        "test accuracy 95.12%\nover one task, which has no interval (eval_tasks); parameters of step 900"
    )
    assert "±" not in text and "nan" not in text
