"""Things that are built once and kept in the user's cache directory."""

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from metarun.errors import DataError, MetarunError
from metarun.system.files import canonical_json, json_bytes, one_at_a_time, plain, sync

MANIFEST = "manifest.json"
PARTIAL = ".partial"
# A larger file is not read at every use, which would take as long as training; `metarun-data verify` reads it.
READ_UP_TO = 4 * 10**9


class Entry(NamedTuple):
    """A thing in the cache whose files have been verified.

    Attributes:
      folder: where its files are.
      checksum: SHA-256 over the names and checksums of its files, in hexadecimal.
    """

    folder: Path
    checksum: str


def cache_dir() -> Path:
    """Returns the cache directory; it need not exist.

    `$METARUN_CACHE`, else `$XDG_CACHE_HOME/metarun`, else `~/.cache/metarun` (`~/Library/Caches/metarun` on macOS).

    Raises:
      MetarunError: no variable is set and there is no home directory.
    """
    if own := os.environ.get("METARUN_CACHE"):
        return Path(own).expanduser().absolute()
    # The XDG specification says that a relative path is to be ignored.
    if os.path.isabs(shared := os.environ.get("XDG_CACHE_HOME", "")):
        return Path(shared) / "metarun"
    try:
        home = Path.home()
    except RuntimeError as error:
        raise MetarunError("There is no home directory to cache in. Set METARUN_CACHE to a writable folder.") from error
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "metarun"


def build_once(kind: str, parameters: Mapping[str, Any], build: Callable[[Path], None]) -> Entry:
    """Returns the entry of the cache for `kind` and `parameters`, built first if it is not there.

    Processes that need the same entry at the same time build it once: the others wait. A build that is cut short
    leaves nothing that could be taken for an entry.

    Args:
      kind: what it is, e.g. "glyphs"; the first half of the folder's name.
      parameters: plain values of which the files are a function: settings, checksums of inputs, and versions of the
        libraries that move a byte. Their hash is the second half of the folder's name.
      build: writes the files, none in subfolders, into the empty folder that it is given.

    Raises:
      DataError: a file of the entry is missing, truncated or altered; of a file above `READ_UP_TO` bytes, altered ones
        are not found.
      MetarunError: the cache directory cannot be written.
    """
    folder = cache_dir() / f"{kind}-{hashlib.sha256(canonical_json(parameters).encode()).hexdigest()[:16]}"
    if not folder.exists():
        with _said_plainly(folder.parent), one_at_a_time(folder):
            # Another process may have built it while this one waited for the lock.
            if not folder.exists():
                print(f"Building {kind} in {folder} (once).", file=sys.stderr)
                _build(folder, {"kind": kind, "parameters": plain(parameters)}, build)
    return verified(folder, READ_UP_TO)


def entries() -> list[Path]:
    """The folders of all entries in the cache, by name; whether their files are whole is for `verified` to say."""
    return sorted(path.parent for path in cache_dir().glob(f"*/{MANIFEST}") if not path.parent.name.endswith(PARTIAL))


@contextlib.contextmanager
def _said_plainly(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MetarunError(
            f"Cannot write to the cache directory {directory}: {error.strerror or error}. "
            "Make it writable or free some space, or set METARUN_CACHE to another folder."
        ) from error


def _build(folder: Path, manifest: Mapping[str, Any], build: Callable[[Path], None]) -> None:
    partial = folder.with_name(folder.name + PARTIAL)
    # Left by a process that was killed: whoever holds the lock is the only one to build here.
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        build(partial)
        files = {
            path.name: {"size": path.stat().st_size, "sha256": file_sha256(path)} for path in sorted(partial.iterdir())
        }
        (partial / MANIFEST).write_bytes(json_bytes({**manifest, "files": files}))
        for path in [*partial.iterdir(), partial]:
            sync(path)
        partial.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def verified(folder: Path, up_to: int | None = None) -> Entry:
    """The entry in a folder of the cache, each of its files read and compared with the checksum it was written with.

    Args:
      folder: of the entry.
      up_to: bytes of the largest file to be read; of larger ones, the size alone is compared. None: read all.

    Raises:
      DataError: a file is missing, truncated or altered.
    """

    def broken(name: str, why: str) -> DataError:
        return DataError(f"Cache file {folder / name} {why}. Delete the folder {folder} and run again: it is rebuilt.")

    try:
        files = json.loads((folder / MANIFEST).read_bytes())["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise broken(MANIFEST, "cannot be read") from error
    for name, expected in files.items():
        path = folder / name
        try:
            if (size := path.stat().st_size) != expected["size"]:
                raise broken(name, f"has {size} bytes where {expected['size']} were written")
            if (up_to is None or size <= up_to) and file_sha256(path) != expected["sha256"]:
                raise broken(name, "has been altered: its checksum is not the one it was written with")
        except OSError as error:
            raise broken(name, f"cannot be read: {error.strerror or error}") from error
    listing = "".join(f"{name} {files[name]['sha256']}\n" for name in sorted(files))
    return Entry(folder, hashlib.sha256(listing.encode()).hexdigest())


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
