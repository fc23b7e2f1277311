"""What `metarun-eval` does: a trained learner is tested on its own tasks or on others."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from metarun.api.evaluation import asked, tested
from metarun.api.training import report_of
from metarun.assembly import saved_run
from metarun.report.run_pictures import fitted_in_words, parameters_of
from metarun.training.run_state import selected_steps


def evaluate(directory: str | None, overrides: Sequence[str], console: Console) -> Mapping[str, Any]:
    """Tests the parameters that a run has selected, with the checks, and writes a result below the run's directory.

    Args:
      directory: of the run, finished or not.
      overrides: what differs from the run's own test, see `saved_run.changed`.
      console: where it is said what is done, and the result.

    Returns:
      What is written, see `api.evaluation.tested`.

    Raises:
      MetarunError: there is no such run, or an override cannot be used.
    """

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    run = saved_run.read(directory, say, overrides=overrides)
    test = asked(run, overrides)
    report, trained_on = report_of(run.part), run.choices[saved_run.TASKS[run.part]]
    steps = selected_steps(run.checkpoint)[: test.settings.ensemble]
    say(report.heading(test.facts, run.directory))
    say(f"Trained on {trained_on}, {run.checkpoint.step} steps; {parameters_of(steps)}.")
    if fitted := test.experiment.protocol.get("dataset", {}).get("fitted"):
        say(f"Images of {test.changed.choices['dataset']} are {fitted_in_words(fitted)}.")
    say(f"Testing on {test.settings.eval_tasks} tasks, with checks.")
    result, path = tested(run, test)
    console.print(report.summary(result))
    say(f"Written to {path}")
    return result
