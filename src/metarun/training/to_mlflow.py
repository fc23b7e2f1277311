"""A logger that hands a run to MLflow. Its package is the extra `mlflow`, imported only where it is chosen."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metarun.training.metrics import DIVERGED, FAILED, FINISHED, INTERRUPTED, PRUNED, Logger
from metarun.training.trackers import earlier, id_of, keep_id, name_of, needed, numbers, place_of, text_of, texts, words

# Of a call: parameters at most, and characters of a parameter or a tag.
_MOST_PARAMS, _LONGEST = 100, 5000
# How long MLflow tries where nothing else is set. By itself it tries for four minutes, in which a run takes no step.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "15"}
_STATUS = {FINISHED: "FINISHED", DIVERGED: "FAILED", FAILED: "FAILED", INTERRUPTED: "KILLED", PRUNED: "KILLED"}


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
    for variable, value in _PATIENCE.items():
        os.environ.setdefault(variable, value)
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

    client = MlflowClient(tracking_uri=uri)
    found = _mlflow_run(client, id_of(directory, "mlflow", settings, resume_step))
    if found is None:
        found = client.create_run(_mlflow_experiment(client, experiment), run_name=name or name_of(directory))
        keep_id(directory, "mlflow", settings, found.info.run_id)
    run_id = found.info.run_id

    def log(step: int, values: Mapping[str, float | None]) -> None:
        now = int(1000 * time.time())
        metrics = [Metric(key, value, now, step) for key, value in values.items() if value is not None]
        client.log_batch(run_id, metrics=metrics)

    def tag(tags: Mapping[str, str]) -> None:
        client.log_batch(run_id, tags=[RunTag(key, value[:_LONGEST]) for key, value in tags.items()])

    def result(of_run: Mapping[str, Any]) -> None:
        log(of_run["steps"], numbers(of_run))
        tag(words(of_run))
        client.log_artifact(run_id, str(directory / "result.json"))

    def pictures(files: Sequence[Path]) -> None:
        for file in files:
            client.log_artifact(run_id, str(file), "plots")

    def end(outcome: str, reason: str) -> None:
        tag({"outcome": outcome, "reason": reason})
        client.set_terminated(run_id, _STATUS[outcome])

    said = {key: text_of(value)[:_LONGEST] for key, value in settings.items()}
    there = found.data.params
    new = [Param(key, value) for key, value in said.items() if key not in there]
    for first in range(0, len(new), _MOST_PARAMS):
        client.log_batch(run_id, params=new[first : first + _MOST_PARAMS])
    changed = {f"changed/{key}": value for key, value in said.items() if there.get(key, value) != value}
    tag({"outcome": "running", "reason": "", **place_of(directory), **changed})
    client.update_run(run_id, status="RUNNING")
    steps = [metric.step for metric in client.get_metric_history(run_id, "seconds")]
    last = max(steps, default=-1)
    for step, values in earlier(directory, last, resume_step):
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
    needed("mlflow")
    texts("mlflow", {"uri": uri, "experiment": experiment, "name": name}, needed="experiment")


to_mlflow.check = check_mlflow  # type: ignore[attr-defined]


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
