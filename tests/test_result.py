"""What a run says of itself, read as a stranger's: what fits, what does not, and how it is named."""

import json
import os
import threading

import pytest

from metarun.errors import DataError
from metarun.system.reading import MOST_YAML, yaml_of
from metarun.training.result import faults_of, read_metrics, read_result, read_rows

INTERVAL = {"value": -1.5, "ci95": 0.25}
# With every field that is known.
WHOLE = {
    "metric": "accuracy",
    "value": 0.98,
    "ci95": 0.003,
    "num_tasks": 600,
    "method": "maml",
    "dataset": "omniglot",
    "env": "point",
    "way": 5,
    "shot": 1,
    "query_shot": 15,
    "episodes": 2,
    "horizon": 100,
    "split": "maml",
    "seed": 0,
    "sizes": {"meta_params": 100},
    "published": {"finn2017": {"value": 0.987, "ci95": 0.004, "source": "table 1", "note": ""}},
    "device": "2 x AMD EPYC",
    "versions": {"metarun": "0.1.0", "jax": None},
    "protocol": {"dataset": {"name": "omniglot", "size": [28, 28]}, "eval_seed": 0},
    "protocol_id": "00ff",
    "checks": {"query_order": {"passed": True, "value": 0.0}, "other": {"passed": None, "reason": "no pictures"}},
    "steps": 100,
    "selected_steps": [50, 100],
    "val": 0.97,
    "seconds": 1.5,
    "compile_seconds": 2.5,
    "plan": {"devices": 1},
    "tasks_per_second": None,
    "yardsticks": {"random": INTERVAL},
    "regret": {**INTERVAL, "against": "random"},
    "regret_of_optimum": INTERVAL,
    "curves": {"over": "inner step", "learner": [0.5, None]},
    "learner_curve_ci95": [0.1, None],
    "run": "/tmp/x",
    "trained_on": "omniglot",
}


def short(value):
    """What a case is called: not all of what may be endless."""
    return ascii(value)[:24]


def test_a_whole_result_fits():
    assert faults_of(WHOLE) == []
    assert faults_of({**WHOLE, "a field of a later version": {"x": [None]}}) == []
    assert faults_of({**WHOLE, "value": None, "ci95": None}) == []


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("value", "abc", "value is 'abc': expected a finite number or null"),
        ("value", 2, "value is 2: expected a fraction from 0 to 1, as metric is accuracy"),
        ("value", float("nan"), "value is nan: expected a finite number or null"),
        ("value", 10**400, "value is a number of many digits: expected a finite number or null"),
        ("value", True, "value is True: expected a finite number or null"),
        ("ci95", -0.1, "ci95 is -0.1: expected a finite number, 0 or more or null"),
        ("checks", {"x": 5}, "checks.x is 5: expected an object"),
        ("checks", {"x": {"passed": "yes"}}, "checks.x.passed is 'yes': expected true or false or null"),
        ("checks", {"x": {}}, "checks.x.passed is absent: expected true or false or null"),
        ("protocol", [1], "protocol is [1]: expected an object of plain values"),
        ("num_tasks", 0, "num_tasks is 0: expected a whole number, 1 or more"),
        ("selected_steps", [1, -1], "selected_steps[1] is -1: expected a whole number, 0 or more"),
        ("method", "\x1b[2J", "method is '\\x1b[2J': expected a printable text"),
        ("device", "\ud800", "device is '\\ud800': expected a printable text"),
        ("published", {"a": {"value": 0.5}}, "published.a.source is absent: expected a printable text"),
    ],
)
def test_what_does_not_fit_is_named_with_what_is_there_and_what_was_expected(field, value, said):
    assert [str(fault) for fault in faults_of({**WHOLE, field: value})] == [said]


def test_what_is_missing_is_named(tmp_path):
    (tmp_path / "result.json").write_text('{"value": 1}')
    with pytest.raises(DataError, match=r"result\.json is no result of a run: metric is absent.*; and \d+ more"):
        read_result(tmp_path / "result.json")
    (fault,) = faults_of({key: value for key, value in WHOLE.items() if key not in ("dataset", "env")})
    assert fault.field == "dataset"


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff", b"[" * 200_000, b'{"a":' * 200_000, b"7" * 6000, b"\x00" * 100, b"[]", b"null"],
    ids=short,
)
def test_what_is_no_result_is_one_error(tmp_path, data):
    (tmp_path / "result.json").write_bytes(data)
    with pytest.raises(DataError, match=r"result\.json"):
        read_result(tmp_path / "result.json")


def test_a_pipe_is_not_waited_for_and_a_device_not_read_to_its_end(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "result.json")
    ended = threading.Event()

    def read():
        with pytest.raises(DataError, match="it is no file"):
            read_result(tmp_path / "result.json")
        ended.set()

    threading.Thread(target=read, daemon=True).start()
    assert ended.wait(10)
    (tmp_path / "large").write_bytes(b" " * (MOST_YAML + 1))
    with pytest.raises(DataError, match="more than 500,000 bytes"):
        yaml_of(tmp_path / "large")


BOMB = "a: &a [x, x]\n" + "".join(
    f"{c}: &{c} [*{p}, *{p}, *{p}, *{p}]\n" for p, c in zip("abcdefghijklm", "bcdefghijklmn", strict=True)
)


@pytest.mark.parametrize(
    "text", [BOMB, "a: !!python/object/apply:os.system [x]", "a: 2020-01-01", "{{", "[" * 5000, "a: !!binary aGk="]
)
def test_yaml_that_is_more_than_plain_values_is_refused(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(DataError, match=r"config\.yaml cannot be read"):
        yaml_of(tmp_path / "config.yaml")


def test_rows_that_do_not_fit_cost_no_other(tmp_path):
    rows = [
        {"key": "way", "value": 5, "result": {**WHOLE, "value": "x"}},
        7,
        {"key": "way", "value": 5, "result": WHOLE},
    ]
    (tmp_path / "sweep-1.json").write_text(json.dumps(rows))
    kept, said = read_rows(tmp_path / "sweep-1.json")
    assert [row["result"]["value"] for row in kept] == [0.98]
    assert len(said) == 2 and "row 1" in said[0] and "result.value is 'x'" in said[0] and "row 2" in said[1]


def test_lines_of_a_step_are_merged_and_an_unfinished_last_line_left_out(tmp_path):
    lines = [{"step": 2, "train/loss": 1.0}, {"step": 1, "train/loss": 2.0}, {"step": 2, "val/accuracy": 0.5}]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, "tra')
    records, said = read_metrics(path)
    assert records == {1: {"step": 1, "train/loss": 2.0}, 2: {"step": 2, "train/loss": 1.0, "val/accuracy": 0.5}}
    assert list(records) == [1, 2] and said == []


@pytest.mark.parametrize(
    "bad",
    [
        *(
            "{",
            "[1]",
            "7",
            '{"train/loss": 1}',
            '{"step": 2.5}',
            '{"step": "2"}',
            '{"step": -1}',
            '{"step": 2, "a": "abc"}',
        ),
        *('{"step": 2, "a": {"b": 1}}', '{"step": 2, "a": NaN}', '{"step": 2, "a": 1e999}', '{"step": 2, "a": true}'),
        *("[" * 100_000, "\x00\x00", f'{{"step": 2, "a": {"9" * 400}}}', '{"step": null}', '{"step": 2, "\\u0007": 1}'),
    ],
    ids=short,
)
def test_a_line_that_does_not_fit_is_named_and_passed_over(tmp_path, bad):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1, "train/loss": 1.0}}\n{bad}\n{{"step": 3, "train/loss": null}}\n')
    records, (said,) = read_metrics(path)
    assert records == {1: {"step": 1, "train/loss": 1.0}, 3: {"step": 3, "train/loss": None}}
    assert "metrics.jsonl, line 2: " in said and said.endswith("It is passed over.") and said.isprintable()
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl cannot be read: it is not in UTF-8"):
        read_metrics(path)
