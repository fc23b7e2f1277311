"""A run read back from its directory: the configuration that it was begun with, and its newest checkpoint."""

import copy
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from metarun import checkpoint
from metarun.config import COMMANDS, FEW_SHOT, RL, SCHEMAS, composed
from metarun.errors import ConfigError, MetarunError, some
from metarun.files import plain

CHECKPOINTS = "checkpoints"
# The group that tasks come from, of each part of `conf/`.
TASKS = {FEW_SHOT: "dataset", RL: "env"}

# Another value of these is another question to the same learner; of any other key, it is another learner.
_OF_ANY = {
    "eval_tasks": "eval_tasks",
    "eval_seed": "eval_seed",
    "method.eval_*": "method.eval_inner_steps and other method.eval_KEY",
    "memory.*": "memory.KEY",
}
MAY_CHANGE = {
    FEW_SHOT: {
        "dataset": "dataset=OTHER",
        "dataset.*": "dataset.KEY",
        "way": "way",
        "shot": "shot",
        "eval_query_shot": "eval_query_shot",
        "ensemble": "ensemble",
        "method.query_statistics": "method.query_statistics",
        "method.inner_reduction": "method.inner_reduction",
        **_OF_ANY,
    },
    RL: {"env": "env=OTHER", "env.*": "env.KEY", **_OF_ANY},
}


class SavedRun(NamedTuple):
    """A run that has saved something.

    Attributes:
      directory: of the run.
      part: of `conf/` that it was composed from, which says by which command: `FEW_SHOT` or `RL`.
      config: the configuration that it was begun with.
      choices: the option chosen in each group.
      checkpoint: the newest whole one.
    """

    directory: Path
    part: str
    config: DictConfig
    choices: Mapping[str, str]
    checkpoint: checkpoint.Saved


class Changed(NamedTuple):
    """What a run's learner is to be asked.

    Attributes:
      config: the run's configuration with the changes.
      choices: the option chosen in each group.
      keys: what was changed, at the top of the configuration.
      learner: the run's configuration with the changes of the method alone.
    """

    config: DictConfig
    choices: Mapping[str, str]
    keys: Sequence[str]
    learner: DictConfig


def read(directory: str | None, say: Callable[[str], object], folder: str = CHECKPOINTS, key: str = "run") -> SavedRun:
    """Reads the run in `directory`, finished or not; as a run of one process, whatever it was.

    Args:
      directory: `run=` of the command line.
      say: told of damaged checkpoints that are passed over.
      folder: of its checkpoints.
      key: of the command line that names it.

    Raises:
      ConfigError: it is no directory of a run.
      MetarunError: it has no readable checkpoint there, or its configuration cannot be read or is not the checkpoint's.
    """
    root = Path(directory or "").expanduser()
    files = root / ".hydra" / "config.yaml", root / ".hydra" / "hydra.yaml"
    if not directory or not all(file.is_file() for file in files):
        raise ConfigError(key, directory, "the directory of a run, such as outputs/DATE/TIME")
    try:
        config, of_hydra = (OmegaConf.load(file) for file in files)
        part = RL if TASKS[RL] in config else FEW_SHOT
        alone = {"distributed": dict.fromkeys(("address", "processes", "process"))}
        config = OmegaConf.merge(OmegaConf.structured(SCHEMAS[part]), config, alone)
        chosen = of_hydra.hydra.runtime.choices
        choices = {group: option for group, option in chosen.items() if "/" not in group}
    except (OSError, ValueError, AttributeError, YAMLError, OmegaConfBaseException) as error:
        reason = str(error).splitlines()[0]
        raise MetarunError(f"The configuration in {root / '.hydra'} cannot be read: {reason}.") from error
    saved = checkpoint.newest(root / folder, say)
    if saved is None:
        missing = "no checkpoint yet" if folder == CHECKPOINTS else f"not {folder}: there is nothing to look at"
        raise MetarunError(f"The run in {root} has {missing}.")
    run = SavedRun(root, part, config, choices, saved)
    _check_same(run)
    return run


def changed(run: SavedRun, overrides: Sequence[str]) -> Changed:
    """Applies overrides to the configuration of a run.

    Where `dataset=OTHER` or `env=OTHER` is among them, its node is what `conf/` composes for it today, and sizes of
    training tasks, which say nothing of other data, give way.

    Args:
      run: from `read`.
      overrides: as the command of the run takes them.

    Raises:
      MetarunError: an override that would make another learner.
      HydraException, OmegaConfBaseException: one that is malformed, of another type, or names what there is not.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    for override in parsed:
        _check_may_change(override, run.part)
    config, choices = copy.deepcopy(run.config), dict(run.choices)
    group = TASKS[run.part]
    others = [override for override in parsed if override.key_or_group == group]
    for override in others:
        choices[group] = override.value()
        config[group] = composed([override.input_line], run.part)[0][group]
    for override in parsed:
        if override not in others:
            OmegaConf.update(config, override.key_or_group, override.value())
    if others and run.part == FEW_SHOT:
        config.train_way = config.train_shot = None
        config.query_shot = config.query_shot if config.eval_query_shot is None else config.eval_query_shot
    learner = copy.deepcopy(run.config)
    learner.method = config.method
    return Changed(config, choices, [override.key_or_group.split(".")[0] for override in parsed], learner)


def with_keys(run: SavedRun, overrides: Sequence[str]) -> DictConfig:
    """Returns the configuration of a run with other values of single keys, whatever learner they make.

    Args:
      run: from `read`.
      overrides: as the command of the run takes them.

    Raises:
      MetarunError: one that chooses in a group, sweeps, or names no key.
      HydraException, OmegaConfBaseException: one that is malformed or of another type.
    """
    config = copy.deepcopy(run.config)
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        known = "." in key or key in config and not isinstance(config[key], DictConfig)
        if override.is_sweep_override() or not known:
            raise MetarunError(f"{override.input_line}: expected a single key of the run, such as outer_lr=1e-4.")
        OmegaConf.update(config, key, override.value())
    return config


def _check_same(run: SavedRun) -> None:
    """Raises `MetarunError` where a command with other settings, though refused, has left its configuration behind."""
    values = OmegaConf.to_container(run.config, resolve=True)

    def now(key: str, then: Any) -> Any:
        group, _, inner = key.partition(".")
        value = values.get(group)
        if inner:
            return (value or {}).get(inner, then)  # what is found out of the data is no setting
        return run.choices.get(key) if isinstance(value, dict) else value

    identity = run.checkpoint.metadata["identity"]
    found = {key: (then, plain(now(key, then))) for key, then in identity.items()}
    if differing := [f"{key} ({then} then, {here} there)" for key, (then, here) in found.items() if then != here]:
        raise MetarunError(
            f"The configuration in {run.directory / '.hydra'} is not that of the run's checkpoint: {some(differing)}. "
            "The command of the run, given again, puts its own there."
        )


def _check_may_change(override: Override, part: str) -> None:
    simple = override.type == OverrideType.CHANGE and not override.is_sweep_override() and override.package is None
    if not simple or not any(fnmatch(override.key_or_group, pattern) for pattern in MAY_CHANGE[part]):
        raise MetarunError(
            f"{override.input_line}: of a run that is trained, only these may be changed: "
            f"{', '.join(MAY_CHANGE[part].values())}. Anything else makes another learner: train that with "
            f"`{COMMANDS[part]}`."
        )
    if override.key_or_group == TASKS[part] and not isinstance(override.value(), str):
        names = {FEW_SHOT: "a data set; `metarun-data list`", RL: "an environment; `metarun-rl --help`"}
        raise ConfigError(TASKS[part], override.value(), f"the name of {names[part]} has them")
