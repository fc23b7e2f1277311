"""The parts of pages that are made from the sources of metarun as the site is built, so that they cannot differ from them.

A line `<!-- generated: NAME -->` of a page stands for what `PARTS[NAME]` returns.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial

from generate import architecture, commands, factories, keys, result_json, results, top

_MARK = re.compile(r"^<!-- generated: (.+) -->$", re.MULTILINE)

PARTS: Mapping[str, Callable[[], str]] = {
    "architecture": architecture.picture,
    "commands": commands.page,
    "factories": factories.page,
    "keys of metarun": partial(keys.page, "few_shot"),
    "keys of metarun-rl": partial(keys.page, "rl"),
    "keys of both": partial(keys.page, "common"),
    "result.json": result_json.page,
    **{name: partial(top.page, name) for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")},
    "cells of few-shot learning": partial(results.page, "few_shot"),
    "cells of reinforcement learning": partial(results.page, "rl"),
    "short versions of few-shot learning": partial(results.short, "few_shot"),
    "short versions of reinforcement learning": partial(results.short, "rl"),
}


def fill(page: str, source: list[str]) -> None:
    """Replaces the marks in the text of a page; raises `KeyError` for a part that is not known.

    Args:
      page: name of the page.
      source: the text, as its only entry, as Sphinx hands it over.
    """
    source[0] = _MARK.sub(lambda mark: PARTS[mark[1]](), source[0])


def parts_of(text: str) -> list[str]:
    """The names of the generated parts that a page has."""
    return _MARK.findall(text)
