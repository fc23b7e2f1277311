"""Pictures in a folder or in zip archives, and how one becomes an array. Files may be anybody's and are not trusted."""

import functools
import hashlib
import os
import stat
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from metarun.data.decoding import WORKERS, PictureError, Range, RangeError, decode, extent
from metarun.errors import ConfigError, DataError, one_of, shown, some

MAX_BYTES = 200_000_000
AT_ONCE = 256  # files that are read ahead: what bounds the memory that they take
LINKS = ("inside", "follow")  # which links to folders are followed
MAX_LINKS = 100_000


def checked_folder(key: str, value: object, wanted: str) -> Path:
    """Returns the folder that `value` names; raises `ConfigError`, which says what is `wanted`, where there is none."""
    # Unlike those of Path, these functions of a name raise nothing where it is too long or of an unknown user.
    if isinstance(value, str) and os.path.isdir(folder := os.path.expanduser(value)):
        return Path(folder)
    raise ConfigError(key, value, wanted)


def say_shortfall(name: str, have: Mapping[str, int], published: Mapping[str, int]) -> None:
    """Says how many images of a data set a user's copy lacks, split by split; nothing of a split that is whole."""
    for split, number in published.items():
        if have[split] != number:
            print(f"{name}'s {split} has {have[split]:,} of its {number:,} images in your copy.", file=sys.stderr)


class Entry(NamedTuple):
    """A file of a source.

    Attributes:
      path: relative to the source, "/" between its parts.
      read: returns its bytes; raises `PictureError`.
      unusable: why it is known beforehand that it cannot be read; "" where it is not.
    """

    path: PurePosixPath
    read: Callable[[], bytes]
    unusable: str = ""


def in_folder(root: Path, *, links: str = "inside", key: str = "dataset.links") -> Iterator[Entry]:
    """The files under a folder, by path, hidden ones left out.

    Links to folders are followed, and may give a folder several names. What cannot be followed, and a folder that
    cannot be read, is an entry whose reading says why: a link to a folder that it is in, or to nothing.

    Args:
      root: the folder, which may be a link itself.
      links: "inside" follows links that stay within the folder: one that leads out to a folder is an error, for a class
        may be behind it, and reading one that leads out to a file raises `PictureError`; "follow" follows all.
      key: what sets `links`, for an error.

    Raises:
      ConfigError: `links` is neither.
      DataError: links lead out of the folder, or are too many.
    """
    one_of(key, links, LINKS)
    listing = _Listing(root.resolve(), everywhere=links == "follow")
    listing.walk(root)
    if listing.outside:
        raise DataError(
            f"{root} has {len(listing.outside)} links to folders that lead out of it: {some(sorted(listing.outside))}. "
            f"They are not followed unless you set {key}=follow. Or put the folders themselves in their place."
        )
    advice = f"a link that leads out of {root}, which {key}=follow would follow"
    for relative, unusable in sorted(listing.found.items(), key=lambda found: found[0].parts):
        read = functools.partial(_read, root / relative, None if links == "follow" else listing.home, unusable, advice)
        yield Entry(relative, read, unusable)


class _Listing:
    """The files under a folder as they are found.

    Attributes:
      home: the folder itself, links resolved.
      found: relative path -> why it cannot be used, or "".
      outside: relative paths of links to folders that lead out of `home` and may not.
    """

    def __init__(self, home: Path, everywhere: bool):
        self.home, self._everywhere = home, everywhere
        self.found: dict[PurePosixPath, str] = {}
        self.outside: list[str] = []
        self._links = 0

    def walk(self, root: Path) -> None:
        """Adds what is under `root`."""
        pending: list[tuple[Path, PurePosixPath, tuple[str, ...]]] = [(root, PurePosixPath(), ())]
        while pending:
            folder, relative, above = pending.pop()
            here = (*above, os.path.realpath(folder))  # the folder and those that it is in, links resolved
            try:
                with os.scandir(folder) as listed:
                    entries = [entry for entry in listed if not _hidden(relative / entry.name)]
            except OSError as error:
                self.found[relative] = f"a folder that cannot be read: {error.strerror or error}"
                continue
            for entry in entries:
                path = relative / entry.name
                if self._leads_to_folder(entry, path, here) if entry.is_symlink() else entry.is_dir():
                    pending.append((folder / entry.name, path, here))
                elif not entry.is_symlink():
                    self.found[path] = ""

    def _leads_to_folder(self, link: os.DirEntry[str], path: PurePosixPath, here: Sequence[str]) -> bool:
        """Whether a link leads to a folder that is to be listed; any other is added as what it is."""
        target = os.path.realpath(link)
        if not os.path.isdir(target):
            self.found[path] = "" if os.path.exists(target) else "a link to nothing: No such file or directory"
        elif target in here:
            self.found[path] = "a link to a folder that it is in"
        elif not self._everywhere and not Path(target).is_relative_to(self.home):
            self.outside.append(str(path))
        else:
            # Links to folders of links, each twice, would double what there is at every turn.
            self._links += 1
            if self._links > MAX_LINKS:
                raise DataError(
                    f"{self.home} has more than {MAX_LINKS:,} links to folders, counted by all their names."
                )
            return True
        return False


def _read(path: Path, home: Path | None, unusable: str, advice: str) -> bytes:
    """The bytes of a file that lies, links resolved, in `home`, or anywhere if that is None."""
    if unusable:
        raise PictureError(unusable)
    if home is not None and not path.resolve().is_relative_to(home):
        raise PictureError(advice)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
            raise PictureError("neither a file nor a folder")
        if status.st_size > MAX_BYTES:
            raise PictureError(f"larger than {MAX_BYTES:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise PictureError(error.strerror or str(error)) from error


def refuse_one_folder_twice(root: Path, names: Iterable[str]) -> None:
    """Raises `DataError` where two classes are one folder, by a link: a picture would be of two classes."""
    first: dict[tuple[int, int], str] = {}
    for name in sorted(names):
        status = (root / name).stat()
        other = first.setdefault((status.st_dev, status.st_ino), name)
        if other != name:
            raise DataError(
                f"{shown(other)} and {shown(name)} of {root} are one folder, by a link, and would be two classes of the "
                "same pictures. Remove one of them."
            )


def fingerprint(root: Path, files: Iterable[Entry]) -> str:
    """What tells one state of a folder from another without reading its files: of their names, sizes and times."""
    digest = hashlib.sha256()
    for file in files:
        path = root / file.path
        found = path.stat() if path.exists() else path.lstat()
        digest.update(f"{file.path}\0{found.st_size}\0{found.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def in_zips(archives: Sequence[Path]) -> Iterator[Entry]:
    """The files in zip archives, which are read in place and not unpacked.

    Raises:
      DataError: an archive cannot be read, or has a name that leads out of it.
    """
    for archive in archives:
        try:
            opened = zipfile.ZipFile(archive)
        except (zipfile.BadZipFile, struct.error, OSError, ValueError) as error:
            raise DataError(f"{archive} is no zip archive that can be read: {error}. Get it again.") from error
        # It stays open for as long as an entry wants to be read from it.
        for info in sorted(opened.infolist(), key=lambda info: info.filename):
            path = PurePosixPath(info.filename.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts:
                raise DataError(f"{archive} names {info.filename!r}, outside of it. It is not to be trusted.")
            if not info.is_dir() and not _hidden(path):
                yield Entry(path, functools.partial(_unzipped, opened, info))


def _unzipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if stat.S_ISLNK(info.external_attr >> 16):
        raise PictureError("a link, which in an archive is not followed")
    if info.file_size > MAX_BYTES:
        raise PictureError(f"unpacks to {info.file_size:,} bytes, more than {MAX_BYTES:,}")
    try:
        # The size that an archive states may be a lie: no more than that is ever unpacked.
        with archive.open(info) as file:
            return file.read(MAX_BYTES + 1)[: info.file_size]
    # What zipfile raises depends on which byte is wrong.
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise PictureError(f"cannot be unpacked: {error}") from error


def _hidden(path: PurePosixPath) -> bool:
    return "__MACOSX" in path.parts or any(part.startswith(".") for part in path.parts)


def read_all(
    files: Sequence[Entry],
    size: tuple[int, int, int],
    left_out: dict[str, str],
    span: Range = None,
    told: dict[str, str] | None = None,
) -> Iterator[tuple[PurePosixPath, np.ndarray]]:
    """Yields path and picture of the files, in their order.

    Args:
      files: of a source.
      size: height, width and channels that pictures are brought to, see `decode`.
      left_out: gets those that are no pictures, and broken ones: path -> why.
      span: of grey pictures of more than 8 bits, see `decode`.
      told: gets what a user should know of those that can be used: path -> what.

    Raises:
      RangeError: nothing says what is black and what is white in a file, which the message names.
    """
    told = {} if told is None else told

    def read(file: Entry) -> np.ndarray | None:
        try:
            return decode(file.read(), *size, span, lambda said: told.update({str(file.path): said}))
        except RangeError as error:
            raise RangeError(f"{file.path}: {error}", error.such_as) from error
        except PictureError as error:
            left_out[str(file.path)] = str(error)
            return None

    with ThreadPoolExecutor(WORKERS) as pool:
        for start in range(0, len(files), AT_ONCE):
            ahead = files[start : start + AT_ONCE]
            for file, image in zip(ahead, pool.map(read, ahead), strict=True):
                if image is not None:
                    yield file.path, image


def read_classes(
    files: Sequence[Entry],
    size: tuple[int, int, int],
    left_out: dict[str, str],
    span: Range = None,
    told: dict[str, str] | None = None,
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the classes, each folder with pictures being one: its path, and `[count, height, width, channel]` uint8.

    Args:
      files: of a source.
      size, left_out, span, told: as in `read_all`.

    Raises:
      RangeError: as `read_all`.
    """
    outside = [file for file in files if file.path.parent == PurePosixPath(".")]
    left_out |= {str(file.path): file.unusable or "in no class's folder" for file in outside}
    inside = [file for file in files if file.path.parent != PurePosixPath(".")]
    inside.sort(key=lambda file: (str(file.path.parent), file.path.name))
    found = read_all(inside, size, left_out, span, told)
    for name, members in groupby(found, key=lambda found: str(found[0].parent)):
        yield name, np.stack([image for _, image in members])


def range_of(reads: Iterable[Callable[[], bytes]]) -> tuple[float, float] | None:
    """The least and the greatest value of all grey pictures of more than 8 bits; None where there are none.

    Args:
      reads: each returns the bytes of a file; those that are no pictures, and broken ones, count for nothing.

    Raises:
      DataError: all values are equal.
    """

    def found(read: Callable[[], bytes]) -> tuple[float, float] | None:
        try:
            return extent(read())
        except PictureError:
            return None

    with ThreadPoolExecutor(WORKERS) as pool:
        extents = [each for each in pool.map(found, reads) if each is not None]
    if not extents:
        return None
    least, greatest = min(low for low, _ in extents), max(high for _, high in extents)
    if least == greatest:
        raise DataError(f"All grey pictures of more than 8 bits are blank: every value is {least:g}.")
    return least, greatest


def range_in_words(error: RangeError) -> str:
    """What a user can do about a file of a data set that has the key `dataset.range`, and why."""
    return (
        f"{error}. Say it by dataset.range: what is black and what is white, such as 'dataset.range={error.such_as}'; "
        "or file, the least and the greatest value of each file; or set, those of all files."
    )


def told_in_words(root: Path, told: Mapping[str, str]) -> Iterator[str]:
    """Says, for each thing that is to be told, of which files under `root`."""
    for said in sorted(set(told.values())):
        names = sorted(name for name, its in told.items() if its == said)
        yield f"{len(names)} of the files in {root} {said}: {some(names)}."


def left_out_in_words(root: Path, left_out: Mapping[str, str]) -> str:
    """Says which files under `root` cannot be used, and why."""
    named = some([f"{name} ({why})" for name, why in left_out.items()])
    return f"{len(left_out)} of the files in {root} cannot be used: {named}."


def border_level(images: np.ndarray) -> float:
    """The median of the outermost pixels of `images: [n, height, width, channel]` uint8, in [0, 1]."""
    sides = [images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]]
    return float(np.median(np.concatenate([side.ravel() for side in sides]))) / 255
