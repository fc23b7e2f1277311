"""What `metarun-eval` does: a trained learner is tested on the tasks of its own or of another data set."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from rich.console import Console

from metarun import runner, saved_run
from metarun.build import build_evaluation, recorded
from metarun.files import plain, write_json
from metarun.report import outcome

FOLDER = "evaluations"


def evaluate(directory: str | None, overrides: Sequence[str], console: Console) -> Mapping[str, Any]:
    """Tests the parameters that a run has selected, with the checks, and writes a result below the run's directory.

    Args:
      directory: of the run, finished or not.
      overrides: what differs from the run's own test, see `saved_run.changed`.
      console: where it is said what is done, and the result.

    Returns:
      What is written: as `result.json`, with the run, the step of the parameters and the seconds of the test. Under the
      protocol of the run's own test it has that test's value, to the last bit.

    Raises:
      MetarunError: there is no such run, or an override cannot be used.
    """

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    run = saved_run.read(directory, say)
    changed = saved_run.changed(run, overrides)
    experiment, settings, facts = build_evaluation(
        changed.config,
        changed.choices,
        changed=changed.keys,
        learner=changed.learner,
        data=recorded(run.checkpoint.metadata["identity"]),
    )
    params = runner.load_selected(run.checkpoint, jax.eval_shape(experiment.init).params)
    step = runner.selected_step(run.checkpoint)
    say(outcome.heading(facts, run.directory))
    say(f"Trained on {run.choices['dataset']}, {run.checkpoint.step} steps; parameters of step {step}.")
    if fitted := experiment.protocol["dataset"].get("fitted"):
        say(f"Images of {changed.choices['dataset']} are {outcome.fitted_in_words(fitted)}.")
    say(f"Testing on {settings.eval_tasks} tasks, with checks.")

    began = time.monotonic()
    tested = experiment.evaluate(params, "test", settings.eval_tasks, checks=True)
    result = {
        **runner.reported(tested, facts, experiment.protocol),
        "run": str(run.directory.resolve()),
        "trained_on": run.choices["dataset"],
        "steps": run.checkpoint.step,
        "selected_step": step,
        "seconds": time.monotonic() - began,
    }
    path = run.directory / FOLDER / f"{_name(result)}.json"
    write_json(path, result)
    console.print(outcome.summary(plain(result)))
    say(f"Written to {path}")
    return plain(result)


def _name(result: Mapping[str, Any]) -> str:
    """States what was tested; the protocol's hash tells apart what the rest does not."""
    way = [f"{result['way']}way"] if result["way"] else []
    return "-".join([result["dataset"], *way, f"{result['shot']}shot", result["protocol_id"]])
