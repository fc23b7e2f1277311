"""Hydra's own sweeper and Optuna's, in which a point without a result costs no other point its own.

`metarun.config.composing.PRESETS` has them stand where the choices `hydra/sweeper=basic` and `=optuna` name the originals.
"""

from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from omegaconf import DictConfig


def _writes(config: DictConfig) -> bool:
    """Whether this process is the one that writes, of those that train every point together."""
    from metarun.system.several_processes import launched

    return not (config.distributed.process or launched()[1])


class Grid(BasicSweeper):
    """Every point of a grid, whatever comes of the others."""

    def sweep(self, arguments: list[str]) -> Any:
        from metarun.commands.sweep import Points, told

        config: Any = self.config  # set up by now, and so is the launcher
        launcher: Any = self.launcher
        if not _writes(config):
            return super().sweep(arguments)
        self.launcher = Points(launcher, failures=False)
        with told(self.launcher, Path(config.hydra.sweep.dir), search=False):
            return super().sweep(arguments)


try:
    from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper
except ImportError:  # of the extra "tune"
    pass
else:

    class Search(OptunaSweeper):
        """A search, of which a point without a result is a failed trial."""

        def sweep(self, arguments: list[str]) -> None:
            from metarun.commands.sweep import Points, told

            sweeper: Any = self.sweeper
            sweeper.launcher = Points(sweeper.launcher, failures=True)
            with told(sweeper.launcher, Path(sweeper.config.hydra.sweep.dir), search=True):
                try:
                    super().sweep(arguments)
                except RuntimeError as error:
                    # How Optuna's grid says that it is at its end, which the plug-in expects of a last trial that has
                    # a result, and not of one that has failed.
                    if "Study.stop" not in str(error):
                        raise
