"""One's own pictures: a folder for each class."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import PIL

from metarun.data import class_bank
from metarun.data.cache import build_once
from metarun.data.class_bank import NamedClass, SplitBank
from metarun.data.class_split import SPLITS, TRAIN_SHARE, VAL_SHARE, shuffled, shuffled_or_from_file
from metarun.data.episodes import few_shot_of
from metarun.data.pictures import (
    RESIZE,
    Entry,
    checked_size,
    fingerprint,
    in_folder,
    left_out_in_words,
    read_classes,
)
from metarun.errors import ConfigError, DataError, non_negative_int, some, true_or_false

LEFT_OUT = "left_out.json"


@few_shot_of
def image_folder(
    *,
    source: str | None = None,
    image_size: int = 84,
    channels: int = 3,
    split: str | None = None,
    split_seed: int = 0,
    strict: bool = False,
) -> SplitBank:
    """Returns few-shot classification of the pictures in a folder, in which each folder with pictures is a class.

    The first use reads the pictures and keeps them, at their size, in the cache; later uses read the cache alone, until
    a file is added, removed or written to. Files that are no pictures, and broken ones, are left out and named.

    Args:
      source: the folder.
      image_size: pixels of a side; see `pictures.decode` for how pictures are brought to it.
      channels: 1 (greyscale) or 3 (colour).
      split: "folders", the classes in the folders train, val and test of the source (without val, a fifth of train's by
        `split_seed`); "shuffled", 64% of the classes, 16% and 20% by `split_seed`; the path of a JSON file
        `{"train": ["CLASS", ...], "val": [...], "test": [...]}`; or None, folders where there are such.
      split_seed: of the shuffle.
      strict: whether a file that is left out is an error.

    Raises:
      ConfigError: a setting that cannot be used.
      DataError: the folder has no classes, or too few, or one class in two splits; or `strict`, and a file is left out.
      MetarunError: the cache directory cannot be written.
    """
    if source is None or not (root := Path(source).expanduser()).is_dir():
        raise ConfigError("dataset.source", source, "a folder with a folder of pictures for each class")
    side, channels = checked_size(image_size, channels)
    seed = non_negative_int("dataset.split_seed", split_seed)
    true_or_false("dataset.strict", strict)

    files = list(in_folder(root))
    parameters = {
        "files": fingerprint(root, files),
        "size": [side, side, channels],
        "resize": RESIZE,
        "pillow": PIL.__version__,
        "format": class_bank.FORMAT,
    }
    entry = build_once("image_folder", parameters, lambda folder: _prepare(folder, files, side, channels))
    _say_left_out(root, entry.folder / LEFT_OUT, strict)
    bank, names, _, hashes = class_bank.load(entry.folder)
    classes, stated = _split(root, names, split, seed)
    return SplitBank(
        bank,
        names,
        classes,
        {"name": "image_folder", **stated, "resize": RESIZE, "sha256": entry.checksum},
        hashes,
        uneven=True,
    )


def _prepare(folder: Path, files: Sequence[Entry], side: int, channels: int) -> None:
    left_out = {}
    classes = read_classes(files, (side, side, channels), left_out)
    total = len({file.path.parent for file in files})
    class_bank.save(folder, (NamedClass(name, "", images) for name, images in classes), total)
    (folder / LEFT_OUT).write_text(json.dumps(dict(sorted(left_out.items())), indent=1))


def _say_left_out(root: Path, path: Path, strict: bool) -> None:
    left_out = json.loads(path.read_text())
    if left_out:
        said = left_out_in_words(root, left_out)
        if strict:
            raise DataError(f"{said} Mend or remove them, or leave them out with dataset.strict=false.")
        print(f"{said} They are left out; all of them are in {path}.", file=sys.stderr)


def _split(
    root: Path, names: Sequence[str], split: str | None, seed: int
) -> tuple[dict[str, list[int]], Mapping[str, Any]]:
    if len(names) < 3:
        raise DataError(f"{root} has {len(names)} folders with pictures; three or more are needed, one for each class.")
    tops = [PurePosixPath(name).parts[0] for name in names]
    # A class is in a folder of its own below train, val or test.
    has_folders = {"train", "test"} <= set(tops) <= set(SPLITS) and all("/" in name for name in names)
    if split not in ("folders", None) or (split is None and not has_folders):
        return shuffled_or_from_file(names, split or "shuffled", seed, others="folders, ")
    if not has_folders:
        raise DataError(f"{root} has {some(sorted(set(tops)))}, where dataset.split=folders needs train, val and test.")
    classes = {split: [c for c, top in enumerate(tops) if top == split] for split in SPLITS}
    called = {split: {names[c].partition("/")[2] for c in classes[split]} for split in SPLITS}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        if shared := sorted(called[one] & called[other]):
            raise DataError(
                f"{some(shared)} is in {one} and in {other} of {root}: a class is in one split only. Where the folders "
                "divide the images of the same classes, put them together and set dataset.split=shuffled."
            )
    if classes["val"]:
        return classes, {"split": "folders"}
    held_out = max(1, round(len(classes["train"]) * VAL_SHARE / (TRAIN_SHARE + VAL_SHARE)))
    drawn = shuffled([names[c] for c in classes["train"]], seed, (len(classes["train"]) - held_out, held_out, 0))
    parts = {split: sorted(classes["train"][i] for i in drawn[split]) for split in ("train", "val")}
    return {**parts, "test": classes["test"]}, {"split": "folders", "split_seed": seed}
