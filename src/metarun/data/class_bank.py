"""Examples of many classes in one array, images or others, and its form on disk."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from metarun.data.contents import content_hashes
from metarun.system.files import json_bytes
from metarun.system.progress import counted

IMAGES = "images.npy"
HASHES = "hashes.npy"
CLASSES = "classes.json"
# Of what `save` writes: part of the key of each bank in the cache, and raised with any change of its files.
FORMAT = 2


class ClassBank(NamedTuple):
    """Images with the classes stacked: class `c` owns the rows `first[c]` to `first[c] + count[c] - 1`.

    Its arrays are NumPy's on the host and JAX's on a device.

    Attributes:
      images: `[num_images, height, width, channel]` uint8; or examples of another kind, `[num_examples, *feature]` float32.
      first: `[num_classes]` int32.
      count: `[num_classes]` int32; classes may differ in size.
    """

    images: Any
    first: Any
    count: Any


class NamedBank(NamedTuple):
    """A bank on the host with what its classes are called.

    Attributes:
      bank: the images, as NumPy arrays.
      names: the name of each class, unique.
      groups: the group of each class, such as its script, alphabet or part.
      hashes: of the content of each image, `[num_images]` uint64, see `contents.content_hashes`.
    """

    bank: ClassBank
    names: Sequence[str]
    groups: Sequence[str]
    hashes: np.ndarray


class Domain(NamedTuple):
    """One of several data sets whose classes are in one bank.

    Attributes:
      name: of it.
      classes: how many, one after the other; the first domain's come first.
      weight: how often a task of meta-training or meta-validation is of it, beside the others' weights; None: never, for
        it is held out for meta-test.
    """

    name: str
    classes: int
    weight: float | None


class SplitBank(NamedTuple):
    """A bank whose classes are divided into "train", "val" and "test".

    Attributes:
      bank: the images, as NumPy arrays.
      names: the name of each class, unique.
      classes: the classes of each split, as indices into the bank.
      protocol: facts of the data that move a number: name, split, preprocessing, checksum.
      hashes: of the content of each image, `[num_images]` uint64, see `contents.content_hashes`.
      uneven: whether classes may be too small for a task, and are then left out; otherwise that is an error.
      standardized: as in `types.DataSet`.
      nouns: what one of its classes, several, and their examples are called.
      domains: of which its classes are, where a task is of one of several data sets; empty: of one.
    """

    bank: ClassBank
    names: Sequence[str]
    classes: Mapping[str, Sequence[int]]
    protocol: Mapping[str, Any]
    hashes: np.ndarray
    uneven: bool = False
    standardized: tuple[Sequence[float], Sequence[float]] | None = None
    nouns: tuple[str, str, str] = ("class", "classes", "images")
    domains: Sequence[Domain] = ()


class NamedClass(NamedTuple):
    """A class and what it is called.

    Attributes:
      name: unique among the classes.
      group: see `NamedBank`.
      images: `[count, height, width, channel]` uint8, or `[count, *feature]` float32.
    """

    name: str
    group: str
    images: np.ndarray


def stack(images: Iterable[np.ndarray]) -> ClassBank:
    """Stacks classes, each `[count, height, width, channel]` uint8, into a bank."""
    images = list(images)
    count = np.array([len(one) for one in images], np.int32)
    return ClassBank(np.concatenate(images), (np.cumsum(count) - count).astype(np.int32), count)


def of_classes(bank: ClassBank, classes: Sequence[int]) -> ClassBank:
    """Returns the bank of the given classes of `bank`, in the order given, without a copy of the images."""
    return ClassBank(bank.images, bank.first[classes], bank.count[classes])


def save(folder: Path, classes: Iterable[NamedClass], total: int | None = None) -> None:
    """Writes a bank into `folder`, class by class: images and the hashes of their contents as .npy, the rest as JSON.

    No more than a class is in memory at a time.

    Args:
      classes: with unique names, and images of one size and type.
      total: how many classes there will be, to show how far it is.
    """
    names: list[str] = []
    groups: list[str] = []
    count: list[int] = []
    hashes, feature = [np.empty(0, np.uint64)], (0, 0, 0)
    dtype = np.dtype(np.uint8)
    start = 0
    with open(folder / IMAGES, "wb") as file:
        # How many images there are is known at the end; NumPy's header has room for a larger number.
        for name, group, images in counted(classes, "classes", total):
            if not names:
                feature, dtype = images.shape[1:], images.dtype
                start = _write_header(file, (0, *feature), dtype)
            names.append(name)
            groups.append(group)
            count.append(len(images))
            hashes.append(content_hashes(images))
            np.ascontiguousarray(images).tofile(file)
        file.seek(0)
        if _write_header(file, (sum(count), *feature), dtype) != start and names:
            raise ValueError("the header of a .npy file grew with the number of images")
    np.save(folder / HASHES, np.concatenate(hashes))
    described = {"names": names, "groups": groups, "count": count}
    (folder / CLASSES).write_bytes(json_bytes(described))


def _write_header(file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype) -> int:
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)
    return file.tell()


def load(folder: Path) -> NamedBank:
    """Reads what `save` wrote; the images and their hashes are mapped from the files, not read."""
    classes = json.loads((folder / CLASSES).read_bytes())
    count = np.array(classes["count"], np.int32)
    images = np.load(folder / IMAGES, mmap_mode="r")
    bank = ClassBank(images, (np.cumsum(count) - count).astype(np.int32), count)
    return NamedBank(bank, classes["names"], classes["groups"], np.load(folder / HASHES, mmap_mode="r"))
