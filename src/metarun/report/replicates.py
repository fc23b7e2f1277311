"""Runs that differ in their seeds alone, taken together."""

from collections.abc import Sequence
from typing import NamedTuple

from metarun.equivalence import Ours, over_seeds
from metarun.report.collection import Record, setting_of


class Replicates(NamedTuple):
    """One or more runs, or evaluations, that differ in the seed alone.

    Attributes:
      records: by seed.
      value: the mean over seeds; of a single one, its own. None where it has not ended or is not finite.
      ci95: half the width of the 95% interval of `value`, over tasks and seeds; of a single one, over tasks.
    """

    records: Sequence[Record]
    value: float | None
    ci95: float | None


def together(records: Sequence[Record]) -> list[Replicates]:
    """The records, replicates together, in the order of the first of each; what has not ended stays by itself.

    Replicates share all settings that move a number, the protocol, and the number of test tasks. A seed that comes again is
    no replicate of itself, and begins others.
    """
    groups: dict[object, list[Record]] = {}
    for place, record in enumerate(records):
        result = record.result
        if result is None or result["value"] is None or not record.settings:
            groups[place] = [record]
            continue
        same = record.settings, record.evaluation, result["method"], setting_of(result), result["metric"]
        same += result["protocol_id"], result["num_tasks"]
        again = 0
        while any(each.result["seed"] == result["seed"] for each in groups.get((same, again), ())):
            again += 1
        groups.setdefault((same, again), []).append(record)
    return [_taken(group) for group in groups.values()]


def _taken(group: Sequence[Record]) -> Replicates:
    if len(group) == 1:
        result = group[0].result or {}
        return Replicates(group, result.get("value"), result.get("ci95"))
    group = sorted(group, key=lambda record: record.result["seed"])
    results = [record.result for record in group]
    ci95 = max(result["ci95"] for result in results)
    return Replicates(group, *over_seeds(Ours([result["value"] for result in results], ci95, results[0]["num_tasks"])))
