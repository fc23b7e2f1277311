"""`hydra/launcher=together`: the points of a sweep that differ in numbers alone are trained by one program."""

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn, JobStatus


class Together(BasicLauncher):
    """Has every point made, and then trains those at once that one program can train, but for those that were refused."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        points = super().launch(job_overrides, initial_job_idx)
        # What a command returns under this launcher is not its outcome but the run, not begun.
        made = [point for point in points if point.status == JobStatus.COMPLETED]
        if made:
            from metarun.commands.sweep import train_together

            for point, value in zip(made, train_together([point.return_value for point in made]), strict=True):
                point.return_value = value
                if isinstance(value, Exception):
                    point.status = JobStatus.FAILED
        return points
