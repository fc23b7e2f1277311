"""Pictures in a folder or in zip archives, and how one becomes an array. Files may be anybody's and are not trusted."""

import hashlib
import io
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from metarun.errors import ConfigError, DataError, positive_int, some

# Formats by their content, whatever a file is called: those whose decoders read pixels and nothing else.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 100_000_000
MAX_BYTES = 200_000_000
MODES = {1: "L", 3: "RGB"}
RESIZE = "Lanczos, proportions not kept"
AT_ONCE = 256  # files that are read ahead: what bounds the memory that they take
BROKEN = (OSError, SyntaxError, ValueError, TypeError, IndexError, EOFError, MemoryError, struct.error, zlib.error)


def checked_size(image_size: object, channels: object) -> tuple[int, int]:
    """Returns `dataset.image_size` and `dataset.channels` if pictures can be brought to them; else `ConfigError`."""
    side = positive_int("dataset.image_size", image_size)
    if channels not in MODES:
        raise ConfigError("dataset.channels", channels, "1 (greyscale) or 3 (colour)")
    return side, channels


class PictureError(Exception):
    """A file that is no picture, or a broken one; the message says why."""


class Entry(NamedTuple):
    """A file of a source.

    Attributes:
      path: relative to the source, "/" between its parts.
      read: returns its bytes; raises `PictureError`.
    """

    path: PurePosixPath
    read: Callable[[], bytes]


def in_folder(root: Path) -> Iterator[Entry]:
    """The files under a folder, by path, hidden ones left out.

    Links are followed within the folder only: where one leads out of it, reading it raises `PictureError`.
    """
    home = root.resolve()

    def read(path: Path) -> bytes:
        if not path.resolve().is_relative_to(home):
            raise PictureError(f"a link that leads out of {root}")
        try:
            if path.stat().st_size > MAX_BYTES:
                raise PictureError(f"larger than {MAX_BYTES:,} bytes")
            return path.read_bytes()
        except OSError as error:
            raise PictureError(error.strerror or str(error)) from error

    for path in sorted(root.rglob("*")):
        relative = PurePosixPath(path.relative_to(root).as_posix())
        if not path.is_dir() and not _hidden(relative):
            yield Entry(relative, lambda path=path: read(path))


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
                yield Entry(path, lambda opened=opened, info=info: _unzipped(opened, info))


def _unzipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
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


def decode(data: bytes, height: int, width: int, channels: int) -> np.ndarray:
    """A picture as `[height, width, channels]` uint8.

    Turned upright as its camera says, its transparency on white, greyscale or colour by `channels` (1 or 3), and
    brought to size by Lanczos' filter; its proportions are not kept. A picture of that size is not filtered.

    Raises:
      PictureError: it cannot be decoded, is cut off, or has more than a hundred million pixels.
    """
    try:
        ImageFile.LOAD_TRUNCATED_IMAGES = False  # which other libraries, TFDS among them, set for all
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of metadata that it cannot read, and of many pixels
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise PictureError(f"{image.width}x{image.height}, more than {MAX_PIXELS:,} pixels")
            image = ImageOps.exif_transpose(image)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = _eight_bits(image).convert(MODES[channels])
            if image.size != (width, height):
                image = image.resize((width, height), Image.Resampling.LANCZOS)
    except UnidentifiedImageError as error:
        raise PictureError("no picture of a known format") from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"more than {MAX_PIXELS:,} pixels") from error
    # What Pillow raises depends on the format and on which byte is wrong.
    except BROKEN as error:
        raise PictureError(str(error)) from error
    return np.asarray(image, np.uint8).reshape(height, width, channels)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Of 16 bits a pixel, the upper eight: Pillow's own conversion would cut off what is above 255."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    return image


def read_all(
    files: Sequence[Entry], size: tuple[int, int, int], left_out: dict[str, str]
) -> Iterator[tuple[PurePosixPath, np.ndarray]]:
    """Yields path and picture of the files, in their order.

    Args:
      files: of a source.
      size: height, width and channels that pictures are brought to, see `decode`.
      left_out: gets those that are no pictures, and broken ones: path -> why.
    """

    def read(file: Entry) -> np.ndarray | None:
        try:
            return decode(file.read(), *size)
        except PictureError as error:
            left_out[str(file.path)] = str(error)
            return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(files), AT_ONCE):
            ahead = files[start : start + AT_ONCE]
            for file, image in zip(ahead, pool.map(read, ahead), strict=True):
                if image is not None:
                    yield file.path, image


def read_classes(
    files: Sequence[Entry], size: tuple[int, int, int], left_out: dict[str, str]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the classes, each folder with pictures being one: its path, and `[count, height, width, channel]` uint8.

    Args:
      files: of a source.
      size, left_out: as in `read_all`.
    """
    outside = [file for file in files if file.path.parent == PurePosixPath(".")]
    left_out |= {str(file.path): "in no class's folder" for file in outside}
    inside = [file for file in files if file.path.parent != PurePosixPath(".")]
    inside.sort(key=lambda file: (str(file.path.parent), file.path.name))
    for name, members in groupby(read_all(inside, size, left_out), key=lambda found: str(found[0].parent)):
        yield name, np.stack([image for _, image in members])


def left_out_in_words(root: Path, left_out: Mapping[str, str]) -> str:
    """Says which files under `root` cannot be used, and why."""
    named = some([f"{name} ({why})" for name, why in left_out.items()])
    return f"{len(left_out)} of the files in {root} cannot be used: {named}."


def border_level(images: np.ndarray) -> float:
    """The median of the outermost pixels of `images: [n, height, width, channel]` uint8, in [0, 1]."""
    sides = [images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]]
    return float(np.median(np.concatenate([side.ravel() for side in sides]))) / 255
