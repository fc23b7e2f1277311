"""A trained learner is tested on its own tasks or on others."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from metarun.assembly import rl_run, saved_run
from metarun.assembly.few_shot_run import build_evaluation
from metarun.config.schema import FEW_SHOT
from metarun.errors import ConfigError, MetarunError
from metarun.system.files import plain, write_json
from metarun.training import runner
from metarun.training.ensemble import Ensemble, ensemble_of, members_of
from metarun.training.result import EVALUATIONS, size_in_words
from metarun.training.run_state import load_selected, selected_steps
from metarun.training.settings import RunSettings
from metarun.types import Experiment, Params


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
    """Makes the test of a run with what differs from its own.

    Args:
      run: finished or not.
      overrides: what differs, see `saved_run.changed`.

    Raises:
      MetarunError: an override cannot be used, or would make another learner.
    """
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


def tested(run: saved_run.SavedRun, asked: Asked) -> tuple[dict[str, Any], Path]:
    """Tests the parameters that a run has selected, with the checks, and writes a result below the run's directory.

    Args:
      run: finished or not.
      asked: from `asked`.

    Returns:
      What is written: as `result.json`, with the run, the step of the parameters and the seconds of the test. Under the
      protocol of the run's own test it has that test's value, to the last bit. And the file.
    """
    began = time.monotonic()
    found = asked.experiment.evaluate(asked.params, "test", asked.settings.eval_tasks, checks=True)
    result = {
        **runner.reported(found, asked.facts, asked.experiment.protocol),
        "run": str(run.directory.resolve()),
        "trained_on": run.choices[saved_run.TASKS[run.part]],
        "steps": run.checkpoint.step,
        "selected_steps": selected_steps(run.checkpoint)[: asked.settings.ensemble],
        "seconds": time.monotonic() - began,
    }
    path = run.directory / EVALUATIONS / f"{_name(result, saved_run.TASKS[run.part])}.json"
    write_json(path, result)
    return plain(result), path


def _built(
    run: saved_run.SavedRun, changed: saved_run.Changed, overrides: Sequence[str]
) -> tuple[Experiment, RunSettings, Mapping[str, Any]]:
    """Experiment, settings and facts of a test, as in `run_parts.Run`."""
    identity = run.checkpoint.metadata["identity"]
    if run.part == FEW_SHOT:
        keys, learner = changed.keys, changed.learner
        return build_evaluation(changed.config, changed.choices, changed=keys, learner=learner, begun=identity)
    asked, trained = (rl_run.build(part.config, part.choices, begun=identity) for part in (changed, run))
    if jax.eval_shape(asked.experiment.init).params != jax.eval_shape(trained.experiment.init).params:
        raise MetarunError(
            f"{' '.join(overrides)}: observations or actions have other sizes than those that the run was trained with "
            f"in env={trained.facts['env']}. Leave out what changes them."
        )
    return asked.experiment, asked.settings, asked.facts


def _name(result: Mapping[str, Any], group: str) -> str:
    """States what was tested, from which group; the protocol's hash tells apart what the rest does not."""
    sizes = [f"{size_in_words(result[size], '-')}{size}" for size in ("way", "shot") if result.get(size)]
    return "-".join([result[group].replace("/", "-"), *sizes, result["protocol_id"]])
