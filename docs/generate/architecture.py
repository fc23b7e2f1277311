"""The picture of the folders, and the table of them: from the list that the test of imports has, so that neither can differ."""

import ast
from html import escape
from pathlib import Path
from textwrap import wrap

from generate.markdown import cell, code, table

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "metarun"
_TEST, _LIST = ROOT / "tests" / "test_floors.py", "ROOMS"
_WIDTH, _GAP, _MARGIN = 720, 10, 16  # in the picture's own units
_LINE, _CHARACTER = 18, 6.7


def rooms() -> list[list[str]]:
    """The folders and modules of `metarun`, floor by floor from the top, as the test of imports lists them."""
    for node in ast.parse(_TEST.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(getattr(name, "id", None) == _LIST for name in node.targets):
            return ast.literal_eval(node.value)
    raise LookupError(f"{_TEST} has no list {_LIST}")


def purpose(room: str) -> str:
    """What is behind a name: the first sentence of its docstring."""
    path = SOURCE / room / "__init__.py"
    docstring = ast.get_docstring(ast.parse((path if path.exists() else SOURCE / f"{room}.py").read_text("utf-8")))
    return docstring.split("\n\n")[0].replace("\n", " ").split(". ")[0].rstrip(".") + "."


def picture() -> str:
    """The floors as an SVG in the page: the colours of its text and its ground are those of the page."""
    boxes, top = [], 0
    for floor in rooms():
        width = (_WIDTH - _GAP * (len(floor) - 1)) / len(floor)
        texts = {room: wrap(purpose(room), int((width - 2 * _MARGIN) / _CHARACTER)) for room in floor}
        height = _LINE * (1 + max(map(len, texts.values()))) + 22
        for column, (room, lines) in enumerate(texts.items()):
            boxes.append(_box(room, lines, column * (width + _GAP), top, width, height))
        top += height + _GAP
    return (
        '<div class="architecture">\n'
        f'<svg viewBox="-1 -1 {_WIDTH + 2} {top}" role="img" '
        'aria-label="The folders of metarun. Each may import what stands below it." '
        f'xmlns="http://www.w3.org/2000/svg">\n{"".join(boxes)}</svg>\n</div>\n'
    )


def _box(room: str, lines: list[str], left: float, top: float, width: float, height: float) -> str:
    texts = [f'<text class="room" x="{left + _MARGIN:g}" y="{top + 24}">{escape(room)}</text>']
    for number, line in enumerate(lines, start=1):
        texts.append(f'<text x="{left + _MARGIN:g}" y="{top + 24 + number * _LINE}">{escape(line)}</text>')
    return f'<rect x="{left:g}" y="{top}" width="{width:g}" height="{height}" rx="6"/>\n' + "\n".join(texts) + "\n"


def rooms_table() -> str:
    """The same as a table."""
    rows = [(code(f"{room}/" if (SOURCE / room).is_dir() else f"{room}.py"), cell(purpose(room))) for room in sum(rooms(), [])]
    return table(("folder", "what is in it"), rows)
