"""Work for `torch_workloads.py`, the peer in PyTorch: what it reads, how it is called, and whether it computes the same."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from metarun.errors import MetarunError
from metarun.types import Params, Task

_TOLERANCE = {"float32": 1e-3}  # of the first loss, relative
_COARSE = 5e-2


def write(folder: Path, settings: Mapping[str, Any], params: Params, tasks: Sequence[Task]) -> None:
    """Writes settings, initial parameters and tasks of one size into a folder."""
    np.savez(folder / "start.npz", **{name: np.asarray(leaf) for name, leaf in flatten_dict(params, sep="/").items()})
    parts = {
        f"{part}_{array}": np.stack([np.asarray(getattr(getattr(task, part), array)) for task in tasks])
        for part in ("support", "query")
        for array in ("x", "y")
    }
    np.savez(folder / "tasks.npz", **parts)
    (folder / "settings.json").write_text(json.dumps(settings))


def commands(
    python: str, folder: Path, method: str, seconds: float, precision: str = "float32"
) -> dict[str, list[str]]:
    """The commands that measure the work of a folder in PyTorch, by the form in which they compute it."""
    script = str(Path(__file__).with_name("torch_workloads.py"))
    return {
        mode: [python, script, str(folder), "--mode", mode, "--seconds", str(seconds), "--precision", precision]
        for mode in ["contiguous", "channels_last"] + ["vmap"] * (method == "maml")
    }


def check_same(ours: float, theirs: float, precision: str = "float32") -> None:
    """Raises `MetarunError` where the loss of the first task says that the peer computes something else.

    With channels last, gradients of PyTorch 2.13 are off by 2%, which inner steps carry into the loss.
    """
    if abs(theirs - ours) > _TOLERANCE.get(precision, _COARSE) * abs(ours):
        raise MetarunError(f"the first loss is {theirs:g}, and {ours:g} here")
