"""The pages of the documentation, and the commands that they show."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
TUTORIALS = sorted((DOCS / "tutorials").glob("[!i]*.md"))
# Without the example, which is a project of its own.
PAGES = TOP + sorted(path for path in DOCS.rglob("*.md") if not {"_build", "example_package"} & {*path.parts})
_BLOCK = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Shown(NamedTuple):
    """A command that a page shows.

    Attributes:
      page: relative to the top folder.
      name: of the program, without its folder.
      arguments: what follows it.
    """

    page: str
    name: str
    arguments: list[str]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join([self.name, *self.arguments])}"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of a language that a page shows; "" is that of output in the README."""
    return [text for found, text in _BLOCK.findall(page.read_text(encoding="utf-8")) if found == language]


def commands(page: Path) -> list[Shown]:
    """The commands of a page, in their order: those of a line that are joined by && apart, without variables before them."""
    found = []
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in " ".join(map(shlex.quote, shlex.split(line, comments=True))).split(" '&&' "):
                words = shlex.split(part)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words.pop(0)
                if words:
                    found.append(Shown(name_of(page), words[0].rpartition("/")[2], words[1:]))
    return found


def inline_code(page: Path) -> list[str]:
    """The code within sentences and tables of a page."""
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
