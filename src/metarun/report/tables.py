"""The table of a report as Markdown, CSV and LaTeX."""

import csv
import io
from collections.abc import Sequence

from metarun.report.collection import Record, setting_of
from metarun.report.replicates import Replicates, together

COLUMNS = ("method", "setting", "result", "published", "seed", "tasks", "checks", "protocol", "run")
# Of LaTeX, whose other characters need no care.
_LATEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}"}
_LATEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}


def row(group: Replicates) -> tuple[str, ...]:
    """The cells of a record, or of replicates, by `COLUMNS`, in words."""
    record, others = group.records[0], len(group.records) - 1
    result = record.result
    if result is None:
        return ("", "", "not finished", "", "", "", "", "", record.name)
    accuracy = result["metric"] == "accuracy"
    published = "; ".join(
        f"{_value(figure['value'], figure.get('ci95'), accuracy)} ({figure['source']})"
        for figure in (result.get("published") or {}).values()
    )
    return (
        str(result["method"]),
        setting_of(result),
        _value(group.value, group.ci95, accuracy),
        published,
        ", ".join(str(each.result["seed"]) for each in group.records),
        str(result["num_tasks"]),
        checks_of(group.records),
        str(result["protocol_id"]),
        record.name + f" and {others} more" * (others > 0),
    )


def checks_of(records: Sequence[Record]) -> str:
    """What the checks of some results say, in words: which have failed in any."""
    checks = [(name, check["passed"]) for record in records for name, check in record.result["checks"].items()]
    failed = {name.replace("_", " "): None for name, passed in checks if not passed}
    return f"FAILED: {', '.join(failed)}" if failed else "passed" if checks else "not run"


def markdown(records: Sequence[Record]) -> str:
    """A table of GitHub's Markdown, replicates in one row."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *map(row, together(records))]
    return "".join("| " + " | ".join(_of_markdown(cell) for cell in line) + " |\n" for line in lines)


def comma_separated(records: Sequence[Record]) -> str:
    """CSV as of RFC 4180, with a heading, a line for each run; value and ci95 as plain numbers besides."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow([*COLUMNS, "metric", "value", "ci95"])
    for record in records:
        result = record.result or {}
        own = Replicates([record], result.get("value"), result.get("ci95"))
        writer.writerow([*row(own), *(result.get(key, "") for key in ("metric", "value", "ci95"))])
    return stream.getvalue()


def latex(records: Sequence[Record]) -> str:
    r"""A `tabular` for the package booktabs, replicates in one row."""
    body = [" & ".join(_of_latex(cell) for cell in line) + r" \\" for line in (COLUMNS, *map(row, together(records)))]
    rules = [r"\begin{tabular}{" + "l" * len(COLUMNS) + "}", r"\toprule", body[0], r"\midrule"]
    return "\n".join([*rules, *body[1:], r"\bottomrule", r"\end{tabular}"]) + "\n"


def _value(value: float | None, ci95: float | None, accuracy: bool) -> str:
    if value is None:
        return "not finite"
    scale, unit = (100, "%") if accuracy else (1, "")
    digits = ".2f" if accuracy else ".4g"
    return f"{scale * value:{digits}}{unit}" + ("" if ci95 is None else f" ± {scale * ci95:.2g}{unit}")


def _of_markdown(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _of_latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
