"""What `metarun` and `metarun-rl` do: train and test what the command line composes."""

import argparse
import os
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from metarun.api.jax_set_up import set_up
from metarun.commands.console import told, version
from metarun.config import directories, search_path
from metarun.config.composing import register
from metarun.config.hydra_versions import BASE
from metarun.config.named_code import additions_end_nothing
from metarun.config.schema import COMMANDS, FEW_SHOT, RL
from metarun.config.search_path import conf_dir
from metarun.errors import ConfigError, MetarunError, positive_int, seed_of


def train_few_shot(config: DictConfig) -> float | None:
    return _train(FEW_SHOT, config)


def train_rl(config: DictConfig) -> float | None:
    return _train(RL, config)


def of_hydra(entry: Callable[[DictConfig], float | None], part: str) -> NoReturn:
    """Ends in what `entry` does with the configuration that the command line composes from a part of `conf/`."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, where they become messages
    register()
    directories.register()

    def run(config: DictConfig) -> float | None:
        try:
            search_path.refuse_clashes(HydraConfig.get().runtime.choices, part)
            with additions_end_nothing():
                return entry(config)
        except Exception as error:
            if HydraConfig.get().mode == RunMode.RUN:
                raise _Ended from error
            raise

    def command() -> None:
        if "--version" in sys.argv[1:]:
            return print(version())
        sys.argv[1:] = _seeds_as_points(_options_first(sys.argv[1:], COMMANDS[part]))
        for argument in sys.argv[1:]:
            if argument.lstrip("+~").startswith("hydra.output_subdir"):
                raise MetarunError(f"{argument}: leave it out. metarun writes .hydra itself, once a run is accepted.")
        try:
            hydra.main(**BASE, config_path=str(conf_dir(part)), config_name="config")(run)()
        except _Ended as ended:
            cause: Any = ended.__cause__
            raise cause from cause.__cause__

    sys.exit(told(command, part=part))


class _Ended(BaseException):
    """Carries what ended a run past Hydra, which would print a line of its own before it."""


def _options_first(arguments: list[str], command: str) -> list[str]:
    """Has options such as `-m` stand anywhere, and adds the folders of `--config-dir`.

    Raises:
      MetarunError: an option that Hydra does not have, or no folder.
    """

    def refuse(message: str) -> NoReturn:
        raise MetarunError(f"{message}. `{command} --help` lists the settings, `{command} --hydra-help` the options.")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    parsed = parser.parse_intermixed_args(arguments)
    folders = argparse.ArgumentParser(add_help=False, allow_abbrev=False)  # Hydra's own takes the last alone
    folders.add_argument("--config-dir", "-cd", action="append", default=[])
    search_path.add(folders.parse_known_args(arguments)[0].config_dir)
    options, settings = list(arguments), parsed.overrides
    for setting in settings:
        options.remove(setting)
    return [*options, *settings]


def _seeds_as_points(arguments: list[str]) -> list[str]:
    """Has `seeds=N` be what it is short for: a sweep of N seeds, from `seed` on, that are trained together.

    Raises:
      ConfigError: `seeds` or, beside it, `seed` is no whole number.
    """
    given: dict[str, str] = {}
    others = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in ("seeds", "seed"):
            given[key] = value
        else:
            others.append(argument)
    if "seeds" not in given:
        return arguments
    numbers = {key: int(value) if value.isdecimal() and len(value) < 20 else value for key, value in given.items()}
    count, first = positive_int("seeds", numbers["seeds"]), seed_of("seed", numbers.get("seed", 0))
    seeds = ",".join(str(seed_of("seed", first + number)) for number in range(count))
    others = [re.sub("^hydra.run.dir=", "hydra.sweep.dir=", argument) for argument in others]
    launcher = [] if any(argument.startswith("hydra/launcher=") for argument in others) else ["hydra/launcher=together"]
    return [*([] if {"-m", "--multirun"} & {*others} else ["-m"]), *others, f"seed={seeds}", *launcher]


def _train(part: str, config: DictConfig) -> Any:
    """Trains and tests what Hydra has composed from a part of `conf/`.

    Returns:
      What a search for settings goes by: the best validation, never the test; None where nothing was validated. Under a
      launcher that trains several points together: the `sweep.Point`, for it to train.
    """
    set_up()

    from pathlib import Path

    from rich.console import Console

    from metarun.api.training import built, carried_out, report_of

    node = HydraConfig.get()
    directory = Path(node.runtime.output_dir)
    run = built(part, config, dict(node.runtime.choices), directory)

    from metarun.commands.sweep import Point, consoles
    from metarun.system import several_processes

    report = report_of(part)
    console, aside = Console(), Console(stderr=True)
    judge = None
    if node.mode == RunMode.RUN and not node.run.dir:
        raise ConfigError("hydra.run.dir", node.run.dir, "a directory; . is this one")
    of_hydra: Any = HydraConfig.instance().cfg
    record = directories.recorder(directory, config, of_hydra)
    if not several_processes.is_first():
        console = aside = Console(quiet=True)
    if node.mode == RunMode.MULTIRUN:
        if several_processes.is_first():
            console, aside = consoles(node.runtime.choices["hydra/launcher"])
        if node.runtime.choices["hydra/sweeper"] == "optuna":
            from metarun.commands.search import TRIAL, judge_of

            _check_search(run, str(node.sweeper.direction))
            judge = judge_of(node.sweeper, Path(node.sweep.dir), node.job.env_set[TRIAL])
    console.print(report.heading(run.facts, directory), highlight=False, soft_wrap=True)
    if node.mode == RunMode.MULTIRUN and node.runtime.choices["hydra/launcher"] == "together":
        return Point(run, directory, report, record, judge)
    result = carried_out(run, directory, report, record=record, console=aside, judge=judge)
    console.print(report.summary(result))
    console.print(f"result.json and plots/ in {directory}", markup=False, highlight=False, soft_wrap=True)
    return result["val"]


def _check_search(run: Any, direction: str) -> None:
    """Raises `ConfigError` where a search would have nothing to go by, or would look for the worst."""
    if not run.settings.eval_every:
        raise ConfigError(
            "eval_every", run.settings.eval_every, "1 or more: a search goes by validation, not by the test"
        )
    wanted = "maximize" if run.experiment.maximize else "minimize"
    if direction != wanted:
        raise ConfigError("hydra.sweeper.direction", direction, f"{wanted}, as {run.experiment.metric} asks for")
