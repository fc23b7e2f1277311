"""`hydra/launcher=together`: the points of a sweep that differ in numbers alone, trained by one program."""

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn

ConfigStore.instance().store(
    group="hydra/launcher", name="together", node={"_target_": f"{__name__}.Together"}, provider="metarun"
)


class Together(BasicLauncher):
    """Has every point made, and then trains all of them at once."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        points = super().launch(job_overrides, initial_job_idx)
        from metarun.sweep import train_together

        # What a command returns under this launcher is not its outcome but the run, not begun; it raises what it raised.
        for point, value in zip(points, train_together([point.return_value for point in points]), strict=True):
            point.return_value = value
        return points
