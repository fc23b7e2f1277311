"""Loggers that hand a run to a tracker of experiments: MLflow, and Weights & Biases.

A run that is continued goes on under the id that it has there, which its directory keeps as data. What the tracker lacks of
the steps before, it is given from `metrics.jsonl`. In a sweep each point is a run of its own, marked with its sweep.

Their packages are extras of metarun, and imported only where one of the two is chosen.
"""

import hashlib
import importlib.util
import json
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metarun.config.directories import MULTIRUN, SWEEP_COMMAND
from metarun.errors import ConfigError, DataError, MetarunError, one_of
from metarun.system.files import canonical_json, plain, write_json
from metarun.system.reading import json_of
from metarun.training.metrics import DIVERGED, FAILED, FINISHED, INTERRUPTED, Logger
from metarun.training.result import read_metrics

# In the directory of a run: the id that it has in each tracker.
IDS = "trackers.json"
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
# Of a call to MLflow: parameters at most, and characters of a parameter or a tag.
_MOST_PARAMS, _LONGEST = 100, 5000
_STATUS = {FINISHED: "FINISHED", DIVERGED: "FAILED", FAILED: "FAILED", INTERRUPTED: "KILLED"}
# Exit codes, by which W&B tells a run that was stopped from one that has failed.
_EXIT_CODE = {FINISHED: 0, DIVERGED: 1, FAILED: 1, INTERRUPTED: 255}
_VERDICTS = {True: "passed", False: "failed", None: "not checked"}


def to_mlflow(
    directory: Path,
    resume_step: int,
    settings: Mapping[str, Any],
    *,
    uri: str | None = None,
    experiment: str = "metarun",
    name: str | None = None,
) -> Logger:
    """Returns a logger to a run in MLflow.

    Settings are its parameters, numbers its metrics, the verdicts of the checks tags, `result.json` and pictures artifacts.
    A parameter cannot be changed there: one that differs as the run is continued, such as `steps`, is a tag `changed/KEY`.

    Args:
      directory: of the run.
      resume_step: steps up to this one that MLflow lacks are taken from `metrics.jsonl`.
      settings: of the run, flat.
      uri: of the server or the database; None: what MLflow takes by itself, `MLFLOW_TRACKING_URI` or a file here.
      experiment: in which the run is; made where there is none of this name.
      name: of the run; None: the last two folders of its directory.

    Raises:
      Exception: of MLflow's, where the server does not answer or refuses something.
    """
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

    client = MlflowClient(tracking_uri=uri)
    found = _mlflow_run(client, _id_of(directory, "mlflow", settings, resume_step))
    if found is None:
        found = client.create_run(_mlflow_experiment(client, experiment), run_name=name or _name_of(directory))
        _keep_id(directory, "mlflow", settings, found.info.run_id)
    run_id = found.info.run_id

    def log(step: int, values: Mapping[str, float | None]) -> None:
        now = int(1000 * time.time())
        metrics = [Metric(key, value, now, step) for key, value in values.items() if value is not None]
        client.log_batch(run_id, metrics=metrics)

    def tag(tags: Mapping[str, str]) -> None:
        client.log_batch(run_id, tags=[RunTag(key, value[:_LONGEST]) for key, value in tags.items()])

    def result(of_run: Mapping[str, Any]) -> None:
        log(of_run["steps"], _numbers(of_run))
        tag(_words(of_run))
        client.log_artifact(run_id, str(directory / "result.json"))

    def pictures(files: Sequence[Path]) -> None:
        for file in files:
            client.log_artifact(run_id, str(file), "plots")

    def end(outcome: str, reason: str) -> None:
        tag({"outcome": outcome, "reason": reason})
        client.set_terminated(run_id, _STATUS[outcome])

    said = {key: _text(value)[:_LONGEST] for key, value in settings.items()}
    there = found.data.params
    new = [Param(key, value) for key, value in said.items() if key not in there]
    for first in range(0, len(new), _MOST_PARAMS):
        client.log_batch(run_id, params=new[first : first + _MOST_PARAMS])
    changed = {f"changed/{key}": value for key, value in said.items() if there.get(key, value) != value}
    tag({"outcome": "running", "reason": "", **_place_of(directory), **changed})
    client.update_run(run_id, status="RUNNING")
    steps = [metric.step for metric in client.get_metric_history(run_id, "seconds")]
    last = max(steps, default=-1)
    for step, values in _earlier(directory, last, resume_step):
        log(step, values)
    # What is computed again after a kill is there already, to the bit.
    return Logger(
        write=lambda step, values: log(step, values) if step > last else None,
        close=lambda: None,
        pictures=pictures,
        result=result,
        end=end,
    )


def check_mlflow(*, uri: object = None, experiment: object = "metarun", name: object = None) -> None:
    """Raises `MetarunError` where MLflow is not installed, or a key of `logger=mlflow` cannot be used."""
    _needed("mlflow")
    _texts("mlflow", {"uri": uri, "experiment": experiment, "name": name}, needed="experiment")


to_mlflow.check = check_mlflow  # type: ignore[attr-defined]


def to_wandb(
    directory: Path,
    resume_step: int,
    settings: Mapping[str, Any],
    *,
    project: str = "metarun",
    entity: str | None = None,
    mode: str | None = None,
    name: str | None = None,
) -> Logger:
    """Returns a logger to a run in Weights & Biases, whose own files are in the folder `wandb` of the run's directory.

    Settings are its config, numbers its history, result and verdicts its summary, `result.json` and pictures files.

    Args:
      directory: of the run.
      resume_step: steps up to this one that W&B lacks are taken from `metrics.jsonl`.
      settings: of the run, flat.
      project: in which the run is.
      entity: the user or team; None: what W&B takes by itself.
      mode: online, offline or disabled; None: what W&B takes by itself, `WANDB_MODE` or online.
      name: of the run; None: the last two folders of its directory.

    Raises:
      Exception: of W&B's, where it does not answer or refuses something.
    """
    import wandb

    known = _id_of(directory, "wandb", settings, resume_step)
    own_id = known or secrets.token_hex(8)
    place = _place_of(directory)
    run = wandb.init(
        project=project,
        entity=entity,
        mode=mode,
        id=own_id,
        resume="allow",
        name=name or _name_of(directory),
        group=place.get("sweep"),
        config=dict(settings),
        dir=str(directory),
        allow_val_change=True,
        reinit="create_new",  # points of a sweep may be trained together
        settings=wandb.Settings(console="off", quiet=True, symlink=False),
    )
    _keep_id(directory, "wandb", settings, own_id)
    # Offline, W&B does not know what an earlier piece has written: it has all, or is new.
    there = run.step - 1 if run.step else resume_step if known else -1

    def log(step: int, values: Mapping[str, float | None]) -> None:
        run.log({key: value for key, value in values.items() if value is not None}, step=step)

    def result(of_run: Mapping[str, Any]) -> None:
        run.summary.update({key: value for key, value in _numbers(of_run).items() if value is not None})
        run.summary.update(_words(of_run))
        run.save(str(directory / "result.json"), base_path=str(directory), policy="now")

    def pictures(files: Sequence[Path]) -> None:
        run.summary.update({f"plots/{file.stem}": wandb.Image(str(file)) for file in files})

    def end(outcome: str, reason: str) -> None:
        run.summary.update({"outcome": outcome, "reason": reason})
        run.finish(exit_code=_EXIT_CODE[outcome])

    run.summary.update({"outcome": "running", "reason": "", **place})
    for step, values in _earlier(directory, there, resume_step):
        log(step, values)
    return Logger(log, run.finish, pictures, result, end)


def check_wandb(
    *, project: object = "metarun", entity: object = None, mode: object = None, name: object = None
) -> None:
    """Raises `MetarunError` where W&B is not installed, or a key of `logger=wandb` cannot be used."""
    _needed("wandb")
    _texts("wandb", {"project": project, "entity": entity, "name": name}, needed="project")
    if mode is not None:
        one_of("logger.wandb.mode", mode, ("online", "offline", "disabled"))


to_wandb.check = check_wandb  # type: ignore[attr-defined]


def _needed(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise MetarunError(f"logger={package} needs {package}: pip install '.[{package}]' in a clone of metarun.")


def _texts(tracker: str, values: Mapping[str, object], *, needed: str) -> None:
    """Raises `ConfigError` for a key of a tracker that is no text; all but `needed` may be null."""
    for key, value in values.items():
        may_be_null = key != needed
        if value is None and may_be_null or isinstance(value, str) and value.strip():
            continue
        raise ConfigError(f"logger.{tracker}.{key}", value, "a text, or null" if may_be_null else "a text")


def _mlflow_experiment(client: Any, name: str) -> str:
    """The id of MLflow's experiment of a name, which is made if need be; other processes may make it at the same time."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name)
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return found.experiment_id


def _mlflow_run(client: Any, run_id: str | None) -> Any:
    """MLflow's run of an id; None if there is none, or it has been deleted."""
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return None
    try:
        found = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    return found if found.info.lifecycle_stage == "active" else None


def _id_of(directory: Path, tracker: str, settings: Mapping[str, Any], resume_step: int) -> str | None:
    """The id under which a tracker knows the run; None if it knows none, or another run that was begun here before."""
    kept = _ids(directory).get(tracker)
    if not isinstance(kept, dict) or not isinstance(kept.get("id"), str) or not _ID.fullmatch(kept["id"]):
        return None
    return kept["id"] if resume_step or kept.get("settings") == _digest(settings) else None


def _keep_id(directory: Path, tracker: str, settings: Mapping[str, Any], own_id: str) -> None:
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


def _earlier(directory: Path, after: int, until: int) -> list[tuple[int, dict[str, float | None]]]:
    """What `metrics.jsonl` has of the steps above `after` and up to `until`; nothing where it cannot be read."""
    if after >= until:
        return []
    try:
        records, _ = read_metrics(directory / "metrics.jsonl")
    except DataError:
        return []
    return [
        (step, {key: value for key, value in values.items() if key != "step"})
        for step, values in records.items()
        if after < step <= until
    ]


def _name_of(directory: Path) -> str:
    return "/".join(directory.absolute().parts[-2:])


def _place_of(directory: Path) -> dict[str, str]:
    """Where a run is: its directory, and that of its sweep if it is a point of one."""
    own = directory.absolute()
    sweeps = (parent for parent in own.parents if any((parent / file).is_file() for file in (MULTIRUN, SWEEP_COMMAND)))
    sweep = next(sweeps, None)
    return {"directory": str(own)} | ({} if sweep is None else {"sweep": str(sweep)})


def _numbers(result: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers of a result: the test, the best validation, and the value of each check."""
    checks = {f"check/{name}": check.get("value") for name, check in result["checks"].items()}
    named = {f"test/{result['metric']}": result["value"], "test/ci95": result["ci95"], "val/best": result["val"]}
    return {**named, **{key: value for key, value in checks.items() if isinstance(value, (int, float))}}


def _words(result: Mapping[str, Any]) -> dict[str, str]:
    """The verdicts of the checks, one by one and together, the protocol, and on what the run was computed."""
    verdicts = {name: check["passed"] for name, check in result["checks"].items()}
    together = {"checks": _VERDICTS[False not in verdicts.values()]}
    each = {f"check/{name}": _VERDICTS[passed] for name, passed in verdicts.items()}
    facts = {key: _text(result[key]) for key in ("protocol_id", "device", "versions") if key in result}
    return together | each | facts


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(plain(value), ensure_ascii=False)
