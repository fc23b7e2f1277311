"""The YAML of choices as it is read: what is wrong with a file comes as one message, which names it and the line.

Importing this file does not import JAX.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from metarun.errors import MetarunError


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Has what is wrong with a YAML file that is read within come as a `MetarunError`."""
    try:
        yield
    except yaml.YAMLError as error:
        raise MetarunError(
            _where(file, error) + f": {_what(error)}. Expected YAML: KEY: VALUE, a line each."
        ) from error
    except UnicodeDecodeError as error:
        line = _first_line_beyond_utf8(file)
        raise MetarunError(f"{file}, line {line}: expected UTF-8. Save the file in this encoding.") from error
    except RecursionError as error:
        raise MetarunError(f"{file}: an alias (*NAME) stands for what holds it. Write the value out.") from error


def loaded(file: Path) -> DictConfig:
    """The keys of a file; raises `MetarunError` where it is no YAML, or not of keys."""
    with reading(file):
        try:
            node: Any = OmegaConf.load(file)
        except OSError:
            if not file.is_file():
                raise
            node = None  # a number, or another value alone
    refuse_others(file, node)
    return node


def refuse_others(file: Path, node: Any) -> None:
    """Raises `MetarunError` where what a file says is no mapping.

    Args:
      file: of YAML.
      node: what OmegaConf makes of it, which takes a text alone for a key.
    """
    is_keys = isinstance(node, DictConfig)
    if is_keys and len(node) == 1 and not any(node.values()):
        is_keys = isinstance(yaml.safe_load(file.read_text(encoding="utf-8")), dict)
    if not is_keys:
        raise MetarunError(f"{file}: expected a mapping, KEY: VALUE, a line each; it is a list, a text or a number.")


def _where(file: Path, error: yaml.YAMLError) -> str:
    mark, position = getattr(error, "problem_mark", None), getattr(error, "position", None)
    if mark is not None:
        return f"{file}, line {mark.line + 1}"
    if position is not None:  # of a character that no YAML has
        line = file.read_bytes()[:position].count(10) + 1
        return f"{file}, line {line}"
    return str(file)


def _what(error: yaml.YAMLError) -> str:
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
    context = getattr(error, "context", None)
    return f"{context}, {problem}" if context and problem.startswith("but") else str(problem)


def _first_line_beyond_utf8(file: Path) -> int:
    for number, line in enumerate(file.read_bytes().split(b"\n"), 1):
        if line.decode("utf-8", "replace").encode() != line:
            return number
    return 1
