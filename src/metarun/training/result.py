"""The schema of what a run says of itself: `result.json`, the evaluations like it, and `metrics.jsonl`.

Whoever reads such a file reads it here: it may be damaged, of another version, or a stranger's. What does not fit is named
by file, field, what is there and what was expected, so that a reader can pass it over and go on with the others.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metarun.errors import DataError, shown
from metarun.system.reading import MOST_BYTES, is_number, is_plain, is_text, json_of, text_of, value_shown

RESULT, METRICS, EVALUATIONS = "result.json", "metrics.jsonl", "evaluations"
# What a result may have been found on in parts, and what a part is called.
PARTS = {"domains": "domain", "by_way": "way", "by_shot": "shot", "by_class_shot": "shot of a class"}
# In the directory of a run that has diverged: its state before the step in which it did, and a file that says so.
DIVERGED, DIVERGENCE = "diverged", "divergence.json"
# In the directory of a trial that was pruned: at which step, and what validation found there.
PRUNED = "pruned.json"
_MOST = 2**53  # of whole numbers, which every reader of JSON can hold
_ROUNDING = 1e-6  # by which a mean of fractions may pass 1
_LISTED = 3  # faults of a file that are named


class _Leaf(NamedTuple):
    """A single value: what is expected, in words, and whether a value is that."""

    words: str
    holds: Callable[[Any], bool]


class _Each(NamedTuple):
    """An object whose entries, by any names, are all of one kind."""

    kind: Any


class _List(NamedTuple):
    """A list whose entries are all of one kind."""

    kind: Any


class _Fields(NamedTuple):
    """An object with known fields; `others` is the kind of those that are not known, None for any, which nobody reads."""

    required: Mapping[str, Any]
    optional: Mapping[str, Any]
    others: Any = None


def _or_null(kind: _Leaf) -> _Leaf:
    return _Leaf(f"{kind.words} or null", lambda value: value is None or kind.holds(value))


def _whole(least: int) -> _Leaf:
    def holds(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and least <= value <= _MOST

    return _Leaf(f"a whole number, {least} or more", holds)


def is_size(value: Any) -> bool:
    """Whether it is a number of classes or examples, or the fewest and the most."""
    ends = value if isinstance(value, list) else [value]
    return len(ends) in (1, 2) and all(type(end) is int and end >= 1 for end in ends) and ends == sorted(ends)


_TEXT = _Leaf("a printable text", is_text)
_MESSAGE = _Leaf("a text", lambda value: is_text(value, printable=False))
_BOOL = _Leaf("true or false", lambda value: isinstance(value, bool))
_NUMBER = _Leaf("a finite number", is_number)
_POSITIVE = _Leaf("a finite number, 0 or more", lambda value: is_number(value) and value >= 0)
_PLAIN = _Leaf("plain values, not nested too deep", is_plain)
_OBJECT = _Leaf("an object of plain values", lambda value: isinstance(value, dict) and is_plain(value))
_SETTINGS = _Leaf("an object of settings", lambda value: isinstance(value, dict) and is_plain(value, any_number=True))
_INTERVAL = {"value": _or_null(_NUMBER), "ci95": _or_null(_POSITIVE)}
_SIZE = _Leaf("a whole number, 1 or more, or a range of two such numbers", is_size)
# A check that could not be run says neither that it has passed nor that it has not.
_CHECK = _Fields({"passed": _or_null(_BOOL)}, {"value": _or_null(_NUMBER)}, _PLAIN)
_FIGURE = _Fields({"value": _NUMBER, "source": _TEXT}, {"ci95": _or_null(_POSITIVE), "note": _TEXT})

_RESULT = _Fields(
    required={
        "metric": _TEXT,
        **_INTERVAL,
        "num_tasks": _whole(1),
        "method": _TEXT,
        "protocol": _OBJECT,
        "protocol_id": _TEXT,
        "seed": _whole(0),
        "checks": _Each(_CHECK),
    },
    optional={
        "dataset": _TEXT,
        "env": _TEXT,
        **dict.fromkeys(("way", "shot"), _or_null(_SIZE)),
        **dict.fromkeys(("query_shot", "episodes", "horizon"), _or_null(_whole(1))),
        "split": _PLAIN,
        "published": _Each(_FIGURE),
        "sizes": _Each(_whole(0)),
        "device": _TEXT,
        "versions": _Each(_or_null(_TEXT)),
        "steps": _whole(0),
        "selected_steps": _List(_whole(0)),
        "val": _or_null(_NUMBER),
        **dict.fromkeys(("seconds", "compile_seconds", "tasks_per_second"), _or_null(_POSITIVE)),
        "plan": _OBJECT,
        **dict.fromkeys(PARTS, _Each(_Fields({**_INTERVAL, "num_tasks": _whole(1)}, {}))),
        "yardsticks": _Each(_Fields(_INTERVAL, {})),
        "regret": _Fields({**_INTERVAL, "against": _TEXT}, {}),
        "regret_of_optimum": _Fields(_INTERVAL, {}),
        "curves": _Fields({"over": _TEXT}, {}, _List(_or_null(_NUMBER))),
        "learner_curve_ci95": _List(_or_null(_POSITIVE)),
        "run": _TEXT,
        "trained_on": _TEXT,
    },
)
# A row of `evaluations/sweep-ID.json`.
_ROW = _Fields({"key": _TEXT, "value": _PLAIN, "result": _RESULT}, {})
_PRUNED = _Fields({"step": _whole(1), "value": _NUMBER}, {})
_DIVERGENCE = _Fields({"step": _whole(1), "message": _MESSAGE, "identity": _SETTINGS}, {})
_LINE = _Fields({"step": _whole(0)}, {}, _or_null(_NUMBER))


def size_in_words(size: int | Sequence[int], dash: str = "–") -> str:
    """A way or a shot, or the range of it, to be read: "5" or "5–20"."""
    return dash.join(map(str, size)) if isinstance(size, Sequence) else str(size)


class Fault(NamedTuple):
    """A field that does not fit: its name, what is there, and what was expected."""

    field: str
    got: str
    expected: str

    def __str__(self) -> str:
        return f"{self.field} is {self.got}: expected {self.expected}"


def faults_of(value: Any) -> list[Fault]:
    """What in a value does not fit the schema of `result.json`."""
    return list(_faults(_RESULT, value, "")) or list(_faults_of_range(value, ""))


def read_result(path: Path) -> dict[str, Any]:
    """Returns the result in a file, `result.json` or one of an evaluation.

    Raises:
      DataError: it cannot be read, or does not fit; names the fields, what is there, and what was expected.
    """
    value = json_of(path)
    if faults := faults_of(value):
        raise DataError(_said(shown(str(path)), "result of a run", faults))
    return value


def read_rows(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Reads `evaluations/sweep-ID.json`.

    Returns:
      The rows, each `{key, value, result}`, and a sentence on each that does not fit, which is left out.

    Raises:
      DataError: the file cannot be read, or is no list.
    """
    rows = json_of(path)
    if not isinstance(rows, list):
        raise DataError(f"{shown(str(path))} is no sweep of protocols: it is {value_shown(rows)}: expected a list.")
    kept, sentences = [], []
    for number, row in enumerate(rows, 1):
        faults = list(_faults(_ROW, row, "")) or list(_faults_of_range(row["result"], "result."))
        if faults:
            sentences.append(_said(f"{shown(str(path))}, row {number}", "row of a sweep of protocols", faults))
        else:
            kept.append(row)
    return kept, sentences


def read_metrics(path: Path) -> tuple[dict[int, dict[str, float | None]], list[str]]:
    """Reads a `metrics.jsonl` into `{step: {name: value}}`, in the order of the steps.

    Lines of one step are merged, the later one winning, as a run resumed from an earlier step writes it again. A last
    line without its end is what a killed run was writing, and is left out.

    Returns:
      The records, and a sentence on the lines that do not fit, if there are any: they are passed over.

    Raises:
      DataError: the file cannot be read.
    """
    records: dict[int, dict[str, float | None]] = {}
    first, passed_over = "", 0
    for number, line in enumerate(text_of(path, MOST_BYTES).split("\n")[:-1], start=1):
        fault = ""
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            fault = f"expected a JSON object, not {value_shown(line)}"
        else:
            fault = "".join(map(str, list(_faults(_LINE, record, ""))[:1]))
        if fault:
            first, passed_over = first or f"{shown(str(path))}, line {number}: {fault}", passed_over + 1
        else:
            records.setdefault(record["step"], {}).update(record)
    more = f" {passed_over} lines are passed over." if passed_over > 1 else " It is passed over."
    return dict(sorted(records.items())), [f"{first}.{more}"] * bool(first)


def read_divergence(directory: Path) -> dict[str, Any] | None:
    """Returns what the run in a directory says of its divergence, `{step, message, identity}`; None if it says nothing.

    Raises:
      DataError: what it says cannot be read, or does not fit.
    """
    path = directory / DIVERGED / DIVERGENCE
    if not path.exists():
        return None
    value = json_of(path)
    if faults := list(_faults(_DIVERGENCE, value, "")):
        raise DataError(_said(shown(str(path)), "record of a divergence", faults))
    return value


def read_pruned(directory: Path) -> dict[str, Any] | None:
    """Returns what the run in a directory says of its having been pruned, `{step, value}`; None if it says nothing.

    Raises:
      DataError: what it says cannot be read, or does not fit.
    """
    path = directory / PRUNED
    if not path.exists():
        return None
    value = json_of(path)
    if faults := list(_faults(_PRUNED, value, "")):
        raise DataError(_said(shown(str(path)), "record of a pruned trial", faults))
    return value


def _said(where: str, what: str, faults: Sequence[Fault]) -> str:
    more = f"; and {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
    return f"{where} is no {what}: {'; '.join(map(str, faults[:_LISTED]))}{more}."


def _faults_of_range(result: Mapping[str, Any], field: str) -> Iterator[Fault]:
    """What of a result, each of whose fields is of its kind, cannot be together."""
    if "dataset" not in result and "env" not in result:
        yield Fault(f"{field}dataset", "absent", "that or env")
    if result["metric"] == "accuracy":
        for name in ("value", "val"):
            number = result.get(name)
            if number is not None and not 0 <= number <= 1 + _ROUNDING:
                yield Fault(f"{field}{name}", value_shown(number), "a fraction from 0 to 1, as metric is accuracy")


def _faults(kind: Any, value: Any, field: str) -> Iterator[Fault]:
    """The fields of a value that are not of a kind; `field` is the name of the value itself."""
    if isinstance(kind, _Leaf):
        if not kind.holds(value):
            yield Fault(field, value_shown(value), kind.words)
        return
    if isinstance(kind, _List):
        if not isinstance(value, list):
            yield Fault(field, value_shown(value), "a list")
            return
        for number, entry in enumerate(value):
            yield from _faults(kind.kind, entry, f"{field}[{number}]")
        return
    if not isinstance(value, dict):
        yield Fault(field or "all of it", value_shown(value), "an object")
        return
    known = {} if isinstance(kind, _Each) else {**kind.required, **kind.optional}
    others = kind.kind if isinstance(kind, _Each) else kind.others
    if isinstance(kind, _Fields):
        for name in kind.required:
            if name not in value:
                yield Fault(f"{field}.{name}".lstrip("."), "absent", _in_words(kind.required[name]))
    for name, entry in value.items():
        own = known.get(name, others)
        if own is not None:
            if not is_text(name):
                yield Fault(f"a name in {field or 'it'}", value_shown(name), _TEXT.words)
                continue
            yield from _faults(own, entry, f"{field}.{name}".lstrip("."))


def _in_words(kind: Any) -> str:
    return kind.words if isinstance(kind, _Leaf) else "a list" if isinstance(kind, _List) else "an object"
