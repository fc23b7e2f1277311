"""Where the time of a training step goes: a profiler trace, summed by operation of the compiled program."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
from jax.profiler import ProfileData, ProfileOptions

from bench import meter
from metarun.errors import MetarunError
from metarun.types import Experiment

_STEPS = 2
_ROWS = 40
# Their time is that of the operations inside, which are listed themselves.
_CONTAINERS = ("while", "call", "conditional")
_CONTROL = ("while", "body", "cond", "closed_call", "shard_map")


class Operation(NamedTuple):
    """What rows are grouped by.

    Attributes:
      kind: name of the operation or fusion without its number, "dot" or "pad_slice_fusion".
      shape: of its result.
      where: JAX's name of it, layer and transformations, without loops and calls.
    """

    kind: str
    shape: str
    where: str


def enable_tracing() -> None:
    """Makes XLA report the operations of CPU programs; before JAX starts."""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_enable_xprof_traceme=true".strip()


def profile(experiment: Experiment, folder: Path) -> str:
    """Traces a few steps into `folder`, for TensorBoard or Perfetto, and returns a Markdown table of operations.

    Raises:
      MetarunError: the trace holds no operation of the step.
    """
    state, _ = jax.block_until_ready(experiment.step(experiment.init(), 1))
    options = ProfileOptions()
    options.python_tracer_level = 0  # the host waits; its events would fill the trace
    with jax.profiler.trace(folder, profiler_options=options):
        jax.block_until_ready(experiment.step(state, _STEPS))
    (program,) = meter.compiled_step().hlo_modules()
    newest = max(folder.rglob("*.xplane.pb"), key=lambda file: file.stat().st_mtime)
    seconds, calls = _sums(_events(newest, program.name), _operations(program.to_string()))
    if not seconds:
        raise MetarunError(f"{newest} holds no operation of {program.name}: is {os.environ.get('XLA_FLAGS')} in force?")
    return _table(seconds, calls, _STEPS * experiment.tasks_per_step)


def _events(file: Path, module: str) -> Iterator[tuple[str, float]]:
    """Yields the name and the seconds of every operation of a program in a trace."""
    for plane in ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            if line.name.startswith("XLA "):  # derived from the other lines
                continue
            for event in line.events:
                stats = dict(event.stats)
                if stats.get("hlo_module") == module and "hlo_op" in stats:
                    yield stats["hlo_op"], event.duration_ns / 1e9


def _operations(program: str) -> dict[str, Operation]:
    """Maps the name of each operation in the text of a compiled program to what it is."""
    found = {}
    for line in program.splitlines():
        definition = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = (\S+?)[{ ]", line)
        if definition:
            name, shape = definition.groups()
            shape = "tuple" if shape.startswith("(") else shape
            path = re.search(r'op_name="([^"]*)"', line)
            parts = path.group(1).split("/")[1:] if path else []
            found[name] = Operation(_kind(name), shape, " ".join(part for part in parts if part not in _CONTROL))
    return found


def _kind(name: str) -> str:
    return re.sub(r"(\.\d+|\.clone)+$", "", name)


def _sums(
    events: Iterator[tuple[str, float]], operations: dict[str, Operation]
) -> tuple[Counter[Operation], Counter[Operation]]:
    """Returns the seconds and the calls of each operation."""
    seconds, calls = Counter(), Counter()
    for name, duration in events:
        operation = operations.get(name, Operation(_kind(name), "", ""))
        if operation.kind not in _CONTAINERS:
            seconds[operation] += duration
            calls[operation] += 1
    return seconds, calls


def _table(seconds: Counter[Operation], calls: Counter[Operation], num_tasks: int) -> str:
    total = sum(seconds.values())
    rows = [
        "| ms a task | share | calls a task | operation | result | where |",
        "| ---: | ---: | ---: | --- | --- | --- |",
        f"| {1000 * total / num_tasks:.2f} | 100.0% | {sum(calls.values()) / num_tasks:.0f} | all | | |",
    ]
    for operation, spent in seconds.most_common(_ROWS):
        per_task, count = 1000 * spent / num_tasks, calls[operation] / num_tasks
        rows.append(f"| {per_task:.2f} | {spent / total:.1%} | {count:.1f} | {' | '.join(operation)} |")
    return "\n".join(rows)
