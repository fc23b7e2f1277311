"""The reference of factories: what the function of a choice may ask for, and what it returns."""

from generate.markdown import cell, code, table
from metarun.assembly.offered import OFFERED, SCALARS
from metarun.config.schema import COMMANDS


def page() -> str:
    """A table of the groups, one of the objects of each, and one of the scalars of a run."""
    text = ["## What it returns\n"]
    rows = [
        [code(COMMANDS[part]), code(name), code(f"{group.returns.__module__}.{group.returns.__qualname__}")]
        for part, groups in OFFERED.items()
        for name, group in groups.items()
        if group.returns is not None
    ]
    text.append(table(["command", "group", "type"], rows))
    text.append("\n## Objects\n")
    rows = [
        [code(COMMANDS[part]), code(name), code(parameter), cell(words)]
        for part, groups in OFFERED.items()
        for name, group in groups.items()
        for parameter, words in group.offers.items()
    ]
    text.append(table(["command", "group", "parameter", "what it is given"], rows))
    text.append("\n## Scalars of the run\n\nA factory of any group may ask for them.\n")
    text.append(
        table(["parameter", "what it is given"], [[code(name), cell(words)] for name, words in SCALARS.items()])
    )
    return "\n".join(text)
