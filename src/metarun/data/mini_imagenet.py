"""miniImageNet: 100 classes of ImageNet, 600 colour pictures of 84x84 each, from the user's own copy."""

import csv
import io
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from metarun.data import array_pickles, class_bank
from metarun.data.cache import build_once, cache_dir
from metarun.data.class_bank import NamedClass, SplitBank
from metarun.data.class_split import SPLITS
from metarun.data.decoding import WORKERS, PictureError, RangeError, decode
from metarun.data.episodes import few_shot_of
from metarun.data.pictures import checked_folder, fingerprint, in_folder, in_zips, say_shortfall
from metarun.errors import DataError, shown, some
from metarun.system.progress import hush

SIDE, CHANNELS = 84, 3
RESIZE = "Lanczos to 84x84, proportions not kept"
IMAGES_PER_CLASS = 600
# Ravi and Larochelle's split, by the WordNet number of a class.
CLASSES = {
    "train": """
        n01532829 n01558993 n01704323 n01749939 n01770081 n01843383 n01910747 n02074367 n02089867 n02091831 n02101006
        n02105505 n02108089 n02108551 n02108915 n02111277 n02113712 n02120079 n02165456 n02457408 n02606052 n02687172
        n02747177 n02795169 n02823428 n02966193 n03017168 n03047690 n03062245 n03207743 n03220513 n03337140 n03347037
        n03400231 n03476684 n03527444 n03676483 n03838899 n03854065 n03888605 n03908618 n03924679 n03998194 n04067472
        n04243546 n04251144 n04258138 n04275548 n04296562 n04389033 n04435653 n04443257 n04509417 n04515003 n04596742
        n04604644 n04612504 n06794110 n07584110 n07697537 n07747607 n09246464 n13054560 n13133613
    """.split(),
    "val": """
        n01855672 n02091244 n02114548 n02138441 n02174001 n02950826 n02971356 n02981792 n03075370 n03417042 n03535780
        n03584254 n03770439 n03773504 n03980874 n09256479
    """.split(),
    "test": """
        n01930112 n01981276 n02099601 n02110063 n02110341 n02116738 n02129165 n02219486 n02443484 n02871525 n03127925
        n03146219 n03272010 n03544143 n03775546 n04146614 n04149813 n04418357 n04522168 n07613480
    """.split(),
}
LAYOUTS = (
    "train.csv, val.csv and test.csv beside the pictures or zips of them, a folder of pictures for each class, or "
    "mini-imagenet-cache-train.pkl and its two siblings"
)


# The pictures of a split by class: by their names, how to read their encoded bytes. One of two names, by a link or a row
# that is there twice, is one picture.
Found = Mapping[str, Mapping[str, Callable[[], bytes]]]


@few_shot_of
def mini_imagenet(*, source: str | None = None, links: str = "inside") -> SplitBank:
    """Returns few-shot classification of miniImageNet: 64 classes of meta-training, 16 and 20, 84x84 in colour.

    It cannot be downloaded: its pictures are ImageNet's, for research alone. The first use has TFDS prepare the user's
    copy and keeps it, decoded, in the cache; later uses read the cache alone, until the copy changes.

    Args:
      source: a folder with Ravi and Larochelle's train.csv, val.csv and test.csv beside the pictures that they name, or
        zips or a folder of them; or with a folder of pictures for each class (of ImageNet's 1,300, the first 600 by
        name); or with the three files mini-imagenet-cache-{train,val,test}.pkl.
      links: which links to folders are followed, see `pictures.in_folder`.

    Raises:
      ConfigError: a setting that cannot be used.
      DataError: the source has none of these layouts, lacks a class, or a file of it or of the cache is broken.
      MetarunError: the cache directory cannot be written.

    References:
      Vinyals et al., "Matching Networks for One Shot Learning", 2016; the split: Ravi and Larochelle, "Optimization as
      a Model for Few-Shot Learning", 2017.
    """
    root = checked_folder("dataset.source", source, f"a folder with your copy of miniImageNet: {LAYOUTS}")
    state = fingerprint(root, in_folder(root, links=links))
    parameters = {"source": state, "resize": RESIZE, "pillow": PIL.__version__, "format": class_bank.FORMAT}
    total = sum(map(len, CLASSES.values()))
    entry = build_once(
        "mini_imagenet", parameters, lambda it: class_bank.save(it, _prepared(root, state, links), total)
    )
    bank, names, splits, hashes = class_bank.load(entry.folder)
    classes = {split: [c for c, its in enumerate(splits) if its == split] for split in SPLITS}
    images = {split: int(bank.count[its].sum()) for split, its in classes.items()}
    say_shortfall("miniImageNet", images, {split: IMAGES_PER_CLASS * len(its) for split, its in CLASSES.items()})
    return SplitBank(
        bank,
        names,
        classes,
        {
            "name": "mini_imagenet",
            "split": "ravi",
            "images": images,
            "resize": RESIZE,
            "sha256": entry.checksum,
        },
        hashes,
    )


def _prepared(root: Path, state: str, links: str) -> Iterator[NamedClass]:
    """Has TFDS prepare the source, and decodes it class by class."""
    import tensorflow_datasets as tfds  # slow to import, and only the first use needs it

    hush(tfds)
    dataset = builder(links=links, data_dir=cache_dir() / "tfds" / f"mini_imagenet-{state[:16]}")
    dataset.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=root))

    def decoded(example: Mapping[str, Any]) -> np.ndarray:
        try:
            return decode(example["image"], SIDE, SIDE, CHANNELS)
        except RangeError as error:
            name = example["name"].decode()
            raise DataError(f"{name} of {root} is none of miniImageNet's, which have 8 bits: {error}.") from error
        except PictureError as error:
            raise DataError(f"{example['name'].decode()} of {root} is broken: {error}. Get it again.") from error

    with ThreadPoolExecutor(WORKERS) as pool:
        for split in SPLITS:
            examples = dataset.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
            for label, members in itertools.groupby(examples, key=lambda example: int(example["label"])):
                yield NamedClass(CLASSES[split][label], split, np.stack(list(pool.map(decoded, members))))


def builder(*, links: str = "inside", **settings: Any) -> Any:
    """The TFDS builder of miniImageNet, whose `manual_dir` is the source; it needs no TensorFlow.

    Args:
      links: see `mini_imagenet`.
      settings: of `tfds.core.DatasetBuilder`, such as `data_dir`.
    """
    import tensorflow_datasets as tfds

    class MetarunMiniImagenet(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        """Pictures as they are, their encoded bytes untouched; in order, by class and name."""

        VERSION = tfds.core.Version("1.0.0")
        MANUAL_DOWNLOAD_INSTRUCTIONS = f"A folder with {LAYOUTS}."
        url_infos: dict[str, Any] = {}  # nothing is downloaded

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, CHANNELS)),
                "label": tfds.features.Scalar(np.int64),
                "name": tfds.features.Text(),
            }
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features), disable_shuffling=True)

        def _split_generators(self, dl_manager):
            root = Path(dl_manager.manual_dir)
            return {split: self._generate_examples(root, split, found) for split, found in _found(root, links).items()}

        def _generate_examples(self, root, split, found):
            numbers = itertools.count()
            for label, wnid in enumerate(CLASSES[split]):
                for name in sorted(found[wnid])[:IMAGES_PER_CLASS]:
                    image = io.BytesIO(_read(root, name, found[wnid][name]))
                    yield next(numbers), {"image": image, "label": label, "name": shown(name)}

    return MetarunMiniImagenet(file_format="array_record", **settings)


def _read(root: Path, name: str, read: Callable[[], bytes]) -> bytes:
    try:
        return read()
    except PictureError as error:
        raise DataError(f"{shown(name)} of {root} is broken: {error}. Get it again.") from error


def _found(root: Path, links: str) -> Mapping[str, Found]:
    """What the source has of each split, in whichever layout.

    Raises:
      DataError: it has none, or not every class.
    """
    if all((root / f"{split}.csv").is_file() for split in SPLITS):
        found = _of_csvs(root, links)
    elif all(_pickle(root, split).is_file() for split in SPLITS):
        found = {split: _of_pickle(_pickle(root, split)) for split in SPLITS}
    else:
        found = _of_folders(root, links)
    for split, classes in CLASSES.items():
        if absent := [wnid for wnid in classes if not found[split].get(wnid)]:
            raise DataError(f"{root} has no picture of {some(absent)}, of miniImageNet's {split}; it needs {LAYOUTS}.")
        if unknown := sorted(set(found[split]) - set(classes)):
            raise DataError(
                f"{root} has {some(unknown)} in {split}, where Ravi and Larochelle's split has no such class."
            )
    return found


def _of_csvs(root: Path, links: str) -> Mapping[str, Found]:
    files = itertools.chain(in_folder(root, links=links), in_zips(sorted(root.glob("*.zip"))))
    pictures = {file.path.name: file.read for file in files}
    found: dict[str, defaultdict[str, dict[str, Callable[[], bytes]]]] = {}
    for split in SPLITS:
        found[split] = defaultdict(dict)
        path = root / f"{split}.csv"
        try:
            with open(
                path, newline="", encoding="utf-8-sig"
            ) as file:  # which spreadsheets begin with a byte order mark
                rows = [(row["filename"], row["label"]) for row in csv.DictReader(file)]
        except (OSError, KeyError, ValueError, csv.Error) as error:
            raise DataError(f"{path} is not a table with the columns filename and label: {error}.") from error
        for name, label in rows:
            if name in pictures:
                found[split][label][name] = pictures[name]
    return found


def _of_folders(root: Path, links: str) -> Mapping[str, Found]:
    split_of = {wnid: split for split, classes in CLASSES.items() for wnid in classes}
    found: dict[str, defaultdict[str, dict[str, Callable[[], bytes]]]] = {split: defaultdict(dict) for split in SPLITS}
    for file in in_folder(root, links=links):
        if split := split_of.get(file.path.parent.name):
            found[split][file.path.parent.name].setdefault(file.path.name, file.read)
    return found


def _pickle(root: Path, split: str) -> Path:
    return root / f"mini-imagenet-cache-{split}.pkl"


def _of_pickle(path: Path) -> Found:
    """A pickle of {"image_data": `[n, 84, 84, 3]` uint8, "class_dict": {class: rows}}."""
    try:
        content = array_pickles.load(path)
        images = np.asarray(content["image_data"])
        rows = {str(wnid): [int(row) for row in its] for wnid, its in content["class_dict"].items()}
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != CHANNELS:
            raise ValueError(f"images of {images.dtype} and shape {images.shape}")
        if any(not 0 <= row < len(images) for its in rows.values() for row in its):
            raise ValueError("rows that there are not")
    except array_pickles.BROKEN as error:
        raise DataError(f"{path} is not a cache of miniImageNet, or broken: {error}. Get it again.") from error

    def png(row: int) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(images[row]).save(stream, "PNG", compress_level=1)
        return stream.getvalue()

    return {
        wnid: {f"{wnid}{number:08}.png": partial(png, row) for number, row in enumerate(its)}
        for wnid, its in rows.items()
    }
