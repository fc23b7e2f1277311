"""A pivot as text: Markdown, LaTeX for the package booktabs, and HTML."""

import html
from itertools import groupby

from metarun.report.markup import of_latex, of_markdown
from metarun.report.pivot import Cell, Pivot

_NOTHING = "–"  # where nothing was measured
_NOTES = 8  # from which on they are folded away on a page


def markdown(table: Pivot) -> str:
    """A table of GitHub's Markdown, its caption above it and its notes below."""
    heads = [of_markdown(table.heading(column)) for column in range(len(table.columns))]
    lines = ["| " + " | ".join([of_markdown(", ".join(table.row_keys)), *heads]) + " |"]
    lines.append("| --- |" + " ---: |" * len(heads))
    for row, label in enumerate(table.rows):
        cells = [_of_markdown(table.cells.get((row, column))) for column in range(len(heads))]
        lines.append("| " + " | ".join([of_markdown(label), *cells]) + " |")
    parts = [of_markdown(table.caption), "\n".join(lines)]
    parts += [f"{letter}: {of_markdown(text)}." for letter, text in table.notes.items()]
    if table.left_out:
        parts.append(f"Left out, as they have no result: {of_markdown(', '.join(table.left_out))}.")
    return "\n\n".join(parts) + "\n"


def latex(table: Pivot) -> str:
    r"""A `table` with its caption and notes, for `\usepackage{booktabs}` and nothing else."""
    count = len(table.columns)
    width = {column: _widest(table, column) for column in range(count)}
    lines = [r"% Needs \usepackage{booktabs}."]
    if table.left_out:
        lines.append(f"% Left out, as they have no result: {', '.join(table.left_out)}.".replace("\n", " "))
    lines += [r"\begin{table}", r"\centering", rf"\caption{{{of_latex(table.caption)}}}", r"\medskip"]
    lines += [r"\begin{tabular}{l" + "r" * count + "}", r"\toprule", *_heads(table), r"\midrule"]
    for row, label in enumerate(table.rows):
        cells = [_of_latex(table.cells.get((row, column)), width[column]) for column in range(count)]
        lines.append(" & ".join([of_latex(label), *cells]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    for letter, text in table.notes.items():
        lines += [r"\par\smallskip" if letter == "a" else r"\par", rf"{{\footnotesize \textsuperscript{{{letter}}} "]
        lines[-1] += of_latex(text) + ".}"
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def hypertext(table: Pivot) -> str:
    """A table of HTML with its caption and notes, as paragraphs before and after it."""
    heads = "".join(f'<th scope="col">{_words(table.heading(column))}</th>' for column in range(len(table.columns)))
    lines = [f'<thead><tr><th scope="col">{html.escape(", ".join(table.row_keys))}</th>{heads}</tr></thead>']
    for row, label in enumerate(table.rows):
        cells = [f"<td>{_of_html(table.cells.get((row, column)))}</td>" for column in range(len(table.columns))]
        lines.append(f'<tr><th scope="row">{html.escape(label)}</th>{"".join(cells)}</tr>')
    notes = "".join(f"<p>{letter}: {html.escape(text)}.</p>" for letter, text in table.notes.items())
    if len(table.notes) > _NOTES:
        notes = f"<details><summary>{len(table.notes)} notes</summary>{notes}</details>"
    framed = f'<div class="scroll" tabindex="0" role="region" aria-label="Compared"><table class="pivot">{"".join(lines)}</table></div>'
    return f"<p>{html.escape(table.caption)}</p>{framed}{notes}"


def _words(text: str) -> str:
    """`text` that a browser parts between words and not at their hyphens."""
    return " ".join(f"<span>{html.escape(word)}</span>" for word in text.split(" "))


def _of_html(cell: Cell | None) -> str:
    if cell is None:
        return _NOTHING
    mean = f"<strong>{cell.mean}</strong>" if cell.best else cell.mean
    return (
        mean + (f" ± {cell.half}" if cell.half else "") + (f"<sup>{','.join(cell.marks)}</sup>" if cell.marks else "")
    )


def _of_markdown(cell: Cell | None) -> str:
    if cell is None:
        return _NOTHING
    mean = f"**{cell.mean}**" if cell.best else cell.mean
    return (
        mean + (f" ± {cell.half}" if cell.half else "") + (f" <sup>{','.join(cell.marks)}</sup>" if cell.marks else "")
    )


def _of_latex(cell: Cell | None, width: int) -> str:
    r"""A cell whose decimal points stand below each other: intervals take `width` digits each, and marks no room."""
    if cell is None:
        return of_latex(_NOTHING)
    if not cell.half:
        text = cell.mean if cell.mean == "not finite" else f"${_bold(cell)}$"
    else:
        text = rf"${_bold(cell)} \pm {_padding(width - len(cell.half))}{cell.half}$"
    return text + (rf"\rlap{{\textsuperscript{{{','.join(cell.marks)}}}}}" if cell.marks else "")


def _bold(cell: Cell) -> str:
    return rf"\mathbf{{{cell.mean}}}" if cell.best else cell.mean


def _padding(digits: int) -> str:
    return rf"\phantom{{{'0' * digits}}}" if digits > 0 else ""


def _widest(table: Pivot, column: int) -> int:
    return max((len(cell.half) for (_, other), cell in table.cells.items() if other == column), default=0)


def _heads(table: Pivot) -> list[str]:
    """A line of headings for each key, those that are equal and next to each other as one, with a rule below them."""
    lines: list[str] = []
    for level in range(len(table.column_keys)):
        spans = [
            (column[level], len(list(members)))
            for column, members in groupby(column[: level + 1] for column in table.columns)
        ]
        if not any(text for text, _ in spans):
            continue
        cells, rules, place = [], [], 2
        for text, size in spans:
            cells.append(rf"\multicolumn{{{size}}}{{c}}{{{of_latex(text)}}}")
            if text and size > 1:
                rules.append(rf"\cmidrule(lr){{{place}-{place + size - 1}}}")
            place += size
        lines.append(" & ".join(["", *cells]).lstrip() + r" \\")
        if rules:
            lines.append("".join(rules))
    if lines:  # the rows are named in the last line of headings
        last = max(number for number, line in enumerate(lines) if not line.startswith(r"\cmidrule"))
        lines[last] = of_latex(", ".join(table.row_keys)) + " " + lines[last]
    return lines
