"""The reference of keys: every key of `conf/`, with its default and its comment."""

import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import yaml

from generate.markdown import cell, code, table

CONF = Path(__file__).parents[2] / "conf"
_LINE = re.compile(r"(?P<indent> *)(?P<key>[A-Za-z_][\w/ ]*):(?P<rest>.*)")
_PACKAGE = re.compile(r"# @package (\S+)")  # at the head of a file: where its keys are
# What Hydra reads, and is no key of metarun.
_NOT_KEYS = {"defaults", "hydra", "_target_"}
_GROUPS = {
    "method": "Methods",
    "dataset": "Data sets",
    "model": "Networks",
    "env": "Environments",
    "optimizer": "Optimisers",
    "logger": "Loggers",
}


class Key(NamedTuple):
    """A key of a configuration file.

    Attributes:
      name: with the keys above it, such as `memory.limit`.
      default: as it stands in the file; "" for a node.
      comment: what the file says of it.
    """

    name: str
    default: str
    comment: str


class File(NamedTuple):
    """A configuration file.

    Attributes:
      heading: the comment at its top.
      keys: by their names on the command line, in their order.
      bases: the choices of the same group whose keys it has besides.
    """

    heading: str
    keys: list[Key]
    bases: list[str]


def read(path: Path, group: str | None = None) -> File:
    """Reads a YAML file by its lines, because a parser would lose the comments.

    Args:
      path: the file.
      group: that it is a choice of; None: it is the whole configuration.
    """
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    package = _PACKAGE.match(text)
    lines = lines[bool(package) :]
    is_global = package is not None and package[1] == "_global_"
    above = package[1] if package else group
    heading = [line[2:] for line in takewhile(lambda line: line.startswith("# "), lines)]
    keys = [key for key in _keys(lines) if key.default or key.comment]
    if group and not is_global:
        keys = [key._replace(name=f"{above}.{key.name}") for key in keys]
    defaults = (yaml.safe_load(text) or {}).get("defaults", []) if group else []
    return File(" ".join(heading), keys, [base for base in defaults if isinstance(base, str) and base != "_self_"])


def _keys(lines: list[str]) -> Iterator[Key]:
    above: list[tuple[int, str]] = []
    for line in lines:
        found = _LINE.fullmatch(line)
        if not found:
            continue
        indent, name = len(found["indent"]), found["key"].strip()
        above = [(depth, key) for depth, key in above if depth < indent]
        above.append((indent, name))
        path = [key for _, key in above]
        if _NOT_KEYS & {*path}:
            continue
        default, _, comment = found["rest"].partition("#")
        yield Key(".".join(path), default.strip(), comment.strip())


def page(part: str) -> str:
    """The keys of a folder of `conf/`: those of a run, then those of each choice of each group."""
    text = []
    if (own := CONF / part / "config.yaml").exists():
        text += ["## Keys of a run\n", _table(read(own).keys)]
    for group, words in _GROUPS.items():
        if files := sorted((CONF / part / group).glob("*.yaml")):
            text.append(f"## {words}: `{group}=`\n")
            for file in files:
                text += [f"### `{group}={file.stem}`\n", *_of_choice(group, read(file, group))]
    return "\n".join(text)


def _of_choice(group: str, file: File) -> Iterator[str]:
    yield f"{file.heading}\n"
    if file.keys:
        yield _table(file.keys)
    for base in file.bases:
        yield f"It has the other keys of `{group}={base}` too.\n"
    if not file.keys and not file.bases:
        yield "It has no keys.\n"


def _table(keys: list[Key]) -> str:
    rows = [(code(key.name), code(key.default), cell(key.comment)) for key in keys]
    return table(("key", "default", "meaning"), rows)
