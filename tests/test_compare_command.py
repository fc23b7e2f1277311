"""`metarun-compare` and `metarun-eval protocol=sweep`: the same tasks, of two learners and under other conventions."""

import json
import re

import numpy as np
import pytest
from rich.console import Console
from small_run import begun, call, refused

from metarun.api.evaluation import asked
from metarun.assembly.saved_run import read
from metarun.commands import cli
from metarun.commands.comparison import _show

SMALL = ["model=mlp", "model.hidden=[8]", "steps=4", "eval_tasks=12"]


@pytest.fixture
def run(tmp_path):
    return begun(tmp_path / "protonet", "method=protonet", *SMALL)


@pytest.fixture
def other(tmp_path):
    """A run of another method, whose queries are normalised otherwise."""
    return begun(tmp_path / "maml", "method=maml", "method.inner_lr=0.01", *SMALL)


@pytest.fixture
def compare(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    return lambda *arguments: call(cli.compare_main, capsys, monkeypatch, *arguments)


@pytest.fixture
def evaluate(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    return lambda *arguments: call(cli.eval_main, capsys, monkeypatch, *arguments)


def per_task_of(run, *overrides):
    each = asked(read(str(run), print), overrides)
    tested = each.experiment.evaluate(each.params, "test", each.settings.eval_tasks)
    return np.asarray(tested.per_task, np.float64)


def test_the_difference_is_that_over_the_same_tasks(run, other, compare):
    settings = "eval_tasks=20", "method.query_statistics=query"
    code, out, err = compare(f"run={run}", f"with={other}", *settings)
    assert code == 0, err
    found = json.loads((run / "evaluations" / "compared-with-maml.json").read_text())
    first, second = per_task_of(run, *settings), per_task_of(other, *settings)
    difference = second - first
    assert found["difference"] == pytest.approx(difference.mean())
    assert found["ci95"] == pytest.approx(1.96 * difference.std(ddof=1) / 20**0.5)
    assert found["ci95_unpaired"] == pytest.approx(1.96 * np.hypot(first.std(ddof=1), second.std(ddof=1)) / 20**0.5)
    assert found["paired"] and found["num_tasks"] == 20 and found["protocol_differences"] == {}
    assert [each["method"] for each in found["runs"]] == ["protonet", "maml"]
    shown = re.search(r"second less first: ([+-]\S+) ± (\S+) points", out).groups()
    within = 0.05 * 100 * found["ci95"]  # of rounding to two digits of the interval
    assert [float(each) for each in shown] == pytest.approx([100 * difference.mean(), 100 * found["ci95"]], abs=within)


def test_a_run_does_not_differ_from_itself(run, compare):
    code, out, err = compare(f"run={run}", f"with={run}")
    assert code == 0, err
    assert "second less first: +0.00 ± 0.00 points" in out and "There is no difference." in out


def test_other_protocols_are_refused_by_their_keys_unless_asked_for(run, other, compare, tmp_path):
    refused(compare(f"run={run}", f"with={other}"), "method.query_statistics (support and query)", "protocol=any")
    code, out, err = compare(f"run={run}", f"with={other}", "protocol=any")
    assert code == 0, err
    assert "Of different protocols: method.query_statistics" in out and "over the same tasks" in out
    drawn = begun(tmp_path / "drawn", "method=protonet", *SMALL, "eval_seed=1")
    refused(compare(f"run={run}", f"with={drawn}"), "differ in eval_seed (0 and 1)")
    code, out, err = compare(f"run={run}", f"with={drawn}", "protocol=any")
    assert code == 0 and "over different tasks" in out, err


def test_tasks_of_each_size_are_compared_with_those_of_the_same(tmp_path, compare):
    sizes = ["way=[2,3]", "shot=[1,3]", "dataset.sampling=unequal", "eval_tasks=30"]
    runs = [begun(tmp_path / name, f"method={name}", *SMALL, *sizes) for name in ("protonet", "matching")]
    settings = ["method.query_statistics=support"]
    code, out, err = compare(f"run={runs[0]}", f"with={runs[1]}", *settings)
    assert code == 0, err
    found = json.loads((runs[0] / "evaluations" / "compared-with-matching.json").read_text())
    first, second = (
        each.experiment.evaluate(each.params, "test", 30).groups
        for each in (asked(read(str(run), print), settings) for run in runs)
    )
    assert [*first] == ["by_way", "by_shot", "by_class_shot"]
    for field, of in first.items():
        assert [*found[field]] == [*of]
        for name, its in of.items():
            difference = np.asarray(second[field][name], np.float64) - its
            assert found[field][name]["difference"] == pytest.approx(difference.mean())
            assert found[field][name]["ci95"] == pytest.approx(1.96 * difference.std(ddof=1) / len(its) ** 0.5)
            assert found[field][name]["num_tasks"] == len(its)
    assert sum(each["num_tasks"] for each in found["by_way"].values()) == 30
    assert re.search(r"shot of a class +second less first +tasks\n1 +[+-]", out), out


def test_what_is_refused(run, compare, tmp_path):
    refused(compare(f"run={run}"), "with=None", "the directory of a run")
    refused(compare(f"run={tmp_path / 'x'}", f"with={run}"), "run=", "the directory of a run")
    refused(compare(f"run={run}", f"with={run}", "protocol=some"), "protocol=some", "same")
    refused(compare(f"run={run}", f"with={run}", "outer_lr=1"), "outer_lr=1", "only these may be changed")


@pytest.mark.slow
def test_the_same_parameters_under_every_convention(other, evaluate):
    code, out, err = evaluate(f"run={other}", "protocol=sweep", "eval_tasks=16")
    assert code == 0, err
    (file,) = (other / "evaluations").glob("sweep-*.json")
    rows = {(row["key"], row["value"]): row for row in json.loads(file.read_text())}
    own = per_task_of(other, "eval_tasks=16")
    assert rows["", ""]["result"]["value"] == pytest.approx(own.mean(), rel=1e-6)
    for key, value, same in [
        ("method.query_statistics", "support", True),
        ("method.inner_reduction", "class_sum", True),
        ("method.eval_inner_steps", 10, True),
        ("eval_query_shot", 1, False),
        ("dataset.test_rotations", True, False),
        ("eval_seed", 1, False),
    ]:
        row, per_task = rows[key, value], per_task_of(other, "eval_tasks=16", f"{key}={value}")
        assert row["paired"] == same
        assert row["result"]["value"] == pytest.approx(per_task.mean(), rel=1e-6)
        difference = (per_task - own).std(ddof=1) if same else np.hypot(own.std(ddof=1), per_task.std(ddof=1))
        assert row["ci95"] == pytest.approx(1.96 * difference / 4, rel=1e-5)
        assert row["difference"] == pytest.approx(per_task.mean() - own.mean(), abs=1e-6)
        assert row["result"]["protocol_id"] != rows["", ""]["result"]["protocol_id"]
        assert key in out
    assert len({row["result"]["protocol_id"] for row in rows.values()}) == len(rows)


@pytest.mark.slow
def test_a_method_without_inner_steps_has_no_such_convention(run, evaluate):
    code, out, err = evaluate(f"run={run}", "protocol=sweep")
    assert code == 0, err
    assert "eval_inner_steps" not in out and "method.query_statistics" in out and "the run's own" in out
    refused(evaluate(f"run={run}", "protocol=all"), "protocol=all", "own", "sweep")


def test_numbers_that_are_not_finite_are_not_told_apart(capsys):
    run = {"run": "r", "method": "m", "value": float("nan"), "ci95": 0.1}
    result = {"runs": [run, run], "difference": float("nan"), "ci95": 0.1, "paired": False, "num_tasks": 10}
    _show(result, False, Console())
    assert "Not every number is finite" in capsys.readouterr().out


def test_one_task_has_no_interval_in_a_comparison_or_an_evaluation(run, compare, evaluate):
    code, out, err = compare(f"run={run}", f"with={run}", "eval_tasks=1")
    assert code == 0, err
    assert (
        "on one task, which has no interval: give eval_tasks=2 or more" in out and "±" not in out and "nan" not in out
    )
    found = json.loads((run / "evaluations" / "compared-with-protonet.json").read_text())
    assert found["difference"] == 0 and found["ci95"] is None and found["runs"][0]["ci95"] is None
    code, out, err = evaluate(f"run={run}", "eval_tasks=1")
    assert code == 0, err
    assert "over one task, which has no interval (eval_tasks)" in out and "±" not in out and "not checked" in out
    (file,) = (path for path in (run / "evaluations").glob("*.json") if not path.name.startswith("compared"))
    result = json.loads(file.read_text())
    assert isinstance(result["value"], float) and result["ci95"] is None
    assert result["checks"]["relabelling"]["passed"] is None
