"""One's own pictures: a folder for each class."""

import json
import sys
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import PIL

from metarun.data import class_bank
from metarun.data.cache import build_once
from metarun.data.class_bank import NamedClass, SplitBank
from metarun.data.class_split import (
    ROLES,
    SPLITS,
    by_name,
    counts_in_words,
    held_out_for_val,
    shuffled_or_from_file,
)
from metarun.data.decoding import OF_SET, RESIZE, Range, RangeError, checked_range, checked_size
from metarun.data.episodes import few_shot_of
from metarun.data.pictures import (
    Entry,
    checked_folder,
    fingerprint,
    in_folder,
    left_out_in_words,
    range_in_words,
    range_of,
    read_classes,
    refuse_one_folder_twice,
    told_in_words,
)
from metarun.errors import ConfigError, DataError, non_negative_int, one_of, some, true_or_false

LEFT_OUT = "left_out.json"
LAYOUTS = ("auto", "splits", "classes")
OF_ALL = "range.json"  # of dataset.range=set


@few_shot_of
def image_folder(
    *,
    source: str | None = None,
    image_size: int = 84,
    channels: int = 3,
    range: Range = None,
    split: str | None = None,
    split_seed: int = 0,
    layout: str = "auto",
    links: str = "inside",
    strict: bool = False,
) -> SplitBank:
    """Returns few-shot classification of the pictures in a folder, in which each folder with pictures is a class.

    The first use reads the pictures and keeps them, at their size, in the cache; later uses read the cache alone, until
    a file is added, removed or written to. Files that are no pictures, and broken ones, are left out and named. Of a
    file of many pages or frames the first is used, and those files are named at the first use.

    Args:
      source: the folder.
      image_size: pixels of a side; see `decoding.decode` for how pictures are brought to it.
      channels: 1 (greyscale) or 3 (colour).
      range: of grey pictures of 12, 16 or 32 bits and of floats, what is black and what is white, two numbers; or
        "file", the least and the greatest value of each; or "set", those of all; or None: all that 12 or 16 bits can
        say, and an error for those that use less than a quarter of it and for all others. Those of 8 bits keep theirs.
      split: "folders", the classes in the folders train, val and test of the source (without val, a fifth of train's by
        `split_seed`); "shuffled", 64% of the classes, 16% and 20% by `split_seed`; the path of a JSON file
        `{"train": ["CLASS", ...], "val": [...], "test": [...]}`; or None: "folders" or "shuffled", as `layout` says.
      split_seed: of the shuffle.
      layout: how the folders are read where `split` does not say. "splits": folders train, val and test, also by the
        other names in `ROLES` and in capitals, have a folder for each class; whatever is beside these is named and left
        out. "classes": each folder with pictures is a class. "auto": splits where there are such folders and nothing
        else, classes where no folders have such names; anything between is an error that says both readings.
      links: which links to folders are followed, see `pictures.in_folder`.
      strict: whether a file that is left out is an error.

    Raises:
      ConfigError: a setting that cannot be used.
      DataError: the folder has no classes, or too few, or one class in two splits; it can be read in two ways; a link
        leads out of it; nothing says what is black and what is white in a file; or `strict`, and a file is left out.
      MetarunError: the cache directory cannot be written.
    """
    root = checked_folder("dataset.source", source, "a folder with a folder of pictures for each class")
    side, channels = checked_size(image_size, channels)
    range = checked_range("dataset.range", range)
    seed = non_negative_int("dataset.split_seed", split_seed)
    true_or_false("dataset.strict", strict)
    layout = _layout(one_of("dataset.layout", layout, LAYOUTS), split)

    files = list(in_folder(root, links=links))
    parameters = {
        "files": fingerprint(root, files),
        "size": [side, side, channels],
        "range": range,
        "resize": RESIZE,
        "pillow": PIL.__version__,
        "format": class_bank.FORMAT,
    }
    entry = build_once("image_folder", parameters, lambda folder: _prepare(folder, root, files, side, channels, range))
    _say_left_out(root, entry.folder / LEFT_OUT, strict)
    bank, names, _, hashes = class_bank.load(entry.folder)
    if not names:
        raise DataError(f"{root} has 0 folders with pictures: expected one for each class.")
    classes, stated = _split(root, names, split, seed, layout)
    used = [names[c] for its in classes.values() for c in its]
    if split in ("folders", None):
        if "split_seed" in stated and stated["split"] == "folders":
            held, kept = len(classes["val"]), len(classes["train"])
            print(
                f"{root} has no folder val: {held} of train's {held + kept} classes are held out for it.",
                file=sys.stderr,
            )
        _say_beside(root, files, set(names) - set(used), strict)
    refuse_one_folder_twice(root, used)
    if range == OF_SET:
        range = json.loads((entry.folder / OF_ALL).read_text())
    if range is not None:
        stated = {**stated, "range": range}
    return SplitBank(
        bank,
        names,
        classes,
        {"name": "image_folder", **stated, "resize": RESIZE, "sha256": entry.checksum},
        hashes,
        uneven=True,
    )


def _prepare(folder: Path, root: Path, files: Sequence[Entry], side: int, channels: int, range: Range) -> None:
    left_out: dict[str, str] = {}
    told: dict[str, str] = {}
    if range == OF_SET:
        range = range_of(file.read for file in files)
        (folder / OF_ALL).write_text(json.dumps(range))
    classes = read_classes(files, (side, side, channels), left_out, range, told)
    total = len({file.path.parent for file in files})
    try:
        class_bank.save(folder, (NamedClass(name, "", images) for name, images in classes), total)
    except RangeError as error:
        raise DataError(f"{root}/{range_in_words(error)}") from error
    for said in told_in_words(root, told):
        print(said, file=sys.stderr)
    (folder / LEFT_OUT).write_text(json.dumps(dict(sorted(left_out.items())), indent=1))


def _say_left_out(root: Path, path: Path, strict: bool) -> None:
    left_out = json.loads(path.read_bytes())
    if left_out:
        said = left_out_in_words(root, left_out)
        if strict:
            raise DataError(f"{said} Mend or remove them, or leave them out with dataset.strict=false.")
        print(f"{said} They are left out; all of them are in {path}.", file=sys.stderr)


def _say_beside(root: Path, files: Sequence[Entry], unused: Collection[str], strict: bool) -> None:
    """Names the pictures that are in none of the classes, where folders are splits."""
    beside = [str(file.path) for file in files if str(file.path.parent) in unused]
    if beside:
        said = f"{len(beside)} of the files in {root} are in no class of train, val or test: {some(beside)}."
        if strict:
            raise DataError(f"{said} Put them elsewhere, or leave them out with dataset.strict=false.")
        print(f"{said} They are left out.", file=sys.stderr)


def _layout(layout: str, split: str | None) -> str:
    """`dataset.layout`, or what `dataset.split` says of it."""
    implied = layout if split is None else "splits" if split == "folders" else "classes"
    if layout not in ("auto", implied):
        raise ConfigError("dataset.layout", layout, f"{implied}, or auto, with dataset.split={split}")
    return implied


def _split(
    root: Path, names: Sequence[str], split: str | None, seed: int, layout: str
) -> tuple[dict[str, list[int]], Mapping[str, Any]]:
    if split not in ("folders", "shuffled", None):  # the list of a user, who names each folder
        return shuffled_or_from_file(names, split, seed, others="folders, ")
    by_name(names)
    if layout == "auto":
        layout = _unmistakable(root, names, seed)
    if layout == "splits":
        return _of_folders(root, names, seed)
    _refuse_divided(root, names)
    return shuffled_or_from_file(names, "shuffled", seed)


def _role(folder: str) -> str | None:
    return ROLES.get(folder.casefold())


def _folders_of_splits(names: Sequence[str]) -> dict[str, dict[str, list[int]]]:
    """Of each split the folders at the top that are called so, and the classes below them."""
    found: dict[str, dict[str, list[int]]] = {split: {} for split in SPLITS}
    for c, name in enumerate(names):
        top, _, below = name.partition("/")
        if role := _role(top):
            its = found[role].setdefault(top, [])
            if below:
                its.append(c)
    return found


def _unmistakable(root: Path, names: Sequence[str], seed: int) -> str:
    """How a folder is read, "splits" or "classes".

    Raises:
      DataError: its names leave a doubt; it says both readings.
    """
    found = _folders_of_splits(names)
    doubts = []
    if sum(map(bool, found.values())) >= 2:
        if others := sorted({top for name in names if not _role(top := name.partition("/")[0])}):
            its = [top for folders in found.values() for top in folders]
            doubts.append(f"{some(others)} beside {', '.join(its)}")
        doubts += _faults(found)
        if not doubts:
            return "splits"
    elif deeper := _deeper_splits(names):
        tops = {name.partition("/")[0] for name in names}
        below = f" (or is it dataset.source={root / min(tops)}?)" if len(tops) == 1 else ""
        doubts.append(deeper + below)
    else:
        return "classes"
    try:
        classes, _ = _of_folders(root, names, seed)
        as_splits = f"{counts_in_words(classes)} classes"
    except DataError as error:
        as_splits = f"an error ({error})"
    try:
        _refuse_divided(root, names)
        as_classes = f"{counts_in_words(shuffled_or_from_file(names, 'shuffled', seed)[0])}, shuffled"
    except DataError as error:
        as_classes = f"an error ({error})"
    raise DataError(
        f"{root} can be read in two ways, because of {'; '.join(doubts)}. dataset.layout=splits, folders train, val and "
        f"test above the classes: {as_splits}. dataset.layout=classes, each of {len(names)} folders with pictures a class: "
        f"{as_classes}. Say which by dataset.layout, or name the classes of each split in a JSON file (dataset.split=FILE)."
    )


def _faults(found: Mapping[str, Mapping[str, Sequence[int]]]) -> list[str]:
    """Why the folders at the top are no splits, or are not certain to be."""
    faults = [f"{' and '.join(sorted(its))}, which are both {split}" for split, its in found.items() if len(its) > 1]
    faults += [f"no folder {split}" for split in ("train", "test") if not found[split]]
    empty = [top for folders in found.values() for top, classes in folders.items() if not classes]
    return faults + [f"{top}, which has pictures but no folders of classes" for top in sorted(empty)]


def _deeper_splits(names: Sequence[str]) -> str:
    """Says where, further down, folders are called as splits are; "" if nowhere."""
    at: dict[int, dict[str, str]] = {}
    for name in names:
        for depth, part in enumerate(PurePosixPath(name).parts[1:]):
            if role := _role(part):
                at.setdefault(depth, {}).setdefault(role, name)
    several = [roles for roles in at.values() if len(roles) > 1]
    return f"folders that are called as splits are, such as {some(list(several[0].values()))}" if several else ""


def _refuse_divided(root: Path, names: Sequence[str]) -> None:
    """Raises `DataError` where folders of several splits have classes of one name, which would be classes apart."""
    where: dict[str, dict[str, str]] = {}
    for name in names:
        parts = PurePosixPath(unicodedata.normalize("NFC", name)).parts
        roles = [part for part in parts if _role(part)]
        rest = [part for part in parts if not _role(part)]
        if roles and rest:
            where.setdefault("/".join(rest), {}).setdefault(ROLES[roles[0].casefold()], roles[0])
    divided = {name: " and in ".join(its.values()) for name, its in where.items() if len(its) > 1}
    if divided:
        folders = next(iter(divided.values()))
        shared = [name for name, its in divided.items() if its == folders]
        raise DataError(
            f"{some(shared)} is in {folders} of {root}: a class is in one split only. Where the folders divide the images "
            "of the same classes, put them together and set dataset.split=shuffled. Where the classes are different, give "
            "them different names, or name the folders of each split in a JSON file (dataset.split=FILE)."
        )


def _of_folders(root: Path, names: Sequence[str], seed: int) -> tuple[dict[str, list[int]], Mapping[str, Any]]:
    """The classes in the folders of splits, and the facts to be stated; what is beside them is in none."""
    found = _folders_of_splits(names)
    if wrong := _faults(found):
        tops = sorted({PurePosixPath(name).parts[0] for name in names})
        raise DataError(f"{root} has {some(tops)}, where dataset.split=folders needs train, val and test: {wrong[0]}.")
    classes = {split: [c for its in found[split].values() for c in its] for split in SPLITS}
    _refuse_divided(root, [names[c] for its in classes.values() for c in its])
    if classes["val"]:
        return classes, {"split": "folders"}
    parts = held_out_for_val(names, classes["train"], seed)
    if parts is None:
        number = len(classes["train"])
        raise DataError(
            f"{root} has no folder val, and train has {number} class, of which none can be held out for it."
        )
    return {"train": parts[0], "val": parts[1], "test": classes["test"]}, {"split": "folders", "split_seed": seed}
