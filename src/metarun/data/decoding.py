"""How the bytes of a picture become an array. They may be anybody's and are not trusted.

Pillow opens every picture of metarun here: in the formats of `FORMATS` alone, whatever a file is called.
"""

import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import numpy as np
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError

from metarun.errors import ConfigError, positive_int

# Those whose decoders read pixels and nothing else. EPS, PDF, WMF and SVG are programs or documents; none may join.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 100_000_000
MODES = {1: "L", 3: "RGB"}
RESIZE = "Lanczos, proportions not kept"
BROKEN = (OSError, SyntaxError, ValueError, TypeError, IndexError, EOFError, MemoryError, struct.error, zlib.error)
# What Pillow takes at its most for a pixel that is decoded, laid on white and resized: measured over all modes.
BYTES_PER_PIXEL = 17
# Of the pixels that all threads decode at a time: one picture of the most pixels, or many of fewer.
DECODED_BYTES = MAX_PIXELS * BYTES_PER_PIXEL
# Threads that decode; each may hold the bytes of a file besides.
WORKERS = min(16, os.cpu_count() or 1)

NEARLY = 16  # levels of 256 that look like black, or like white
LEAST_SHARE = 1 / 4  # of what its bits can say, that a picture has to use where nothing else is said
LEAST_WITHIN = 0.01  # of the values of a picture, that have to lie within the range that is given
_BLOCK = 1_000_000  # values that are converted at once
# Larger blocks than 32 MB go back to the system once they are free; smaller ones the C library keeps for each thread.
Image.core.set_block_size(64 * 2**20)

# `dataset.range`: what is black and what is white, or "file" for the least and the greatest value of each file.
Range = Sequence[float] | str | None
OF_FILE, OF_SET = "file", "set"


class PictureError(Exception):
    """A file that is no picture, or a broken one; the message says why."""


class RangeError(PictureError):
    """A picture of which nothing says what is black and what is white; the message says what its values are.

    Attributes:
      such_as: a range that would do, in words.
    """

    def __init__(self, message: str, such_as: str):
        self.such_as = such_as
        super().__init__(message)


def checked_size(image_size: object, channels: object) -> tuple[int, int]:
    """Returns `dataset.image_size` and `dataset.channels` if pictures can be brought to them; else `ConfigError`."""
    side = positive_int("dataset.image_size", image_size)
    if channels not in MODES:
        raise ConfigError("dataset.channels", channels, "1 (greyscale) or 3 (colour)")
    return side, channels


def checked_range(key: str, value: object, words: Collection[str] = (OF_FILE, OF_SET)) -> Range:
    """Returns `value` if it is a range that pictures can be brought to; else `ConfigError`.

    Args:
      key: such as "dataset.range".
      value: None, one of `words`, or two numbers: what is black and what is white.
      words: which of "file" and "set" are allowed.
    """
    if value is None or (isinstance(value, str) and value in words):
        return value
    numbers = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    if (
        len(numbers) == 2
        and all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in numbers)
        and all(abs(each) < 1e300 for each in numbers)  # their difference is finite too; and no number is a NaN
        and numbers[0] != numbers[1]
    ):
        return tuple(numbers)
    allowed = "[BLACK,WHITE], two different numbers such as [0,4095]"
    raise ConfigError(key, value, ", ".join([allowed, *words]) + " or null")


class _Room:
    """Memory that is lent to threads; one that asks for more than there is has to wait until it is alone."""

    def __init__(self) -> None:
        self._lent, self._changed = 0, threading.Condition()

    @contextmanager
    def lent(self, size: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._lent or self._lent + size <= DECODED_BYTES)
            self._lent += size
        try:
            yield
        finally:
            with self._changed:
                self._lent -= size
                self._changed.notify_all()


_ROOM = _Room()


@contextmanager
def in_words() -> Iterator[None]:
    """Makes `PictureError` of whatever Pillow raises on a picture that is none, or broken."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of metadata that it cannot read, and of many pixels
            yield
    except UnidentifiedImageError as error:
        raise PictureError("no picture of a known format") from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"more than {MAX_PIXELS:,} pixels") from error
    # What Pillow raises depends on the format and on which byte is wrong.
    except BROKEN as error:
        raise PictureError(str(error)) from error


def opened(data: bytes, formats: tuple[str, ...] = FORMATS) -> ImageFile.ImageFile:
    """The picture in `data`, of which the header alone is read; to be called, and used, within `in_words`.

    Args:
      data: of a file.
      formats: some of `FORMATS`.

    Raises:
      PictureError: it has more than a hundred million pixels.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # which other libraries, TFDS among them, set for all
    image = Image.open(io.BytesIO(data), formats=formats)
    if image.width * image.height > MAX_PIXELS:
        raise PictureError(f"{image.width}x{image.height}, more than {MAX_PIXELS:,} pixels")
    return image


def decode(
    data: bytes,
    height: int,
    width: int,
    channels: int,
    span: Range = None,
    told: Callable[[str], object] = lambda said: None,
) -> np.ndarray:
    """A picture as `[height, width, channels]` uint8.

    Turned upright as its camera says, its transparency on white, greyscale or colour by `channels` (1 or 3), and
    brought to size by Lanczos' filter; its proportions are not kept. A picture of that size is not filtered. Of a file
    of many pages or frames it is the first.

    Pictures of 8 bits a channel keep their levels. Grey ones of 12, 16 or 32 bits and of floats are brought to 256
    equal steps from black to white, beyond which they are cut off; of 16-bit colours Pillow reads the upper 8 bits.

    Threads that call it wait for each other where they would take more than 1.7 GB for pixels, see `DECODED_BYTES`. Of
    pictures of 99,980,001 pixels, whose files are small, that is one at a time: a process with 16 threads was at 1.5 GB
    in RGBA, the greediest mode, see `scripts/picture_memory.py`.

    Args:
      data: of a file in one of `FORMATS`.
      height, width, channels: what it is brought to.
      span: for grey pictures of more than 8 bits, what is black and what is white; or "file", the least and the
        greatest value of each; or None: all that 12 or 16 bits can say, and at least a quarter of that is used.
      told: is told what a user should know of a picture that can be used.

    Raises:
      RangeError: nothing says what is black and what is white: there is no `span`, and the picture is of floats, of
        integers with a sign or of 32 bits, or uses less than a quarter of its bits' values; or it is of 16-bit colours.
      PictureError: it cannot be decoded, is cut off, has more than a hundred million pixels, is hidden by its
        transparency, has values that are no numbers, is blank (of "file"), or lies outside of `span`.
    """
    with in_words():
        image: Image.Image = opened(data)
        with _ROOM.lent(image.width * image.height * BYTES_PER_PIXEL):
            several = getattr(image, "is_animated", False)
            grey, deep_colours = _deep_grey(image), _has_deep_colours(image)
            ImageOps.exif_transpose(image, in_place=True)
            if grey is not None:
                image = _eight_bits(image, grey, span)
            elif deep_colours:
                _check_colours(image, span)
            if image.has_transparency_data:
                image = _on_white(image)
            if image.mode != MODES[channels]:
                image = image.convert(MODES[channels])
            if image.size != (width, height):
                image = image.resize((width, height), Image.Resampling.LANCZOS)
            pixels = np.asarray(image, np.uint8).reshape(height, width, channels)
    if several:
        told("has more than one page or frame, of which the first is used")
    return pixels


def extent(data: bytes) -> tuple[float, float] | None:
    """The least and the greatest value of a grey picture of more than 8 bits; None of any other.

    Raises:
      PictureError: as `decode`.
    """
    with in_words():
        image = opened(data)
        grey = _deep_grey(image)
        if grey is None:
            return None
        with _ROOM.lent(image.width * image.height * BYTES_PER_PIXEL):
            return _extent(*_values(image, grey))


class _Grey(NamedTuple):
    """Of a grey picture of more than 8 bits.

    Attributes:
      words: what its values are.
      dtype: of its values, where Pillow has another.
      full: the least and the greatest value that there can be, where the format says so.
    """

    words: str
    dtype: type | None = None
    full: tuple[int, int] | None = None


def _tag(image: Image.Image, number: int) -> tuple[int, ...]:
    """Of a TIFF; of other formats, and where it is missing, empty."""
    found = getattr(image, "tag_v2", {}).get(number, ())
    return found if isinstance(found, tuple) else (found,)


def _deep_grey(image: Image.Image) -> _Grey | None:
    """What the values of a grey picture of more than 8 bits are; None of any other."""
    bits = max(_tag(image, TiffImagePlugin.BITSPERSAMPLE), default=16)
    unsigned = _tag(image, TiffImagePlugin.SAMPLEFORMAT) in ((), (1,))
    if image.mode == "F":
        return _Grey("floats")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format != "TIFF"):  # as PPM's of 16 bits come
        return _Grey(f"{bits}-bit integers", full=(0, 2**bits - 1))
    if image.mode == "I":
        return _Grey(f"{bits}-bit integers{'' if unsigned else ' with a sign'}", np.uint32 if unsigned else None)
    return None


def _values(image: Image.Image, grey: _Grey) -> tuple[np.ndarray, int | None]:
    """The values of a grey picture, `[height, width]`, and the one that is transparent."""
    values = np.asarray(image)
    return values.view(grey.dtype) if grey.dtype else values, image.info.get("transparency")


def _extent(values: np.ndarray, transparent: int | None) -> tuple[float, float]:
    """The least and the greatest value that can be seen."""
    if transparent is not None:
        values = values[values != transparent]
        if not values.size:
            raise PictureError("its transparency hides all of it")
    least, greatest = values.min().item(), values.max().item()
    if not np.isfinite([least, greatest]).all():
        raise PictureError("it has values that are no numbers, or infinite")
    return least, greatest


def _eight_bits(image: Image.Image, grey: _Grey, span: Range) -> Image.Image:
    """A grey picture of more than 8 bits as one of 8, what is transparent in it white."""
    values, transparent = _values(image, grey)
    least, greatest = _extent(values, transparent)
    has = f"its values are {grey.words} from {least:g} to {greatest:g}"
    if span is None:
        _check_says_its_range(least, greatest, grey, has)
        span = grey.full
    elif span == OF_FILE:
        if least == greatest:
            raise PictureError(f"it is blank: {has}")
        span = least, greatest
    black, white = cast(tuple[float, float], span)
    low, high = min(black, white), max(black, white)
    levels, within = np.empty(values.shape, np.uint8), 0
    rows = max(1, _BLOCK // image.width)
    for start in range(0, image.height, rows):
        part = values[start : start + rows].astype(np.float64)
        within += int(np.count_nonzero((part >= low) & (part <= high)))
        levels[start : start + rows] = np.clip((part - black) * 256 / (white - black), 0, 255)
    if within < LEAST_WITHIN * values.size:
        raise PictureError(f"{has}, nearly all of them outside of the range from {low:g} to {high:g}")
    if transparent is not None:
        levels[values == transparent] = 255
    return Image.fromarray(levels)


def _check_says_its_range(least: float, greatest: float, grey: _Grey, has: str) -> None:
    """Raises `RangeError` where nothing says what is black and what is white, or it cannot be as the bits say."""
    if grey.words != "floats" and least >= 0:
        such_as = f"[0,{2 ** max(8, int(greatest).bit_length()) - 1}]"
    else:
        such_as = "[0,1]" if 0 <= least and greatest <= 1 else f"[{least:.4g},{greatest:.4g}]"
    if grey.full is None:
        raise RangeError(f"{has}, of which nothing says what is black and what is white", such_as)
    most = grey.full[1]
    if greatest - least < LEAST_SHARE * most:
        looks = "black" if greatest < most / 2 else "white" if least > most / 2 else "of one grey"
        raise RangeError(f"{has}, of 0 to {most} that there can be: it would come out nearly {looks}", such_as)


def _has_deep_colours(image: Any) -> bool:
    """Whether Pillow reads, of each channel of a picture in colours or with transparency, the upper 8 bits of 16."""
    raw = [part for tile in image.tile for part in (tile.args if isinstance(tile.args, tuple) else (tile.args,))]
    of_ppm = image.format == "PPM" and any(isinstance(part, int) and part > 255 for part in raw)
    return of_ppm or any(isinstance(part, str) and ";16" in part for part in raw) and image.mode not in ("P", "1", "L")


def _check_colours(image: Image.Image, span: Range) -> None:
    """Raises `RangeError` unless the upper 8 bits of 16-bit colours are what was asked for, and show something."""
    full = (0, 2**16 - 1)
    extrema: Any = image.getextrema()
    colours = extrema[: 1 if image.mode == "LA" else 3]
    least, greatest = min(low for low, _ in colours), max(high for _, high in colours)
    has = f"its colours have 16 bits, of which only the upper 8 can be read; these are from {least} to {greatest}"
    if span not in (None, full) or (span is None and greatest - least < LEAST_SHARE * 255):
        raise RangeError(has, "[0,65535]")
    if "transparency" in image.info:  # which is of 16 bits too
        image.info["transparency"] = tuple(value >> 8 for value in image.info["transparency"])


def _on_white(image: Image.Image) -> Image.Image:
    """A picture with transparency on a white ground, in RGBA.

    Raises:
      PictureError: then there is nothing but white to be seen.
    """
    image = image if image.mode == "RGBA" else image.convert("RGBA")
    extrema: Any = image.getextrema()
    hides = extrema[3][0] < 255
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    extrema = image.getextrema()
    if hides and min(low for low, _ in extrema[:3]) >= 256 - NEARLY:
        raise PictureError("its transparency hides all of it: on white there is nothing to be seen")
    return image
