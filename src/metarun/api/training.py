"""A run is trained and tested: from Python, and for the commands."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from omegaconf import DictConfig, OmegaConf, read_write
from rich.console import Console

from metarun.api.calls import as_overrides, explained
from metarun.api.jax_set_up import set_up_within
from metarun.api.run import Run, warned
from metarun.assembly import few_shot_run, rl_run, run_parts, saved_run
from metarun.config import directories
from metarun.config.composing import with_hydra
from metarun.config.schema import FEW_SHOT, RL
from metarun.errors import ConfigError
from metarun.training import checkpoint, runner
from metarun.training.stopping import Stop
from metarun.types import Experiment


def train(*overrides: str, directory: str | Path | None = None, progress: bool = False, **settings: Any) -> Run:
    """Trains and tests a learner, as `metarun` does with the same settings.

    A run that was stopped continues when it is asked for again: by its directory or, where none is given, by equal settings.
    A run that is complete is returned as it is, if its directory is given.

    Args:
      *overrides: settings as on the command line, such as `"method=maml"`.
      directory: of the run; None: one below `outputs/`, as the command chooses it.
      progress: whether the progress is shown on standard error.
      **settings: more of them by key, such as `way=5` or `**{"method.inner_lr": 0.1}`.

    Returns:
      The finished run; it has `result`, `params`, `metrics`, and can be asked for more.

    Raises:
      metarun.errors.MetarunError: a setting cannot be used, or data cannot be had; nothing has changed.
      metarun.errors.Diverged: the loss or a parameter is not finite.
      metarun.errors.Stopped: a signal or `time_limit` has ended it. The same call continues it.
      KeyboardInterrupt: Ctrl-C has. The same call continues it.
    """
    return _trained(FEW_SHOT, as_overrides(overrides, settings), directory, progress)


def train_rl(*overrides: str, directory: str | Path | None = None, progress: bool = False, **settings: Any) -> Run:
    """Trains and tests a learner that reinforcement learns, as `metarun-rl` does; arguments and errors as of `train`."""
    return _trained(RL, as_overrides(overrides, settings), directory, progress)


def built(part: str, config: DictConfig, choices: dict[str, Any], directory: Path) -> run_parts.Run:
    """Makes the objects of a run that begins, or goes on, in a directory.

    Args:
      part: of `conf/` that it was composed from.
      config: without Hydra's own node.
      choices: option chosen in each group.
      directory: of the run; only read.

    Raises:
      MetarunError: as `few_shot_run.build` and `rl_run.build`.
    """
    begun = checkpoint.newest_facts(directory / saved_run.CHECKPOINTS) if config.resume is True else {}
    build = few_shot_run.build if part == FEW_SHOT else rl_run.build
    return build(config, choices, begun=begun.get("identity"))


def report_of(part: str) -> ModuleType:
    """What a person sees of a run: `heading`, `pictures` and `summary`.

    Args:
      part: of `conf/` that the run was composed from.
    """
    if part == FEW_SHOT:
        from metarun.report import run_pictures

        return run_pictures
    from metarun.report import rl_pictures

    return rl_pictures


def carried_out(
    run: run_parts.Run,
    directory: Path,
    report: ModuleType,
    *,
    record: Callable[[], None],
    console: Console,
    experiment: Experiment | None = None,
    stop: Stop | None = None,
    judge: runner.Judge | None = None,
) -> dict[str, Any]:
    """Trains and tests a run, or goes on with it, and draws its pictures; as `runner.run`.

    Args:
      run: from `built`.
      directory, record, console, stop, judge: as in `runner.run`.
      report: from `report_of`.
      experiment: the run's, as it is driven together with others; None: by itself.
    """
    experiment = experiment or run.experiment
    return runner.run(
        experiment,
        run.settings,
        directory,
        facts=run.facts,
        identity=run.identity,
        loggers=run.loggers,
        pictures=report.pictures(experiment),
        console=console,
        record=record,
        stop=stop,
        judge=judge,
    )


def _trained(part: str, overrides: list[str], directory: str | Path | None, progress: bool) -> Run:
    set_up_within()
    directories.register()
    with explained(part, overrides), _unused_removed():
        given = [] if directory is None else as_overrides((), {"hydra.run.dir": Path(directory).expanduser()})
        config, hydra, place = _composed(part, [*overrides, *given])
        run = built(part, config, dict(hydra.hydra.runtime.choices), place)
        record = directories.recorder(place, config, hydra)
        console = Console(stderr=True) if progress else Console(quiet=True)
        carried_out(run, place, report_of(part), record=record, console=console)
        return Run(saved_run.read(str(place), warned, overrides=overrides))


@contextlib.contextmanager
def _unused_removed() -> Iterator[None]:
    """Takes away the directories that were made within, where no work was done there."""
    refused = True
    try:
        yield
        refused = False
    finally:
        directories.remove_unused(refused=refused)


def _composed(part: str, overrides: list[str]) -> tuple[DictConfig, DictConfig, Path]:
    """The configuration of a run, Hydra's own node, and the directory; as they are where Hydra runs the command."""
    whole = with_hydra(overrides, part)
    place = Path(str(whole.hydra.run.dir or "")).absolute()  # wherever the program goes from here
    if not whole.hydra.run.dir:
        raise ConfigError("hydra.run.dir", whole.hydra.run.dir, "a directory; . is this one")
    directories.note(place)
    hydra = OmegaConf.masked_copy(whole, "hydra")
    with read_write(hydra):
        hydra.hydra.run.dir = str(whole.hydra.run.dir)
        hydra.hydra.runtime.cwd = str(Path.cwd())
        hydra.hydra.runtime.output_dir = str(place)
    return OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"]), hydra, place
