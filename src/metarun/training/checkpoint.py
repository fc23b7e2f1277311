"""Checkpoints: a pytree of arrays and some facts in a directory, written whole or not at all, and verified when read.

DIRECTORY/STEP/manifest.json    facts, shapes and types of the leaves, size and SHA-256 of the bytes of each
DIRECTORY/STEP/arrays.bin       those bytes, leaf after leaf

It is a format of its own because what a stranger gives is read here too: the manifest alone says what there is, and nothing
is read that it does not account for. Earlier checkpoints, whose `arrays/` Orbax wrote, are read still.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
import stat
from collections.abc import Callable, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metarun.errors import MetarunError
from metarun.system.files import cannot_write, canonical_json, plain, remove, sync, write_json

_MANIFEST, _ARRAYS, _ORBAX = "manifest.json", "arrays.bin", "arrays"
_NUM_KEPT = 2
_WAYS_OUT = "name a new directory with hydra.run.dir=DIR, or give resume=false to replace this run"
_MOST_FACTS = 2**26  # bytes of a manifest; one of a thousand leaves has a fifth of a million
_BLOCK = 2**20  # bytes that are read at once where they are only compared

# Orbax raises its errors here and logs them with a traceback as well; a user needs one message.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


class Saved(NamedTuple):
    """A checkpoint on disk, found whole.

    Attributes:
      path: its directory.
      step: its step.
      metadata: what `save` was given, as plain JSON values.
      leaves: name -> [shape, dtype] of the state's leaves.
      arrays: name -> [number of bytes, SHA-256] of what is stored of them, in its order; None if Orbax wrote it.
    """

    path: Path
    step: int
    metadata: Mapping[str, Any]
    leaves: Mapping[str, Any]
    arrays: Mapping[str, Any] | None


def save(directory: Path, step: int, state: Any, metadata: Mapping[str, Any]) -> None:
    """Writes `directory/step`, durably and at once, reads it back, and keeps the one before it.

    Args:
      directory: holds the checkpoints of a run.
      step: names this one.
      state: pytree of JAX or NumPy arrays.
      metadata: facts to keep with it; what JSON can hold.

    Raises:
      MetarunError: it cannot be written, for want of space for example, or is not read as it was written; earlier
        checkpoints are untouched.
    """
    target, temporary = directory / str(step), directory / f"{step}.tmp"
    leaves = named_leaves(state)
    arrays = {name: _host_array(leaf) for name, leaf in leaves.items()}
    try:
        _write(temporary, step, leaves, arrays, metadata)
        _read_back(temporary, step)
        if os.path.lexists(target):  # found damaged earlier, or it would have been resumed from
            remove(target)
        temporary.rename(target)
        sync(directory)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        cause = error.__cause__ if isinstance(error, MetarunError) else error
        if isinstance(cause, OSError):
            raise cannot_write(target, cause, sum(array.nbytes for array in arrays.values())) from error
        raise
    # Later steps than this one can only be damaged: the run resumed from before them.
    kept = [older for older in _steps(directory) if older <= step][:_NUM_KEPT]
    for other in set(_steps(directory)).difference(kept):
        remove(directory / str(other))


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
            saved = _verified(directory / str(step), step)
        except (OSError, ValueError, RecursionError) as error:
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


def newest_facts(directory: Path) -> Mapping[str, Any]:
    """Returns the facts that the newest checkpoint in `directory` was saved with, its arrays left unread; {} without one."""
    for step in _steps(directory):
        with contextlib.suppress(OSError, ValueError, RecursionError):
            return _manifest_of(directory / str(step), step)["metadata"]
    return {}


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
    try:
        arrays = (
            _read(saved.path, saved.arrays, leaves)
            if saved.arrays is not None
            else _read_of_orbax(saved, leaves, partial)
        )
    except (OSError, ValueError) as error:
        raise MetarunError(f"Checkpoint {saved.path} cannot be read ({error}).") from error
    return jax.tree.unflatten(
        jax.tree.structure(template), [_like(leaf, arrays[name]) for name, leaf in leaves.items()]
    )


def remove_leftovers(directory: Path) -> None:
    """Removes what a process that was killed while saving left in `directory`."""
    for path in directory.glob("*.tmp"):
        remove(path)


def _steps(directory: Path) -> list[int]:
    """Returns the steps that have a checkpoint in `directory`, newest first."""
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    return sorted((int(name) for name in names if name.isdecimal() and str(int(name)) == name), reverse=True)


def _write(
    directory: Path, step: int, leaves: Mapping[str, Any], arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]
) -> None:
    directory.mkdir(parents=True)
    stored = {}
    with (directory / _ARRAYS).open("wb", buffering=0) as stream:
        for name, array in arrays.items():
            data = rest = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            while rest:
                rest = rest[stream.write(rest) :]
            stored[name] = [len(data), hashlib.sha256(data).hexdigest()]
        os.fsync(stream.fileno())
    content = plain(
        {
            "step": step,
            "metadata": metadata,
            "leaves": {name: _description(leaf) for name, leaf in leaves.items()},
            "arrays": stored,
        }
    )
    write_json(directory / _MANIFEST, {"sha256": _sha256(canonical_json(content).encode()), **content})


def _read_back(path: Path, step: int) -> None:
    """Raises `MetarunError` where the disk does not give what was written."""
    try:
        _verified(path, step)
    except ValueError as error:
        raise MetarunError(
            f"What was written to {path} is not what is read there ({error}): the disk or the memory may be at fault. "
            f"The checkpoint before it is kept."
        ) from error


def _verified(path: Path, step: int) -> Saved:
    """Returns the checkpoint in `path`, whose arrays are there as its manifest says.

    Raises:
      OSError, ValueError, RecursionError: it is damaged.
    """
    manifest = _manifest_of(path, step)
    leaves, arrays = manifest["leaves"], manifest.get("arrays")
    if arrays is None:
        _check_files(path, manifest["files"])
    else:
        with _opened(path / _ARRAYS) as stream:
            if _size(stream) != (expected := sum(size for size, _ in arrays.values())):
                raise ValueError(f"{_ARRAYS} has {_size(stream)} bytes, not {expected}")
            for name, (size, digest) in arrays.items():
                _check_bytes(stream, size, digest, name)
    return Saved(path, step, manifest["metadata"], leaves, arrays)


def _manifest_of(path: Path, step: int) -> dict[str, Any]:
    """Returns what the manifest of the checkpoint in `path` says; raises as `_verified`."""
    if path.is_symlink():
        raise ValueError("it is a link")
    with _opened(path / _MANIFEST) as stream:
        if _size(stream) > _MOST_FACTS:
            raise ValueError(f"{_MANIFEST} has {_size(stream)} bytes, more than {_MOST_FACTS}")
        manifest: Any = json.loads(stream.read())
    manifest = manifest if isinstance(manifest, dict) else {}
    if manifest.pop("sha256", None) != _sha256(canonical_json(manifest).encode()):
        raise ValueError(f"{_MANIFEST} does not match its checksum")
    leaves, metadata, arrays, files = (manifest.get(key) for key in ("leaves", "metadata", "arrays", "files"))
    known = (
        _is_shape([manifest.get("step")])
        and manifest["step"] == step
        and isinstance(metadata, dict)
        and _is_table(leaves, lambda shape, dtype: isinstance(dtype, str) and _is_shape(shape))
        and _is_table(files if arrays is None else arrays, lambda size, digest: _is_shape([size]))
    )
    if not known or (arrays is not None and list(arrays) != list(leaves)):
        raise ValueError(f"{_MANIFEST} is not that of a checkpoint of step {step}")
    return manifest


def _is_table(value: Any, fits: Callable[[Any, Any], bool]) -> bool:
    """Whether `value` is an object of pairs, each of which `fits`."""
    pairs = value.values() if isinstance(value, dict) else [None]
    return all(isinstance(pair, list) and len(pair) == 2 and fits(*pair) for pair in pairs)


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _opened(path: Path) -> BufferedReader:
    """Opens `path` to be read, which has to be a file: no link, nor a pipe that would never end."""
    stream = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise ValueError(f"{path.name} is no file")
    return stream


def _size(stream: BufferedReader) -> int:
    return os.fstat(stream.fileno()).st_size


def _check_bytes(stream: BufferedReader, size: int, digest: str, name: str) -> None:
    """Reads `size` bytes; raises `ValueError` if they are fewer, or have another SHA-256."""
    found = hashlib.sha256()
    while block := stream.read(min(size, _BLOCK)):
        found.update(block)
        size -= len(block)
    if size or found.hexdigest() != digest:
        raise ValueError(f"{name} does not match its checksum")


def _read(path: Path, arrays: Mapping[str, Any], leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Reads what is stored of `leaves`, whose shapes and types are those of the checkpoint; `arrays` as in `Saved`."""
    found, begin = {}, 0
    with _opened(path / _ARRAYS) as stream:
        for name, (size, digest) in arrays.items():
            if name in leaves:
                stored = _stored(leaves[name])
                if size != math.prod(stored.shape) * stored.dtype.itemsize:
                    raise ValueError(f"{name} has {size} bytes, which are not those of its shape and type")
                data = bytearray(size)
                stream.seek(begin)
                if stream.readinto(data) != size or _sha256(data) != digest:
                    raise ValueError(f"{name} does not match its checksum")
                found[name] = np.frombuffer(data, stored.dtype).reshape(stored.shape)
            begin += size
    return found


def _check_files(path: Path, files: Mapping[str, Any]) -> None:
    """Raises `OSError` or `ValueError` unless the files that Orbax wrote are there, and nothing that leads elsewhere."""
    for each in path.rglob("*"):
        if each.is_symlink() or not (each.is_dir() or each.is_file()):
            raise ValueError(f"{each.relative_to(path)} is neither a file nor a directory")
    for name, (size, digest) in files.items():
        if os.path.isabs(name) or ".." in Path(name).parts:
            raise ValueError(f"{name} is not in its directory")
        with _opened(path / name) as stream:
            if _size(stream) != size:
                raise ValueError(f"{name} does not match its checksum")
            _check_bytes(stream, size, digest, name)


def _read_of_orbax(saved: Saved, leaves: Mapping[str, Any], partial: bool) -> dict[str, np.ndarray]:
    """Reads what Orbax has stored of `leaves`, `partial` being whether there are others; empty arrays it does not store.

    It is imported where it is used, which is a second that others need not wait for; and told to be alone, for it would
    have all processes that compute together wait for each other.
    """
    import orbax.checkpoint as ocp

    me, place = jax.process_index(), saved.path.absolute() / _ORBAX
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    wanted = {name: _stored(leaf) for name, leaf in leaves.items() if 0 not in leaf.shape}
    as_numpy = ocp.args.PyTreeRestore(
        item=wanted,
        restore_args=dict.fromkeys(wanted, ocp.RestoreArgs(restore_type=np.ndarray)),
        partial_restore=partial,
    )
    try:
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            there = checkpointer.metadata(place).item_metadata.tree
            for name, stored in wanted.items():
                entry = there[name]
                whole = (tuple(entry.shape), np.dtype(entry.dtype)) == (stored.shape, stored.dtype)
                if not whole or math.prod(entry.storage.chunk_shape) > math.prod(stored.shape):
                    raise ValueError(f"{name} is not stored with the shape and type of the manifest")
            found = checkpointer.restore(place, args=as_numpy)
    except Exception as error:  # of whatever kind: what it reads may come from a stranger
        raise ValueError(str(error).partition("\n")[0]) from error
    return {name: found.get(name, np.zeros(leaf.shape, _stored(leaf).dtype)) for name, leaf in leaves.items()}


def _sha256(data: bytes | bytearray) -> str:
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


def _stored(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape and type of the `_host_array` of a leaf."""
    if _is_key(leaf):
        return jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _like(leaf: Any, array: np.ndarray) -> Any:
    if _is_key(leaf):
        return jax.random.wrap_key_data(jnp.array(array), impl=jax.random.key_impl(leaf))
    return jnp.array(array) if isinstance(leaf, jax.Array) else array
