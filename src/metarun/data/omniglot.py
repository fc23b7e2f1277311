"""Omniglot: 1,623 handwritten characters of 50 alphabets, 20 drawings each."""

import hashlib
import io
import itertools
import re
import struct
import urllib.request
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from metarun.data import class_bank
from metarun.data.cache import build_once, cache_dir, file_sha256
from metarun.data.class_bank import NamedClass, SplitBank
from metarun.data.class_split import from_file, shuffled
from metarun.data.decoding import PictureError, in_words, opened
from metarun.data.episodes import few_shot_of
from metarun.data.pictures import LINKS, checked_folder, in_folder
from metarun.errors import DataError, non_negative_int, one_of, shown
from metarun.system.progress import hush

# The end of a drawing's path; what macOS adds to an archive does not match.
DRAWING = re.compile(r"[^/]+/character\d+/\d+_\d+\.png$")
PARTS = ("images_background", "images_evaluation")
ARCHIVES = " and ".join(f"{part}.zip" for part in PARTS)
URL = "https://github.com/brendenlake/omniglot/raw/master/python/"
# What the downloads must be: size and SHA-256.
OFFICIAL = {
    "images_background": (9464212, "ad41ab679c8b5d90b271ef46be6987cc81211774a695c29dcc5367b2b26ee640"),
    "images_evaluation": (6462886, "1f61a8f3366785b057fc117d9228e78a16e3d976c8953b2a10fcc74cf0609cee"),
}
CONNECT_SECONDS = 10

DRAWN_SIDE, SIDE = 105, 28
DRAWN_MODES = ("1", "L", "P", "RGB")
RESIZE = "area average 105x105 to 28x28, ink 1 on 0"
NUM_CHARACTERS = 1623
MAML_SIZES = (1100, 100, 423)


@few_shot_of
def omniglot(
    *,
    source: str | None = None,
    split: str = "maml",
    split_seed: int = 0,
    links: str = "inside",
) -> SplitBank:
    """Returns few-shot classification of Omniglot's characters, as 28x28 images with ink 1 on 0.

    The first use reads the drawings and keeps them, reduced, in the cache; later uses read the cache alone.

    Args:
      source: a folder with images_background.zip and images_evaluation.zip, or with the folders that they unpack to;
        None downloads the two through TFDS.
      split: "maml", all characters shuffled, 1,100 / 100 / 423; "lake", the evaluation alphabets as meta-test, and
        of the background alphabets the last sixth by name as meta-validation (Ojibwe to Tifinagh); or a path to a
        JSON file `{"train": ["Greek/character01", ...], "val": [...], "test": [...]}`.
      split_seed: of the shuffle of "maml".
      links: which links to folders are followed in what the archives unpack to, see `pictures.in_folder`.

    Raises:
      ConfigError: a setting that cannot be used.
      DataError: the drawings cannot be had, or a file of them, of the cache or of the split is broken.
      MetarunError: the cache directory cannot be written.

    References:
      Lake et al., "Human-level concept learning through probabilistic program induction", Science 2015. The shuffled
      split: Finn et al., "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", 2017.
    """
    split_seed = non_negative_int("dataset.split_seed", split_seed)
    one_of("dataset.links", links, LINKS)
    if source is None:
        checksums = {part: sha256 for part, (_, sha256) in OFFICIAL.items()}
        read = _downloaded
    else:
        places = {part: _place(source, part) for part in PARTS}
        checksums = {part: _checksum(place, links) for part, place in places.items()}

        def read() -> dict[str, Iterator[tuple[str, bytes]]]:
            return {part: _drawings(place, links) for part, place in places.items()}

    parameters = {"source": checksums, "resize": RESIZE, "format": class_bank.FORMAT}
    entry = build_once("omniglot", parameters, lambda folder: class_bank.save(folder, _classes(read())))
    bank, names, parts, hashes = class_bank.load(entry.folder)
    if split == "maml":
        classes, stated = _maml(names, split_seed), {"split": "maml", "split_seed": split_seed}
    elif split == "lake":
        classes, stated = _lake(names, parts), {"split": "lake"}
    else:
        classes, stated = from_file(names, split, form="ALPHABET/characterNN", others="maml, lake")
    protocol = {"name": "omniglot", **stated, "resize": RESIZE, "sha256": entry.checksum}
    return SplitBank(bank, names, classes, protocol, hashes)


def _place(source: str, part: str) -> Path:
    """Finds a part in the user's folder: its zip, or the folder that it unpacks to."""
    folder = checked_folder("dataset.source", source, f"a folder that holds {ARCHIVES}")
    for place in (folder / f"{part}.zip", folder / part):
        if place.exists():
            return place
    archive = folder / f"{part}.zip"
    raise DataError(f"{archive} is missing. Get it from {URL}{archive.name}, or set dataset.source to its folder.")


def _checksum(place: Path, links: str) -> str:
    if place.is_file():
        return file_sha256(place)
    digest = hashlib.sha256()
    for name, png in _drawings(place, links):
        digest.update(f"{name} {len(png)}\n".encode() + png)
    return digest.hexdigest()


def _drawings(place: Path, links: str = "inside") -> Iterator[tuple[str, bytes]]:
    """Reads the drawings of a part, from its zip or folder, by name: (ALPHABET/characterNN/NNNN_MM.png, PNG)."""
    if place.is_dir():
        for file in in_folder(place, links=links):
            try:
                if match := DRAWING.search(str(file.path)):
                    yield match[0], file.read()
                elif file.unusable:
                    raise PictureError(file.unusable)
            except PictureError as error:
                raise DataError(f"{shown(str(file.path))} of {place} cannot be read: {error}.") from error
        return
    try:
        with zipfile.ZipFile(place) as archive:
            for path in sorted(archive.namelist()):
                if match := DRAWING.search(path):
                    yield match[0], archive.read(path)
    # What zipfile raises depends on which byte is wrong.
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{place} is corrupt: {error}. Get it again from {URL}{place.name}.") from error


def _classes(parts: Mapping[str, Iterable[tuple[str, bytes]]]) -> Iterator[NamedClass]:
    """Reduces the drawings of both parts, classes and images in the order of their names."""
    drawings = sorted((name, part, png) for part, read in parts.items() for name, png in read)
    if absent := set(parts) - {part for _, part, _ in drawings}:
        raise DataError(f"{', '.join(absent)} has no drawing of the form ALPHABET/characterNN/NNNN_MM.png.")
    for character, group in itertools.groupby(drawings, lambda drawing: drawing[0].rpartition("/")[0]):
        its = list(group)
        ink = np.stack([_ink(name, png) for name, _, png in its])
        yield NamedClass(character, its[0][1], _reduced(ink))


def _ink(name: str, png: bytes) -> np.ndarray:
    """Decodes a drawing, black on white, to `[105, 105]` booleans, true where there is ink."""
    try:
        with in_words():
            image = opened(png, ("PNG",))
            if image.size != (DRAWN_SIDE, DRAWN_SIDE):
                raise DataError(f"A drawing of {name} is {image.width}x{image.height}, not {DRAWN_SIDE}x{DRAWN_SIDE}.")
            if image.mode not in DRAWN_MODES:
                raise PictureError("a drawing is black on white, without grey values of 16 bits or transparency")
            return ~np.asarray(image.convert("1"))
    except PictureError as error:
        raise DataError(f"A drawing of {name} cannot be read: {error}. Get the archives again from {URL}.") from error


def _reduced(ink: np.ndarray) -> np.ndarray:
    """Averages over areas: `[n, 105, 105]` booleans to `[n, 28, 28, 1]` uint8, 255 where all is ink.

    A pixel spans 105/28 = 15/4 of the drawing's, so in quarters of these the weights are whole and the sums exact:
    the result is the same on every machine.
    """
    edges = np.arange(SIDE + 1) * DRAWN_SIDE
    pixels = np.arange(DRAWN_SIDE + 1) * SIDE
    overlap = np.minimum(edges[1:, None], pixels[1:]) - np.maximum(edges[:-1, None], pixels[:-1])
    weight = (np.maximum(overlap, 0) // np.gcd(SIDE, DRAWN_SIDE)).astype(np.float32)
    total = int(weight[0].sum()) ** 2
    quarters = (weight @ ink.astype(np.float32) @ weight.T).astype(np.int32)
    return ((2 * 255 * quarters + total) // (2 * total)).astype(np.uint8)[..., None]


def _downloaded() -> dict[str, Iterator[tuple[str, bytes]]]:
    """Has TFDS download and prepare the drawings, and reads them back; neither step needs TensorFlow."""
    # Here, because they are slow to import and only the first use needs them.
    import requests
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.checksums import UrlInfo
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    class MetarunOmniglot(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        """The drawings as they are, their PNG bytes untouched."""

        VERSION = tfds.core.Version("1.0.0")
        url_infos = {
            f"{URL}{part}.zip": UrlInfo(size=size, checksum=sha256, filename=f"{part}.zip")
            for part, (size, sha256) in OFFICIAL.items()
        }

        def _info(self):
            image = tfds.features.Image(shape=(DRAWN_SIDE, DRAWN_SIDE, 1), encoding_format="png")
            return self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict({"name": tfds.features.Text(), "image": image})
            )

        def _split_generators(self, dl_manager):
            archives = dl_manager.download({part: f"{URL}{part}.zip" for part in PARTS})
            return {part: self._generate_examples(Path(archive)) for part, archive in archives.items()}

        def _generate_examples(self, path):
            for name, png in _drawings(path):
                yield name, {"name": name, "image": io.BytesIO(png)}

    hush(tfds)
    builder = MetarunOmniglot(data_dir=cache_dir() / "tfds", file_format="array_record")
    if not builder.data_path.exists():
        _require_network(f"{URL}{PARTS[0]}.zip")
    try:
        builder.download_and_prepare()
    except (requests.RequestException, tfds.download.DownloadError, NonMatchingChecksumError) as error:
        raise _unavailable(error) from error

    def read(part: str) -> Iterator[tuple[str, bytes]]:
        for drawing in builder.as_data_source(part, decoders={"image": tfds.decode.SkipDecoding()}):
            yield drawing["name"].decode(), drawing["image"]

    return {part: read(part) for part in PARTS}


def _require_network(url: str) -> None:
    """Fails within seconds where TFDS would try again for minutes."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise _unavailable(error) from error


def _unavailable(error: Exception) -> DataError:
    return DataError(
        f"Omniglot cannot be downloaded: {getattr(error, 'reason', error)}. Either connect to the network and run "
        f"again, or get {ARCHIVES} from {URL} elsewhere and set dataset.source=DIR to the folder that holds them."
    )


def _maml(names: Sequence[str], seed: int) -> dict[str, list[int]]:
    if len(names) != NUM_CHARACTERS:
        raise DataError(
            f"dataset.split=maml is of all {NUM_CHARACTERS} characters; the source has {len(names)}. "
            "Complete it, or set dataset.split to lake or to a file."
        )
    return shuffled(names, seed, MAML_SIZES)


def _lake(names: Sequence[str], parts: Sequence[str]) -> dict[str, list[int]]:
    def alphabet(i: int) -> str:
        return names[i].partition("/")[0]

    background = [i for i, part in enumerate(parts) if part == PARTS[0]]
    alphabets = sorted({alphabet(i) for i in background})
    if len(alphabets) < 2:
        raise DataError(f"dataset.split=lake needs two alphabets or more in {PARTS[0]}; there is {len(alphabets)}.")
    held_out = alphabets[-max(1, len(alphabets) // 6) :]
    return {
        "train": [i for i in background if alphabet(i) not in held_out],
        "val": [i for i in background if alphabet(i) in held_out],
        "test": [i for i, part in enumerate(parts) if part == PARTS[1]],
    }
