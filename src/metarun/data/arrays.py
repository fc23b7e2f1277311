"""Arrays of one's own with a class for each row: features, signals, spectrograms, tables."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metarun.data import class_bank
from metarun.data.array_files import NAMES, NUMBERS, numbers, places_of, read, state_of, text_of
from metarun.data.cache import build_once, file_sha256
from metarun.data.class_bank import NamedClass, SplitBank
from metarun.data.class_split import PUBLISHED, ROLES, SPLITS, held_out_for_val, shuffled_or_from_file
from metarun.data.episodes import few_shot_of_arrays
from metarun.data.standardizing import KINDS, Standard, as_lists, standard_of
from metarun.errors import ConfigError, DataError, non_negative_int, one_of, shown, some
from metarun.system.files import json_bytes

FACTS = "facts.json"
RECIPE = 1  # to be raised with any change of how arrays are prepared that moves a byte
# Rows that are copied at once.
_ROWS = 2**12


class Group(NamedTuple):
    """Rows of one class, or of one task, or of one class of a task.

    Attributes:
      name: what it is called.
      whole: the class or the task that it is of, which is in one split.
      split: that its file gives it; "" where it gives none.
      x: `[n, *feature]` of all rows of its file.
      rows: `[count]`, which of them are its own.
      y: their targets, `[count, size]`; None where they have none.
    """

    name: str
    whole: str
    split: str
    x: np.ndarray
    rows: np.ndarray
    y: np.ndarray | None = None

    def blocks(self) -> Iterator[np.ndarray]:
        """Its rows in blocks."""
        return (self.x[self.rows[start : start + _ROWS]] for start in range(0, len(self.rows), _ROWS))


@few_shot_of_arrays
def arrays(
    *, source: str | None = None, split: str | None = None, split_seed: int = 0, standardize: str = "feature"
) -> SplitBank:
    """Returns few-shot classification of the rows of arrays: features, signals, spectrograms, tables.

    The first use reads the arrays and keeps them, standardised and in float32, in the cache; later uses read the cache
    alone, until a file is written to. Nothing in the files is called: an array of Python objects is an error.

    Args:
      source: a file FILE.npz or a folder of .npy files, with `x: [n, *feature]` of any float or integer type and
        `y: [n]`, whole numbers or names; besides, if the classes are divided, `split: [n]`, the name of each row's
        split, which is the same for all rows of a class. Or a folder with such a file or folder for each of train, val
        and test; without val, a fifth of train's classes by `split_seed`.
      split: "given", as the source says; "shuffled", 64% of the classes, 16% and 20% by `split_seed`; the path of a JSON
        file `{"train": ["CLASS", ...], "val": [...], "test": [...]}`; None: "given" where the source says, else "shuffled".
      split_seed: of the shuffle.
      standardize: one of `standardizing.KINDS`; mean and variance are those of meta-training's classes.

    Raises:
      ConfigError: a setting that cannot be used.
      DataError: an array is missing, broken, of another type or length, or has a number that is not finite; there is one
        class only, or too few for three splits; or a class is in two splits.
      MetarunError: the cache directory cannot be written.
    """

    def groups(scratch: Path) -> list[Group]:
        found: list[Group] = []
        for part, place in places.items():
            its = read(place, {"x": NUMBERS, "y": NAMES, "split": NAMES}, ["split"], scratch)
            x, y = numbers(place, "x", its["x"]), text_of(place, "y", its["y"])
            of_split = splits_of_rows(place, its, part)
            for name, rows in grouped(y):
                found.append(Group(name, name, one_split(place, "class", name, of_split[rows]), x, rows))
        return found

    places = places_of("dataset.source", source)
    folder, checksum, facts = prepared("arrays", places, groups, split, split_seed, standardize, "class")
    bank, names, _, hashes = class_bank.load(folder)
    return SplitBank(
        bank,
        names,
        facts["classes"],
        {"name": "arrays", **facts["split"], "standardize": standardize, "sha256": checksum},
        hashes,
        uneven=True,
        standardized=facts["standardized"],
        nouns=("class", "classes", "examples"),
    )


def prepared(
    kind: str,
    places: Mapping[str, Path],
    groups: Callable[[Path], Sequence[Group]],
    split: str | None,
    split_seed: int,
    standardize: str,
    noun: str,
    further: Callable[[Path, Sequence[Group], Sequence[Group]], Mapping[str, Any]] | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> tuple[Path, str, dict[str, Any]]:
    """Has arrays prepared in the cache: a bank with the rows of each group, standardised, and facts beside it.

    Args:
      kind: of the data set, as in `cache.build_once`.
      places: of `array_files.places_of`.
      groups: reads the arrays; it is given a folder for copies.
      split, split_seed, standardize: as for `arrays`.
      noun: what is in one split, a class or a task, for an error.
      further: `(folder, groups, those of meta-training)`: writes more into the folder, and returns what is to be added
        to the facts.
      parameters: what else the files are a function of.

    Returns:
      The folder, its checksum, and the facts: "classes", the groups of each split; "split", what is to be stated of it;
      "standardized", as in `types.DataSet`.
    """
    seed = non_negative_int("dataset.split_seed", split_seed)
    one_of("dataset.standardize", standardize, KINDS)
    if split is not None and not isinstance(split, str):
        raise ConfigError("dataset.split", split, "given, shuffled, or the path of a JSON file")
    listed = Path(os.path.expanduser(PUBLISHED.get(str(split), str(split))))
    given = {
        "files": state_of(places),
        "split": [split, seed, file_sha256(listed) if split and listed.is_file() else None],
        "standardize": standardize,
        "recipe": RECIPE,
        "format": class_bank.FORMAT,
        **(parameters or {}),
    }

    def prepare(folder: Path) -> None:
        with _scratch(folder) as scratch:
            found = groups(scratch)
            classes, stated = _divided(found, split, seed, noun)
            train = [found[c] for c in classes["train"]]
            standard = standard_of(standardize, lambda: (block for group in train for block in group.blocks()))
            class_bank.save(folder, _classes(found, standard), len(found))
            facts = {
                "classes": classes,
                "split": stated,
                "standardized": as_lists(standard),
                **(further(folder, found, train) if further else {}),
            }
            (folder / FACTS).write_bytes(json_bytes(facts))

    entry = build_once(kind, given, prepare)
    return entry.folder, entry.checksum, json.loads((entry.folder / FACTS).read_bytes())


def splits_of_rows(place: Path, arrays: Mapping[str, np.ndarray], part: str) -> np.ndarray:
    """The split of each row, `[n]`, by the array `split` or by the file that it is in; "" where nothing says it."""
    number = len(arrays["x"])
    if part or "split" not in arrays:
        return np.full(number, part)
    names = text_of(place, "split", arrays["split"]).astype(str)
    different, each = np.unique(names, return_inverse=True)
    if unknown := [str(name) for name in different if name.casefold() not in ROLES]:
        raise DataError(f"split of {place} has {some(unknown)}: expected train, val or test for each row.")
    return np.array([ROLES[name.casefold()] for name in different])[each]


def grouped(names: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Each different name and the rows that have it, by the name; numbers by their size."""
    different, each = np.unique(names, return_inverse=True)
    order, last = np.argsort(each, kind="stable"), np.cumsum(np.bincount(each, minlength=len(different)))
    for name, rows in zip(different.tolist(), np.split(order, last[:-1]), strict=True):
        yield str(name), rows


def one_split(place: Path, noun: str, name: str, of_rows: np.ndarray) -> str:
    """The split that all rows of a group have; raises `DataError` where they have several."""
    different = np.unique(of_rows)
    if len(different) > 1:
        raise DataError(
            f"split of {place} puts the {noun} {shown(name)} into {' and '.join(different)}: a {noun} is in one split only."
        )
    return str(different[0])


def _divided(
    groups: Sequence[Group], split: str | None, seed: int, noun: str
) -> tuple[dict[str, list[int]], Mapping[str, Any]]:
    """The groups of each split, and the facts to be stated."""
    given: dict[str, str] = {}
    for group in groups:
        first = given.setdefault(group.whole, group.split)
        if first != group.split:
            raise DataError(
                f"The {noun} {shown(group.whole)} is in the files of {first} and of {group.split}: a {noun} is in one split "
                "only."
            )
    if len(given) < 2:
        raise DataError(f"The source has one {noun} only, {some(list(given))}: each of the three splits needs its own.")
    names = list(given)
    wholes, stated = _split(names, list(given.values()), split, seed, noun)
    split_of = {names[number]: where for where, its in wholes.items() for number in its}
    return {
        where: [c for c, group in enumerate(groups) if split_of.get(group.whole) == where] for where in SPLITS
    }, stated


def _split(
    names: Sequence[str], given: Sequence[str], split: str | None, seed: int, noun: str
) -> tuple[Mapping[str, Sequence[int]], Mapping[str, Any]]:
    """The classes or tasks of each split, of their names and the splits that the source gives them; see `arrays`."""
    if split not in (None, "given") or (split is None and not any(given)):
        return shuffled_or_from_file(names, split or "shuffled", seed, others="given, ", noun=noun)
    if not any(given):
        raise ConfigError(
            "dataset.split", split, "shuffled or a JSON file: the source has no array split and no files of them"
        )
    its = {where: [number for number, own in enumerate(given) if own == where] for where in SPLITS}
    if empty := [where for where in ("train", "test") if not its[where]]:
        raise DataError(f"The source has no {noun} in {some(empty)}.")
    if its["val"]:
        return its, {"split": "given"}
    parts = held_out_for_val(names, its["train"], seed)
    if parts is None:
        raise DataError(f"The source has no {noun} in val, and one in train, which cannot be held out for it.")
    return {"train": parts[0], "val": parts[1], "test": its["test"]}, {"split": "given", "split_seed": seed}


def _classes(groups: Iterable[Group], standard: Standard | None) -> Iterator[NamedClass]:
    convert = (lambda rows: rows.astype(np.float32)) if standard is None else standard.applied
    for group in groups:
        yield NamedClass(group.name, "", np.concatenate([convert(block) for block in group.blocks()]))


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder for copies within the one that is being built, which is gone before the latter is finished."""
    scratch = folder / "scratch"
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch)
