"""Runs found below directories, as plain records: what a report is made of."""

import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metarun.config.directories import SWEEP_OTHERS, contradictions
from metarun.config.schema import CIRCUMSTANCES, PACE, is_among
from metarun.errors import ConfigError, DataError, shown, some
from metarun.report.natural import natural
from metarun.system.files import canonical_json
from metarun.system.reading import is_text, json_of, yaml_of
from metarun.training import checkpoint
from metarun.training.result import (
    EVALUATIONS,
    METRICS,
    RESULT,
    is_size,
    read_divergence,
    read_metrics,
    read_pruned,
    read_result,
    read_rows,
    size_in_words,
)
from metarun.trust.protocol import flattened

# Keys that make no other run besides the seed: where its data lie, how it is written down and how driven.
_NO_OTHER_RUN = {"seed", *CIRCUMSTANCES, *PACE}
PICTURES = ("by_size.png", "gallery.png", "strip.png", "paths.png", "rewards.png")


class Unfinished(NamedTuple):
    """What is known of a run without a result, from its configuration and its metrics.

    Attributes:
      method: its name; "" where that is not known.
      setting: its data set or environment and the size of its tasks, in words; "" likewise.
      state: how far it is, in words: "not finished: step 300 of 1500", "diverged at step 12", "pruned at step 500", or that what it says of its
        result cannot be used.
    """

    method: str
    setting: str
    state: str


class Record(NamedTuple):
    """A run, or an evaluation of one.

    Attributes:
      name: its directory below the one that was given.
      directory: of the run.
      command: what was typed.
      result: its `result.json`, or the file of an evaluation; None where it has not ended.
      evaluation: whether it is an evaluation, by `metarun-eval`.
      curve: `{name: [(step, value), ...]}` from `metrics.jsonl`; empty for an evaluation.
      pictures: paths of its pictures of tasks.
      settings: what it was made by, the seed and what moves no number apart, so that it is equal for replicates; of an
        evaluation also what was trained and what was asked. "" where that is not known.
      unfinished: what it is where there is no result; None where there is one.
    """

    name: str
    directory: Path
    command: str
    result: Mapping[str, Any] | None
    evaluation: bool
    curve: Mapping[str, Sequence[tuple[int, float]]]
    pictures: Sequence[Path]
    settings: str
    unfinished: Unfinished | None = None

    @property
    def ended(self) -> Mapping[str, Any]:
        """`result`; empty where there is none."""
        return self.result or {}


def collect(directories: Sequence[str]) -> tuple[list[Record], list[str]]:
    """Reads every run at or below some directories, of sweeps and job arrays as well.

    What another command has left in the directory of a sweep is no point of it and is passed over, unless it is what was
    given. Whatever cannot be read, or does not fit its schema, is passed over too.

    Returns:
      The records, and a sentence for each thing that was passed over.

    Raises:
      ConfigError: one is no directory, or there is no run below any.
    """
    runs: dict[Path, list[Record]] = {}  # by their directories: one that is below two of those given is one run
    faults: list[str] = []
    for given in directories:
        root = Path(given).expanduser()
        if not root.is_dir():
            raise ConfigError("DIR", given, "a directory of runs, such as outputs")
        others = _of_other_commands(root, faults)
        for config in sorted(root.rglob(".hydra/config.yaml"), key=lambda path: [*map(natural, path.parts)]):
            directory = config.parent.parent
            if directory.resolve() in runs or others & {directory, *directory.parents} - {root, *root.parents}:
                continue
            runs[directory.resolve()] = list(_records(root, directory, faults))
    if not runs:
        raise ConfigError("DIR", " ".join(directories), "a directory with runs of metarun or metarun-rl below it")
    return [record for found in runs.values() for record in found], faults


def _of_other_commands(root: Path, faults: list[str]) -> set[Path]:
    """The directories below `root` that lie in that of a sweep without being its points."""
    found: set[Path] = set()
    for file in sorted(root.rglob(SWEEP_OTHERS)):
        try:
            names = json_of(file)
        except DataError as error:
            faults.append(str(error))
            continue
        if not isinstance(names, list) or not all(is_text(name) and name for name in names):
            faults.append(f"{shown(str(file))} is no list of directories.")
            continue
        there = {name: file.parent / name for name in sorted(names) if (file.parent / name / ".hydra").is_dir()}
        if there:
            found |= {directory for directory in there.values() if directory.is_relative_to(file.parent)}
            faults.append(
                f"{shown(str(file.parent))}: of another command than the sweep, and so left out: "
                f"{', '.join(there)}. A report of the directory itself has it."
            )
    return found


def _records(root: Path, directory: Path, faults: list[str]) -> Iterator[Record]:
    name = _written(directory.relative_to(root) if directory != root else Path(directory.resolve().name))
    config, command, settings = _configuration(directory, faults)
    own = _result(directory / RESULT, faults)
    pictures = [path for path in (directory / "plots" / picture for picture in PICTURES) if path.is_file()]
    curve, step = _curve(directory, faults)
    unfinished = None if own else _unfinished(directory, config, curve, step, faults)
    yield Record(name, directory, command, own, False, curve, pictures, settings, unfinished)
    for file in sorted(directory.glob(f"{EVALUATIONS}/*.json"), key=lambda path: natural(path.name)):
        if file.name.startswith("compared-with-"):
            continue
        if file.name.startswith("sweep-"):
            found = [(f"{row['key']}={row['value']}", row["result"]) for row in _rows(file, faults) if row["key"]]
        else:
            result = _result(file, faults)
            found = [] if result is None else [(_written(file.stem), result)]
        for what, result in found:
            # An unfinished run does not say how far it was. And a protocol does not say all that was asked: the last
            # parameters of a run are tested under that of the best.
            asked = [settings, own["protocol_id"], own.get("steps"), what] if own and settings else []
            same = canonical_json(asked) if asked else ""
            evaluation = shlex.join(["metarun-eval", f"run={_written(directory)}"])
            yield Record(f"{name}: {what}", directory, evaluation, result, True, {}, [], same)


def _written(path: Path | str) -> str:
    """A name of a file as text that can be written in any encoding: bytes that are no UTF-8 are escaped, as `\\xb9`."""
    return shown(str(path))


def _configuration(directory: Path, faults: list[str]) -> tuple[Mapping[str, Any], str, str]:
    """The configuration of a run, what was typed, and the settings that it made, see `Record`; all empty if unreadable."""
    folder = directory / ".hydra"
    try:
        config = yaml_of(folder / "config.yaml")
        if not isinstance(config, dict):
            raise DataError(f"{shown(str(folder / 'config.yaml'))} is no configuration: expected keys with values.")
        overrides = yaml_of(folder / "overrides.yaml") if (folder / "overrides.yaml").exists() else []
        if not isinstance(overrides, list | None) or not all(is_text(each) for each in overrides or []):
            raise DataError(
                f"{shown(str(folder / 'overrides.yaml'))} is no command line: expected a list of KEY=VALUE."
            )
    except DataError as error:
        faults.append(f"{shown(str(directory))}: its configuration cannot be read: {error}")
        return {}, "", ""
    identity = checkpoint.newest_facts(directory / "checkpoints").get("identity")
    if isinstance(identity, dict) and (differing := contradictions(config, _choices(directory), identity)):
        faults.append(
            f"{shown(str(directory))}: its configuration is not that of its checkpoint, and so its command is left out: "
            f"{some(differing)}."
        )
        return config, "", ""
    program = "metarun-rl" if "env" in config else "metarun"
    matter = {key: value for key, value in flattened(config) if not is_among(key, _NO_OTHER_RUN)}
    return config, shlex.join([program, *(overrides or [])]), canonical_json(matter)


def _unfinished(
    directory: Path,
    config: Mapping[str, Any],
    curve: Mapping[str, Any],
    step: int | None,
    faults: list[str],
) -> Unfinished:
    """What a run without a result is: `curve` and `step` are what its metrics say, and how far they go."""
    choices = _choices(directory)
    tasks = "env" if "env" in config else "dataset"
    node = config.get(tasks)
    sizes = {key: config.get(key) for key in ("way", "shot")}
    sizes["episodes"] = node.get("episodes") if isinstance(node, dict) else None
    sizes = {key: value for key, value in sizes.items() if is_size(value)}
    if any(name.endswith(("/mse", "/mae")) for name in curve):  # of a regression, which has no classes
        sizes.pop("way", None)
    setting = setting_of({tasks: choices[tasks], **sizes}) if tasks in choices else ""
    try:
        divergence, pruned = read_divergence(directory), read_pruned(directory)
    except DataError as error:
        faults.append(str(error))
        divergence = pruned = None
    if os.path.lexists(directory / RESULT):  # a fault says why
        state = f"{RESULT} cannot be used"
    elif divergence is not None:
        state = f"diverged at step {divergence['step']}"
    elif pruned is not None:
        state = f"pruned at step {pruned['step']}"
    else:
        checkpoints = [int(path.name) for path in directory.glob("checkpoints/*") if path.name.isdecimal()]
        reached = max([*checkpoints, step or 0])
        steps = config.get("steps")
        whole = f" of {steps}" if isinstance(steps, int) and not isinstance(steps, bool) else ""
        state = f"not finished: step {reached}{whole}"
    return Unfinished(choices.get("method", ""), setting, state)


def _choices(directory: Path) -> dict[str, str]:
    """The option chosen in each group, as far as a run says it."""
    try:
        node = yaml_of(directory / ".hydra" / "hydra.yaml")
        choices = node["hydra"]["runtime"]["choices"].items()
    except (DataError, LookupError, TypeError, AttributeError):
        return {}
    return {group: option for group, option in choices if is_text(option)}


def _rows(file: Path, faults: list[str]) -> list[dict[str, Any]]:
    try:
        rows, sentences = read_rows(file)
    except DataError as error:
        rows, sentences = [], [str(error)]
    faults += sentences
    return rows


def _result(file: Path, faults: list[str]) -> Mapping[str, Any] | None:
    if not os.path.lexists(file):
        return None
    try:
        return read_result(file)
    except DataError as error:
        faults.append(str(error))
        return None


def _curve(directory: Path, faults: list[str]) -> tuple[dict[str, list[tuple[int, float]]], int | None]:
    """The curves of a run, see `Record`, and the last step that its metrics have."""
    file = directory / METRICS
    if not os.path.lexists(file):
        return {}, None
    try:
        records, sentences = read_metrics(file)
    except DataError as error:
        records, sentences = {}, [str(error)]
    faults += sentences
    curve: dict[str, list[tuple[int, float]]] = {}
    for step, values in records.items():
        for name, value in values.items():
            if name.startswith(("train/", "val/")) and value is not None and name != "val/ci95":
                curve.setdefault(name, []).append((step, value))
    return curve, max(records, default=None)


def differing_keys(records: Iterable[Record]) -> dict[str, list[Any]]:
    """The protocol keys in which results of one data set, way and shot differ, with their values."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for record in records:
        if record.result is not None:
            groups.setdefault(setting_of(record.result), []).append(dict(flattened(record.result["protocol"])))
    found: dict[str, list[Any]] = {}
    for protocols in groups.values():
        for key in {key: None for protocol in protocols for key in protocol}:
            values = [protocol[key] for protocol in protocols if key in protocol]
            if any(value != values[0] for value in values):
                known = found.setdefault(key, [])
                known += [value for index, value in enumerate(values) if value not in known + values[:index]]
    return found


def setting_of(result: Mapping[str, Any]) -> str:
    """What a result is of, in words: its data set or environment, and the size of its tasks."""
    if "env" in result:
        return result["env"] + (f", {result['episodes']} episodes" if result.get("episodes") else "")
    way, shot = (f"{size_in_words(result[key])}-{key}" if result.get(key) else "" for key in ("way", "shot"))
    return ", ".join(filter(None, [result["dataset"], f"{way} {shot}".strip()]))
