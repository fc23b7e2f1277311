"""The experiments of `conf/`: the files below a group `experiment`, as Hydra composes them.

A file `experiment/PAPER/NAME.yaml` is the experiment `PAPER/NAME`, with things that Hydra does not know:

- `cell.published` is one figure, `{value, ci95, source, note}`. The paper is the folder.
- `quick` is what a short version changes. It is the experiment `PAPER/NAME_quick`, and takes `published`, `margin` and
  `differs` of its cell. Its other settings are those of the cell, or of its own `defaults` where it has any. If `quick` is a
  name instead, the short version is the same run as the short version of that name.
- `defaults` name another experiment by its name, `PAPER/NAME`, from wherever they do.
- `cells` makes the file a family: a table from names, each of which begins with that of the file, to what each has
  of its own. The rest of the file is what they share. A `quick` beside `cells` is shared by their short versions;
  `quick: null` in a cell means that it has none.

Importing this file does not import JAX.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult
from omegaconf import OmegaConf

from metarun.config import choice_files

GROUP = "experiment"
QUICK = "_quick"


def served(folder: Path, name: str) -> dict[str, Any] | None:
    """The node of an experiment as Hydra composes it; None if there is no such experiment.

    Args:
      folder: a group `experiment`.
      name: of the experiment, such as "finn2017/maml_omniglot_5w1s_quick".
    """
    node = _own(folder, name, _read)
    if node is not None:
        node.pop("quick", None)
        return _of_group(node)
    whole = name.removesuffix(QUICK)
    node = None if whole == name else _own(folder, whole, _read)
    if node is None or node.get("quick") is None:
        return None
    quick = node["quick"]
    if isinstance(quick, str):
        quick = {"defaults": [quick, "_self_"]}
    taken = ("published", "margin") if isinstance(node["quick"], str) else ("published", "margin", "differs")
    of_whole = {key: node["cell"][key] for key in taken if key in node.get("cell", {})}
    cell = merged({"quick_of": whole, **of_whole}, quick.get("cell", {}))
    if cell.get("differs") == []:  # nothing of its own: what the experiment says that it stands on
        del cell["differs"]
    short = {"defaults": [whole, "_self_"], **{key: value for key, value in quick.items() if key != "cell"}}
    return _of_group(short | ({"cell": _published(cell, whole)} if "cell" in node else {}))


def exists(folder: Path, name: str) -> bool:
    """Whether there is an experiment of this name, which is told sooner than what it is."""
    whole = name.removesuffix(QUICK)
    return _own(folder, name, _outline) is not None or (
        whole != name and (_own(folder, whole, _outline) or {}).get("quick") is not None
    )


def names(folder: Path) -> Iterator[str]:
    """The names of a group's experiments, whole ones before their short versions."""
    for file in sorted(folder.rglob("*.yaml")):
        yield from _names(folder, file)


def choice(folder: Path, name: str, group: str) -> str | None:
    """The choice that an experiment, or one that it begins with, makes in a group; None for that of the command itself.

    This composes nothing, and so is fast.
    """
    entries = (served(folder, name) or {}).get("defaults", [])
    own = [
        entry[key] for entry in entries if isinstance(entry, Mapping) for key in entry if key == f"override /{group}"
    ]
    bases = (entry.removeprefix(f"/{GROUP}/") for entry in entries if isinstance(entry, str) and entry != "_self_")
    inherited = (choice(folder, base, group) for base in bases)
    return own[0] if own else next((found for found in inherited if found), None)


def run_of(folder: Path, name: str) -> str:
    """The experiment by whose command an experiment runs: itself, or the short version that its `quick` names."""
    node = _own(folder, name.removesuffix(QUICK), _outline) if name.endswith(QUICK) else None
    quick = None if node is None else node.get("quick")
    return quick if isinstance(quick, str) else name


def meant(name: str, known: list[str]) -> str:
    """Says which experiments a mistaken or former name may mean: those that end in it, or else like ones; "" for none."""
    last = name.rpartition("/")[2]
    by_last: dict[str, list[str]] = {}
    for each in known:
        by_last.setdefault(each.rpartition("/")[2], []).append(each)
    if last in by_last:
        return f"It is {' or '.join(by_last[last])}."
    near = difflib.get_close_matches(name, known, n=3)
    near = near or [each for found in difflib.get_close_matches(last, by_last, n=3) for each in by_last[found]]
    return f"Did you mean {' or '.join(near)}?" if near else ""


class ExperimentSource(FileConfigSource):
    """A folder of configuration files that knows of experiments; takes the place of Hydra's own for `file://`."""

    def load_config(self, config_path: str) -> ConfigResult:
        """The configuration of a path; that of an experiment is made of its file."""
        name = self._experiment(config_path)
        if name is None:
            file = Path(self.path, f"{config_path.removesuffix('.yaml')}.yaml")
            if not file.is_file():
                return super().load_config(config_path)
            with choice_files.reading(file):
                try:
                    found = super().load_config(config_path)
                except OSError:  # how OmegaConf refuses a number
                    choice_files.refuse_others(file, None)
                    raise
            choice_files.refuse_others(file, found.config)
            return found
        node = served(self._folder, name)
        if node is None:
            raise ConfigLoadError(f"Config not found : {config_path}")
        return ConfigResult(
            config=OmegaConf.create(node),
            path=f"{self.scheme()}://{self.path}",
            provider=self.provider,
            header={"package": "_global_"},
        )

    def is_config(self, config_path: str) -> bool:
        """Whether there is this configuration, or this experiment."""
        name = self._experiment(config_path)
        return super().is_config(config_path) if name is None else exists(self._folder, name)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """What a group has; of `experiment`, the name of every experiment, folder and all."""
        if config_path != GROUP:
            return super().list(config_path, results_filter)
        # The folders of papers are no groups of their own: `--help` looks into each group, which takes its time.
        return [] if results_filter is ObjectType.GROUP else sorted(names(self._folder))

    @property
    def _folder(self) -> Path:
        return Path(self.path, GROUP)

    def _experiment(self, config_path: str) -> str | None:
        group, _, name = config_path.partition("/")
        return name.removesuffix(".yaml") if group == GROUP and name else None


# A launcher hands the registry to other processes, where Hydra registers its own sources again. It keeps the one that is
# there, if that has the same name.
ExperimentSource.__name__ = FileConfigSource.__name__


def register() -> None:
    """Has Hydra read experiments as they stand here, in `conf/` and in what `--config-dir` adds."""
    SourcesRegistry.instance().types["file"] = ExperimentSource


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Two nodes as one, in which what the second says counts; a list takes the place of a list."""
    both = dict(first)
    for key, value in second.items():
        old = both.get(key)
        both[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return both


def _of_group(node: dict[str, Any]) -> dict[str, Any]:
    """A node whose `defaults` name other experiments as Hydra wants it: by the group, whoever names them."""
    if "defaults" not in node:
        return node
    own = [f"/{GROUP}/{each}" if isinstance(each, str) and each[0] not in "/_" else each for each in node["defaults"]]
    return {**node, "defaults": own}


def _own(folder: Path, name: str, read: Callable[[Path], dict[str, Any]]) -> dict[str, Any] | None:
    """What files say of an experiment that is no short version, with its node `quick`; None if there is none."""
    path = folder / f"{name}.yaml"
    node = read(path) if path.is_file() else {"cells": {}}
    for file in _families(path) if "cells" in node else ():
        family = read(file)
        own = (family.get("cells") or {}).get(path.stem)
        if own is not None:
            node = merged({key: value for key, value in family.items() if key != "cells"}, own)
            break
    if "cells" in node:
        return None
    cell = node.get("cell")
    return {**node, "cell": _published(cell, name)} if isinstance(cell, Mapping) else dict(node)


def _families(path: Path) -> Iterator[Path]:
    """The files that may have a cell of a name in their table: those with whose name it begins."""
    words = path.stem.split("_")
    for number in range(len(words), 0, -1):
        file = path.with_name("_".join(words[:number]) + ".yaml")
        if file.is_file():
            yield file


def _published(cell: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The node `cell` with its figure in a list, which takes the place of an inherited one as a whole."""
    figure, paper = cell.get("published"), name.rpartition("/")[0]
    if not isinstance(figure, Mapping) or not paper:
        return cell
    return {**cell, "published": [{"paper": paper, **figure}]}


def _names(folder: Path, file: Path) -> Iterator[str]:
    node = _outline(file)
    above = file.relative_to(folder).parent.as_posix()
    prefix = "" if above == "." else f"{above}/"
    table = node.get("cells")
    for stem, own in table.items() if isinstance(table, Mapping) else [(file.stem, {})]:
        yield f"{prefix}{stem}"
        if (own or {}).get("quick", node.get("quick")) is not None:
            yield f"{prefix}{stem}{QUICK}"


def _read(file: Path) -> dict[str, Any]:
    """What a file says."""
    return _parsed(file, file.stat().st_mtime_ns)


def _outline(file: Path) -> dict[str, Any]:
    """What a file says, by a parser that is quicker and takes some numbers for texts."""
    return _skimmed(file, file.stat().st_mtime_ns)


@cache
def _parsed(file: Path, _changed: int) -> dict[str, Any]:
    node: Any = OmegaConf.to_container(choice_files.loaded(file))
    return node


@cache
def _skimmed(file: Path, _changed: int) -> dict[str, Any]:
    with choice_files.reading(file):
        node = yaml.load(file.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return node if isinstance(node, dict) else {}
