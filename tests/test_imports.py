"""Imports only go down: what a file may import is decided by the room in which it stands."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"

# The folders of the package, from the top. A file may import what stands in its own room and in those below; rooms of one
# row are apart. The two modules of the last row belong to all.
ROOMS = [
    ["commands"],
    ["api", "testing"],
    ["assembly"],
    ["report"],
    ["few_shot", "rl"],
    ["training"],
    ["trust"],
    ["compiled"],
    ["models"],
    ["data"],
    ["config"],
    ["system"],
    ["types", "errors"],
]

# Rooms that may import less than stands below them.
APART = {"models": {"system", "types", "errors"}}
# The libraries that only some files know.
KNOWN_TO = {
    "flax": ["metarun.models.*"],
    "gymnax": ["metarun.rl.environments.from_gymnax"],
    "hydra": ["metarun.commands.*", "metarun.api.*", "metarun.assembly.*", "metarun.config.*"],
    "omegaconf": ["metarun.commands.*", "metarun.api.*", "metarun.assembly.*", "metarun.config.*"],
}


def modules_of(source: Path) -> dict[str, Path]:
    """Returns `{dotted name: file}` of the package under `source`."""
    names = {}
    for path in sorted(source.glob("metarun/**/*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def room_of(module: str) -> tuple[int, str] | None:
    """Returns the row in which the room of `module` stands, 0 being the top, and its name; or None if it has none."""
    room = module.split(".")[1] if "." in module else ""
    return next(((row, room) for row, rooms in enumerate(ROOMS) if room in rooms), None)


def imports_of(module: str, path: Path, modules: dict[str, Path]) -> Iterator[str]:
    """Yields the dotted names that a file imports, at its top or inside of anything."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *base.split(".")]).rstrip(".")
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield name if name in modules else base


def faults_of(source: Path) -> list[str]:
    """Returns what is wrong with the imports of the package under `source`, a sentence each."""
    modules = modules_of(source)
    faults = [f"{module} stands in no room" for module in modules if module != "metarun" and room_of(module) is None]
    within: dict[str, set[str]] = {}
    for module, path in modules.items():
        for imported in imports_of(module, path, modules):
            library = imported.split(".")[0]
            if library in KNOWN_TO and not any(fnmatch(module, pattern) for pattern in KNOWN_TO[library]):
                faults.append(f"{module} imports {library}")
            here, there = room_of(module), room_of(imported)
            if library != "metarun" or here is None or there is None:
                continue
            if here[1] == there[1]:
                within.setdefault(module, set()).add(imported)
            elif there[0] <= here[0] or there[1] not in APART.get(here[1], {there[1]}):
                faults.append(f"{module} imports {imported}")
    try:
        TopologicalSorter(within).prepare()
    except CycleError as error:
        faults.append(f"a circle of imports: {', '.join(sorted(set(error.args[1])))}")
    return faults


def test_imports_only_go_down():
    assert len(modules_of(SOURCE)) > 10
    assert faults_of(SOURCE) == []


def test_no_file_is_called_utils():
    assert [path for path in SOURCE.rglob("*") if path.stem.lower().strip("_") in ("util", "utils")] == []


def test_a_room_says_what_lives_there():
    rooms = {room for row in ROOMS[:-1] for room in row}
    assert rooms == {
        path.name for path in (SOURCE / "metarun").iterdir() if path.is_dir() and path.name != "__pycache__"
    }
    for room in rooms:
        said, *others = ast.parse((SOURCE / "metarun" / room / "__init__.py").read_text()).body
        assert "May import" in said.value.value
        # What users import by the room's name is handed on there.
        assert not others or room == "testing" and all(isinstance(other, ast.ImportFrom) for other in others)


FILES = ("commands/cli", "assembly/saved_run", "training/runner", "training/metrics", "few_shot/losses", "rl/trial")
FILES += ("data/cache", "data/omniglot", "models/mlp", "errors")


@pytest.mark.parametrize(
    "file, text, fault",
    [
        ("few_shot/losses", "import metarun.commands.cli", "metarun.few_shot.losses imports metarun.commands.cli"),
        (
            "models/mlp",
            "def f():\n  from metarun.training import runner",
            "metarun.models.mlp imports metarun.training.runner",
        ),
        ("rl/trial", "from ..few_shot.losses import mean", "metarun.rl.trial imports metarun.few_shot.losses"),
        ("data/__init__", "from ..rl.trial import trial", "metarun.data imports metarun.rl.trial"),
        ("errors", "from metarun.data import cache", "metarun.errors imports metarun.data.cache"),
        ("training/runner", "class C:\n  import flax.linen as nn", "metarun.training.runner imports flax"),
        ("models/mlp", "from metarun.data import cache", "metarun.models.mlp imports metarun.data.cache"),
        ("models/mlp", "from omegaconf import DictConfig", "metarun.models.mlp imports omegaconf"),
        ("helpers", "", "metarun.helpers stands in no room"),
        ("shared/helpers", "", "metarun.shared.helpers stands in no room"),
        (
            "data/cache",
            "from metarun.data import omniglot",
            "a circle of imports: metarun.data.cache, metarun.data.omniglot",
        ),
    ],
)
def test_a_fault_is_found(tmp_path, file, text, fault):
    for name in FILES:
        path = tmp_path / "metarun" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "metarun/data/omniglot.py").write_text("from metarun.data.cache import read")
    assert faults_of(tmp_path) == []
    path = tmp_path / "metarun" / f"{file}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert faults_of(tmp_path) == [fault]


def test_imports_that_go_down_are_no_fault(tmp_path):
    files = {
        "commands/cli": "from metarun import errors\nfrom metarun.assembly import saved_run\nimport hydra, metarun.training.runner",
        "assembly/saved_run": "from metarun.training.runner import run\nfrom omegaconf import DictConfig",
        "training/runner": "from . import metrics\nfrom ..errors import MetarunError",
        "training/metrics": "import jax",
        "errors": "import math",
    }
    for name, text in files.items():
        (tmp_path / "metarun" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "metarun" / f"{name}.py").write_text(text)
    assert faults_of(tmp_path) == []


def test_the_command_line_starts_without_the_slow_imports():
    code = "import sys, metarun.commands.cli; print(*{'jax', 'flax', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
