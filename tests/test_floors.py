"""Imports only go down: what a file may import is decided by the floor on which it stands."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"

# From the top. A module stands where its name does or, without that, where the first pattern that fits it does.
FLOORS = [
    ["metarun.cli"],
    ["metarun.sweep", "metarun.comparison", "metarun.protocol_sweep"],
    ["metarun.evaluation", "metarun.prediction", "metarun.replay", "metarun.reproduce", "metarun.together"],
    ["metarun.build", "metarun.build_rl", "metarun.data_sets", "metarun.saved_run", "metarun.report.page"],
    ["metarun.composition", "metarun.report.rl_outcome", "metarun.report.tables"],
    ["metarun.report.replicates"],
    [
        "metarun.runner",
        "metarun.experiment",
        "metarun.methods.*",
        "metarun.models.*",
        "metarun.data.*",
        "metarun.report.*",
        "metarun.rl.experiment",
        "metarun.rl.methods.*",
        "metarun.rl.environments.*",
    ],
    [
        *("metarun.sequence", "metarun.data.episodes", "metarun.rl.policy_gradient", "metarun.rl.bandit_agents"),
        "metarun.rl.planning",
    ],
    ["metarun.rl.trial", "metarun.rl.policy", "metarun.rl.gittins"],
    ["metarun.learner", "metarun.leaks", "metarun.data.class_split"],
    ["metarun.outer_loop"],
    [
        "metarun.inner_loop",
        "metarun.streaming",
        "metarun.task_map",
        "metarun.memory",
        "metarun.optimizers",
        "metarun.checks",
        "metarun.checkpoint",
        "metarun.directories",
        "metarun.metrics",
        "metarun.data.cache",
        "metarun.data.fitting",
        "metarun.models.full_context",
        "metarun.models.recurrent",
        "metarun.models.relation_module",
        "metarun.models.temporal",
        "metarun.report.curves",
        "metarun.report.gallery",
        "metarun.report.paths",
        "metarun.report.rewards",
        "metarun.rl.environment",
        "metarun.rl.baseline",
        "metarun.rl.meta_learner",
        "metarun.rl.returns",
        "metarun.rl.surrogate",
        "metarun.rl.task_space",
        "metarun.rl.trust_region",
        "metarun.similarity",
        "metarun.svm",
    ],
    [
        "metarun.cell",
        "metarun.factories",
        "metarun.mistakes",
        "metarun.result",
        "metarun.ensemble",
        "metarun.equivalence",
        "metarun.protocol",
        "metarun.losses",
        "metarun.processes",
        "metarun.unify",
        "metarun.data.augment",
        "metarun.data.class_bank",
        "metarun.data.pictures",
        "metarun.models.block",
        "metarun.models.mlp",
        "metarun.report.figure",
    ],
    [
        "metarun.files",
        "metarun.progress",
        "metarun.backend",
        "metarun.config",
        "metarun.data.contents",
        "metarun.data.decoding",
        "metarun.models.convolution",
    ],
    ["metarun.reading"],
    [
        "metarun.types",
        "metarun.errors",
        "metarun.machine",
        "metarun",
        *(
            f"metarun.{package}"
            for package in ("data", "methods", "models", "report", "rl", "rl.environments", "rl.methods")
        ),
    ],
]

# The libraries that only some files know.
KNOWN_TO = {
    "flax": ["metarun.models.*"],
    "gymnax": ["metarun.rl.environments.from_gymnax"],
    "hydra": [
        *("metarun.cli", "metarun.config", "metarun.directories", "metarun.factories", "metarun.mistakes"),
        *("metarun.saved_run", "metarun.protocol_sweep", "metarun.sweep"),
    ],
    "omegaconf": [
        *("metarun.cli", "metarun.build*", "metarun.composition", "metarun.config", "metarun.saved_run"),
        *("metarun.directories", "metarun.factories", "metarun.mistakes"),
        *("metarun.protocol_sweep", "metarun.reproduce", "metarun.sweep"),
    ],
}


def modules_of(source: Path) -> dict[str, Path]:
    """Returns `{dotted name: file}` of the package under `source`."""
    names = {}
    for path in sorted(source.glob("metarun/**/*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def floor_of(module: str) -> int | None:
    """Returns the number of the floor of `module`, 0 being the top, or None if it has none."""
    for fits in (str.__eq__, fnmatch):
        for number, floor in enumerate(FLOORS):
            if any(fits(module, pattern) for pattern in floor):
                return number
    return None


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
    faults = [f"{module} stands on no floor" for module in modules if floor_of(module) is None]
    for module, path in modules.items():
        for imported in imports_of(module, path, modules):
            library = imported.split(".")[0]
            if library in KNOWN_TO and not any(fnmatch(module, pattern) for pattern in KNOWN_TO[library]):
                faults.append(f"{module} imports {library}")
            above, below = floor_of(module), floor_of(imported)
            if library == "metarun" and above is not None and below is not None and below <= above:
                faults.append(f"{module} imports {imported}")
    return faults


def test_imports_only_go_down():
    assert len(modules_of(SOURCE)) > 10
    assert faults_of(SOURCE) == []


def test_no_file_is_called_utils():
    assert [path for path in SOURCE.rglob("*") if path.stem.lower().strip("_") in ("util", "utils")] == []


@pytest.mark.parametrize(
    "file, text, fault",
    [
        ("losses.py", "import metarun.runner", "metarun.losses imports metarun.runner"),
        ("losses.py", "def f():\n  from metarun import cli", "metarun.losses imports metarun.cli"),
        ("losses.py", "from metarun.metrics import jsonl", "metarun.losses imports metarun.metrics"),
        ("data/cache.py", "from .. import build", "metarun.data.cache imports metarun.build"),
        ("data/glyphs.py", "from .omniglot import read", "metarun.data.glyphs imports metarun.data.omniglot"),
        ("data/__init__.py", "from .omniglot import read", "metarun.data imports metarun.data.omniglot"),
        ("runner.py", "class C:\n  import flax.linen as nn", "metarun.runner imports flax"),
        ("models/mlp.py", "from omegaconf import DictConfig", "metarun.models.mlp imports omegaconf"),
        ("helpers.py", "", "metarun.helpers stands on no floor"),
    ],
)
def test_a_fault_is_found(tmp_path, file, text, fault):
    for name in ("cli", "build", "runner", "metrics", "losses", "data/__init__", "data/omniglot", "data/cache"):
        path = tmp_path / "metarun" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert faults_of(tmp_path) == []
    path = tmp_path / "metarun" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert faults_of(tmp_path) == [fault]


def test_imports_that_go_down_are_no_fault(tmp_path):
    files = {
        "cli": "from metarun import build, errors\nimport hydra, metarun.runner",
        "build": "from metarun.runner import run\nfrom omegaconf import DictConfig",
        "runner": "from . import metrics\nfrom .errors import MetarunError",
        "metrics": "import jax",
        "errors": "import math",
    }
    (tmp_path / "metarun").mkdir()
    for name, text in files.items():
        (tmp_path / "metarun" / f"{name}.py").write_text(text)
    assert faults_of(tmp_path) == []


def test_the_command_line_starts_without_the_slow_imports():
    code = "import sys, metarun.cli; print(*{'jax', 'flax', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
