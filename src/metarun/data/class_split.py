"""Which classes are for meta-training, meta-validation and meta-test."""

import hashlib
import itertools
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metarun.data.cache import file_sha256
from metarun.errors import ConfigError, DataError, shown, some

SPLITS = ("train", "val", "test")
# What else a split is called, capitals or not.
ROLES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
# Of the classes, meta-training's and meta-validation's share where nothing else is said, as miniImageNet has them.
TRAIN_SHARE, VAL_SHARE = 0.64, 0.16
# Published class lists that come with metarun, by name.
PUBLISHED = {path.stem: path for path in sorted((Path(__file__).parent / "splits").glob("*.json"))}


def shuffled(names: Sequence[str], seed: int, sizes: tuple[int, int, int]) -> dict[str, list[int]]:
    """All classes in random order, cut into splits of the given sizes, which sum to the number of classes."""
    # Ordered by a hash, which no version of a library can change as it can a generator of random numbers.
    order = sorted(range(len(names)), key=lambda i: _rank(seed, names[i]))
    bounds = itertools.pairwise(itertools.accumulate(sizes, initial=0))
    return {split: order[start:stop] for split, (start, stop) in zip(SPLITS, bounds, strict=True)}


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed} {name}".encode(errors="surrogateescape")).digest()


def by_name(names: Sequence[str]) -> dict[str, int]:
    """The number of each class by its name in Unicode's form NFC, for a list may spell a letter as a folder does not.

    Raises:
      DataError: two names are equal in that form, and so look alike.
    """
    found: dict[str, int] = {}
    for i, name in enumerate(names):
        first = found.setdefault(unicodedata.normalize("NFC", name), i)
        if first != i:
            raise DataError(
                f"Two classes are called {shown(name)}, by different characters: {names[first]!a} and "
                f"{name!a}. Rename one of them, or put them together."
            )
    return found


def counts_in_words(classes: Mapping[str, Sequence[int]]) -> str:
    """How many classes each split has: "train 4, val 1, test 1"."""
    return ", ".join(f"{split} {len(its)}" for split, its in classes.items())


def shuffled_or_from_file(
    names: Sequence[str], split: str, seed: int, *, others: str = "", noun: str = "class"
) -> tuple[dict[str, list[int]], dict[str, Any]]:
    """The split "shuffled", 64% of the classes, 16% and 20% by `seed`; or that of a JSON file.

    Args:
      names: what the classes are called.
      split: `dataset.split`: "shuffled", the name of a list in `PUBLISHED`, or the path of a file, see `from_file`.
      seed: of the shuffle.
      others: what else `dataset.split` may be, for an error, such as "folders, ".
      noun: what one of the names is of, for an error.

    Returns:
      The classes of each split, and the facts to be stated with a result.

    Raises:
      ConfigError, DataError: as `from_file`; or there are too few classes for three splits.
    """
    if split != "shuffled":
        listed = PUBLISHED.get(split, split) if isinstance(split, str) else split
        return from_file(names, listed, form="CLASS", others=f"{others}shuffled, {', '.join(PUBLISHED)}")
    sizes = _shares(len(names))
    if min(sizes) < 1:
        enough = next(number for number in itertools.count(len(names)) if min(_shares(number)) >= 1)
        would = ", ".join(f"{name} {size}" for name, size in zip(SPLITS, sizes, strict=True))
        them = {"class": "classes"}.get(noun, f"{noun}s")
        raise DataError(
            f"There are {len(names)} {them}, too few for dataset.split=shuffled, which needs {enough} or more: they would "
            f"be {would}. Add {them}, or name those of each split in a JSON file (dataset.split=FILE)."
        )
    return shuffled(names, seed, sizes), {"split": "shuffled", "split_seed": seed}


def held_out_for_val(names: Sequence[str], train: Sequence[int], seed: int) -> tuple[list[int], list[int]] | None:
    """Meta-training's classes with a fifth held out for meta-validation: what is left and what is held, or None if too few.

    Args:
      names: of all classes.
      train: those of meta-training.
      seed: of the shuffle.
    """
    number = len(train)
    held = max(1, round(number * VAL_SHARE / (TRAIN_SHARE + VAL_SHARE)))
    if held == number:
        return None
    drawn = shuffled([names[c] for c in train], seed, (number - held, held, 0))
    left, val = (sorted(train[i] for i in drawn[split]) for split in ("train", "val"))
    return left, val


def _shares(number: int) -> tuple[int, int, int]:
    """How many of some classes are shuffled into each split; where they are too few, none are left for the last."""
    train, val = (min(number, max(1, round(share * number))) for share in (TRAIN_SHARE, VAL_SHARE))
    val = min(val, number - train)
    return train, val, number - train - val


def from_file(
    names: Sequence[str], split: str | Path, *, form: str, others: str
) -> tuple[dict[str, list[int]], dict[str, Any]]:
    """The split of a JSON file `{"train": [class, ...], "val": [...], "test": [...]}`.

    Args:
      names: what the classes are called.
      split: `dataset.split`, the path of the file.
      form: how a class is called, for an error, such as "ALPHABET/characterNN".
      others: what else `dataset.split` may be, for an error, such as "maml, lake".

    Returns:
      The classes of each split, and the facts to be stated with a result.

    Raises:
      ConfigError: there is no such file.
      DataError: it is not of this form, or names a class that there is not, or one twice, or none in a split.
    """
    # A list that comes with metarun is a path already.
    if not isinstance(split, (str, Path)) or not (path := Path(os.path.expanduser(split))).is_file():
        raise ConfigError("dataset.split", split, f"{others}, or the path of a JSON file")
    try:
        data = path.read_bytes()
        # A byte order mark says which Unicode it is; and a folder's name may be in bytes that are none.
        listed = json.loads(data.decode(json.detect_encoding(data), "surrogateescape"))
        entries = [name for split in SPLITS for name in listed[split]]
        well_formed = set(listed) == set(SPLITS) and all(isinstance(name, str) for name in entries)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        well_formed = False
    if not well_formed:
        expected = f'{{"train": ["{form}", ...], "val": [...], "test": [...]}}'
        raise DataError(f"{path} is not JSON of the form {expected}.")
    index = by_name(names)
    chosen = [index.get(unicodedata.normalize("NFC", name)) for name in entries]
    if unknown := [name for name, number in zip(entries, chosen, strict=True) if number is None]:
        raise DataError(f"{path} names {some(unknown)}, which the source does not have; it has e.g. {shown(names[0])}.")
    if repeated := [names[number] for number, count in Counter(chosen).items() if number is not None and count > 1]:
        raise DataError(f"{path} names {some(repeated)} more than once: a class is in one split only.")
    if empty := [split for split in SPLITS if not listed[split]]:
        raise DataError(f"{path} has no class in {some(empty)}.")
    classes = {split: [index[unicodedata.normalize("NFC", name)] for name in listed[split]] for split in SPLITS}
    return classes, {"split": path.name, "split_sha256": file_sha256(path)}
