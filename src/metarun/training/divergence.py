"""A run whose loss or parameters are no longer finite: which step and which tasks did it, and what is left behind."""

import contextlib
import dataclasses
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metarun.errors import DataError, Diverged, MetarunError, some
from metarun.system import several_processes
from metarun.system.files import write_json, writing
from metarun.training import checkpoint
from metarun.training.result import DIVERGED, DIVERGENCE, read_divergence
from metarun.training.run_state import Ledger, RunState, are_finite, copied, restored, selected_steps
from metarun.types import Experiment, Inspection


def divergence_of(
    experiment: Experiment, what: str, last: int, directory: Path, identity: Mapping[str, Any]
) -> MetarunError:
    """The error of a run in which `what` was found after step `last`; has saved the state before the step that did it.

    That step is found by computing again, one at a time, those since the newest checkpoint: they give the same numbers.
    """
    say, checkpoints, first = (lambda text: None), directory / "checkpoints", several_processes.is_first()
    saved = checkpoint.newest(checkpoints, say) if first else None
    step, selected = several_processes.from_first([saved.step, len(selected_steps(saved))] if saved else [0, 0])
    state = restored(experiment, saved, selected).train
    since = f"{what} between steps {step + 1} and {last} of the run in {directory}"
    kept = f"the checkpoint of step {step} is kept" if selected else "nothing was saved"
    advice = "Lower outer_lr or method.inner_lr, or clip gradients, in a new directory (hydra.run.dir=DIR)."
    finite = True
    while finite and step < last:
        before = copied(state)
        state, found = experiment.step(state, 1)
        finite, step = math.isfinite(float(found["loss"])) and are_finite(state.params), step + 1
    if finite:
        return MetarunError(
            f"{since}; {kept}. Computed again, these steps give finite numbers: the machine may be at fault. The same "
            "command continues the run."
        )
    inspection = experiment.inspect(before)
    tasks, number = offending(inspection), len(inspection.keys)
    if first:
        seeds = {str(task): inspection.keys[task].tolist() for task in tasks or range(number)}
        metadata = {"identity": identity, "ledger": dataclasses.asdict(Ledger()), "form": "", "seeds": seeds}
        try:
            checkpoint.save(directory / DIVERGED, step - 1, RunState(before, before.params), metadata)
        except MetarunError as error:
            kept += f" ({error})"
    if tasks:
        whose = f"the seeds of the tasks that did it (of {number}: {some([str(task) for task in tasks])})"
    else:
        alone = ", each of which by itself gives a finite loss and gradient," * (inspection.loss is not None)
        whose = f"the seeds of its {number} tasks{alone}"
    message = (
        f"{what} in step {step} of the run in {directory}; {kept}. The state before that step and {whose} are in "
        f"{directory / DIVERGED}: `metarun-replay run={directory}` computes it again. {advice} The same command does "
        "not train it again; with resume=false it does."
    )
    if first:
        with contextlib.suppress(MetarunError):  # then it is found again
            write_json(directory / DIVERGED / DIVERGENCE, {"step": step, "message": message, "identity": identity})
    return Diverged(step, message)


def offending(inspection: Inspection) -> list[int]:
    """Numbers of the tasks whose loss or gradient is not finite by itself."""
    finite = [np.isfinite(x) for x in (inspection.loss, inspection.gradient_norm) if x is not None]
    return np.flatnonzero(~np.all(finite, axis=0)).tolist() if finite else []


def diverged_before(directory: Path, identity: Mapping[str, Any], steps: int) -> tuple[int, str] | None:
    """Where the same run has diverged and what was said of it, if it would again within `steps`."""
    found = _divergence(directory)
    if found is None or found["identity"] != identity or found["step"] > steps:
        return None
    return found["step"], found["message"]


def remove_divergence_of_another(directory: Path, identity: Mapping[str, Any]) -> None:
    """Removes what a run of other settings has left as it diverged; nothing that could be continued is there."""
    found = _divergence(directory)
    if found is not None and found["identity"] != identity:
        with writing(directory):
            shutil.rmtree(directory / DIVERGED)


def _divergence(directory: Path) -> Mapping[str, Any] | None:
    try:
        return read_divergence(directory)
    except DataError:  # the run is trained again, and writes it anew
        return None
