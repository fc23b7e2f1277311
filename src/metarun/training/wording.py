"""What a run says of itself on the terminal: its form, what it takes, and the numbers of a step."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from metarun.compiled.memory import in_words
from metarun.errors import MetarunError
from metarun.trust.equivalence import interval_said
from metarun.types import Experiment, Plan


def summary(
    experiment: Experiment,
    rate: float | None,
    train: Mapping[str, float],
    val: Mapping[str, float],
    best: Sequence[Mapping[str, Any]],
) -> str:
    """Returns the numbers of a step in one line."""
    parts = [] if rate is None else [f"{rate:.0f} tasks/s"]
    parts += [
        f"{name} {train[name]:.4g}"
        for name in ("loss", f"query/{experiment.metric}", experiment.metric)
        if name in train
    ]
    if val:
        parts.append(f"val {val[f'val/{experiment.metric}']:.4g}{interval_said(val['val/ci95'], '.2g')}")
    if best:
        parts.append(f"best val {best[0]['value']:.4g} at {best[0]['step']}")
    return "  ".join(parts)


def form(plan: Plan) -> str:
    """Returns how a plan computes, which decides a run's numbers to the last bit."""
    if plan.chunk == 1:
        how = "one at a time"
    else:
        how = "all at once" if plan.chunk >= plan.tasks else f"{plan.chunk} at once"
    devices = f"{plan.devices} device{'s' * (plan.devices > 1)}"
    tasks = f"{plan.tasks} task{'s' * (plan.tasks > 1)}"
    work = f"{tasks}, each by {devices} together" if plan.together else f"{devices} x {tasks}, {how}"
    streams = "images streamed from the host" * plan.streams
    return "; ".join(filter(None, [work, plan.variant, streams]))


def needs(plan: Plan) -> str:
    """Returns what a plan takes of memory and of time."""
    of = "" if plan.bytes_available is None else f" of {in_words(plan.bytes_available)}"
    return f"{in_words(plan.bytes_predicted)}{of} a device; compiled in {plan.compile_seconds:.1f} s"


@contextlib.contextmanager
def memory_named(plan: Plan) -> Iterator[None]:
    """Has running out of memory say what was planned, and what to lower."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        had = "an unknown number" if plan.bytes_available is None else in_words(plan.bytes_available)
        raise MetarunError(
            f"A device ran out of memory. A training step was predicted to take {in_words(plan.bytes_predicted)}, and "
            f"{had} were available at the start; something else may have taken them since. Give memory.limit=SIZE, lower "
            f"than that, so that fewer tasks are computed at once; or lower memory.chunk ({plan.chunk} now), "
            f"meta_batch_size or the size of the model. The same command continues from the newest checkpoint."
        ) from error
