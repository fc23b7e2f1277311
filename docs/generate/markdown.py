"""Tables and headings in Markdown, from any text."""

from collections.abc import Iterable, Sequence


def cell(text: object) -> str:
    """A text as one cell of a table."""
    return " ".join(str(text).split()).replace("|", r"\|")


def code(text: object) -> str:
    """A text as code, within a cell of a table."""
    text = cell(text)
    return f"`` {text} ``" if "`" in text else f"`{text}`" if text else ""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, whose rows have texts that `cell` or `code` has made."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
