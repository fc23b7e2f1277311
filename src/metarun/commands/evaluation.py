"""What `metarun-eval` does: a trained learner is tested on its own tasks or on others."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from rich.console import Console

from metarun.assembly import rl_run, saved_run
from metarun.assembly.few_shot_run import build_evaluation, recorded
from metarun.config.schema import FEW_SHOT, RL
from metarun.errors import ConfigError, MetarunError
from metarun.report import rl_pictures, run_pictures
from metarun.system.files import plain, write_json
from metarun.training import runner
from metarun.training.ensemble import Ensemble, ensemble_of, members_of
from metarun.training.run_state import load_selected, selected_steps
from metarun.training.settings import RunSettings
from metarun.types import Experiment, Params

FOLDER = "evaluations"
REPORTS = {FEW_SHOT: run_pictures, RL: rl_pictures}


class Asked(NamedTuple):
    """What a trained learner is asked.

    Attributes:
      experiment, settings, facts: of the test, as in `run_parts.Run`.
      params: those that the run has selected, which may be several.
      changed: what of the run's own test is another.
    """

    experiment: Experiment
    settings: RunSettings
    facts: Mapping[str, Any]
    params: Params | Ensemble
    changed: saved_run.Changed


def asked(run: saved_run.SavedRun, overrides: Sequence[str]) -> Asked:
    """Makes the test of a run with what differs from its own; raises as `evaluate`."""
    changed = saved_run.changed(run, overrides)
    experiment, settings, facts = _built(run, changed, overrides)
    kept = members_of(load_selected(run.checkpoint, jax.eval_shape(experiment.init).params))
    if settings.ensemble > len(kept):
        allowed = f"{len(kept)} or less: of no more validations has the run kept the parameters"
        raise ConfigError("ensemble", settings.ensemble, allowed)
    params = ensemble_of(kept[: settings.ensemble])
    if overrides:  # another test than the one that the published figure is of
        facts = {key: fact for key, fact in facts.items() if key != "published"}
    return Asked(experiment, settings, facts, params, changed)


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

    run = saved_run.read(directory, say, overrides=overrides)
    experiment, settings, facts, params, changed = asked(run, overrides)
    report, trained_on = REPORTS[run.part], run.choices[saved_run.TASKS[run.part]]
    steps = selected_steps(run.checkpoint)[: settings.ensemble]
    say(report.heading(facts, run.directory))
    say(f"Trained on {trained_on}, {run.checkpoint.step} steps; {run_pictures.parameters_of(steps)}.")
    if fitted := experiment.protocol.get("dataset", {}).get("fitted"):
        say(f"Images of {changed.choices['dataset']} are {run_pictures.fitted_in_words(fitted)}.")
    say(f"Testing on {settings.eval_tasks} tasks, with checks.")

    began = time.monotonic()
    tested = experiment.evaluate(params, "test", settings.eval_tasks, checks=True)
    result = {
        **runner.reported(tested, facts, experiment.protocol),
        "run": str(run.directory.resolve()),
        "trained_on": trained_on,
        "steps": run.checkpoint.step,
        "selected_steps": steps,
        "seconds": time.monotonic() - began,
    }
    path = run.directory / FOLDER / f"{_name(result, saved_run.TASKS[run.part])}.json"
    write_json(path, result)
    console.print(report.summary(plain(result)))
    say(f"Written to {path}")
    return plain(result)


def _built(
    run: saved_run.SavedRun, changed: saved_run.Changed, overrides: Sequence[str]
) -> tuple[Experiment, RunSettings, Mapping[str, Any]]:
    """Experiment, settings and facts of a test, as in `run_parts.Run`."""
    if run.part == FEW_SHOT:
        data = recorded(run.checkpoint.metadata["identity"])
        keys, learner = changed.keys, changed.learner
        return build_evaluation(changed.config, changed.choices, changed=keys, learner=learner, data=data)
    asked, trained = (rl_run.build(part.config, part.choices) for part in (changed, run))
    if jax.eval_shape(asked.experiment.init).params != jax.eval_shape(trained.experiment.init).params:
        raise MetarunError(
            f"{' '.join(overrides)}: observations or actions have other sizes than those that the run was trained with "
            f"in env={trained.facts['env']}. Leave out what changes them."
        )
    return asked.experiment, asked.settings, asked.facts


def _name(result: Mapping[str, Any], group: str) -> str:
    """States what was tested, from which group; the protocol's hash tells apart what the rest does not."""
    sizes = [f"{result[size]}{size}" for size in ("way", "shot") if result.get(size)]
    return "-".join([result[group].replace("/", "-"), *sizes, result["protocol_id"]])
