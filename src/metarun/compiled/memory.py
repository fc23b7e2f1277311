"""What a compiled program takes of a device's memory, what the device has, and the fastest program that fits.

`outer_loop` asks for it. The variants and the chunks that it chooses from are those that `memory.remat` and `memory.chunk` leave:
`assembly.few_shot_run` and `assembly.run_parts` make them.
"""

import ctypes
import gc
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from metarun.errors import ConfigError, MetarunError
from metarun.system.several_processes import smallest

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
# Of cgroups, version 2 and 1: where they are mounted, and the files with the limit, the use, and of that the page
# cache that the kernel gives back when asked.
_CGROUPS = {
    "": ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


class Fit(NamedTuple):
    """A program that fits.

    Attributes:
      program: the compiled program.
      variant, chunk: of which it was compiled.
      predicted: bytes that it takes on a device.
      compile_seconds: spent on it and on those that did not fit.
    """

    program: Any
    variant: str
    chunk: int
    predicted: int
    compile_seconds: float


def parse_limit(value: object) -> int | None:
    """Returns the bytes of a `memory.limit` such as "8GB", "500 MB" or 2000000; None for none.

    Raises:
      ConfigError: for anything else. A kB is 1000 bytes.
    """
    if value is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B)?", str(value).strip(), re.IGNORECASE)
    limit = int(float(match.group(1)) * _UNITS[(match.group(2) or "").upper().removeprefix("B")]) if match else 0
    if limit < 1:
        raise ConfigError("memory.limit", value, "a size such as 8GB or 500MB, a number of bytes, or null")
    return limit


def available(devices: Sequence[jax.Device], limit: int | None = None, root: Path = Path("/")) -> int | None:
    """Returns the bytes that a program may take on each of `devices`, or None if nothing says.

    The least of `limit` and of what is free: on an accelerator by its own account; on a CPU, whose devices share it
    evenly, by the kernel's and the control groups' (by the size of the machine where there is neither, as on macOS).

    Args:
      devices: of one kind; those of other processes are left to them.
      limit: bytes of a device.
      root: of the file system.
    """
    devices = [device for device in devices if device.process_index == jax.process_index()]
    if devices[0].platform == "cpu":
        free = [free // len(devices) for free in _free_on_host(root)]
    else:
        stats = [device.memory_stats() or {} for device in devices]
        free = [s["bytes_limit"] - s.get("bytes_in_use", 0) for s in stats if "bytes_limit" in s]
    least = min([*free, *([] if limit is None else [limit])], default=None)
    return least if least is None else smallest(least)  # so that all processes choose the same program


def predicted(program: Any) -> tuple[int, int]:
    """Returns the bytes that a compiled program takes on each device: those of its arrays and code, and temporary ones.

    Source: XLA's buffer assignment; under SPMD it is of the program of one device.
    """
    analysis = program.memory_analysis()
    arrays = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return arrays + analysis.generated_code_size_in_bytes, analysis.temp_size_in_bytes


def fastest_that_fits(
    compile_fn: Callable[[str, int], Any],
    variants: Sequence[str],
    chunks: Sequence[int],
    bytes_available: int | None,
    arguments: Any = (),
) -> Fit:
    """Compiles candidates from the fastest to the most frugal, until one fits.

    Every variant is tried in chunks of falling size. Temporaries grow with the chunk and at most in proportion, so
    chunks that would not fit by that measure are passed over, but for the smallest: a compilation takes many seconds.

    Args:
      compile_fn: `(variant, chunk) -> compiled program`.
      variants: fastest first.
      chunks: sizes, largest first.
      bytes_available: on a device; None: everything fits.
      arguments: shapes of what every program is called with; where these alone do not fit, nothing is compiled.

    Raises:
      MetarunError: nothing fits.
    """
    began, needs = time.perf_counter(), []
    most = sys.maxsize if bytes_available is None else bytes_available
    called_with = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arguments))
    if called_with > most:
        raise MetarunError(
            f"A training step does not fit in memory: its parameters, the optimiser's state and the data alone take "
            f"{in_words(called_with)} of a device, and {in_words(most)} are available. Raise memory.limit if "
            f"it is what binds; or lower the size of the model, or give memory.stream=true for large images."
        )
    for variant in variants:
        left = list(chunks)
        while left:
            chunk, *left = left
            program = compile_fn(variant, chunk)
            fixed, temporary = predicted(program)
            if fixed + temporary <= most:
                _give_back_freed()
                return Fit(program, variant, chunk, fixed + temporary, time.perf_counter() - began)
            needs.append(fixed + temporary)
            left = [c for c in left if fixed + temporary * c // chunk <= most] or left[-1:]
    raise MetarunError(
        f"A training step does not fit in memory: in its most frugal form it takes {in_words(min(needs))} of a device "
        f"by prediction, and {in_words(most)} are available. Raise memory.limit if it is what binds; lower "
        f"method.inner_steps, query_shot, way or the size of the model; with memory.chunk=auto and memory.remat=auto "
        f"all forms are tried."
    )


def in_words(size: int) -> str:
    """Returns a size in bytes as one reads it: three digits and a unit."""
    for unit, factor in reversed(_UNITS.items()):
        if size >= factor:
            return f"{float(f'{size / factor:.3g}'):g} {unit or 'bytes'}"
    return "0 bytes"


def _free_on_host(root: Path) -> Iterator[int]:
    """Yields every account of how many bytes this process may yet take."""
    known = False
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            known = True
            yield int(line.split()[1]) * 1024
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        for controller, (mount, limit, use, reclaimable) in _CGROUPS.items():
            if controller in controllers.split(","):
                # A group is bound by its ancestors' limits too; in a container its path may lie outside of the mount.
                group = root / mount / path.strip("/")
                for folder in (group, *group.parents[: len(Path(path).parts) - 1]):
                    bound, used = (next(iter(_lines(folder / name)), "") for name in (limit, use))
                    if bound.isdecimal() and used.isdecimal():
                        cache = [
                            line.split()[1]
                            for line in _lines(folder / "memory.stat")
                            if line.startswith(f"{reclaimable} ")
                        ]
                        yield max(0, int(bound) - int(used) + int(cache[0] if cache else 0))
    if not known and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _give_back_freed() -> None:
    """Returns to the system what tracing and compiling have freed; glibc would keep it for the life of the process."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
