"""Where YAML lies: metarun's own `conf/`, the folders of installed plug-ins, and those that a command adds.

A folder that is added holds groups, such as `method/mine.yaml`. One that serves both commands has `few_shot/`, `rl/` and
`common/` instead, as metarun's own has, and groups in these. A mixture of the two is refused.

A plug-in is an installed package that declares an entry point of the group `metarun.plugins`. Its value names a package with
a folder `conf`. Nothing of it is imported until one of its choices is made. One that is broken is left out, with a warning:
it must not cost a user the commands that have nothing to do with it.

Importing this file does not import JAX.
"""

import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import EntryPoint, distributions, entry_points
from pathlib import Path

from metarun.config import experiments
from metarun.config.schema import COMMON, FEW_SHOT, RL
from metarun.errors import ConfigError, MetarunError, in_a_line, some

PLUGINS = "metarun.plugins"
# Folders that this command adds, by --config-dir.
_added: list[Path] = []


def conf_dir(part: str = FEW_SHOT) -> Path:
    """A folder of metarun's own YAML, one of `FEW_SHOT`, `RL` and `COMMON`: in the installed package, or in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "conf", package.parent.parent / "conf"):
        if (candidate / part).is_dir():
            return candidate / part
    raise FileNotFoundError(f"metarun's configuration files are missing beside {package}: install the package again.")


def folders(part: str) -> list[Path]:
    """The folders in which a command finds its groups, metarun's own first.

    Args:
      part: of `conf/`: `FEW_SHOT` or `RL`.
    """
    found: dict[Path, Path] = {}
    for folder in (conf_dir(part), conf_dir(COMMON), *additions(part)):
        found.setdefault(folder.resolve(), folder)
    return [*found.values()]


def additions(part: str) -> list[Path]:
    """As `folders`, without metarun's own."""
    return [folder for root in (*_of_plugins(), *_added) for folder in _of_part(root, part)]


@contextmanager
def adding(paths: Sequence[str | Path]) -> Iterator[None]:
    """Has groups be looked for in further folders, too.

    Raises:
      MetarunError: one is no folder, or has groups both at its top and below `few_shot/`, `rl/` or `common/`.
    """
    before = list(_added)
    add(paths)
    try:
        yield
    finally:
        _added[:] = before


def add(paths: Sequence[str | Path]) -> None:
    """As `adding`, from here on."""
    found = [Path(path).expanduser().absolute() for path in paths]
    for given, path in zip(paths, found, strict=True):
        if not str(given) or not path.is_dir():
            raise ConfigError("--config-dir", given, "a folder with a folder for each group, such as method/")
        _refuse_mixture(path)
    _added.extend(path for path in found if path not in _added)


def added() -> list[Path]:
    """The folders that have been added, absolute."""
    return list(_added)


def options(part: str) -> dict[str, list[str]]:
    """Group -> its options by name, of every folder; without experiments, of which there are many."""
    found: dict[str, set[str]] = {}
    for group, file in files(part):
        found.setdefault(group, set()).add(file.stem)
    return {group: sorted(names) for group, names in sorted(found.items())}


def files(part: str) -> Iterator[tuple[str, Path]]:
    """Each group with each of its files, of every folder; without experiments."""
    for root in folders(part):
        for folder in sorted(root.iterdir()):
            if folder.is_dir() and folder.name != experiments.GROUP:
                yield from ((folder.name, file) for file in sorted(folder.glob("*.yaml")))


def experiment_folders(part: str) -> list[Path]:
    """The folders of experiments, metarun's own first."""
    return [folder for root in folders(part) if (folder := root / experiments.GROUP).is_dir()]


def refuse_clashes(choices: Mapping[str, str | None], part: str) -> None:
    """Raises `MetarunError` where a choice is the name of two files, of which Hydra would take the first in silence.

    Args:
      choices: option chosen in each group.
      part: of `conf/`.
    """
    for group, option in choices.items():
        if "/" in group or not isinstance(option, str):
            continue
        if group == experiments.GROUP:
            found = [folder / option for folder in experiment_folders(part) if experiments.exists(folder, option)]
        else:
            found = [file for folder in folders(part) if (file := folder / group / f"{option}.yaml").is_file()]
        if len(found) > 1:
            raise MetarunError(
                f"{group}={option}: two have this name, {found[0]} and {found[1]}. Give the second another name."
            )


def _of_part(root: Path, part: str) -> list[Path]:
    if parts := _parts_in(root):
        return [root / each for each in (part, COMMON) if each in parts]
    return [root]


def _parts_in(root: Path) -> list[str]:
    return [each for each in (FEW_SHOT, RL, COMMON) if (root / each).is_dir()]


def _refuse_mixture(root: Path) -> None:
    parts = _parts_in(root)
    groups = sorted({file.parent.name for file in root.glob("*/*.yaml")} - {*parts})
    if parts and groups:
        raise MetarunError(
            f"{root} has {some([f'{each}/' for each in groups])} beside {some([f'{each}/' for each in parts])}: where there is "
            f"one of {FEW_SHOT}/, {RL}/ and {COMMON}/, no group is looked for beside it. Move {groups[0]}/ into one of them."
        )


@cache
def _of_plugins() -> tuple[Path, ...]:
    found = []
    for point in sorted(_entry_points(), key=lambda point: point.name):
        try:
            folder = _folder_of(point)
            _refuse_mixture(folder)
            found.append(folder)
        except MetarunError as error:
            package = point.dist.name if point.dist is not None else "its package"
            _left_out(f"the plug-in {point.name} of {package}", in_a_line(error), package)
    return tuple(found)


def _entry_points() -> list[EntryPoint]:
    try:
        return [*entry_points(group=PLUGINS)]
    except Exception:  # one package's are not of their form, which costs those of all: one by one
        found = []
        for distribution in distributions():
            try:
                found += [point for point in distribution.entry_points if point.group == PLUGINS]
            except Exception as error:
                name = distribution.name or "a package without a name"
                _left_out(f"what {name} adds", f"its entry points cannot be read, {in_a_line(error)}.", name)
        return found


def _left_out(what: str, why: str, package: str) -> None:
    words = f"metarun: warning: {what} is left out: {why} Mend it, or uninstall it: pip uninstall {package}."
    print(words, file=sys.stderr)


def _folder_of(point: EntryPoint) -> Path:
    """The folder `conf` of a plug-in. Packages above it are not imported, as a look for its own spec would."""
    top, *below = point.value.split(".")
    reason = "which has no folder conf"
    try:
        spec = importlib.util.find_spec(top) if top.isidentifier() else None
        if spec is None or not all(map(str.isidentifier, below)):
            reason = "which is not there"
            spec = None
        places = [] if spec is None else spec.submodule_search_locations or []
    except Exception as error:  # of what finds modules
        places, reason = [], f"which cannot be found ({in_a_line(error)})"
    for place in places:
        if (folder := Path(place, *below, "conf")).is_dir():
            return folder
    raise MetarunError(
        f"it names {point.value}, {reason}. An entry point in {PLUGINS} has to name a package with a folder conf."
    )
