"""Where YAML lies: metarun's own `conf/`, the folders of installed plug-ins, and those that a command adds.

A folder that is added holds groups, such as `method/mine.yaml`. One that serves both commands has `few_shot/`, `rl/` and
`common/` instead, as metarun's own has, and groups in these.

A plug-in is an installed package that declares an entry point of the group `metarun.plugins`. Its value names a package with
a folder `conf`. Nothing of it is imported until one of its choices is made.

Importing this file does not import JAX.
"""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from metarun.config import experiments
from metarun.config.schema import COMMON, FEW_SHOT, RL
from metarun.errors import ConfigError, MetarunError

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

    Raises:
      MetarunError: a plug-in that is installed has no folder `conf`.
    """
    return [conf_dir(part), conf_dir(COMMON), *additions(part)]


def additions(part: str) -> list[Path]:
    """As `folders`, without metarun's own."""
    return [folder for root in (*_of_plugins(), *_added) for folder in _of_part(root, part)]


@contextmanager
def adding(paths: Sequence[str | Path]) -> Iterator[None]:
    """Has groups be looked for in further folders, too.

    Raises:
      ConfigError: one is no folder.
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
        if not path.is_dir():
            raise ConfigError("--config-dir", given, "a folder with a folder for each group, such as method/")
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
    if any((root / each).is_dir() for each in (FEW_SHOT, RL, COMMON)):
        return [folder for each in (part, COMMON) if (folder := root / each).is_dir()]
    return [root]


@cache
def _of_plugins() -> tuple[Path, ...]:
    return tuple(_folder_of(point) for point in sorted(entry_points(group=PLUGINS), key=lambda point: point.name))


def _folder_of(point: EntryPoint) -> Path:
    """The folder `conf` of a plug-in."""
    package = point.dist.name if point.dist is not None else "a package"
    try:
        spec = importlib.util.find_spec(point.value)
        reason = "which is not there" if spec is None else "which has no folder conf"
        places = [] if spec is None else spec.submodule_search_locations or []
    except Exception as error:  # a package above it does what it likes as it is imported
        places, reason = [], f"which cannot be found ({type(error).__name__}: {error})"
    for place in places:
        if (folder := Path(place, "conf")).is_dir():
            return folder
    raise MetarunError(
        f"The plug-in {point.name} of {package} names {point.value}, {reason}. Its entry point in {PLUGINS} has to name a "
        f"package with a folder conf. Mend it, or uninstall it: pip uninstall {package}."
    )
