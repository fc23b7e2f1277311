"""What `metarun-replay` does: the outer step in which a run has diverged, computed again and looked at task by task."""

import io
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from metarun.assembly import few_shot_run, rl_run, saved_run
from metarun.config.schema import FEW_SHOT
from metarun.system.files import write_bytes
from metarun.training import checkpoint
from metarun.training.divergence import offending
from metarun.training.result import DIVERGED
from metarun.training.run_state import RunState
from metarun.types import Inspection

TASKS = "tasks.npz"
_SHOWN = 10  # tasks, those of the largest gradients


def replay(directory: str | None, overrides: Sequence[str], console: Console) -> bool:
    """Computes the outer step that made a run diverge, prints its tasks, and saves them.

    Args:
      directory: of a run that has ended because a number was not finite.
      overrides: settings to compute it with, such as another inner learning rate; the state has to fit them.
      console: where it is said what was found.

    Returns:
      Whether the step is finite: its loss, and the parameters after it.

    Raises:
      MetarunError: there is no such run; it has not diverged; an override cannot be used.
    """

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    run = saved_run.read(directory, say, DIVERGED, overrides=overrides)
    config = saved_run.with_keys(run, overrides)
    build = few_shot_run.build if run.part == FEW_SHOT else rl_run.build
    built = build(config, run.choices, begun=run.checkpoint.metadata["identity"])
    experiment, step = built.experiment, run.checkpoint.step
    template = jax.eval_shape(experiment.init)
    state = checkpoint.load(run.checkpoint, RunState(template, template.params)).train
    say(f"Step {step + 1} of the run in {run.directory}" + "".join(f", {override}" for override in overrides))

    found = experiment.inspect(state)
    culprits = offending(found)
    console.print(_table(found, culprits))
    kept = culprits or list(range(len(found.keys)))
    path = run.directory / DIVERGED / TASKS
    stream = io.BytesIO()
    np.savez(stream, **_arrays(found, kept))
    write_bytes(path, stream.getvalue())
    say(f"The tasks {'that are not finite' if culprits else 'of the step'}, seeds and contents, are in {path}")

    after, metrics = experiment.step(state, 1)
    loss, params = float(metrics["loss"]), jax.device_get(after.params)
    broken = [name for name, leaf in checkpoint.named_leaves(params).items() if not np.isfinite(leaf).all()]
    finite = bool(np.isfinite(loss)) and not broken
    state_after = "all are finite" if not broken else f"not finite: {', '.join(broken)}"
    say(f"Loss {loss:.6g}; of the parameters after the step {state_after}.")
    return finite


def _table(found: Inspection, offending: Sequence[int]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("task", "seed", "loss", "gradient norm"):
        table.add_column(column, justify="right")
    norms = np.zeros(len(found.keys)) if found.gradient_norm is None else np.nan_to_num(found.gradient_norm, nan=np.inf)
    order = sorted(range(len(norms)), key=lambda task: (task not in offending, -norms[task], task))
    for task in order[:_SHOWN]:
        numbers = ["" if x is None else f"{x[task]:.6g}" for x in (found.loss, found.gradient_norm)]
        style = "bold red" if task in offending else ""
        table.add_row(str(task), " ".join(map(str, found.keys[task])), *numbers, style=style)
    if len(order) > _SHOWN:
        table.add_row(Text(f"and {len(order) - _SHOWN} more"))
    return table


def _arrays(found: Inspection, kept: Sequence[int]) -> dict[str, Any]:
    """What is known of some tasks, as NumPy arrays by name, with a leading axis of tasks."""
    named = {"task": np.asarray(kept), "seed": found.keys[kept]}
    for name, leaf in (("loss", found.loss), ("gradient_norm", found.gradient_norm)):
        if leaf is not None:
            named[name] = leaf[kept]
    return named | {name: leaf[kept] for name, leaf in checkpoint.named_leaves(found.tasks).items()}
