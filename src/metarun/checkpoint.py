"""Checkpoints: a pytree of arrays and some facts in a directory, written whole or not at all, and verified when read.

DIRECTORY/STEP/manifest.json    facts, shapes and types of the leaves, size and SHA-256 of every file
DIRECTORY/STEP/arrays/          the leaves by name, in Orbax's format
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metarun.errors import MetarunError
from metarun.files import cannot_write, canonical_json, plain, sync, write_json

_NUM_KEPT = 2
_WAYS_OUT = "name a new directory with hydra.run.dir=DIR, or give resume=false to replace this run"

# Orbax raises its errors here and logs them with a traceback as well; a user needs one message.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


class Saved(NamedTuple):
    """A checkpoint on disk, found whole.

    Attributes:
      path: its directory.
      step: its step.
      metadata: what `save` was given, as plain JSON values.
      leaves: name -> [shape, dtype] of the state's leaves.
    """

    path: Path
    step: int
    metadata: Mapping[str, Any]
    leaves: Mapping[str, Any]


def save(directory: Path, step: int, state: Any, metadata: Mapping[str, Any]) -> None:
    """Writes `directory/step`, durably and at once, and keeps the one before it.

    Args:
      directory: holds the checkpoints of a run.
      step: names this one.
      state: pytree of JAX or NumPy arrays.
      metadata: facts to keep with it; what JSON can hold.

    Raises:
      MetarunError: it cannot be written, for want of space for example; earlier checkpoints are untouched.
    """
    target, temporary = directory / str(step), directory / f"{step}.tmp"
    leaves = named_leaves(state)
    # Orbax takes no empty arrays; their shape in the manifest says all there is to know.
    arrays = {name: array for name, leaf in leaves.items() if (array := _host_array(leaf)).size}
    try:
        _write(temporary, step, leaves, arrays, metadata)
        if target.exists():  # found damaged earlier, or it would have been resumed from
            shutil.rmtree(target)
        temporary.rename(target)
        sync(directory)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        cause = error.__cause__ if isinstance(error, MetarunError) else error
        if isinstance(cause, (OSError, ValueError)):  # TensorStore reports a full disk as a ValueError
            raise cannot_write(target, cause, sum(array.nbytes for array in arrays.values())) from error
        raise
    # Later steps than this one can only be damaged: the run resumed from before them.
    kept = [older for older in _steps(directory) if older <= step][:_NUM_KEPT]
    for other in set(_steps(directory)).difference(kept):
        shutil.rmtree(directory / str(other))


def newest(directory: Path, say: Callable[[str], object]) -> Saved | None:
    """Returns the newest checkpoint in `directory` whose checksums hold, or None if it holds no checkpoint at all.

    Args:
      directory: where `save` wrote.
      say: told of each damaged checkpoint that is passed over.

    Raises:
      MetarunError: there are checkpoints, but every one is damaged.
    """
    damages = []
    for step in _steps(directory):
        try:
            saved = _verified(directory / str(step))
        except (OSError, ValueError, LookupError, TypeError) as error:
            damages.append(f"Checkpoint {directory / str(step)} is damaged ({error}).")
            continue
        for damage in damages:
            say(f"{damage} Falling back to the one of step {step}.")
        return saved
    if damages:
        raise MetarunError(
            f"No checkpoint in {directory} can be read. {' '.join(damages)} Put one back from a copy; or, to train "
            f"again, {_WAYS_OUT}."
        )
    return None


def load(saved: Saved, template: Any, *, partial: bool = False) -> Any:
    """Returns the arrays of `saved`, bit for bit, in the structure of `template`.

    Args:
      saved: from `newest`.
      template: pytree of arrays; where it has a JAX array, the result has one on the default device.
      partial: whether the checkpoint may hold more than `template`.

    Raises:
      MetarunError: `template` has other leaves, shapes or types: the checkpoint is of another architecture.
    """
    leaves = named_leaves(template)
    here = plain({name: _description(leaf) for name, leaf in leaves.items()})
    there = {name: entry for name, entry in saved.leaves.items() if name in here or not partial}
    differing = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    if differing:
        shown = "; ".join(
            f"{name} is {_in_words(there.get(name))} in the checkpoint and {_in_words(here.get(name))} here"
            for name in differing[:3]
        )
        more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise MetarunError(
            f"Checkpoint {saved.path} is of another architecture: {shown}{more}. Give the settings that it was "
            f"trained with; or, to train anew, {_WAYS_OUT}."
        )
    import orbax.checkpoint as ocp

    stored = [name for name, (shape, _) in saved.leaves.items() if 0 not in shape]
    with _checkpointer() as checkpointer:
        as_numpy = ocp.args.PyTreeRestore(restore_args=dict.fromkeys(stored, ocp.RestoreArgs(restore_type=np.ndarray)))
        arrays = checkpointer.restore(saved.path.absolute() / "arrays", args=as_numpy)
    return jax.tree.unflatten(
        jax.tree.structure(template), [_like(leaf, arrays.get(name)) for name, leaf in leaves.items()]
    )


def remove_leftovers(directory: Path) -> None:
    """Removes what a process that was killed while saving left in `directory`."""
    for path in directory.glob("*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def _checkpointer() -> Any:
    """Orbax's, for this process alone: it would have all that compute together wait for each other.

    It is imported where it is used, which is a second that a user's mistake need not wait for.
    """
    import orbax.checkpoint as ocp

    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
    )
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone)


def _steps(directory: Path) -> list[int]:
    """Returns the steps that have a checkpoint in `directory`, newest first."""
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def _write(
    directory: Path, step: int, leaves: Mapping[str, Any], arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]
) -> None:
    import orbax.checkpoint as ocp

    directory.mkdir(parents=True)
    with _checkpointer() as checkpointer:
        checkpointer.save(directory.absolute() / "arrays", args=ocp.args.PyTreeSave(arrays))
    for path in directory.rglob("*"):
        sync(path)
    content = plain(
        {
            "step": step,
            "metadata": metadata,
            "leaves": {name: _description(leaf) for name, leaf in leaves.items()},
            "files": {name: _fingerprint(directory / name) for name in _files(directory)},
        }
    )
    write_json(directory / "manifest.json", {"sha256": _sha256(canonical_json(content).encode()), **content})


def _verified(path: Path) -> Saved:
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    if manifest.pop("sha256") != _sha256(canonical_json(manifest).encode()):
        raise ValueError("manifest.json does not match its checksum")
    for name, fingerprint in manifest["files"].items():
        if _fingerprint(path / name) != fingerprint:
            raise ValueError(f"{name} does not match its checksum")
    return Saved(path, manifest["step"], manifest["metadata"], manifest["leaves"])


def _files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def _fingerprint(path: Path) -> list[Any]:
    data = path.read_bytes()
    return [len(data), _sha256(data)]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves of `tree` by their path, such as `params/Conv_0/kernel`, in the order of `jax.tree.leaves`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if len(named) < len(leaves):
        raise ValueError("two leaves of the state have the same path: a key of a dict contains a slash")
    return named


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _description(leaf: Any) -> list[Any]:
    return [list(leaf.shape), str(leaf.dtype)]


def _in_words(description: list[Any] | None) -> str:
    return "absent" if description is None else "{} {}".format(*description)


def _host_array(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _like(leaf: Any, array: np.ndarray | None) -> Any:
    if array is None:
        array = np.zeros(leaf.shape, leaf.dtype)
    if _is_key(leaf):
        return jax.random.wrap_key_data(jnp.array(array), impl=jax.random.key_impl(leaf))
    return jnp.array(array) if isinstance(leaf, jax.Array) else array
