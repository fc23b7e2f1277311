"""The reference of commands: what each says to `--help`."""

import os
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]


def entry_points() -> dict[str, str]:
    """The console commands, as MODULE:FUNCTION by name."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]


def help_of(command: str, *arguments: str) -> str:
    """What a command prints when it is asked for help."""
    module, _, function = entry_points()[command].partition(":")
    call = f"import sys; sys.argv[0] = {command!r}; from {module} import {function}; {function}()"
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-c", call, *arguments, "--help"], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def page() -> str:
    """Every command, with its help."""
    with ThreadPoolExecutor() as several:
        helps = dict(zip(entry_points(), several.map(help_of, entry_points()), strict=True))
        data = {name: several.submit(help_of, "metarun-data", name) for name in ("list", "verify", "prepare", "show")}
        helps |= {f"metarun-data {name}": said.result() for name, said in data.items()}
    return "\n".join(f"## `{name}`\n\n```text\n{said}\n```\n" for name, said in sorted(helps.items()))
