"""A run read back from its directory: the configuration that it was begun with, and its newest checkpoint."""

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metarun.assembly.keys import Keys
from metarun.assembly.offered import OFFERED
from metarun.config import named_code
from metarun.config.composing import composed
from metarun.config.directories import HYDRA, contradictions, refuse_odd
from metarun.config.named_code import ANY, CODE, SAME, TARGET, refuse_other_code
from metarun.config.schema import CIRCUMSTANCES, COMMANDS, FEW_SHOT, LATER, RL, SCHEMAS
from metarun.config.search_path import conf_dir
from metarun.errors import ConfigError, DataError, MetarunError, one_of, some
from metarun.system.reading import yaml_of
from metarun.training import checkpoint
from metarun.training.run_state import Ledger

CHECKPOINTS = "checkpoints"
# The group that tasks come from, of each part of `conf/`.
TASKS = {FEW_SHOT: "dataset", RL: "env"}
LOGGERS = "logger"  # the group whose work is done when a run is read
# The groups that call something then.
GROUPS = tuple(dict.fromkeys(group for offered in OFFERED.values() for group in offered if group != LOGGERS))
# Names of choices: words with what joins them, one folder below another.
_PLAIN = re.compile(r"[\w+-][\w.+-]*(/[\w+-][\w.+-]*)*")

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


def read(
    directory: str | None,
    say: Callable[[str], object],
    folder: str = CHECKPOINTS,
    key: str = "run",
    overrides: Sequence[str] = (),
) -> SavedRun:
    """Reads the run in `directory`, finished or not; as a run of one process, whatever it was.

    It is data: nothing in it is called, imported or looked up. What the run calls is what this installation has for each of
    its choices. Code of a user's own is called where the command line names it again, as `method._target_=my_method.maml`.

    Args:
      directory: `run=` of the command line.
      say: told of damaged checkpoints that are passed over, and of what else is not as it was.
      folder: of its checkpoints.
      key: of the command line that names it.
      overrides: of the command line, of which those that name code are read here.

    Raises:
      ConfigError: it is no directory of a run.
      MetarunError: it has no readable checkpoint there; its configuration cannot be read or is not the checkpoint's; or
        it is of code that is not this installation's.
    """
    root = Path(directory or "").expanduser()
    files = root / HYDRA / "config.yaml", root / HYDRA / "hydra.yaml"
    if not directory or not all(file.is_file() for file in files):
        raise ConfigError(key, directory, "the directory of a run, such as outputs/DATE/TIME")
    refuse_odd(root)
    given = dict(override.split("=", 1) for override in overrides if "=" in override)
    try:
        values, choices = yaml_of(files[0]), _choices_of(yaml_of(files[1]))
        if not isinstance(values, dict):
            raise ValueError("config.yaml is no mapping")
        part = RL if TASKS[RL] in values else FEW_SHOT
        values = _inert({**values, LOGGERS: {}}, given, files[0])
        _use_installed(values, choices, part, given, files[0], say)
        today: Any = OmegaConf.load(conf_dir(part) / "config.yaml")
        unsaid = {name: today[name] for name in (*CIRCUMSTANCES, *LATER) if name in today and name not in values}
        alone = {"distributed": dict.fromkeys(("address", "processes", "process"))}
        config: Any = OmegaConf.merge(OmegaConf.structured(SCHEMAS[part]), unsaid, values, alone)
    except (DataError, OSError, ValueError, TypeError, AttributeError, LookupError, OmegaConfBaseException) as error:
        reason = str(error).splitlines()[0]
        raise MetarunError(f"The configuration in {root / HYDRA} cannot be read: {reason}.") from error
    saved = checkpoint.newest(root / folder, say)
    if saved is None:
        missing = "no checkpoint yet" if folder == CHECKPOINTS else f"not {folder}: there is nothing to look at"
        raise MetarunError(f"The run in {root} has {missing}.")
    Ledger.of(saved)  # and so all that its facts have to be
    run = SavedRun(root, part, config, choices, saved)
    _check_same(run)
    _check_code(run, given)
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
    parsed = _questions(overrides)
    for override in parsed:
        _check_may_change(override, run.part)
    config, choices = copy.deepcopy(run.config), dict(run.choices)
    group = TASKS[run.part]
    others: list[Any] = [override for override in parsed if override.key_or_group == group]
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
    for override in _questions(overrides):
        key = override.key_or_group
        known = "." in key or key in config and not isinstance(config[key], DictConfig)
        if override.is_sweep_override() or not known:
            raise MetarunError(f"{override.input_line}: expected a single key of the run, such as outer_lr=1e-4.")
        OmegaConf.update(config, key, override.value())
    return config


def _questions(overrides: Sequence[str]) -> list[Override]:
    """The overrides, parsed, that ask something, and do not only say which code may be called, see `read`."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [each for each in parsed if each.key_or_group != CODE and not each.key_or_group.endswith(f".{TARGET}")]


def _choices_of(hydra: Any) -> dict[str, str]:
    """The option chosen in each group; they are names, which become parts of file names."""
    try:
        chosen = dict(hydra["hydra"]["runtime"]["choices"])
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError("hydra.yaml has no choices") from error
    named = {group: option for group, option in chosen.items() if "/" not in group and group != LOGGERS}
    choices = {group: option for group, option in named.items() if option is not None}
    for group, option in choices.items():
        if not isinstance(option, str) or not _PLAIN.fullmatch(option):
            raise ValueError(f"{group}={option!r} is no name of a choice")
    return choices


def _inert(values: Any, given: Mapping[str, str], file: Path) -> Any:
    """The configuration of a file without what it would look up elsewhere, which the command line has to give.

    Raises:
      MetarunError: it is not given.
    """

    def plain_node(node: Any, path: str) -> Any:
        if isinstance(node, dict):
            return {key: plain_node(value, f"{path}.{key}" if path else str(key)) for key, value in node.items()}
        if isinstance(node, list):
            return [plain_node(value, f"{path}[{place}]") for place, value in enumerate(node)]
        if isinstance(node, str) and "${" in node:
            if path in given:
                return None
            raise MetarunError(
                f"{path} is {node} in {file}: a run's directory is data, and what it refers to is not looked up. "
                f"Give {path}=VALUE."
            )
        return node

    return plain_node(values, "")


def _use_installed(
    values: dict[str, Any],
    choices: Mapping[str, str],
    part: str,
    given: Mapping[str, str],
    file: Path,
    say: Callable[[str], object],
) -> None:
    """Has each group of a configuration call what this installation has for its choice, or what the command line names.

    Raises:
      MetarunError: the file says another, and it is not the command line's.
    """
    for group in GROUPS:
        if group in SCHEMAS[part].__dataclass_fields__ and not isinstance(values.get(group), dict):
            raise ValueError(f"{group} is {values.get(group)!r} and no mapping")
    groups = {
        group: node for group, node in values.items() if isinstance(node, dict) and (group in GROUPS or TARGET in node)
    }
    own = named_code.installed(
        part, {group: choices[group] for group in groups if group in choices and group in GROUPS}
    )
    for group, node in groups.items():
        key, saved, here = f"{group}.{TARGET}", node.get(TARGET), own.get(group)
        if given.get(key) is not None and given[key] == saved:
            continue
        if here is None or saved != here and not str(saved).startswith("metarun."):
            what = f"this installation has no such {group}" if here is None else f"this installation has {here} for it"
            raise MetarunError(
                f"{group}={choices.get(group)} is {saved} in {file}: {what}. What is called never comes from the directory "
                f"of a run. If you know this code and trust it, name it again: {key}={saved}, or the folder of its YAML by "
                "--config-dir."
            )
        if saved != here:
            say(f"{group}={choices[group]} was {saved} when the run was made, and is {here} here.")
        node[TARGET] = here
        factory = named_code.imported(key, here)
        for name, value in node.items():
            if named_code.names_code(factory, name, value) and given.get(f"{group}.{name}") != value:
                raise MetarunError(
                    f"{group}.{name} is {value} in {file}, which is code: it never comes from the directory of a run. If you "
                    f"know it and trust it, name it again: {group}.{name}={value}."
                )


def _check_code(run: SavedRun, given: Mapping[str, str]) -> None:
    """Raises `MetarunError` where code that is not metarun's has changed since the run's checkpoint, unless that is asked for."""
    then = {key: code for key, code in run.checkpoint.metadata["identity"].items() if key.endswith(f".{CODE}")}
    if not then or one_of("code", given.get(CODE, SAME), (SAME, ANY)) == ANY:
        return
    values: Any = OmegaConf.to_container(run.config)
    keys = Keys(values, run.choices, run.part)
    groups = [group for key in then if (group := key.partition(".")[0]) in OFFERED[run.part]]
    refuse_other_code(then, keys.code(groups), run.directory)


def _check_same(run: SavedRun) -> None:
    """Raises `MetarunError` where the configuration is not that of the checkpoint: somebody has changed one of them."""
    values: Any = OmegaConf.to_container(run.config, resolve=True)
    if differing := contradictions(values, run.choices, run.checkpoint.metadata["identity"]):
        raise MetarunError(
            f"The configuration in {run.directory / HYDRA} is not that of the run's checkpoint: {some(differing)}. "
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
