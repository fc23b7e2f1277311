"""Which classes are for meta-training, meta-validation and meta-test."""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metarun.data.cache import file_sha256
from metarun.errors import ConfigError, DataError, some

SPLITS = ("train", "val", "test")
# Of the classes, meta-training's and meta-validation's share where nothing else is said, as miniImageNet has them.
TRAIN_SHARE, VAL_SHARE = 0.64, 0.16
# Published class lists that come with metarun, by name.
PUBLISHED = {path.stem: path for path in sorted((Path(__file__).parent / "splits").glob("*.json"))}


def shuffled(names: Sequence[str], seed: int, sizes: tuple[int, int, int]) -> dict[str, list[int]]:
    """All classes in random order, cut into splits of the given sizes, which sum to the number of classes."""
    # Ordered by a hash, which no version of a library can change as it can a generator of random numbers.
    order = sorted(range(len(names)), key=lambda i: hashlib.sha256(f"{seed} {names[i]}".encode()).digest())
    bounds = itertools.pairwise(itertools.accumulate(sizes, initial=0))
    return {split: order[start:stop] for split, (start, stop) in zip(SPLITS, bounds, strict=True)}


def shuffled_or_from_file(
    names: Sequence[str], split: str, seed: int, *, others: str = ""
) -> tuple[dict[str, list[int]], dict[str, Any]]:
    """The split "shuffled", 64% of the classes, 16% and 20% by `seed`; or that of a JSON file.

    Args:
      names: what the classes are called.
      split: `dataset.split`: "shuffled", the name of a list in `PUBLISHED`, or the path of a file, see `from_file`.
      seed: of the shuffle.
      others: what else `dataset.split` may be, for an error, such as "folders, ".

    Returns:
      The classes of each split, and the facts to be stated with a result.

    Raises:
      ConfigError, DataError: as `from_file`; or there are too few classes for three splits.
    """
    if split != "shuffled":
        listed = PUBLISHED.get(split, split)
        return from_file(names, listed, form="CLASS", others=f"{others}shuffled, {', '.join(PUBLISHED)}")
    train, val = (max(1, round(share * len(names))) for share in (TRAIN_SHARE, VAL_SHARE))
    if len(names) - train - val < 1:
        raise DataError(f"There are {len(names)} classes; three or more are needed, for three splits.")
    return shuffled(names, seed, (train, val, len(names) - train - val)), {"split": "shuffled", "split_seed": seed}


def from_file(
    names: Sequence[str], split: str, *, form: str, others: str
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
    path = Path(split).expanduser()
    if not path.is_file():
        raise ConfigError("dataset.split", split, f"{others}, or the path of a JSON file")
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        entries = [name for split in SPLITS for name in listed[split]]
        well_formed = set(listed) == set(SPLITS) and all(isinstance(name, str) for name in entries)
    except (OSError, ValueError, KeyError, TypeError):
        well_formed = False
    if not well_formed:
        expected = f'{{"train": ["{form}", ...], "val": [...], "test": [...]}}'
        raise DataError(f"{path} is not JSON of the form {expected}.")
    index = {name: i for i, name in enumerate(names)}
    if unknown := [name for name in entries if name not in index]:
        raise DataError(f"{path} names {some(unknown)}, which the source does not have; it has e.g. {names[0]}.")
    if repeated := [name for name, count in Counter(entries).items() if count > 1]:
        raise DataError(f"{path} names {some(repeated)} more than once: a class is in one split only.")
    if empty := [split for split in SPLITS if not listed[split]]:
        raise DataError(f"{path} has no class in {some(empty)}.")
    classes = {split: [index[name] for name in listed[split]] for split in SPLITS}
    return classes, {"split": path.name, "split_sha256": file_sha256(path)}
