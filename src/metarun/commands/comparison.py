"""What `metarun-compare` does: two trained learners are tested on the same tasks, and their difference has a paired interval."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from metarun.api import evaluation
from metarun.assembly import saved_run
from metarun.errors import ConfigError
from metarun.report.run_pictures import part_tables
from metarun.system.files import plain, write_json
from metarun.training.result import EVALUATIONS
from metarun.training.run_state import selected_steps
from metarun.trust.equivalence import difference_said, interval_said, paired, unpaired
from metarun.trust.protocol import OF_TASKS, differences, refuse_different

_WAY_OUT = "Give both the same by its key, such as eval_query_shot=15; or protocol=any compares them all the same."


def compare(
    first: str | None, second: str | None, overrides: Sequence[str], any_protocol: bool, console: Console
) -> Mapping[str, Any]:
    """Tests the selected parameters of two runs and writes their difference below the first run's directory.

    Args:
      first, second: directories of the runs, finished or not.
      overrides: what differs from the runs' own tests, in both, see `saved_run.changed`.
      any_protocol: whether tests of different protocols may be compared.
      console: where the comparison is said.

    Returns:
      What is written: `runs`, of each its directory, method, value and ci95; `difference`, second less first, its `ci95`
      and `paired`, whether it is over the same tasks; `ci95_unpaired`; `num_tasks`; and `protocol_differences`.

    Raises:
      ConfigError: there is no such run, or one is of reinforcement learning and the other is not.
      MetarunError: the protocols differ, naming the keys; or an override cannot be used.
    """

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    runs = [
        saved_run.read(first, say, overrides=overrides),
        saved_run.read(second, say, key="with", overrides=overrides),
    ]
    if runs[0].part != runs[1].part:
        raise ConfigError("with", second, "a run of the same command as the first, metarun or metarun-rl")
    asked = [evaluation.asked(run, overrides) for run in runs]
    stated = [
        {"method": each.facts["method"], "metric": each.experiment.metric, "protocol": plain(each.experiment.protocol)}
        for each in asked
    ]
    if not any_protocol:
        refuse_different(stated[0], stated[1], _WAY_OUT)
    same_method = stated[0]["method"] == stated[1]["method"]
    found = differences(stated[0]["protocol"], stated[1]["protocol"], same_method=same_method)
    same_tasks = not any(difference.key.split(".")[0] in OF_TASKS for difference in found)
    num_tasks = min(each.settings.eval_tasks for each in asked)
    say(f"Testing both on {'the same ' * same_tasks}{num_tasks} tasks, without checks.")
    tested = [each.experiment.evaluate(each.params, "test", num_tasks) for each in asked]
    per_task = [each.per_task for each in tested]
    apart = unpaired(*per_task)
    difference, ci95 = paired(*per_task) if same_tasks else apart
    result = {
        "runs": [
            {
                "run": str(run.directory.resolve()),
                "method": told["method"],
                "selected_steps": selected_steps(run.checkpoint)[: each.settings.ensemble],
                "value": test.value,
                "ci95": test.ci95,
            }
            for run, each, told, test in zip(runs, asked, stated, tested, strict=True)
        ],
        "metric": stated[0]["metric"],
        "difference": difference,
        "ci95": ci95,
        "paired": same_tasks,
        "ci95_unpaired": apart[1],
        "num_tasks": num_tasks,
        "protocol_differences": {each.key: [each.first, each.second] for each in found},
        **_by_parts([each.groups for each in tested], same_tasks),
    }
    path = runs[0].directory / EVALUATIONS / f"compared-with-{runs[1].directory.resolve().name}.json"
    write_json(path, result)
    _show(result, tested[0].metric == "accuracy", console)
    for each in found:
        say(f"Of different protocols: {each}")
    say(f"Written to {path}")
    return plain(result)


def _by_parts(groups: Sequence[Mapping[str, Mapping[str, np.ndarray]]], same_tasks: bool) -> Mapping[str, Any]:
    """The difference on the tasks of each group that both have, as in `compare`; one task has no interval."""
    found: dict[str, dict[str, Any]] = {}
    first, second = groups
    for field in first:
        for name, its in first[field].items():
            if (others := second.get(field, {}).get(name)) is None:
                continue
            pairs = same_tasks and len(its) == len(others)
            difference, ci95 = (paired if pairs else unpaired)(its, others)
            entry = {"difference": difference, "ci95": ci95 if min(len(its), len(others)) > 1 else None}
            found.setdefault(field, {})[name] = entry | {"num_tasks": len(its)}
    return found


def _show(result: Mapping[str, Any], accuracy: bool, console: Console) -> None:
    scale, unit = (100, "%") if accuracy else (1, "")
    points = " points" * accuracy
    table = Table(box=None, pad_edge=False, show_header=False)
    for which, run in zip(("first", "second"), result["runs"], strict=True):
        value = f"{scale * run['value']:.4g}{unit}{interval_said(run['ci95'], '.2g', scale, unit)}"
        table.add_row(which, value, Text(f"{run['method']}, {run['run']}"))
    console.print(table, soft_wrap=True)

    def said(entry: Mapping[str, Any]) -> str:
        return difference_said(
            scale * entry["difference"], math.nan if entry["ci95"] is None else scale * entry["ci95"]
        )

    for parts in part_tables(result, "second less first", said):
        console.print(parts, soft_wrap=True)
    difference, ci95 = scale * result["difference"], scale * result["ci95"]
    how = "over the same tasks" if result["paired"] else "over different tasks"
    if result["num_tasks"] == 1:
        words = f"second less first: {difference:+.4g}{points} on one task, which has no interval: give eval_tasks=2 or more."
        console.print(Text(words, "bold"), soft_wrap=True)
        return
    beside = f" (± {scale * result['ci95_unpaired']:.2g} if they were different ones)" if result["paired"] else ""
    words = f"second less first: {difference_said(difference, ci95)}{points}, 95% interval {how}{beside}."
    if not math.isfinite(difference + ci95):
        words += " Not every number is finite: there is nothing to tell apart."
    elif abs(difference) > ci95:
        which = "higher" if difference > 0 else "lower"
        words += f" The second is {which}."
    elif difference:
        needed = math.ceil(result["num_tasks"] * (ci95 / difference) ** 2)
        words += f" They cannot be told apart; a difference of this size can be with {needed} tasks (eval_tasks)."
    else:
        words += " There is no difference."
    console.print(Text(words, "bold"), soft_wrap=True)
