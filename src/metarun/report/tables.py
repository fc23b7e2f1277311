"""The table of a report as Markdown, CSV and LaTeX.

Markdown and LaTeX, which go into texts, have a row for all replicates: their mean, its interval over tasks and seeds, and how
the seeds are distributed. CSV, which goes into programs, has a line for each run, and says besides what is of its row.
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from metarun.config.schema import FEW_SHOT, RL
from metarun.report.collection import Record, setting_of
from metarun.report.markup import of_latex, of_markdown
from metarun.report.replicates import Replicates, replicates_of
from metarun.trust.measured import measured

COLUMNS = ("method", "setting", "result", "over seeds", "published", "seed", "tasks", "checks", "protocol", "run")
# Of CSV besides, plain: of the run; then the row of the other tables that it is in, from 1, with the number of that.
_PLAIN = ("metric", "value", "ci95", "row", "mean", "mean_ci95")


def row(group: Replicates) -> dict[str, str]:
    """The cells of a record, or of replicates, by `COLUMNS`, in words."""
    record, others = group.records[0], len(group.records) - 1
    result = record.result
    if result is None:
        method, setting, state = record.unfinished or ("", "", "not finished")
        known = {"method": method, "setting": setting, "result": state, "run": record.name}
        return dict.fromkeys(COLUMNS, "") | known
    accuracy = result["metric"] == "accuracy"
    published = "; ".join(
        f"{value_in_words(figure['value'], figure.get('ci95'), accuracy)} ({figure['source']})"
        for figure in figures_of(record)
    )
    return {
        "method": str(result["method"]),
        "setting": setting_of(result),
        "result": value_in_words(group.value, group.ci95, accuracy),
        "over seeds": _distribution(group, accuracy),
        "published": published,
        "seed": seeds_of(group.records),
        "tasks": str(result["num_tasks"]),
        "checks": checks_of(group.records),
        "protocol": str(result["protocol_id"]),
        "run": record.name + f" and {others} more" * (others > 0),
    }


def figures_of(record: Record) -> list[Mapping[str, Any]]:
    """What a result is held against: the papers' figures, and what the same cell has given us before, if it is the same test.

    Each is a mapping with `value`, `ci95` and `source`.
    """
    result = record.result or {}
    published = list((result.get("published") or {}).values())
    cell = re.search(r"(?:^|\s)experiment=(\S+)", record.command)
    if not published or record.evaluation or cell is None:
        return published
    ours = next(filter(None, (measured(cell[1], part) for part in (FEW_SHOT, RL))), None)
    if ours is None or (ours.steps, ours.tasks) != (result["steps"], result["num_tasks"]):
        return published
    return [*published, {"value": ours.value, "ci95": ours.ci95, "source": f"ours of {ours.date}, {ours.device}"}]


def seeds_of(records: Sequence[Record]) -> str:
    """The seeds of some results, ascending, in words: `0 to 4, 7`."""
    spans: list[list[int]] = []
    for seed in sorted(record.ended["seed"] for record in records):
        if spans and seed == spans[-1][-1] + 1:
            spans[-1].append(seed)
        else:
            spans.append([seed])
    return ", ".join(f"{span[0]} to {span[-1]}" if len(span) > 2 else ", ".join(map(str, span)) for span in spans)


def checks_of(records: Sequence[Record]) -> str:
    """What the checks of some results say, in words: which have failed in any, and which could not be made."""
    checks = [(name, check["passed"]) for record in records for name, check in record.ended["checks"].items()]
    failed, left_out = (
        ", ".join({name.replace("_", " "): None for name, passed in checks if passed is which})
        for which in (False, None)
    )
    found = f"FAILED: {failed}" if failed else "passed" if any(passed for _, passed in checks) else "not run"
    return found + f"; not checked: {left_out}" * bool(left_out)


def markdown(records: Sequence[Record]) -> str:
    """A table of GitHub's Markdown, replicates in one row."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *_rows(records)]
    return "".join("| " + " | ".join(of_markdown(cell) for cell in line) + " |\n" for line in lines)


def comma_separated(records: Sequence[Record]) -> str:
    """CSV as of RFC 4180, with a heading, a line for each run, those of replicates next to each other.

    `value` and `ci95` are the run's; `row` is equal for replicates, `mean` and `mean_ci95` are over them, as `over seeds`
    says in words. All are fractions or rewards, as in `result.json`. The first lines of each `row` are the other tables.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [*COLUMNS, *_PLAIN])
    writer.writeheader()
    for number, group in enumerate(replicates_of(records), 1):
        of_row = {"over seeds": row(group)["over seeds"], "row": number, "mean": group.value, "mean_ci95": group.ci95}
        for record in group.records:
            own = {key: (record.result or {}).get(key) for key in ("metric", "value", "ci95")}
            writer.writerow({**row(*replicates_of([record])), **own, **of_row})
    return stream.getvalue()


def latex(records: Sequence[Record]) -> str:
    r"""A `tabular` for the package booktabs, replicates in one row."""
    body = [" & ".join(of_latex(cell) for cell in line) + r" \\" for line in (COLUMNS, *_rows(records))]
    rules = [r"\begin{tabular}{" + "l" * len(COLUMNS) + "}", r"\toprule", body[0], r"\midrule"]
    return "\n".join([*rules, *body[1:], r"\bottomrule", r"\end{tabular}"]) + "\n"


def _rows(records: Sequence[Record]) -> list[list[str]]:
    return [list(row(group).values()) for group in replicates_of(records)]


def _distribution(group: Replicates, accuracy: bool) -> str:
    """How the values of replicates are distributed, in words; "" for a single one."""
    if group.sd is None:
        return ""
    values = [record.ended["value"] for record in group.records]
    low, high = (value_in_words(pick(values), None, accuracy) for pick in (min, max))
    sd = f"{100 * group.sd:.2g}%" if accuracy else f"{group.sd:.2g}"
    return f"{len(values)} seeds, standard deviation {sd}, from {low} to {high}"


def value_in_words(value: float | None, ci95: float | None, accuracy: bool) -> str:
    """A value and half the width of its interval, if it has one, as a table has them; an accuracy in per cent."""
    if value is None:
        return "not finite"
    scale, unit = (100, "%") if accuracy else (1, "")
    digits = ".2f" if accuracy else ".4g"
    return f"{scale * value:{digits}}{unit}" + ("" if ci95 is None else f" ± {scale * ci95:.2g}{unit}")
