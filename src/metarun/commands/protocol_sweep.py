"""What `metarun-eval run=DIR protocol=sweep` does: what the same parameters score under every convention of the literature.

One convention at a time is another, the others are those of the run's own test.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table
from rich.text import Text

from metarun.api import evaluation
from metarun.assembly import saved_run
from metarun.errors import MetarunError
from metarun.few_shot.learner import STATISTICS
from metarun.system.files import plain, write_json
from metarun.training import checkpoint, runner
from metarun.training.result import EVALUATIONS
from metarun.training.run_state import RunState, selected_steps
from metarun.trust.equivalence import difference_said, interval_said, paired, unpaired
from metarun.trust.protocol import OF_TASKS, differences
from metarun.types import TrainState

SELECTION = "selection"
# Key -> the values that papers use; the run's own is among the rows wherever it is not.
_AXES = {
    "ensemble": (1,),
    "method.query_statistics": STATISTICS,
    "method.inner_reduction": ("mean", "class_sum", "sum"),
    "method.eval_inner_steps": (1, 3, 5, 10),
    "eval_query_shot": (1, 5, 15),
    "dataset.test_rotations": (False, True),
    "eval_seed": (0, 1, 2),
}


class Row(NamedTuple):
    """What was found under a convention.

    Attributes:
      key, value: the convention; "" for the run's own test.
      result: as of `runner.reported`, without checks.
      difference, ci95: to the run's own test, with half the width of its 95% interval.
      paired: whether that is over the same tasks.
    """

    key: str
    value: Any
    result: Mapping[str, Any]
    difference: float
    ci95: float
    paired: bool


def sweep(directory: str | None, overrides: Sequence[str], console: Console) -> list[Row]:
    """Tests the parameters that a run has selected under each convention, and writes `evaluations/sweep-ID.json`.

    Args:
      directory: of the run, finished or not.
      overrides: what differs from the run's own test in all rows, see `saved_run.changed`.
      console: where it is said what was found, and what could not be asked.

    Returns:
      The rows, the run's own test first.

    Raises:
      ConfigError: there is no such run.
      MetarunError: an override cannot be used.
    """

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    run = saved_run.read(directory, say, overrides=overrides)
    own = evaluation.asked(run, overrides)
    axes = list(_axes(own.changed.config, selected_steps(run.checkpoint) != [run.checkpoint.step]))
    say(f"Testing on {own.settings.eval_tasks} tasks under {1 + len(axes)} conventions, without checks.")
    base, base_tasks = _tested(own)
    rows = [Row("", "", base, 0.0, 0.0, True)]
    for key, value in axes:
        try:
            if key == SELECTION:
                asked = own._replace(params=_last(run, own))
            else:
                asked = evaluation.asked(run, [*overrides, f"{key}={value}"])
            result, per_task = _tested(asked)
        except (MetarunError, HydraException, OmegaConfBaseException) as error:
            say(f"Left out: {str(error).splitlines()[0]}")
            continue
        found = differences(base["protocol"], result["protocol"], same_method=True)
        same = not any(difference.key.split(".")[0] in OF_TASKS for difference in found)
        rows.append(Row(key, value, result, *(paired if same else unpaired)(base_tasks, per_task), same))
    path = run.directory / EVALUATIONS / f"sweep-{base['protocol_id']}.json"
    write_json(path, [row._asdict() for row in rows])
    console.print(_table(rows), soft_wrap=True)
    say("Differences are to the run's own test: over the same tasks, or, where marked with *, over others.")
    say(f"Written to {path}")
    return rows


def _axes(config: DictConfig, has_last: bool) -> Iterator[tuple[str, Any]]:
    """The conventions that a run's configuration knows and that are not its own."""
    if has_last:
        yield SELECTION, "last"
    for key, values in _AXES.items():
        node = OmegaConf.select(config, key.rpartition(".")[0]) if "." in key else config
        name = key.rpartition(".")[2]
        if node is None or name not in node:
            continue
        now = node[name]
        if now is None:  # as in training
            now = config.get("query_shot") if key == "eval_query_shot" else node.get(name.removeprefix("eval_"))
        yield from ((key, value) for value in values if value != now)


def _last(run: saved_run.SavedRun, own: evaluation.Asked) -> Any:
    """The parameters of the last step, whatever was selected."""
    nothing: Any = None
    template = TrainState(nothing, jax.eval_shape(own.experiment.init).params, opt_state=nothing)
    return checkpoint.load(run.checkpoint, RunState(train=template, selected=None), partial=True).train.params


def _tested(asked: evaluation.Asked) -> tuple[dict[str, Any], np.ndarray]:
    tested = asked.experiment.evaluate(asked.params, "test", asked.settings.eval_tasks)
    return plain(runner.reported(tested, asked.facts, asked.experiment.protocol)), np.asarray(tested.per_task)


def _table(rows: Sequence[Row]) -> Table:
    metric = rows[0].result["metric"]
    scale, unit = (100, "%") if metric == "accuracy" else (1, "")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("convention", "", metric, "difference"):
        table.add_column(column, justify="right" if column in (metric, "difference") else "left", no_wrap=True)
    shown = None
    for row in rows:
        value = row.result["value"]
        half = interval_said(row.result["ci95"], ".2g", scale, unit)
        said = "not finite" if value is None else f"{scale * value:.4g}{unit}{half}"
        apart = "" if row.paired else " *"
        difference = f"{difference_said(scale * row.difference, scale * row.ci95)}{apart}" if row.key else ""
        name = "" if row.key == shown else row.key or "the run's own"
        table.add_row(Text(name), str(row.value), said, difference)
        shown = row.key
    return table
