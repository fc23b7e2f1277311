"""What results are told apart by: the keys that a comparison has across and down, and words for their values."""

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from metarun.errors import shown, some
from metarun.report.collection import Record
from metarun.report.natural import natural
from metarun.report.replicates import Replicates
from metarun.system.files import canonical_json
from metarun.training.result import size_in_words
from metarun.trust.protocol import flattened

# What a result itself says, by the names in which it can be asked for; `TASKS` of the tasks that it is of.
TASKS = ("dataset", "way", "shot", "episodes")
OWN = ("method", *TASKS, "metric", "steps", "tasks", "kind")
_LAST = ("run", "result")  # what tells results apart only where nothing else does
_OF_RUNS = ("kind", "run")  # what a row is of unless it says otherwise
_LONGEST = 40  # characters of a value

Traits = Mapping[str, Any]
_Further = tuple[tuple[str, Any], ...]


def traits_of(record: Record) -> dict[str, Any]:
    """All that a result can be told apart by: what it says itself, the keys of its protocol, and those of its configuration.

    A trait that it does not have is absent. Of an evaluation, keys of the configuration are those that were trained by, and
    are named so.
    """
    result = record.ended
    known = record.unfinished
    found = {
        "method": result.get("method") or (known.method if known else None),
        "dataset": result.get("env") or result.get("dataset") or (known.setting if known else None),
        **{key: result.get(key) for key in ("way", "shot", "episodes", "metric", "steps")},
        "tasks": result.get("num_tasks"),
        "kind": "evaluation" if record.evaluation else "run",
    }
    found = {key: value for key, value in found.items() if value is not None}
    for key, value in flattened(result.get("protocol", {})):
        found.setdefault(key, value)
    settings = json.loads(record.settings) if record.settings else {}
    if record.evaluation and isinstance(settings, list):  # of the run; its protocol; its steps; what was asked
        trained, _, steps, asked = settings
        settings = {f"trained with {key}": value for key, value in json.loads(trained).items()}
        settings |= {"trained for steps": steps, "asked": asked}
    for key, value in settings.items():
        found.setdefault(key, value)
    version = (result.get("versions") or {}).get("metarun")
    return found | {"version": version, "run": record.name}


def value_in_words(value: Any) -> str:
    """A value as it is typed, and short."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = shown(text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def in_words(key: str, value: Any) -> str:
    """A trait in a heading or a label; "" where there is none."""
    if value is None:
        return ""
    if key in ("way", "shot"):
        return f"{size_in_words(value)}-{key}"
    if key == "episodes":
        return f"{value} episode{'s' * (value != 1)}"
    return value_in_words(value) if key in ("method", "dataset", "metric", "kind") else f"{key}={value_in_words(value)}"


def order_of(value: Any) -> tuple[Any, ...]:
    """A key to find and sort values of one trait by: none first, then numbers, then words in natural order."""
    if value is None:
        return (0,)
    exact = canonical_json(value)
    return (1, value, exact) if isinstance(value, int | float) else (2, natural(value_in_words(value)), exact)


class Row(NamedTuple):
    """A row of a table.

    Attributes:
      values: of the traits by which rows differ.
      further: other traits that tell this row from others, with their values; None where it has not that trait.
    """

    values: tuple[Any, ...]
    further: _Further

    def order(self) -> tuple[Any, ...]:
        """A key to find and sort rows by."""
        runs_first = [(key, None if (key, value) == _OF_RUNS else value) for key, value in self.further]
        return tuple(map(order_of, self.values)), tuple((key, order_of(value)) for key, value in runs_first)

    def label(self, keys: Sequence[str]) -> str:
        """The row in words; `keys` are those of `values`."""
        head = " ".join(filter(None, map(in_words, keys, self.values))) or "unknown"
        said = [in_words(key, value) for key, value in self.further if (key, value) != _OF_RUNS]
        return head + (f" ({', '.join(filter(None, said))})" if any(said) else "")


def told_apart(groups: Sequence[Replicates], rows: Sequence[str], columns: Sequence[str]) -> list[Row]:
    """The row of each of some results in a table, so that no two come to stand in one place.

    Where `rows` and `columns` would put several in one place, their row is divided by the first trait in which they differ,
    and its parts likewise. Of results that differ in nothing, all but the first are named by their runs.

    Args:
      groups: the results, replicates taken together.
      rows: traits by which rows differ.
      columns: traits by which columns differ.

    Returns:
      The row of each result.
    """
    traits = [traits_of(group.records[0]) | {"result": place + 1} for place, group in enumerate(groups)]
    by_row: dict[Hashable, list[int]] = {}
    for place, each in enumerate(traits):
        by_row.setdefault(_values(each, rows), []).append(place)
    places = [_values(each, columns) for each in traits]
    found: dict[int, Row] = {}
    for members in by_row.values():
        for member, further in _divided(members, traits, places).items():
            found[member] = Row(tuple(traits[member].get(key) for key in rows), further)
    return [found[member] for member in range(len(groups))]


def names_known(records: Iterable[Record]) -> list[str]:
    """The traits that can be asked for, of some results."""
    return list({key: None for record in records for key in traits_of(record) if key not in _LAST})


def allowed(known: Sequence[str]) -> str:
    """The traits that can be asked for, in words."""
    return f"names out of {', '.join(key for key in OWN if key in known)}, or keys such as " + some(
        [key for key in known if key not in OWN]
    )


def _values(traits: Traits, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(canonical_json(traits.get(key)) for key in keys)


def _divided(members: Sequence[int], traits: Sequence[Traits], place: Sequence[Hashable]) -> dict[int, _Further]:
    """For each of the members of a row, by what it is told from those that would stand in one place with it."""
    crowds = _crowds(members, place)
    known = {key: None for crowd in crowds for member in crowd for key in traits[member] if key not in _LAST}
    for key in ["kind", *known]:
        if any(len({_values(traits[member], [key]) for member in crowd}) > 1 for crowd in crowds):
            parts: dict[Hashable, list[int]] = {}
            for member in members:
                parts.setdefault(_values(traits[member], [key]), []).append(member)
            return {
                member: ((key, traits[member].get(key)), *further)
                for part in parts.values()
                for member, further in _divided(part, traits, place).items()
            }
    found: dict[int, _Further] = dict.fromkeys(members, ())
    for crowd in crowds:  # of what is the same in everything, the first is what the row is of
        names = [traits[member]["run"] for member in crowd]
        key = "run" if len({*names}) == len(names) else "result"
        found |= {member: ((key, traits[member][key]),) for member in crowd[1:]}
    return found


def _crowds(members: Sequence[int], place: Sequence[Hashable]) -> list[list[int]]:
    """Those of the members that stand in one place."""
    found: dict[Hashable, list[int]] = {}
    for member in members:
        found.setdefault(place[member], []).append(member)
    return [crowd for crowd in found.values() if len(crowd) > 1]
