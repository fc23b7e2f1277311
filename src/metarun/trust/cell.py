"""A published figure and what it is held against: the node `cell` of an experiment file, read with care.

What a file may leave out, such as the paper, `config.experiments` fills in.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from metarun.errors import ConfigError


class Figure(NamedTuple):
    """A published figure.

    Attributes:
      value: in the unit of `result.json`: a fraction for an accuracy.
      ci95: half the width of its 95% interval over tasks, where the paper gives one.
      source: where it stands, such as "Finn et al. 2017, table 1".
      note: what has to be known of it, such as that it is an ensemble's; "" for nothing.
    """

    value: float
    ci95: float | None
    source: str
    note: str = ""


class Cell(NamedTuple):
    """A cell of a paper's table.

    Attributes:
      published: paper -> its figure, such as {"finn2017": ...}; more than one where several papers have run it.
      margin: difference from the published value that does not matter.
      differs: what is known to differ from the paper's settings and is no key, in words.
      quick_of: the experiment of which this is a short version; None for the whole one.
    """

    published: Mapping[str, Figure]
    margin: float
    differs: tuple[str, ...] = ()
    quick_of: str | None = None


def cell_of(node: Any) -> Cell:
    """Reads the node `cell` of an experiment, a mapping with the attributes of `Cell` as keys.

    There `published` is a list of figures, each with its `paper`: unlike a mapping, it takes the place of that of an
    experiment from which this one inherits. `measured`, which runs of former versions have saved, is passed over.

    Raises:
      ConfigError: an entry is missing, unknown, or of another kind.
    """
    former = {key: value for key, value in node.items() if key != "measured"} if isinstance(node, Mapping) else node
    keys = _checked("cell", former, Cell)
    figures = keys["published"]
    if not isinstance(figures, list) or not figures:
        raise ConfigError("cell.published", figures, "a list of {paper, value, ci95, source}, one or more")
    return Cell(
        published=dict(_figure(f"cell.published[{place}]", figure) for place, figure in enumerate(figures)),
        margin=_number("cell.margin", keys["margin"], positive=True),
        differs=tuple(keys.get("differs") or ()),
        quick_of=keys.get("quick_of"),
    )


def stated(node: Any) -> dict[str, Any]:
    """What `result.json` says of a cell: nothing for None."""
    if node is None:
        return {}
    cell = cell_of(node)
    return {"published": {paper: figure._asdict() for paper, figure in cell.published.items()}}


def _figure(key: str, node: Any) -> tuple[str, Figure]:
    if not isinstance(node, Mapping) or "paper" not in node:
        raise ConfigError(key, node, "{paper, value, ci95, source}")
    keys = _checked(key, {name: value for name, value in node.items() if name != "paper"}, Figure)
    ci95 = keys.get("ci95")
    return _text(f"{key}.paper", node["paper"]), Figure(
        value=_number(f"{key}.value", keys["value"]),
        ci95=None if ci95 is None else _number(f"{key}.ci95", ci95, positive=True),
        source=_text(f"{key}.source", keys["source"]),
        note=_text(f"{key}.note", keys.get("note", "")),
    )


def _checked(key: str, node: Any, of: Any) -> Mapping[str, Any]:
    """`node` if it is a mapping with the fields of a NamedTuple, those without a default all there."""
    if not isinstance(node, Mapping):
        raise ConfigError(key, node, "a mapping")
    required = [name for name in of._fields if name not in of._field_defaults and name != "ci95"]
    wrong = [name for name in node if name not in of._fields] + [name for name in required if name not in node]
    if wrong:
        raise ConfigError(f"{key}.{wrong[0]}", node.get(wrong[0]), f"{', '.join(of._fields)} as keys of {key}")
    return node


def _number(key: str, value: Any, positive: bool = False) -> float:
    kind = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not kind or positive and value <= 0:
        raise ConfigError(key, value, "a positive number" if positive else "a number")
    return float(value)


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigError(key, value, "words")
    return value
