"""The table of a report as Markdown, CSV and LaTeX."""

import csv
import io
from collections.abc import Sequence

from metarun.report.collection import Record, setting_of

COLUMNS = ("method", "setting", "result", "published", "seed", "tasks", "checks", "protocol", "run")
# Of LaTeX, whose other characters need no care.
_LATEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}"}
_LATEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}


def row(record: Record) -> tuple[str, ...]:
    """The cells of a record, by `COLUMNS`, in words."""
    result = record.result
    if result is None:
        return ("", "", "not finished", "", "", "", "", "", record.name)
    accuracy = result["metric"] == "accuracy"
    published = "; ".join(
        f"{_value(figure['value'], figure.get('ci95'), accuracy)} ({figure['source']})"
        for figure in (result.get("published") or {}).values()
    )
    failed = [name.replace("_", " ") for name, check in result["checks"].items() if not check["passed"]]
    checks = f"FAILED: {', '.join(failed)}" if failed else "passed" if result["checks"] else "not run"
    return (
        str(result["method"]),
        setting_of(result),
        _value(result["value"], result["ci95"], accuracy),
        published,
        str(result["seed"]),
        str(result["num_tasks"]),
        checks,
        str(result["protocol_id"]),
        record.name,
    )


def markdown(records: Sequence[Record]) -> str:
    """A table of GitHub's Markdown."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *map(row, records)]
    return "".join("| " + " | ".join(_of_markdown(cell) for cell in line) + " |\n" for line in lines)


def comma_separated(records: Sequence[Record]) -> str:
    """CSV as of RFC 4180, with a heading; value, ci95 and published value as plain numbers besides."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow([*COLUMNS, "metric", "value", "ci95"])
    for record in records:
        result = record.result or {}
        writer.writerow([*row(record), *(result.get(key, "") for key in ("metric", "value", "ci95"))])
    return stream.getvalue()


def latex(records: Sequence[Record]) -> str:
    r"""A `tabular` for the package booktabs."""
    body = [" & ".join(_of_latex(cell) for cell in line) + r" \\" for line in (COLUMNS, *map(row, records))]
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
