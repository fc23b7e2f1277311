"""What every run is made of besides its experiment: its settings, the facts that are stated, and its identity."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from metarun.assembly.keys import Keys
from metarun.compiled.task_map import Layout, default_layout, frugal_layouts
from metarun.config import experiments
from metarun.config.named_code import TARGET
from metarun.config.schema import CIRCUMSTANCES, LATER, is_among
from metarun.config.search_path import conf_dir
from metarun.errors import ConfigError
from metarun.system.machine import device_name, environment, versions
from metarun.training.metrics import Logger, LoggerFactory
from metarun.training.optimizers import OVER_THE_RUN
from metarun.training.settings import RunSettings
from metarun.trust.cell import stated
from metarun.trust.protocol import flattened
from metarun.types import Experiment

# What a tracker is not told: itself, the published figure that a run is held against, and who is who of several processes.
_NO_SETTINGS = ("logger", "cell", "distributed")
# What may differ between the pieces of one run: besides the circumstances how far it goes, and how much is tested.
MAY_DIFFER = ("steps", "eval_tasks", *CIRCUMSTANCES)


class Run(NamedTuple):
    """A run, ready to be handed to `runner.run`.

    Attributes:
      experiment: what to train.
      settings: how long and how often.
      facts: what `result.json` says of the run besides its outcome.
      identity: the settings that a checkpoint must share to be continued, flat.
      loggers: factories of the loggers.
    """

    experiment: Experiment
    settings: RunSettings
    facts: Mapping[str, Any]
    identity: Mapping[str, Any]
    loggers: Sequence[LoggerFactory]


def settings_of(keys: Keys, *, trains: bool) -> RunSettings:
    """How long and how often; `trains`: whether the method has meta-parameters."""
    settings = RunSettings(
        steps=keys["steps"],
        steps_per_dispatch=keys["steps_per_dispatch"],
        eval_every=keys["eval_every"],
        val_tasks=keys["val_tasks"],
        eval_tasks=keys["eval_tasks"],
        ensemble=keys["ensemble"] if "ensemble" in keys.values else 1,
        checkpoint_every=keys["checkpoint_every"],
        log_every=keys["log_every"],
        time_limit=keys["time_limit"],
        resume=keys["resume"],
        code=keys["code"],
    )
    # Where there are none, one step says all that training can say, and there is nothing to select.
    return settings if trains else dataclasses.replace(settings, steps=1, eval_every=0)


def set_by_user(keys: Keys, part: str) -> list[str]:
    """The keys that are not as in `config.yaml` of a part of `conf/`."""
    defaults: Any = OmegaConf.load(conf_dir(part) / "config.yaml")
    return [key for key in keys.values if key not in defaults or keys.values[key] != defaults[key]]


def selection_of(settings: RunSettings) -> dict[str, Any]:
    """What a protocol says of which parameters are tested, on how many tasks."""
    selection = "best validation" if settings.eval_every else "last"
    return {"eval_tasks": settings.eval_tasks, "selection": selection}


def circumstances(keys: Keys, experiment: Experiment, devices: Sequence[Any]) -> dict[str, Any]:
    """The facts that close those of every run."""
    return {
        **stated(keys["cell"]),
        "seed": keys["seed"],
        "sizes": experiment.sizes(),
        "device": device_name(devices),
        "versions": versions(),
        "environment": environment(),
    }


def layouts_of(chunk: object, num_tasks: int, whole: Layout | None = None) -> list[Layout]:
    """The layouts that `memory.chunk` leaves for `num_tasks` tasks, the fastest first.

    Args:
      chunk: "auto", or tasks that a device computes at once.
      whole: the fastest of all; None: `task_map.default_layout()`.

    Raises:
      ConfigError: for another chunk.
    """
    if chunk == "auto":
        return frugal_layouts(whole or default_layout(), num_tasks)
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise ConfigError("memory.chunk", chunk, "auto, or a whole number, 1 or more")
    return [default_layout()._replace(chunk=chunk)]


def loggers_of(keys: Keys, choices: Mapping[str, Any]) -> list[LoggerFactory]:
    """The factories of the loggers that are chosen, checked; none of a run that is read back.

    Raises:
      MetarunError: as `Keys.deferred` and `Keys.members`; or a package that one needs is not installed.
    """
    settings = {
        key: value for key, value in flat(keys.values, choices).items() if key.split(".")[0] not in _NO_SETTINGS
    }
    settings |= {key: choices[key] for key in (experiments.GROUP,) if choices.get(key)}
    made = [keys.deferred(member, ("directory", "resume_step"), settings=settings) for member in keys.members("logger")]
    return [partial(_of_logger, factory) for factory in made]


def _of_logger(factory: Callable[..., Logger], directory: Path, resume_step: int) -> Logger:
    return factory(directory=directory, resume_step=resume_step)


def flat(values: Mapping[str, Any], choices: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with a key such as `method.inner_lr` for each value, and what is chosen of each group."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= {key: choices[key]} if key in choices else {}
            found |= dict(flattened({inner: entry for inner, entry in value.items() if inner != TARGET}, f"{key}."))
        else:
            found[key] = value
    return found


def identity(values: Mapping[str, Any], choices: Mapping[str, str], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a checkpoint must share to be continued, flat, with further `facts`."""
    settings = {**facts, **flat(values, choices)}
    over_the_run = values["optimizer"].get("schedule") in OVER_THE_RUN
    may_change = set(MAY_DIFFER) - ({"steps"} if over_the_run else set())
    settings = {key: value for key, value in settings.items() if key not in LATER or value != LATER[key]}
    return {key: value for key, value in settings.items() if not is_among(key, may_change)}
