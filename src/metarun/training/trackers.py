"""What loggers to trackers of experiments share: the id that a run has there, and what of a run they are told.

A run that is continued goes on under its id, which its directory keeps as data. What the tracker lacks of the steps before,
it is given from `metrics.jsonl`. In a sweep each point is a run of its own, marked with its sweep.
"""

import hashlib
import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metarun.config.directories import MULTIRUN, SWEEP_COMMAND
from metarun.errors import ConfigError, DataError, MetarunError
from metarun.system.files import canonical_json, plain, write_json
from metarun.system.reading import json_of
from metarun.training.result import METRICS, read_metrics

# In the directory of a run: the id that it has in each tracker.
IDS = "trackers.json"
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_VERDICTS = {True: "passed", False: "failed", None: "not checked"}


def id_of(directory: Path, tracker: str, settings: Mapping[str, Any], resume_step: int) -> str | None:
    """The id under which a tracker knows the run; None if it knows none, or another run that was begun here before."""
    kept = _ids(directory).get(tracker)
    if not isinstance(kept, dict) or not isinstance(kept.get("id"), str) or not _ID.fullmatch(kept["id"]):
        return None
    return kept["id"] if resume_step or kept.get("settings") == _digest(settings) else None


def keep_id(directory: Path, tracker: str, settings: Mapping[str, Any], own_id: str) -> None:
    """Keeps the id under which a tracker knows the run, with a hash of the settings that it was begun with."""
    entry = {"id": own_id, "settings": _digest(settings)}
    write_json(directory / IDS, {**_ids(directory), tracker: entry})


def _ids(directory: Path) -> dict[str, Any]:
    try:
        found = json_of(directory / IDS)
    except DataError:
        return {}
    return found if isinstance(found, dict) else {}


def _digest(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(settings).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def earlier(directory: Path, after: int, until: int) -> list[tuple[int, dict[str, float | None]]]:
    """What `metrics.jsonl` has of the steps above `after` and up to `until`; nothing where it cannot be read."""
    if after >= until:
        return []
    try:
        records, _ = read_metrics(directory / METRICS)
    except DataError:
        return []
    return [
        (step, {key: value for key, value in values.items() if key != "step"})
        for step, values in records.items()
        if after < step <= until
    ]


def name_of(directory: Path) -> str:
    """How a run is called that has no name: by the last two folders of its directory, as DATE/TIME."""
    return "/".join(directory.absolute().parts[-2:])


def place_of(directory: Path) -> dict[str, str]:
    """Where a run is: its directory, and that of its sweep if it is a point of one."""
    own = directory.absolute()
    sweeps = (parent for parent in own.parents if any((parent / file).is_file() for file in (MULTIRUN, SWEEP_COMMAND)))
    sweep = next(sweeps, None)
    return {"directory": str(own)} | ({} if sweep is None else {"sweep": str(sweep)})


def numbers(result: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers of a result: the test, the best validation, and the value of each check."""
    checks = {f"check/{name}": check.get("value") for name, check in result["checks"].items()}
    named = {f"test/{result['metric']}": result["value"], "test/ci95": result["ci95"], "val/best": result["val"]}
    return {**named, **{key: value for key, value in checks.items() if isinstance(value, (int, float))}}


def words(result: Mapping[str, Any]) -> dict[str, str]:
    """The verdicts of the checks, one by one and together, the protocol, and on what the run was computed."""
    verdicts = {name: check["passed"] for name, check in result["checks"].items()}
    together = {"checks": _VERDICTS[False not in verdicts.values()]}
    each = {f"verdict/{name}": _VERDICTS[passed] for name, passed in verdicts.items()}
    facts = {key: text_of(result[key]) for key in ("protocol_id", "device", "versions") if key in result}
    return together | each | facts


def text_of(value: Any) -> str:
    """A setting as a text: itself, or as JSON."""
    return value if isinstance(value, str) else json.dumps(plain(value), ensure_ascii=False)


def needed(package: str) -> None:
    """Raises `MetarunError` where the package of a tracker is not installed; the extra of the same name brings it."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:  # a folder of this name in the working directory is none
        raise MetarunError(f"logger={package} needs {package}: pip install '.[{package}]' in a clone of metarun.")


def texts(tracker: str, values: Mapping[str, object], *, needed: str) -> None:
    """Raises `ConfigError` for a key of a tracker that is no text; all but `needed` may be null."""
    for key, value in values.items():
        may_be_null = key != needed
        if value is None and may_be_null or isinstance(value, str) and value.strip():
            continue
        raise ConfigError(f"logger.{tracker}.{key}", value, "a text, or null" if may_be_null else "a text")
