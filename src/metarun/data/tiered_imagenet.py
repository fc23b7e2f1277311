"""tieredImageNet: 608 classes of ImageNet, 84x84 in colour, split by what they are kinds of; from the user's own copy."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import PIL

from metarun.data import array_pickles, class_bank
from metarun.data.cache import build_once
from metarun.data.class_bank import NamedClass, SplitBank
from metarun.data.class_split import ROLES, SPLITS
from metarun.data.decoding import WORKERS, PictureError, RangeError, decode
from metarun.data.episodes import few_shot_of
from metarun.data.pictures import checked_folder, fingerprint, in_folder, say_shortfall
from metarun.errors import DataError, shown, some

SIDE, CHANNELS = 84, 3
RESIZE = "Lanczos to 84x84, proportions not kept"
# Of each split, as published.
CLASSES = {"train": 351, "val": 97, "test": 160}
IMAGES = {"train": 448_695, "val": 124_261, "test": 206_209}
LAYOUTS = (
    "folders train, val and test with a folder of pictures for each class, or train_images_png.pkl, train_labels.pkl and the "
    "four siblings of val and test"
)

# The pictures of each class of a split: what each is called, and how its encoded bytes are read.
Found = Mapping[str, list[tuple[str, Callable[[], bytes]]]]


@few_shot_of
def tiered_imagenet(*, source: str | None = None, links: str = "inside") -> SplitBank:
    """Returns few-shot classification of tieredImageNet: 351 classes of meta-training, 97 and 160, 84x84 in colour.

    No kind of thing, such as dogs, has classes in two splits. It cannot be downloaded: its pictures are ImageNet's, for
    research alone. The first use decodes the user's copy into the cache, which takes 16.5 GB; later uses read the cache
    alone, until the copy changes.

    Args:
      source: a folder with folders train, val and test, in which each class has a folder of pictures; or with the files
        {train,val,test}_images_png.pkl and {train,val,test}_labels.pkl that its authors pass on.
      links: which links to folders are followed, see `pictures.in_folder`.

    Raises:
      ConfigError: a setting that cannot be used.
      DataError: the source has neither, has another number of classes, or a file of it or of the cache is broken.
      MetarunError: the cache directory cannot be written.

    Source: Ren et al. 2018, Meta-Learning for Semi-Supervised Few-Shot Classification, section 4.1.2.
    """
    root = checked_folder("dataset.source", source, f"a folder with your copy of tieredImageNet: {LAYOUTS}")
    state = fingerprint(root, in_folder(root, links=links))
    parameters = {"source": state, "resize": RESIZE, "pillow": PIL.__version__, "format": class_bank.FORMAT}
    total = sum(CLASSES.values())
    entry = build_once("tiered_imagenet", parameters, lambda it: class_bank.save(it, _decoded(root, links), total))
    bank, names, splits, hashes = class_bank.load(entry.folder)
    classes = {split: [c for c, its in enumerate(splits) if its == split] for split in SPLITS}
    images = {split: int(bank.count[its].sum()) for split, its in classes.items()}
    say_shortfall("tieredImageNet", images, IMAGES)
    facts = {"name": "tiered_imagenet", "split": "ren", "images": images, "resize": RESIZE, "sha256": entry.checksum}
    return SplitBank(bank, names, classes, facts, hashes)


def _decoded(root: Path, links: str) -> Iterator[NamedClass]:
    """The classes of the source, split by split."""

    def picture(name: str, read: Callable[[], bytes]) -> np.ndarray:
        try:
            return decode(read(), SIDE, SIDE, CHANNELS)
        except (PictureError, RangeError) as error:
            raise DataError(f"{shown(name)} of {root} is broken: {error}. Get it again.") from error

    archives = all((root / f"{split}_{part}.pkl").is_file() for split in SPLITS for part in ("images_png", "labels"))
    of_folders = {} if archives else _of_folders(root, links)
    with ThreadPoolExecutor(WORKERS) as pool:
        for split, number in CLASSES.items():
            found = _of_archives(root, split) if archives else of_folders.get(split, {})
            if len(found) != number:
                raise DataError(
                    f"{root} has {len(found)} classes of {split}, where tieredImageNet has {number}; it needs {LAYOUTS}."
                )
            for name, pictures in sorted(found.items()):
                yield NamedClass(name, split, np.stack(list(pool.map(lambda each: picture(*each), pictures))))


def _of_folders(root: Path, links: str) -> dict[str, Found]:
    found: dict[str, defaultdict[str, list[tuple[str, Callable[[], bytes]]]]] = {s: defaultdict(list) for s in SPLITS}
    for file in in_folder(root, links=links):
        *_, split, name = ("", "", *file.path.parent.parts)
        if role := ROLES.get(split.lower()):
            found[role][name].append((str(file.path), file.read))
    for one, other in combinations(SPLITS, 2):
        if twice := sorted({*found[one]} & {*found[other]}):
            raise DataError(f"{root} has {some(twice)} in {one} and in {other}: a class is in one split only.")
    return dict(found)


def _of_archives(root: Path, split: str) -> Found:
    """The pictures of a list of encoded ones, `[bytes]` uint8 each, and {"label_specific": `[n]`, "label_specific_str": names}."""
    images, labels = (root / f"{split}_{part}.pkl" for part in ("images_png", "labels"))
    path = images
    try:
        encoded = [np.asarray(each, np.uint8).reshape(-1) for each in array_pickles.load(images)]
        path = labels
        content = array_pickles.load(labels)
        classes = np.asarray(content["label_specific"]).astype(int)
        names = [str(name) for name in content["label_specific_str"]]
        if len(classes) != len(encoded) or not np.isin(classes, np.arange(len(names))).all():
            raise ValueError(f"{len(classes)} labels of {len(names)} classes for {len(encoded)} pictures")
    except array_pickles.BROKEN as error:
        raise DataError(f"{path} is no archive of tieredImageNet, or broken: {error}. Get it again.") from error
    # Two classes of ImageNet may have one name, such as the crane that flies and the one that lifts.
    found: dict[str, list[tuple[str, Callable[[], bytes]]]] = {}
    for row, c in enumerate(classes.tolist()):
        found.setdefault(f"{split}/{c:03} {names[c]}", []).append(
            (f"{images.name}, row {row}", partial(encoded[row].tobytes))
        )
    return found
