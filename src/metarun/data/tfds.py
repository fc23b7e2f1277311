"""Image classification sets of TensorFlow Datasets, by name."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from metarun.data import class_bank
from metarun.data.cache import build_once, cache_dir
from metarun.data.class_bank import NamedClass, SplitBank
from metarun.data.class_split import shuffled_or_from_file
from metarun.data.decoding import (
    OF_SET,
    RESIZE,
    WORKERS,
    PictureError,
    Range,
    RangeError,
    checked_range,
    checked_size,
    decode,
)
from metarun.data.episodes import few_shot_of
from metarun.data.pictures import range_in_words, range_of
from metarun.errors import ConfigError, DataError, non_negative_int, positive_int
from metarun.system.progress import hush

OF_ALL = "range.json"  # of dataset.range=set


@few_shot_of
def tfds(
    *,
    name: str | None = None,
    parts: str = "all",
    image: str = "image",
    label: str = "label",
    image_size: int = 84,
    channels: int = 3,
    range: Range = None,
    images_per_class: int | None = None,
    split: str = "shuffled",
    split_seed: int = 0,
    data_dir: str | None = None,
) -> SplitBank:
    """Returns few-shot classification of the images of a TFDS set, its classes divided anew.

    The first use has TFDS download and prepare the set and keeps it, as a bank, in the cache, which later uses read.

    Args:
      name: of the set, such as "cifar100", with its configuration and version where it has several ("emnist/balanced").
      parts: which of its own splits to pool, joined by "+", such as "train+test"; "all" pools all.
      image, label: the features that hold the picture and the class.
      image_size: pixels of a side; see `decoding.decode` for how pictures are brought to it.
      channels: 1 (greyscale) or 3 (colour).
      range: of grey pictures of 16 bits, what is black and what is white, as in `image_folder`.
      images_per_class: how many to take of each class, the first in TFDS's order; None: all.
      split: "shuffled", 64% of the classes, 16% and 20% by `split_seed`; or a JSON file of class lists, by its path or,
        if it comes with metarun (cifar_fs, fc100, and those of Meta-Dataset), by its name.
      split_seed: of the shuffle.
      data_dir: where TFDS has, or puts, its prepared sets; None: in metarun's cache.

    Raises:
      ConfigError: a setting that cannot be used.
      DataError: the set cannot be had, is not of images in classes, or a file of it or of the cache is broken.
      MetarunError: the cache directory cannot be written.
    """
    if not isinstance(name, str) or not name:
        raise ConfigError("dataset.name", name, "the name of a set in https://www.tensorflow.org/datasets/catalog")
    side, channels = checked_size(image_size, channels)
    range = checked_range("dataset.range", range)
    if images_per_class is not None:
        images_per_class = positive_int("dataset.images_per_class", images_per_class)
    seed = non_negative_int("dataset.split_seed", split_seed)
    source = _Source(name, parts, image, label, data_dir)
    parameters = {
        "name": source.full_name,
        "parts": parts,
        "features": [image, label],
        "size": [side, side, channels],
        "images_per_class": images_per_class,
        "resize": RESIZE,
        "pillow": PIL.__version__,
        "format": class_bank.FORMAT,
    }
    if range is not None or source.is_deep:
        parameters["range"] = range

    def build(folder: Path) -> None:
        class_bank.save(folder, source.classes(folder, (side, side, channels), range, images_per_class))

    entry = build_once("tfds", parameters, build)
    bank, names, _, hashes = class_bank.load(entry.folder)
    classes, stated = shuffled_or_from_file(names, split, seed)
    if range == OF_SET:
        range = json.loads((entry.folder / OF_ALL).read_text())
    if range is not None:
        stated = {**stated, "range": range}
    return SplitBank(
        bank,
        names,
        classes,
        {"name": source.full_name, "parts": parts, **stated, "resize": RESIZE, "sha256": entry.checksum},
        hashes,
        uneven=True,
    )


class _Source:
    """A set of TFDS: known by name at once, read only when its classes are asked for."""

    def __init__(self, name: str, parts: str, image: str, label: str, data_dir: str | None):
        import tensorflow_datasets as tfds  # slow to import, and only this data set needs it
        from tensorflow_datasets.core.registered import DatasetNotFoundError

        hush(tfds)
        self._tfds, self._parts, self._image, self._label = tfds, parts, image, label
        try:
            self._builder = tfds.builder(name, data_dir=data_dir or cache_dir() / "tfds", file_format="array_record")
        except (DatasetNotFoundError, ValueError, AssertionError) as error:
            allowed = "the name of a set in https://www.tensorflow.org/datasets/catalog"
            raise ConfigError("dataset.name", name, f"{allowed} ({str(error).splitlines()[0]})") from error
        self.full_name = self._builder.info.full_name
        features = self._builder.info.features
        for key, got, kind in (("image", image, tfds.features.Image), ("label", label, tfds.features.ClassLabel)):
            if got not in features or not isinstance(features[got], kind):
                fits = [feature for feature in features if isinstance(features[feature], kind)]
                raise ConfigError(
                    f"dataset.{key}", got, f"one of its features that are such: {', '.join(fits) or 'none'}"
                )

        dtype = features[image].np_dtype
        if dtype == np.float32:  # which TFDS keeps as the bytes of four channels
            raise ConfigError("dataset.image", image, "a feature with pictures of 8 or 16 bits; these are of floats")
        self.is_deep = dtype == np.uint16

    def classes(
        self, folder: Path, size: tuple[int, int, int], range: Range, limit: int | None
    ) -> Iterator[NamedClass]:
        """Classes in the order of their labels; pictures in that of TFDS. Writes the range of the set into `folder`."""
        try:
            self._builder.download_and_prepare()
        except (OSError, self._tfds.download.DownloadError, ImportError, ValueError, AssertionError) as error:
            raise DataError(
                f"TFDS cannot prepare {self.full_name}: {str(error).splitlines()[0]}. Prepare it where that works and "
                "name the folder by dataset.data_dir=DIR; some sets need `pip install tensorflow` for it."
            ) from error
        known = list(self._builder.info.splits)
        splits = known if self._parts == "all" else self._parts.split("+")
        features = self._builder.info.features
        pictures = [name for name in features if isinstance(features[name], self._tfds.features.Image)]
        decoders = dict.fromkeys(pictures, self._tfds.decode.SkipDecoding())
        try:
            sources = {split: self._builder.as_data_source(split, decoders=decoders) for split in splits}
        except ValueError as error:  # TFDS's word for a split that there is not
            allowed = f"all, or of {', '.join(known)}, joined by +"
            raise ConfigError("dataset.parts", self._parts, allowed) from error
        rows = self._rows(sources, limit)
        if range == OF_SET:
            each = (place for its in rows.values() for place in its)
            range = range_of(partial(lambda split, row: sources[split][row][self._image], *place) for place in each)
            (folder / OF_ALL).write_text(json.dumps(range))

        def decoded(place: tuple[str, int]) -> np.ndarray:
            split, row = place
            try:
                return decode(sources[split][row][self._image], *size, range)
            except RangeError as error:
                file = f"Example {row} of {split} of {self.full_name}"
                raise DataError(range_in_words(RangeError(f"{file}: {error}", error.such_as))) from error
            except PictureError as error:
                raise DataError(f"Example {row} of {split} of {self.full_name} is broken: {error}.") from error

        names = features[self._label].names
        with ThreadPoolExecutor(WORKERS) as pool:
            for label, places in sorted(rows.items()):
                yield NamedClass(names[label], "", np.stack(list(pool.map(decoded, places))))

    def _rows(self, sources: Mapping[str, Sequence[Any]], limit: int | None) -> Mapping[int, list[tuple[str, int]]]:
        """Where the pictures of each class are: (split, row)."""
        rows: defaultdict[int, list[tuple[str, int]]] = defaultdict(list)
        for split, source in sources.items():
            for row, example in enumerate(source):
                label = int(example[self._label])
                if label >= 0 and (limit is None or len(rows[label]) < limit):  # -1: unknown, as in some test splits
                    rows[label].append((split, row))
        return rows
