"""Writing so that a crash, a full disk or a second process loses nothing."""

import contextlib
import errno
import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from metarun.errors import MetarunError

# In a directory that a process writes in: the file that it holds meanwhile.
LOCK = ".lock"


def plain(value: Any) -> Any:
    """Returns `value` as JSON can hold it: arrays and tuples as lists, and null for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def canonical_json(value: Any) -> str:
    """Returns the one JSON text of `value` whatever the order of its keys, to be hashed."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def json_bytes(value: Any) -> bytes:
    """`value` as JSON in UTF-8 with its letters as they are; a byte of a file name that is no UTF-8, as an escape of JSON."""
    # What cannot be encoded is a lone surrogate, whose escape in Python is that of JSON: `json.loads` gives it back.
    return json.dumps(value, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace")


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces `path` by `data`, at once and durably: a reader sees the old file or the whole new one.

    Raises:
      MetarunError: the file cannot be written; the old one is untouched.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()  # of a process that was killed, or a link that somebody has put there
            with os.fdopen(
                os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666), "wb"
            ) as stream:
                stream.write(data)
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_json(path: Path, value: Any) -> None:
    """Replaces `path` by `value` as JSON, as `write_bytes` does.

    Raises:
      MetarunError: the file cannot be written; the old one is untouched.
    """
    write_bytes(path, (json.dumps(plain(value), indent=2, allow_nan=False) + "\n").encode())


def remove(path: Path) -> None:
    """Removes what is at `path`, if anything is: a folder with all in it, or a file or link, but not what that leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until the file or directory `path` is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cannot_write(path: Path, error: Exception, needed: int | None = None) -> MetarunError:
    """Returns the error that tells a user why `path` was not written and what to do.

    Args:
      path: the file or directory.
      error: what went wrong.
      needed: bytes that were to be written, where known.
    """
    # Libraries that write for us pass the system's words on, not its error number.
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error)
    if not full:
        reason = getattr(error, "strerror", None) or str(error)
        return MetarunError(
            f"Cannot write {path}: {reason}. Name another directory (hydra.run.dir=DIR; output=DIR of predictions)."
        )
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    sizes = f"{shutil.disk_usage(existing).free / 1e6:.2f} MB free"
    if needed is not None:
        sizes = f"about {needed / 1e6:.2f} MB needed, {sizes}"
    return MetarunError(
        f"Cannot write {path}: the disk is full ({sizes}). Free some space and give the same "
        f"command: it continues from the newest checkpoint."
    )


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an `OSError` of the body into the `MetarunError` of `cannot_write(path, ...)`."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Waits until no other process is in here with `path`, whose lock is a file beside it that stays, and keeps them out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + LOCK).open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Makes `directory` if need be and holds it for this process; the system lets go of it however the process ends.

    Where the body raises and has written nothing, what holding the directory has put there is taken away again.

    Raises:
      MetarunError: another process holds it, or it cannot be made or written in.
    """
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        before = set(os.listdir(directory))
        # No link is followed, and no pipe waited for.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        stream = os.fdopen(os.open(directory / LOCK, flags, 0o666), "r+b", buffering=0)
    with stream:
        try:
            with writing(directory):
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except MetarunError as error:
            if isinstance(error.__cause__, BlockingIOError):
                raise MetarunError(
                    f"Another process is writing in {directory}: wait for it, or name another directory with "
                    f"hydra.run.dir=DIR."
                ) from None
            raise
        try:
            yield
        except BaseException:
            if set(os.listdir(directory)) - before == {LOCK}:
                (directory / LOCK).unlink()
            raise
