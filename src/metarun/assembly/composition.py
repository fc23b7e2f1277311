"""A composed configuration, read with care: factories called with their keys, and no key left unread."""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from metarun.compiled.task_map import Layout, default_layout, frugal_layouts
from metarun.config.factories import CODE, TARGET, code_of, imported, names_code
from metarun.config.schema import CIRCUMSTANCES, LATER, conf_dir
from metarun.errors import ConfigError, MetarunError
from metarun.system.machine import device_name, environment, versions
from metarun.training.optimizers import OVER_THE_RUN
from metarun.training.settings import RunSettings
from metarun.trust.cell import stated
from metarun.types import Experiment

# What may differ between the pieces of one run: besides the circumstances how far it goes, and how much is tested.
MAY_DIFFER = ("steps", "eval_tasks", *CIRCUMSTANCES)


class Run(NamedTuple):
    """A run, ready to be handed to `runner.run`.

    Attributes:
      experiment: what to train.
      settings: how long and how often.
      facts: what `result.json` says of the run besides its outcome.
      identity: the settings that a checkpoint must share to be continued, flat.
      logger: factory of the logger.
    """

    experiment: Experiment
    settings: RunSettings
    facts: Mapping[str, Any]
    identity: Mapping[str, Any]
    logger: Callable[..., Any]


class Keys:
    """The configuration as a mapping that remembers what was read.

    Args:
      values: of all keys.
      choices: option chosen in each group.
      groups: the groups that a run is made of, those that say most first.
    """

    def __init__(self, values: Mapping[str, Any], choices: Mapping[str, str], groups: Sequence[str]):
        self.values, self._choices, self._groups = values, choices, groups
        self.read: set[str] = set()

    @classmethod
    def of(cls, config: DictConfig, choices: Mapping[str, str], groups: Sequence[str]) -> "Keys":
        """That of a composed configuration; raises `OmegaConfBaseException` where a value is missing."""
        return cls(OmegaConf.to_container(config, resolve=True, throw_on_missing=True), choices, groups)

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        if key not in self.values:
            raise MetarunError(f"{key}: this run has no such key, and needs it. Leave out ~{key}.")
        return self.values[key]

    def call(self, group: str, **given: Any) -> Any:
        """Calls the group's factory with its own keys, what is given, and the run's scalars that it takes by name.

        Raises:
          MetarunError: it asks for something that it is not given.
        """
        factory = self.partial(group, given)
        parameters = inspect.signature(factory).parameters
        filled = {*self._groups, *factory.keywords, *given}
        scalars = {name: self[name] for name in parameters if name in self.values and name not in filled}
        handed = {name: value for name, value in given.items() if name in parameters}
        for name, parameter in parameters.items():
            named = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if named and parameter.default is parameter.empty and name not in {**scalars, **handed}:
                raise MetarunError(
                    f"{group}={self._choices.get(group)}: {factory.func.__module__}.{factory.func.__name__} needs "
                    f"{name!r}, which it is not given. Give +{group}.{name}=VALUE or a default; metarun hands on "
                    f"{', '.join([*given, 'the keys of the run'])}."
                )
        return factory(**scalars, **handed)

    def factory(self, group: str) -> Callable[..., Any]:
        """What the group's choice names as its `_target_`."""
        node = self[group]
        if not isinstance(node, Mapping) or TARGET not in node:
            raise MetarunError(f"{group}={self._choices.get(group)}: this choice names no _target_.")
        return imported(f"{group}.{TARGET}", node[TARGET])

    def partial(self, group: str, given: Iterable[str] = ()) -> partial:
        """The group's factory with its own keys filled in, which may not be among those `given`."""
        factory = self.factory(group)
        node = {key: value for key, value in self[group].items() if key != TARGET}
        known = {name: p for name, p in inspect.signature(factory).parameters.items() if name not in given}
        for key in node:
            if key not in known:
                settable = [
                    n for n, p in known.items() if n in node or p.default is not p.empty and n not in self.values
                ]
                allowed = ", ".join(f"{group}.{n}" for n in settable) or "no key"
                raise MetarunError(
                    f"{group}.{key} is read by nothing: {group}={self._choices.get(group)} knows {allowed}."
                )
        return partial(factory, **node)

    def code(self) -> dict[str, str]:
        """Hashes of the source that is not metarun's own and that the run is made of, see `factories.code_of`."""
        found = {}
        for group in self._groups:
            factory = self.factory(group)
            named = [value for key, value in self.values[group].items() if names_code(factory, key, value)]
            modules = [factory.__module__, *(value.partition(":")[0] for value in named)]
            if hashes := [code for module in modules if (code := code_of(module))]:
                found[f"{group}.{CODE}"] = "+".join(hashes)
        return found

    def refuse_unread(self, keys: Iterable[str]) -> None:
        """Raises `MetarunError` for one of the keys, which a user has added or set, that nothing has read."""
        for key in keys:
            if key not in self.read:
                chosen = ", ".join(f"{group}={self._choices.get(group)}" for group in self._groups[:3])
                raise MetarunError(f"{key}={self.values[key]} is read by nothing in a run of {chosen}: leave it out.")


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
    defaults = OmegaConf.load(conf_dir(part) / "config.yaml")
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


def identity(values: Mapping[str, Any], choices: Mapping[str, str], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a checkpoint must share to be continued, flat, with further `facts`."""
    flat = dict(facts)
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat[key] = choices.get(key)
            flat |= {f"{key}.{inner}": entry for inner, entry in value.items() if inner != TARGET}
        else:
            flat[key] = value
    over_the_run = values["optimizer"].get("schedule") in OVER_THE_RUN
    may_change = set(MAY_DIFFER) - ({"steps"} if over_the_run else set())
    flat = {key: value for key, value in flat.items() if key not in LATER or value != LATER[key]}
    return {key: value for key, value in flat.items() if key not in may_change and key.split(".")[0] not in may_change}
