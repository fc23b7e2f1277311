"""The picture of the folders: from the list that the test of imports has, so that it cannot differ."""

import ast
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "metarun"
_TEST, _LIST = ROOT / "tests" / "test_imports.py", "ROOMS"


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
    first = docstring.split("\n\n")[0].replace("\n", " ").split(". ")[0]
    return first.replace("`", "").rstrip(".") + "."


def picture() -> str:
    """The floors as boxes in the page, which fit any width and have the colours of the page."""
    floors = []
    for floor in rooms():
        boxes = "".join(
            f'<div class="room"><code>{escape(room)}</code><span>{escape(purpose(room))}</span></div>' for room in floor
        )
        floors.append(f'<div class="floor">{boxes}</div>')
    caption = "Each folder may import what stands below it."
    return "\n".join(['<figure class="rooms">', *floors, f"<figcaption>↓ {caption}</figcaption>", "</figure>\n"])
