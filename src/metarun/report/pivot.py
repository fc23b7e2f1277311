"""Results as the table of a paper: methods down, settings across, and what has to be known to read it."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from metarun.errors import ConfigError, some
from metarun.report.collection import Record
from metarun.report.curves import TITLES
from metarun.report.replicates import Replicates, replicates_of
from metarun.report.tables import checks_of
from metarun.report.traits import TASKS, allowed, in_words, names_known, order_of, told_apart, traits_of, value_in_words
from metarun.trust.protocol import differences, flattened

_MOST_DECIMALS = 6
_WIDEST = 1e7  # numbers from here on are written with an exponent


class Cell(NamedTuple):
    """A result in its place.

    Attributes:
      group: of which seeds it is.
      mean: with as many decimals as all of its column; in percent for an accuracy.
      half: half the width of its interval, likewise; "" where there is none.
      best: whether it is printed bold.
      marks: letters of the notes that are on it.
    """

    group: Replicates
    mean: str
    half: str
    best: bool
    marks: tuple[str, ...]


class Pivot(NamedTuple):
    """A table of results, in words.

    Attributes:
      row_keys, column_keys: the traits that are down and across.
      rows: labels.
      columns: for each the words of `column_keys`, "" where one is unknown of it.
      metrics: of each column.
      cells: `{(row, column): cell}`; nothing has been measured for what is absent.
      notes: letters, and what they say.
      caption: what is shown, the rule of bold print, and the protocol.
      left_out: runs without a result.
    """

    row_keys: tuple[str, ...]
    column_keys: tuple[str, ...]
    rows: Sequence[str]
    columns: Sequence[tuple[str, ...]]
    metrics: Sequence[str]
    cells: Mapping[tuple[int, int], Cell]
    notes: Mapping[str, str]
    caption: str
    left_out: Sequence[str]

    def heading(self, column: int) -> str:
        """A column in words: "omniglot, 5-way 1-shot"."""
        text = ""
        for key, word in zip(self.column_keys, self.columns[column], strict=True):
            parted = " " if key == "shot" and re.search(r"-way$", text) else ", "
            text += (parted if text and word else "") + word
        return text or quantity(self.metrics[column])


class _Note(NamedTuple):
    """A remark on a result, and whether the result can still be held against those of its column."""

    text: str
    comparable: bool


def pivot(records: Sequence[Record], rows: str | None = None, columns: str | None = None) -> Pivot:
    """Arranges results as a table, replicates averaged.

    Without being told, methods are down, and across are data set or environment, way, shot and episodes, as far as they are
    known of any. No two results share a place: rows are divided by what else tells them apart, see `traits.told_apart`.

    Args:
      records: from `collection.collect`.
      rows: names of traits, parted by commas; None: method.
      columns: likewise; None: those of the tasks.

    Raises:
      ConfigError: no run has ended, or a name is unknown or comes twice.
    """
    groups = [group for group in replicates_of(records) if group.records[0].result is not None]
    if not groups:
        raise ConfigError("DIR", f"{len(records)} runs", "one that has ended at least, to compare results")
    row_keys, column_keys = _keys(groups, rows, columns)
    rows_found = told_apart(groups, row_keys, column_keys)
    traits = [traits_of(group.records[0]) for group in groups]
    columns_found = [tuple(each.get(key) for key in column_keys) for each in traits]
    shown = {row.order(): row for row in rows_found}
    headings = {_order(column): column for column in columns_found}
    down, across = sorted(shown), sorted(headings)
    place_of = {
        (down.index(row.order()), across.index(_order(column))): number
        for number, (row, column) in enumerate(zip(rows_found, columns_found, strict=True))
    }
    remarks = _remarks(groups, place_of, {*row_keys, *column_keys})
    texts = list(dict.fromkeys(note.text for place in sorted(place_of) for note in remarks[place_of[place]]))
    letters = {text: _letter(number) for number, text in enumerate(texts)}
    cells: dict[tuple[int, int], Cell] = {}
    metrics = []
    accuracies = [group for group in groups if group.records[0].ended["metric"] == "accuracy"]
    for column in range(len(across)):
        members = {row: place_of[row, column] for row in range(len(down)) if (row, column) in place_of}
        metric = traits[next(iter(members.values()))]["metric"]
        metrics.append(metric)
        own = [groups[number] for number in members.values()]
        written = _written(own, metric, accuracies if metric == "accuracy" else own)
        rivals = [number for number in members.values() if all(note.comparable for note in remarks[number])]
        best = _best([groups[number] for number in rivals], metric)
        for (row, number), (mean, half) in zip(members.items(), written, strict=True):
            marks = tuple(sorted(letters[note.text] for note in remarks[number]))
            cells[row, column] = Cell(groups[number], mean, half, any(groups[number] is each for each in best), marks)
    return Pivot(
        row_keys,
        column_keys,
        [shown[row].label(row_keys) for row in down],
        [
            tuple(in_words(key, value) for key, value in zip(column_keys, headings[column], strict=True))
            for column in across
        ],
        metrics,
        cells,
        {letter: text for text, letter in letters.items()},
        _caption(groups, metrics, {*row_keys, *column_keys}),
        [record.name for record in records if record.result is None],
    )


def _keys(
    groups: Sequence[Replicates], rows: str | None, columns: str | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    known = names_known(group.records[0] for group in groups)
    asked: dict[str, tuple[str, ...] | None] = {}
    for name, text in (("--rows", rows), ("--columns", columns)):
        keys = None if text is None else tuple(key.strip() for key in text.split(","))
        if keys is not None and ({*keys} - {*known} or len({*keys}) < len(keys)):
            raise ConfigError(name, text, f"{allowed(known)}, parted by commas and each once")
        asked[name] = keys
    down, across = asked["--rows"], asked["--columns"]
    if both := {*(down or ())} & {*(across or ())}:
        raise ConfigError("--columns", columns, f"other names than --rows has: {', '.join(sorted(both))} is in both")
    if across is None:
        across = tuple(key for key in TASKS if key in known and key not in (down or ()))
    if down is None:
        down = tuple(key for key in ("method",) if key not in across) or tuple(
            key for key in TASKS if key in known and key not in across
        )
    metrics: dict[Any, set[Any]] = {}
    for group in groups:
        traits = traits_of(group.records[0])
        metrics.setdefault(_order(traits.get(key) for key in across), set()).add(traits["metric"])
    if any(len(found) > 1 for found in metrics.values()) and "metric" not in (*down, *across):
        across = (*across, "metric")  # numbers of different quantities are in no column together
    return down, across


def _order(values: Iterable[Any]) -> tuple[Any, ...]:
    """A key to find and sort columns by."""
    return tuple(map(order_of, values))


def _remarks(
    groups: Sequence[Replicates], place_of: Mapping[tuple[int, int], int], said: set[str]
) -> dict[int, list[_Note]]:
    """What is to be noted of each result: another protocol than that of its column, failed checks, other numbers of seeds."""
    usual = Counter(len(group.records) for group in groups).most_common(1)[0][0]
    found: dict[int, list[_Note]] = {}
    for column in sorted({column for _, column in place_of}):
        members = [number for (_, other), number in sorted(place_of.items()) if other == column]
        apart = {number: [_apart(groups[other], groups[number], said) for other in members] for number in members}
        # The protocol of a column is that of which the fewest differ, and of those the first.
        common = min(members, key=lambda number: sum(map(bool, apart[number])))
        for number in members:
            notes = []
            if differing := _apart(groups[common], groups[number], said):
                notes.append(_Note(f"another protocol than the rest of the column: {some(differing)}", False))
            checks = checks_of(groups[number].records)
            if checks.startswith("FAILED"):
                notes.append(_Note(f"checks {checks.partition(';')[0]}", False))
            seeds = len(groups[number].records)
            if seeds != usual:
                notes.append(_Note(f"{seeds} seed{'s' * (seeds != 1)}", True))
            if groups[number].ci95 is None and groups[number].value is not None:
                notes.append(_Note("no interval", True))
            found[number] = notes
    return found


def _apart(first: Replicates, second: Replicates, said: set[str]) -> list[str]:
    """What the protocol of `second` has otherwise than that of `first`, but for what the table says in its rows and columns."""
    one, two = first.records[0].ended, second.records[0].ended
    found = differences(one["protocol"], two["protocol"], same_method=one["method"] == two["method"])
    return [
        f"{each.key}={value_in_words(each.second)}, not {value_in_words(each.first)}"
        for each in found
        if each.key not in said
    ]


def _scale(metric: str) -> int:
    return 100 if metric == "accuracy" else 1


def _written(groups: Sequence[Replicates], metric: str, alike: Sequence[Replicates]) -> list[tuple[str, str]]:
    """Means and half the widths of intervals, all with equally many decimals.

    So many that the narrowest interval of `alike` has two digits; of accuracies in percent no more than two decimals, unless
    it would then read as none.
    """
    scale = _scale(metric)
    halves = [half for group in alike if group.ci95 and math.isfinite(half := scale * group.ci95)]
    values = [scale * group.value for group in alike if group.value is not None and math.isfinite(group.value)]
    if halves:
        leading = -math.floor(math.log10(min(halves)))  # decimals that show one digit of it
        decimals = max(0, leading, min(leading + 1, 2) if metric == "accuracy" else leading + 1)
    else:
        largest = max(map(abs, values), default=1) or 1
        decimals = 2 if metric == "accuracy" else max(0, 3 - math.floor(math.log10(largest)))
    form = f".{decimals}f"
    if decimals > _MOST_DECIMALS or any(abs(value) >= _WIDEST for value in [*values, *halves]):
        form = ".3e"
    return [
        (
            "not finite" if group.value is None else f"{scale * group.value:{form}}",
            "" if group.ci95 is None or group.value is None else f"{scale * group.ci95:{form}}",
        )
        for group in groups
    ]


def _best(groups: Sequence[Replicates], metric: str) -> list[Replicates]:
    """The best of some results and those whose intervals overlap its; none where there is nothing to compare."""
    rivals = [group for group in groups if group.value is not None]
    if len(rivals) < 2:
        return []
    sign = 1 if metric in TITLES else -1  # the rest are errors
    first = max(rivals, key=lambda group: sign * (group.value or 0))
    best, half = first.value or 0, first.ci95 or 0
    return [group for group in rivals if abs(best - (group.value or 0)) <= half + (group.ci95 or 0)]


def _letter(number: int) -> str:
    """a, b, …, z, aa, ab, …"""
    return (_letter(number // 26 - 1) if number >= 26 else "") + chr(ord("a") + number % 26)


def quantity(metric: str) -> str:
    """A metric with its unit, in words."""
    return {"accuracy": "accuracy in %", "reward": "total reward of a trial"}.get(metric, metric.upper())


def _caption(groups: Sequence[Replicates], metrics: Sequence[str], said: set[str]) -> str:
    seeds = Counter(len(group.records) for group in groups).most_common(1)[0][0]
    each = dict.fromkeys(metrics)
    what = " or ".join(map(quantity, each))
    over = f"mean over {seeds} seeds ± half its 95% interval over test tasks and seeds"
    if seeds == 1:
        over = "of one seed ± half its 95% interval over test tasks"
    sentences = [f"{what[0].upper()}{what[1:]}: {over}."]
    if any(metric not in TITLES for metric in each):
        sentences.append("Of errors, less is better.")
    sentences.append(
        "Bold: the best of a column, and what has an interval that overlaps its; results marked for their protocol or their "
        "checks take no part."
    )
    return " ".join([*sentences, *_protocol_in_words(groups, said)])


def _protocol_in_words(groups: Sequence[Replicates], said: set[str]) -> list[str]:
    """What the protocols of all results share, and the keys in which they do not, without those that the table shows."""
    protocols = [dict(flattened(group.records[0].ended["protocol"])) for group in groups]
    named = said | {"dataset.name"} if "dataset" in said else said
    common, differing = [], []
    for key in {key: None for protocol in protocols for key in protocol if key not in named}:
        values = [protocol[key] for protocol in protocols if key in protocol]
        # What one method alone knows is its own.
        everywhere = len(values) == len(protocols) or key.startswith("method.")
        if everywhere and all(value == values[0] for value in values):
            common.append(f"{key}={value_in_words(values[0])}")
        else:
            differing.append(key)
    found = [f"Protocol: {', '.join(common)}."] if common else []
    return found + ([f"It differs between results in {', '.join(differing)}."] if differing else [])
