"""What the choices of a configuration call: named as MODULE.FUNCTION, imported, and known again by its source.

The command line is trusted, and may name any function. A run's directory is data: what is called for it is what this
installation has for the choice's name, or what the command line names again, and never what a file of the run says.
"""

import ast
import hashlib
import importlib
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf

from metarun.config.composing import composed
from metarun.errors import ConfigError, MetarunError, in_a_line

TARGET = "_target_"
# The key that says whether a run may go on with other source than it was begun with; and, in the identity of a run, the
# entry of a group that has a hash of its source.
CODE, SAME, ANY = "code", "same", "any"
# The modules, at the top, from outside that this process has called something of.
_additions: set[str] = set()
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*[.:][^\W\d]\w*")


def imported(key: str, target: object) -> Callable[..., Any]:
    """Returns the function that a key names as MODULE.FUNCTION or MODULE:FUNCTION.

    Modules are looked for in the working directory, too.

    Raises:
      ConfigError: it is no such name, there is no such function, or its module fails as it is imported.
    """
    if not isinstance(target, str) or not _NAME.fullmatch(target):
        raise ConfigError(key, target, "MODULE.FUNCTION, such as my_method.maml of my_method.py here")
    module, _, name = target.replace(":", ".").rpartition(".")
    with_working_directory()
    try:
        found = getattr(importlib.import_module(module), name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # what a module of a user's does as it is imported, it may do wrong
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, (ImportError, AttributeError)) else error
        raise ConfigError(
            key,
            target,
            f"a function that can be imported ({reason}). Modules are looked for in the working directory, in PYTHONPATH and "
            "among what is installed",
        ) from error
    if not callable(found):
        raise ConfigError(key, target, f"a function; it is no function but of type {type(found).__name__}")
    if not is_own(module):
        _additions.add(module.split(".")[0])
    return found


def is_own(module: str) -> bool:
    """Whether a module is metarun's own."""
    return module.split(".")[0] == __name__.split(".")[0]


def place_in_additions(error: BaseException) -> str | None:
    """Where the code of an addition has failed: file, line and function of the innermost frame in one; None: in none."""
    found = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        if str(frame.f_globals.get("__name__")).split(".")[0] in _additions:
            code = frame.f_code
            found = f"{Path(code.co_filename).name}, line {line}, in {code.co_name}"
    return found


def would_end(error: BaseException) -> bool:
    """Whether an addition has raised what ends the program, such as `SystemExit`, which is not for it to do."""
    return not isinstance(error, (Exception, KeyboardInterrupt)) and place_in_additions(error) is not None


@contextmanager
def additions_end_nothing() -> Iterator[None]:
    """Has what an addition raises to end the program come as a `MetarunError`."""
    try:
        yield
    except BaseException as error:
        if not would_end(error):
            raise
        raise MetarunError(
            f"{place_in_additions(error)}: {in_a_line(error)}. Code from outside ends no program: raise an error that says why."
        ) from error


def with_working_directory() -> None:
    """Has modules be found in the working directory, where a console command does not look by itself."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def installed(part: str, choices: Mapping[str, str]) -> dict[str, str | None]:
    """What this installation calls for each choice, by group: MODULE.FUNCTION; None where it has no such choice.

    Args:
      part: of `conf/`.
      choices: option chosen in each group.
    """

    def targets(chosen: Mapping[str, str]) -> dict[str, str | None]:
        config, _ = composed([f"{group}={option}" for group, option in chosen.items()], part)
        return {group: OmegaConf.select(config, f"{group}.{TARGET}") for group in chosen}

    try:
        return targets(choices)
    except HydraException:  # one of them is not there
        found: dict[str, str | None] = {}
        for group, option in choices.items():
            try:
                found |= targets({group: option})
            except HydraException:
                found[group] = None
        return found


def names_code(factory: Callable[..., Any], key: str, value: object) -> bool:
    """Whether a setting of a factory names code, as MODULE:FUNCTION; which ones can, `factory.code_keys` says."""
    return key in getattr(factory, "code_keys", ()) and isinstance(value, str) and ":" in value


def module_of(function: Callable[..., Any]) -> str:
    """The module that has the source of a function; of a `functools.partial` that of what it calls, of an object its class's."""
    while isinstance(function, partial):
        function = function.func
    return function.__module__


def code_of(name: str) -> str | None:
    """A hash of the source behind a module's name, by which a run knows it again; None for metarun's own.

    It is over the files of its package, or, of a module by itself, over its own and those beside it that it imports; and
    over the version of what was installed.
    """
    top = name.split(".")[0]
    if is_own(name):
        return None
    digest = hashlib.sha256()
    for distribution in sorted(packages_distributions().get(top, ())):
        try:
            digest.update(f"{distribution} {version(distribution)}\n".encode())
        except PackageNotFoundError:
            continue
    for path in sorted(_sources(sys.modules[top])):
        digest.update(f"{path.name}\n".encode("utf-8", "surrogateescape") + path.read_bytes())
    return digest.hexdigest()[:16]


def refuse_other_code(then: Mapping[str, Any], now: Mapping[str, Any], directory: Path) -> None:
    """Raises `MetarunError` where source that is not metarun's own is another than a run was begun with.

    Args:
      then, now: hashes by GROUP.code, see `keys.Keys.code`.
      directory: of the run.
    """
    if other := [key for key in {**then, **now} if then.get(key) != now.get(key)]:
        shown = ", ".join(f"{key} ({then.get(key)} then, {now.get(key)} now)" for key in other)
        raise MetarunError(
            f"The run in {directory} was begun with other source of {shown}. {CODE}={ANY} goes on all the same; to train "
            "anew, name a new directory with hydra.run.dir=DIR."
        )


def _sources(module: ModuleType) -> set[Path]:
    """The files that a module at the top is made of."""
    if hasattr(module, "__path__"):
        return {file for folder in module.__path__ for file in Path(folder).rglob("*.py")}
    first = Path(getattr(module, "__file__", None) or "")
    libraries = {Path(path).resolve() for path in sysconfig.get_paths().values()}
    found, waiting = set(), [first] if first.is_file() else []
    while waiting:
        file = waiting.pop()
        found.add(file)
        if file.parent.resolve() not in libraries:
            waiting += [beside for beside in _imported_from_beside(file) if beside not in found]
    return found


def _imported_from_beside(file: Path) -> Iterator[Path]:
    """The files in the folder of a source file, and in packages there, that it imports."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        for name in {name.split(".")[0] for name in names}:
            if (module := file.with_name(f"{name}.py")).is_file():
                yield module
            elif (file.parent / name / "__init__.py").is_file():
                yield from (file.parent / name).rglob("*.py")
