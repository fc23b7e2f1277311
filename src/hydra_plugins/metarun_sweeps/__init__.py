"""The sweepers of metarun: Hydra's own, in which a point without a result costs no other point its own, and a search by Optuna.

`metarun.config.composing` has them stand where the choices `hydra/sweeper=basic` and `=optuna` name others.
"""

from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


def _writes(config: DictConfig) -> bool:
    """Whether this process is the one that writes, of those that train every point together."""
    from metarun.system.several_processes import launched

    return not (config.distributed.process or launched()[1])


class Grid(BasicSweeper):
    """Every point of a grid, whatever comes of the others."""

    def sweep(self, arguments: list[str]) -> Any:
        from metarun.commands.sweep import Points, told
        from metarun.commands.sweep_table import watched

        config: Any = self.config  # set up by now, and so is the launcher
        launcher: Any = self.launcher
        self.launcher = points = Points(launcher)
        if not _writes(config):
            returned = super().sweep(arguments)
            for error in (outcome.error for outcome in points.outcomes if outcome.error is not None):
                raise error
            return returned
        directory = Path(config.hydra.sweep.dir)
        with told(points, directory, search=False), watched(points, directory):
            return super().sweep(arguments)


class Search(Sweeper):
    """A search by Optuna. The keys are those of the node `hydra.sweeper`, which `metarun.commands.search` reads."""

    def __init__(self, **_: Any):
        self._launcher: Any = None
        self._config: Any = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._config = config
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        from metarun.commands.search import search

        search(self._config, self._launcher, arguments)
