"""What tells inputs apart by their content: a hash of an image's pixels, or of any array, and which class has it."""

import hashlib
import math
from collections.abc import Sequence

import numpy as np

NUM_TURNS = 4
_ROUNDED = 1e-6  # by which a level divided by 255 may be off in float32


def content_hashes(inputs: np.ndarray) -> np.ndarray:
    """A number for the content of each input, equal for equal ones and, if they are square images, for their quarter turns.

    64 bits of BLAKE2b over the turn whose bytes come first: among ten million pictures, two that differ share a number
    with a probability of 3e-6.

    An input has the same content in the data and in a task, where a learner sees it: a picture in 256 levels that of its
    float32 in [0, 1], anything else that of its float32.

    Args:
      inputs: `[n, *feature]` of any shape and numeric type: `[n, height, width, channel]` uint8 for pictures, or vectors,
        signals, ...

    Returns:
      `[n]` uint64.
    """
    if np.iscomplexobj(inputs):
        inputs = np.stack([inputs.real, inputs.imag], -1)
    if inputs.dtype == np.uint8:
        return _hashes(inputs)
    inputs = inputs.astype(np.float32) + np.float32(0)  # -0 is 0
    flat = inputs.reshape(len(inputs), math.prod(inputs.shape[1:]))
    levels = np.rint(255 * flat)
    picture = ((levels >= 0) & (levels <= 255) & (np.abs(levels / 255 - flat) < _ROUNDED)).all(1)
    hashes = np.empty(len(inputs), np.uint64)
    hashes[picture] = _hashes(levels[picture].astype(np.uint8).reshape(-1, *inputs.shape[1:]))
    hashes[~picture] = _hashes(inputs[~picture])
    return hashes


def _hashes(inputs: np.ndarray) -> np.ndarray:
    square = inputs.ndim == 4 and inputs.shape[1] == inputs.shape[2]
    inputs = inputs if inputs.ndim > 1 else inputs[:, None]
    turned = (
        zip(*(np.rot90(inputs, turn, axes=(1, 2)) for turn in range(NUM_TURNS)), strict=True)
        if square
        else ((one,) for one in inputs)
    )
    return np.frombuffer(b"".join(map(_digest, turned)), "<u8").astype(np.uint64)


def _digest(turned: Sequence[np.ndarray]) -> bytes:
    # Most often the first row tells which turn comes first, and only that one need be copied.
    rows = [image[0].tobytes() for image in turned]
    first = min(rows)
    candidates = [image for image, row in zip(turned, rows, strict=True) if row == first]
    # `tobytes` alone goes pixel by pixel where an image is turned.
    pixels = min(np.ascontiguousarray(image).tobytes() for image in candidates)
    return hashlib.blake2b(pixels, digest_size=8).digest()


def class_of(hashes: np.ndarray, classes: Sequence[np.ndarray]) -> np.ndarray:
    """The class that has each content, `[n]` int64; -1 for what none has, and the first of several.

    Args:
      hashes: `[n]` uint64, of `content_hashes`.
      classes: the hashes of each class, `[count]` uint64.
    """
    its_class: dict[int, int] = {}
    for number, its in enumerate(classes):
        for content in its.tolist():
            its_class.setdefault(content, number)
    return np.array([its_class.get(content, -1) for content in hashes.tolist()], np.int64)
