"""Runs found below directories, as plain records: what a report is made of."""

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from metarun.config import CIRCUMSTANCES, PACE
from metarun.errors import ConfigError, DataError
from metarun.files import canonical_json
from metarun.protocol import flattened
from metarun.report.curves import read_metrics

# Keys that make no other run besides the seed: where its data lie, how it is written down and how driven.
_NO_OTHER_RUN = {"seed", *CIRCUMSTANCES, *PACE}
PICTURES = ("gallery.png", "strip.png", "paths.png", "rewards.png")
_NEEDED = ("metric", "value", "ci95", "num_tasks", "method", "protocol", "protocol_id", "seed", "checks")


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
    """

    name: str
    directory: Path
    command: str
    result: Mapping[str, Any] | None
    evaluation: bool
    curve: Mapping[str, Sequence[tuple[int, float]]]
    pictures: Sequence[Path]
    settings: str


def collect(directories: Sequence[str]) -> tuple[list[Record], list[str]]:
    """Reads every run at or below some directories, of sweeps and job arrays as well.

    Returns:
      The records, and a sentence for each file that could not be read.

    Raises:
      ConfigError: one is no directory, or there is no run below any.
    """
    runs: dict[Path, list[Record]] = {}  # by their directories: one that is below two of those given is one run
    faults: list[str] = []
    for given in directories:
        root = Path(given).expanduser()
        if not root.is_dir():
            raise ConfigError("DIR", given, "a directory of runs, such as outputs")
        for config in sorted(root.rglob(".hydra/config.yaml")):
            directory = config.parent.parent
            if directory.resolve() not in runs:
                runs[directory.resolve()] = list(_records(root, directory, faults))
    if not runs:
        raise ConfigError("DIR", " ".join(directories), "a directory with runs of metarun or metarun-rl below it")
    return [record for found in runs.values() for record in found], faults


def _records(root: Path, directory: Path, faults: list[str]) -> Iterator[Record]:
    name = str(directory.relative_to(root)) if directory != root else directory.resolve().name
    command, settings = _command(directory, faults)
    own = _result(directory / "result.json", faults)
    pictures = [path for path in (directory / "plots" / picture for picture in PICTURES) if path.is_file()]
    yield Record(name, directory, command, own, False, _curve(directory, faults), pictures, settings)
    for file in sorted(directory.glob("evaluations/*.json")):
        if file.name.startswith("compared-with-"):
            continue
        if file.name.startswith("sweep-"):
            rows = _read(file, faults) or []
            found = [(f"{row['key']}={row['value']}", row["result"]) for row in rows if row.get("key")]
        else:
            result = _result(file, faults)
            found = [] if result is None else [(file.stem, result)]
        for what, result in found:
            # An unfinished run does not say how far it was. And a protocol does not say all that was asked: the last
            # parameters of a run are tested under that of the best.
            asked = [settings, own["protocol_id"], own.get("steps"), what] if own and settings else []
            same = canonical_json(asked) if asked else ""
            yield Record(f"{name}: {what}", directory, f"metarun-eval run={directory}", result, True, {}, [], same)


def _command(directory: Path, faults: list[str]) -> tuple[str, str]:
    """What was typed, and the settings that it made, see `Record`."""
    try:
        config = yaml.safe_load((directory / ".hydra" / "config.yaml").read_text(encoding="utf-8"))
        path = directory / ".hydra" / "overrides.yaml"
        overrides = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else []
        program = "metarun-rl" if "env" in config else "metarun"
        matter = {
            key: value
            for key, value in flattened(config)
            if key not in _NO_OTHER_RUN and key.split(".")[0] not in _NO_OTHER_RUN
        }
        return shlex.join([program, *map(str, overrides or [])]), canonical_json(matter)
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        faults.append(f"{directory}: its configuration cannot be read ({str(error).splitlines()[0]}).")
        return "", ""


def _read(file: Path, faults: list[str]) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        faults.append(f"{file} cannot be read ({error}).")
        return None


def _result(file: Path, faults: list[str]) -> Mapping[str, Any] | None:
    if not file.exists():
        return None
    result = _read(file, faults)
    if result is None:
        return None
    missing = [key for key in _NEEDED if key not in result] if isinstance(result, dict) else ["everything"]
    if missing:
        faults.append(f"{file} is no result of a run: it has no {', '.join(missing)}.")
        return None
    return result


def _curve(directory: Path, faults: list[str]) -> dict[str, list[tuple[int, float]]]:
    file = directory / "metrics.jsonl"
    if not file.exists():
        return {}
    try:
        records = read_metrics(file)
    except DataError as error:
        faults.append(str(error))
        return {}
    curve: dict[str, list[tuple[int, float]]] = {}
    for step, values in records.items():
        for name, value in values.items():
            if name.startswith(("train/", "val/")) and isinstance(value, (int, float)) and name != "val/ci95":
                curve.setdefault(name, []).append((step, value))
    return curve


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
        return f"{result['env']}, {result.get('episodes')} episodes"
    way = f"{result['way']}-way " if result.get("way") else ""
    return f"{result.get('dataset')}, {way}{result.get('shot')}-shot"
