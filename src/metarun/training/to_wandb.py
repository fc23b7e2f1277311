"""A logger that hands a run to Weights & Biases. Its package is the extra `wandb`, imported only where it is chosen."""

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metarun.errors import one_of
from metarun.training.metrics import DIVERGED, FAILED, FINISHED, INTERRUPTED, PRUNED, Logger
from metarun.training.trackers import earlier, id_of, keep_id, name_of, needed, numbers, place_of, texts, words

# Exit codes, by which W&B tells a run that was stopped from one that has failed.
_EXIT_CODE = {FINISHED: 0, DIVERGED: 1, FAILED: 1, INTERRUPTED: 255, PRUNED: 255}


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

    known = id_of(directory, "wandb", settings, resume_step)
    own_id = known or secrets.token_hex(8)
    place = place_of(directory)
    asked: Any = mode  # which W&B checks
    run = wandb.init(
        project=project,
        entity=entity,
        mode=asked,
        id=own_id,
        resume="allow",
        name=name or name_of(directory),
        group=place.get("sweep"),
        config=dict(settings),
        dir=str(directory),
        allow_val_change=True,
        reinit="create_new",  # points of a sweep may be trained together
        settings=wandb.Settings(console="off", quiet=True, symlink=False),
    )
    keep_id(directory, "wandb", settings, own_id)
    # Offline, W&B does not know what an earlier piece has written: it has all, or is new.
    there = run.step - 1 if run.step else resume_step if known else -1

    def log(step: int, values: Mapping[str, float | None]) -> None:
        run.log({key: value for key, value in values.items() if value is not None}, step=step)

    def result(of_run: Mapping[str, Any]) -> None:
        run.summary.update({key: value for key, value in numbers(of_run).items() if value is not None})
        run.summary.update(words(of_run))
        run.save(str(directory / "result.json"), base_path=str(directory), policy="now")

    def pictures(files: Sequence[Path]) -> None:
        run.summary.update({f"plots/{file.stem}": wandb.Image(str(file)) for file in files})

    def end(outcome: str, reason: str) -> None:
        run.summary.update({"outcome": outcome, "reason": reason})
        run.finish(exit_code=_EXIT_CODE[outcome])

    run.summary.update({"outcome": "running", "reason": "", **place})
    for step, values in earlier(directory, there, resume_step):
        log(step, values)
    return Logger(log, run.finish, pictures, result, end)


def check_wandb(
    *, project: object = "metarun", entity: object = None, mode: object = None, name: object = None
) -> None:
    """Raises `MetarunError` where W&B is not installed, or a key of `logger=wandb` cannot be used."""
    needed("wandb")
    texts("wandb", {"project": project, "entity": entity, "name": name}, needed="project")
    if mode is not None:
        one_of("logger.wandb.mode", mode, ("online", "offline", "disabled"))


to_wandb.check = check_wandb  # type: ignore[attr-defined]
