"""The tables of cells: each published figure beside ours, from the experiments and the table of what was measured."""

from generate.markdown import cell, code, table
from metarun.commands.reproduce import Named, cells

_HEADER = (
    "cell",
    "published",
    "ours",
    "verdict",
    "minutes",
    "tasks",
    "seeds",
    "steps",
    "measured on",
    "note",
    "source",
)


def page(part: str) -> str:
    """A table for each paper that has cells in a folder of `conf/`."""
    of_paper: dict[str, list[Named]] = {}
    for named in cells():
        if named.part == part:
            of_paper.setdefault(named.name.partition("/")[0], []).append(named)
    text = []
    for paper, its in sorted(of_paper.items()):
        heading = its[0].published.source.partition(",")[0]
        rows = table(_HEADER, map(_row, its))
        text.append(f"### `{paper}`: {heading}\n\n::::{{container}} cells\n{rows}::::\n")
    return "\n".join(text)


def _row(named: Named) -> tuple[str, ...]:
    figure, ours = named.published, named.measured
    published = with_interval(named, figure.value, figure.ci95)
    if ours is None:
        mine = [""] * 7
        note = figure.note
    else:
        found = "" if ours.ci95 is None else named.verdict_on(ours) or "a check of an installation"
        numbers = [f"{ours.minutes:.0f}", f"{ours.tasks:,}", str(ours.seeds), f"{ours.steps:,}"]
        mine = [with_interval(named, ours.value, ours.ci95), found, *numbers, cell(f"{ours.device}, {ours.date}")]
        note = "; ".join(filter(None, [figure.note, ours.note]))
    return code(named.name), published, *mine, cell(note), cell(figure.source)


def with_interval(named: Named, value: float, ci95: float | None) -> str:
    """A figure with its interval: an accuracy in per cent, what else there is as it stands."""
    form = "{:g}".format
    if named.part == "few_shot" and "sinusoid" not in named.name:
        value, ci95, form = 100 * value, ci95 and 100 * ci95, "{:.2f}".format
    return form(value) + ("" if ci95 is None else f" ± {form(ci95)}")
