"""What a checkpoint of a run holds: its arrays, its numbers, and which parameters it has selected."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metarun.errors import MetarunError
from metarun.system import several_processes
from metarun.system.reading import is_number
from metarun.training import checkpoint
from metarun.training.ensemble import Ensemble, ensemble_of, members_of
from metarun.types import Evaluation, Experiment, Params, TrainState

_MOST_BEST = 1000  # validations that a checkpoint may list: as many as are tested together


class RunState(NamedTuple):
    """The arrays of a checkpoint.

    Attributes:
      train: the `TrainState` that `Experiment.step` takes and returns; None where it is not to be read.
      selected: the parameters that validated best so far, an `Ensemble` if there are several; or the latest where none
        have been validated.
    """

    train: Any
    selected: Params | Ensemble


@dataclasses.dataclass
class Ledger:
    """The numbers of a run that survive its interruption.

    Attributes:
      seconds: spent in dispatches, less the first of each process, which compiles.
      timed_steps: outer steps of those dispatches.
      compile_seconds: spent in preparing and in the first dispatch of each process, with its steps.
      best: {step, value, ci95} of the best validations, as many as are tested together; the earlier of equals first.
    """

    seconds: float = 0.0
    timed_steps: int = 0
    compile_seconds: float = 0.0
    best: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, saved: checkpoint.Saved) -> "Ledger":
        """That of a checkpoint; raises `MetarunError` where what is saved there is not of a run."""
        facts = saved.metadata
        try:
            ledger = cls(**facts["ledger"])
            numbers = [ledger.seconds, ledger.timed_steps, ledger.compile_seconds]
            numbers += [each[key] for each in ledger.best for key in ("step", "value", "ci95")]
            good = all(map(is_number, numbers)) and len(ledger.best) < _MOST_BEST and isinstance(facts["form"], str)
            good = good and isinstance(facts["identity"], dict)
        except (KeyError, TypeError):
            good = False
        if not good:
            raise MetarunError(f"Checkpoint {saved.path} is not one of a run: its facts in manifest.json are others.")
        return ledger

    def selected_steps(self, step: int) -> list[int]:
        """The steps whose parameters are selected at `step`: those of the best validations, or the last."""
        return [each["step"] for each in self.best] or [step]


def load_selected(saved: checkpoint.Saved, template: Params) -> Params | Ensemble:
    """Returns the parameters that a run had selected when it saved: at its end, the tested ones, which may be several.

    Args:
      saved: a checkpoint of a run.
      template: parameters of the same model, or their shapes.

    Raises:
      MetarunError: the checkpoint is of another architecture.
    """
    selected = ensemble_of([template] * len(selected_steps(saved)))
    return checkpoint.load(saved, RunState(train=None, selected=selected), partial=True).selected


def selected_steps(saved: checkpoint.Saved) -> list[int]:
    """Returns the steps whose parameters `load_selected` returns, the best first."""
    return Ledger.of(saved).selected_steps(saved.step)


def restored(experiment: Experiment, saved: checkpoint.Saved | None, selected: int) -> RunState:
    """The state of a checkpoint, which the first process alone can read, and which has selected so many parameters; or
    where nothing was begun, and so none are selected, the initial one."""
    train = experiment.init()
    state = RunState(train, ensemble_of([copied(train.params) for _ in range(max(1, selected))]))
    if not selected:
        return state
    return several_processes.arrays_from_first(checkpoint.load(saved, state) if saved is not None else state)


@jax.jit
def copied(params: Params) -> Params:
    """Returns parameters that outlive the donation of `params` to the next step."""
    return jax.tree.map(jnp.copy, params)


def are_finite(params: Params) -> bool:
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(params)))


def with_validation(
    selected: Params | Ensemble,
    ledger: Ledger,
    step: int,
    found: Evaluation,
    train: TrainState,
    most: int,
    maximize: bool,
) -> Params | Ensemble:
    """The selected parameters after a validation, which is noted in `ledger.best` if it is one of the best.

    Args:
      selected: until now; counts for nothing before the first validation.
      ledger: of the run.
      step: that was validated.
      found: what the validation found.
      train: the state at that step.
      most: how many parameters are selected.
      maximize: whether more of the metric is better.
    """
    place = _place(found.value, ledger.best, maximize)
    if place is None or place >= most:
        return selected
    kept = list(members_of(selected))[: len(ledger.best)]
    ledger.best.insert(place, {"step": step, "value": found.value, "ci95": found.ci95})
    kept.insert(place, copied(train.params))
    del ledger.best[most:], kept[most:]
    return ensemble_of(kept)


def _place(value: float, best: Sequence[Mapping[str, Any]], maximize: bool) -> int | None:
    """Where a validation stands among the best, which are sorted, after its equals; None where it is not finite."""
    if not math.isfinite(value):
        return None
    return sum(each["value"] >= value if maximize else each["value"] <= value for each in best)
