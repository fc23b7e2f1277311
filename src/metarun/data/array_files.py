"""Arrays of one's own in files of NumPy's: read as data, never as code, and mapped into memory where they are large."""

import contextlib
import hashlib
import math
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from metarun.data.class_split import SPLITS
from metarun.errors import ConfigError, DataError, some

# Bytes from which on an array is mapped from a file.
LARGE = 2**26
NUMBERS = "biuf"  # kinds of NumPy's types: booleans, whole numbers with and without sign, floats
NAMES = "iuUS"  # of what names a class: whole numbers and text
_KINDS = {"b": "booleans", "c": "complex numbers", "V": "records", "M": "dates", "m": "times", "f": "floats"}
_PICKLE = b"\x80"  # with which one of protocol 2 or later begins
_HEADERS: Mapping[tuple[int, int], Callable[[Any], tuple[Any, bool, np.dtype]]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
FORMS = "a file FILE.npz with x and y, a folder with x.npy and y.npy, or a folder with such a train, val and test"


class Header(NamedTuple):
    """What the file of an array says of it before its numbers.

    Attributes:
      shape, dtype: of the array.
      start: the place of its first number in the file.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    start: int


class _Member(NamedTuple):
    """The file of one array: its size in bytes, and what opens it."""

    size: int
    opened: Callable[[], IO[bytes]]


def places_of(key: str, value: object) -> dict[str, Path]:
    """Where the arrays are that a key of the command line names.

    Returns:
      split -> a .npz file or a folder of .npy files; one place of the name "" where the splits are not apart.

    Raises:
      ConfigError: it names nothing of the kind.
    """
    if isinstance(value, str):
        path = Path(os.path.expanduser(value))
        if holds_arrays(path):
            return {"": path}
        found = {
            split: place for split in SPLITS for place in (path / f"{split}.npz", path / split) if os.path.exists(place)
        }
        if {"train", "test"} <= set(found) and all(map(holds_arrays, found.values())):
            return found
    raise ConfigError(key, value, FORMS)


def holds_arrays(path: Path) -> bool:
    """Whether it is a .npz file, or a folder with x.npy."""
    # Unlike those of Path, these functions raise nothing where a name is too long.
    if os.path.isdir(path):
        return os.path.isfile(path / "x.npy")
    return path.suffix == ".npz" and os.path.isfile(path)


def state_of(places: Mapping[str, Path]) -> str:
    """What tells one state of the files from another without reading them: of their names, sizes and times."""
    digest = hashlib.sha256()
    for split, place in places.items():
        for file in sorted(place.glob("*.npy")) if place.is_dir() else [place]:
            found = file.stat()
            digest.update(f"{split}\0{file.name}\0{found.st_size}\0{found.st_mtime_ns}\n".encode(errors="replace"))
    return digest.hexdigest()


def read(
    place: Path, wanted: Mapping[str, str], optional: Collection[str] = (), scratch: Path | None = None
) -> dict[str, np.ndarray]:
    """Reads arrays of numbers and of text. What else is in the files is not read; a pickle anywhere is an error.

    Args:
      place: a .npz file or a folder of .npy files.
      wanted: name -> the kinds of NumPy's types that it may have, such as `NUMBERS`.
      optional: names that may be missing.
      scratch: a folder for copies of large arrays of a .npz file, which cannot be mapped from it; None: they are read.

    Returns:
      name -> the array, all with the same number of rows, at least one; large ones are mapped.

    Raises:
      DataError: an array is missing, broken, of another kind, empty, or of another length than the first.
    """
    with _refused(place), _members(place) as members:
        headers = {name: _header(place, name, member) for name, member in members.items()}
        if missing := [name for name in wanted if name not in members and name not in optional]:
            raise DataError(f"{place} has no {some(missing)}: it has {some(sorted(members)) or 'no arrays'}.")
        found = {}
        for name, kinds in wanted.items():
            if name in members:
                _check_kind(place, name, headers[name].dtype, kinds)
                found[name] = _array(place, name, members[name], headers[name], scratch)
    lengths = {name: len(array) if array.ndim else None for name, array in found.items()}
    if None in lengths.values():
        alone = [name for name, length in lengths.items() if length is None]
        raise DataError(f"{some(alone)} of {place} is a single value: expected one for each example.")
    if len(set(lengths.values())) > 1:
        each = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise DataError(f"The arrays of {place} are not equally long: {each} rows.")
    if 0 in lengths.values():
        raise DataError(f"The arrays of {place} have no rows.")
    return found


def numbers(place: Path, name: str, array: np.ndarray) -> np.ndarray:
    """The array as `[n, *feature]`, of which every number is one of float32.

    Raises:
      DataError: it has no numbers, or one that is not finite; it says in which row.
    """
    array = array if array.ndim > 1 else array[:, None]
    if not math.prod(array.shape[1:]):
        raise DataError(f"{name} of {place} has shape {list(array.shape)}: a row has no numbers.")
    if array.dtype.kind != "f":
        return array
    wrong = np.concatenate([~_finite(block) for block in _blocks(array)])
    if wrong.any():
        raise DataError(
            f"{name} of {place} has NaN, infinity, or a number that float32 has no room for in {wrong.sum():,} of "
            f"{len(wrong):,} rows, the first in row {wrong.argmax()} (counted from 0). Leave these rows out, or fill in."
        )
    return array


def text_of(place: Path, name: str, array: np.ndarray) -> np.ndarray:
    """The array of names, `[n]`: text where it is bytes, numbers as they are.

    Raises:
      DataError: it has more than one axis, or bytes that are no UTF-8.
    """
    if array.ndim != 1:
        raise DataError(f"{name} of {place} has shape {list(array.shape)}: expected [n], one for each example.")
    if array.dtype.kind == "S":
        try:
            return np.char.decode(array, "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{name} of {place} has bytes that are no text in UTF-8: {error}.") from error
    return array


def _finite(block: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.asarray(np.isfinite(block.astype(np.float32)).reshape(len(block), -1).all(1))


def _blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    rows = max(1, LARGE // max(array[:1].nbytes, 1))
    return (array[start : start + rows] for start in range(0, len(array), rows))


@contextlib.contextmanager
def _refused(place: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{place} cannot be read as arrays of NumPy's: {error}.") from error


@contextlib.contextmanager
def _members(place: Path) -> Iterator[dict[str, _Member]]:
    if place.is_dir():
        files = [file for file in sorted(place.glob("*.npy")) if file.is_file()]
        yield {file.stem: _Member(file.stat().st_size, partial(_opened, file)) for file in files}
        return
    with open(place, "rb") as file:
        if file.read(1) == _PICKLE:
            raise DataError(f"{place} is a pickle, which may run code when it is read. Save it by np.savez.")
    if not zipfile.is_zipfile(place):
        raise DataError(f"{place} is no .npz file: save it by np.savez(FILE, x=..., y=...).")
    with zipfile.ZipFile(place) as archive:
        infos = {info.filename: info for info in archive.infolist() if not info.is_dir()}
        if others := [name for name in infos if not name.endswith(".npy")]:
            raise DataError(f"{place} holds {some(others)}, which is no array: save it by np.savez.")
        yield {
            name.removesuffix(".npy"): _Member(info.file_size, partial(archive.open, info))
            for name, info in infos.items()
        }


def _opened(file: Path) -> IO[bytes]:
    return open(file, "rb")


def _header(place: Path, name: str, member: _Member) -> Header:
    with member.opened() as file:
        beginning = file.read(1)
    if beginning == _PICKLE:
        raise DataError(f"{name} of {place} is a pickle, which may run code when it is read. Save it by np.save.")
    with member.opened() as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:  # 3.0 is of records alone
            raise DataError(f"{name} of {place} has records: expected numbers or text.")
        shape, _, dtype = _HEADERS[version](file)
        start = file.tell()
    if dtype.hasobject:
        raise DataError(
            f"{name} of {place} holds Python objects, a pickle, which may run code when it is read. Save numbers, or text "
            "by array.astype(str)."
        )
    if member.size != start + math.prod(shape) * dtype.itemsize:
        raise DataError(f"{name} of {place} is broken: it says that it has shape {list(shape)}, and its file has not.")
    return Header(shape, dtype, start)


def _check_kind(place: Path, name: str, dtype: np.dtype, kinds: str) -> None:
    if dtype.kind not in kinds:
        expected = "numbers" if kinds == NUMBERS else "whole numbers or text"
        if "f" in kinds and "U" in kinds:
            expected = "numbers or text"
        found = _KINDS.get(dtype.kind, "text" if dtype.kind in "US" else "another type")
        raise DataError(f"{name} of {place} has {found} ({dtype}): expected {expected}.")


def _array(place: Path, name: str, member: _Member, header: Header, scratch: Path | None) -> np.ndarray:
    large = member.size >= LARGE
    if large and place.is_dir():
        return np.load(place / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    if large and scratch is not None:
        copy = scratch / f"{place.stem}.{name}.npy"
        with member.opened() as file, open(copy, "wb") as to:
            shutil.copyfileobj(file, to, 2**20)
        mapped = np.load(copy, mmap_mode="r", allow_pickle=False)
        copy.unlink()  # its pages stay until the array is let go of
        return mapped
    with member.opened() as file:
        return np.lib.format.read_array(file, allow_pickle=False)
