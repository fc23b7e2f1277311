"""Runs that differ in their seeds alone, taken together."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from metarun.report.collection import Record, setting_of
from metarun.trust.equivalence import Ours, over_seeds


class Replicates(NamedTuple):
    """One or more runs, or evaluations, that differ in the seed alone.

    Attributes:
      records: by seed.
      value: the mean over seeds; of a single one, its own. None where it has not ended or is not finite.
      ci95: half the width of the 95% interval of `value`, over tasks and seeds; of a single one, over tasks.
      sd: the standard deviation over seeds, in the unit of `value`; None of a single one.
    """

    records: Sequence[Record]
    value: float | None
    ci95: float | None
    sd: float | None


def replicates_of(records: Sequence[Record]) -> list[Replicates]:
    """The records, replicates together, in the order of the first of each; what has not ended stays by itself.

    Replicates share all settings that move a number, how far they were trained, by which version, the protocol, and the
    number of test tasks. A seed that comes again is no replicate of itself, and begins others.
    """
    groups: dict[object, list[Record]] = {}
    for place, record in enumerate(records):
        result = record.result
        if result is None or None in (result["value"], result["ci95"]) or not record.settings:
            groups[place] = [record]
            continue
        same: tuple[object, ...]
        same = record.settings, record.evaluation, setting_of(result), result.get("steps"), _version(record)
        same += tuple(result[key] for key in ("method", "metric", "protocol_id", "num_tasks"))
        again = 0
        while any(each.ended["seed"] == result["seed"] for each in groups.get((same, again), ())):
            again += 1
        groups.setdefault((same, again), []).append(record)
    return [_taken(group) for group in groups.values()]


def _version(record: Record) -> str | None:
    """Of metarun alone: those of the libraries, and the device, move a number by rounding, far less than a seed does."""
    return (record.ended.get("versions") or {}).get("metarun")


def _taken(group: Sequence[Record]) -> Replicates:
    if len(group) == 1:
        result = group[0].result or {}
        return Replicates(group, result.get("value"), result.get("ci95"), None)
    group = sorted(group, key=lambda record: record.ended["seed"])
    results = [record.ended for record in group]
    values, ci95 = [result["value"] for result in results], max(result["ci95"] for result in results)
    return Replicates(group, *over_seeds(Ours(values, ci95, results[0]["num_tasks"])), statistics.stdev(values))
