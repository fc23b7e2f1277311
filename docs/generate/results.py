"""The tables of cells: each published figure beside ours, from the experiments and the table of what was measured."""

import re
from collections import Counter
from collections.abc import Iterable
from string import ascii_lowercase

from generate.markdown import cell, code, table
from metarun.commands.reproduce import Named, cells, is_accuracy
from metarun.config.experiments import choice
from metarun.config.search_path import conf_dir
from metarun.trust.equivalence import NOT_REPRODUCED, REPRODUCED, UNDECIDED

_WHOLE = (
    *("cell", "{world}", "method", "published", "ours", "verdict", "minutes", "trained and tested", "measured on"),
    *("differs", "notes", "source"),
)
_SHORT = ("cell", "{world}", "method", "gave", "minutes", "trained and tested", "measured on")
# Of each folder of `conf/`: the group of what tasks are of, and what a column of it is called.
_WORLD = {"few_shot": ("dataset", "data"), "rl": ("env", "environment")}
BETTER, WORSE = "better", "worse"


def page(part: str) -> str:
    """How many figures of papers are measured, and a table of the whole cells of each paper in a folder of `conf/`."""
    of_paper: dict[str, list[Named]] = {}
    for named in cells():
        if named.part == part and not named.is_short:
            of_paper.setdefault(named.name.partition("/")[0], []).append(named)
    text = [summary([named for its in of_paper.values() for named in its])]
    for paper, its in sorted(of_paper.items()):
        heading = its[0].published.source.partition(",")[0]
        # What differs is told once for all cells that share it.
        differs = [*dict.fromkeys(words for named in its for words in named.cell.differs)]
        letters = dict(zip(differs, ascii_lowercase, strict=False))
        rows = (_whole(named, ", ".join(letters[words] for words in named.cell.differs)) for named in its)
        keys = "".join(f"- {letter}: {words}\n" for words, letter in letters.items())
        text.append(f"### `{paper}`: {heading}\n\n{_table(part, _WHOLE, rows)}\n{keys}")
    return "\n".join(text)


def short(part: str) -> str:
    """A table of the short versions in a folder of `conf/`."""
    return _table(part, _SHORT, (_short(named) for named in cells() if named.part == part and named.is_short))


def summary(whole: list[Named]) -> str:
    """How many of some whole cells have been run, and with which verdicts."""
    found = Counter(said(named) for named in whole)
    order = (REPRODUCED, UNDECIDED, f"{NOT_REPRODUCED}: {BETTER}", f"{NOT_REPRODUCED}: {WORSE}")
    counts = ", ".join(f"{found[verdict]} {verdict}" for verdict in order if found[verdict])
    return f"Of {len(whole)} figures, {len(whole) - found['']} have been measured: {counts}.\n"


def said(named: Named) -> str:
    """The verdict on a whole cell, and whether a figure that is not reproduced is better or worse; "" if it was not run."""
    ours = named.measured
    if ours is None:
        return ""
    found = named.verdict_on(ours)
    if found != NOT_REPRODUCED:
        return found
    higher = ours.value > named.published.value
    return f"{found}: {BETTER if higher != _is_error(named) else WORSE}"


def with_interval(named: Named, value: float, ci95: float | None) -> str:
    """A figure with its interval: an accuracy in per cent, what else there is as it stands."""
    if is_accuracy(named):
        return f"{100 * value:.2f}" + ("" if ci95 is None else f" ± {100 * ci95:.2f}")
    return f"{value:g}" + ("" if ci95 is None else f" ± {ci95:.3g}")


def _table(part: str, header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    words = [word.format(world=_WORLD[part][1]) for word in header]
    return f"::::{{container}} cells\n{table(words, rows)}::::\n"


def _whole(named: Named, differs: str) -> tuple[str, ...]:
    figure, ours = named.published, named.measured
    published = with_interval(named, figure.value, figure.ci95)
    known = "; ".join(filter(None, [figure.note, "" if ours is None else ours.note]))
    mine = [""] * 5 if ours is None else [with_interval(named, ours.value, ours.interval), said(named), *_run(named)]
    return *_what(named), published, *mine, differs, cell(known), cell(figure.source)


def _short(named: Named) -> tuple[str, ...]:
    ours = named.measured
    return *_what(named), with_interval(named, ours.value, ours.interval), *_run(named)


def _what(named: Named) -> tuple[str, str, str]:
    folder = conf_dir(named.part)

    def chosen(group: str) -> str:
        # The default of the command, where no experiment says otherwise.
        default = re.search(rf"^  - {group}: (\w+)", (folder / "config.yaml").read_text(encoding="utf-8"), re.MULTILINE)
        return choice(folder / "experiment", named.name, group) or default[1]

    return code(named.name), chosen(_WORLD[named.part][0]), chosen("method")


def _run(named: Named) -> tuple[str, str, str]:
    """Of what gave a cell its figure: the minutes, its size in words, and on what and when it ran."""
    ours = named.measured
    values = ", ".join(with_interval(named, float(value), None) for value in ours.by_seed.split())
    seeds = "1 seed" if ours.seeds == 1 else f"{ours.seeds} seeds ({values})"
    steps = "1 step" if ours.steps == 1 else f"{ours.steps:,} steps"
    size = f"{steps}, {seeds}, {ours.tasks:,} test tasks"
    return f"{ours.minutes:.0f}", size, cell(f"{ours.device}, {ours.date}")


def _is_error(named: Named) -> bool:
    return named.part == "few_shot" and not is_accuracy(named)
