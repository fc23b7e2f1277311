"""Several data sets as one: each task is of one of them, and all images have one size."""

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any, NamedTuple

import jax
import numpy as np

from metarun.config import choice_files, search_path
from metarun.config.named_code import imported
from metarun.config.schema import FEW_SHOT
from metarun.data import class_bank
from metarun.data.cache import build_once
from metarun.data.class_bank import Domain, NamedClass, SplitBank
from metarun.data.class_split import SPLITS
from metarun.data.decoding import checked_size
from metarun.data.episodes import few_shot_of
from metarun.data.fitting import fit_images, how_fitted
from metarun.errors import ConfigError, DataError, positive_float

CHOICE, WEIGHT = "dataset", "weight"
RECIPE = 1  # to be raised with any change of how images are made to fit that moves a byte
_BLOCK = 64  # images that are made to fit at once
_SUCH_AS = "{NAME: {KEY: VALUE}}, data sets of classes with what is set of each: {glyphs: {}, omniglot: {source: DIR}}"


class _Loaded(NamedTuple):
    """A domain as its data set has it: its name, its classes, and how often a task is of it, see `class_bank.Domain`."""

    name: str
    bank: SplitBank
    weight: float | None


@few_shot_of
def mixture(
    *,
    domains: Mapping[str, Mapping[str, Any]] | None = None,
    held_out: Mapping[str, Mapping[str, Any]] | None = None,
    image_size: int = 28,
    channels: int = 1,
) -> SplitBank:
    """Returns few-shot classification of several data sets: the classes of a task are of one of them.

    Each domain has its own split. A task of meta-training or meta-validation is of a domain with a probability in
    proportion to its weight; meta-test has as many tasks of each, and a result for each. A domain that is held out is of
    meta-test alone, with all its classes.

    Args:
      domains: name -> what is set of that data set, and its `weight`, 1 where none is given. The name is that of a choice
        of `dataset`, or any where the choice is given as `dataset`.
      held_out: the same, without weights, of domains for meta-test alone.
      image_size: pixels of a side, to which all images are brought; see `fitting.fit_images`.
      channels: 1 (greyscale) or 3 (colour), likewise.

    Raises:
      ConfigError: a setting that cannot be used, or a data set that has no classes of images.
      DataError: two domains share images, or the files of one are broken.

    Source: Triantafillou et al. 2020, Meta-Dataset: A Dataset of Datasets for Learning to Learn from Few Examples.
    """
    side, channels = checked_size(image_size, channels)
    shape = side, side, channels
    loaded = [*_loaded("dataset.domains", domains), *_loaded("dataset.held_out", held_out or {}, held_out=True)]
    for one, other in combinations(loaded, 2):
        if one.name == other.name:
            raise ConfigError("dataset.held_out", other.name, "data sets that are not in dataset.domains")
        if shared := len(np.intersect1d(one.bank.hashes, other.bank.hashes)):
            raise DataError(
                f"dataset=mixture: {one.name} and {other.name} share {shared} images, so that one would be tested on what "
                f"was trained on. Leave one of them out."
            )
    content = [
        hashlib.sha256(each.bank.hashes.tobytes() + each.bank.bank.count.tobytes()).hexdigest() for each in loaded
    ]
    parameters = {
        "recipe": RECIPE,
        "shape": shape,
        "content": content,
        "jax": jax.__version__,
        "format": class_bank.FORMAT,
    }
    total = sum(len(each.bank.names) for each in loaded)
    entry = build_once("mixture", parameters, lambda it: class_bank.save(it, _fitted(loaded, shape), total))
    bank, classes, _, hashes = class_bank.load(entry.folder)
    return SplitBank(
        bank,
        [f"{each.name}/{name}" for each in loaded for name in each.bank.names],
        _splits(loaded),
        {
            "name": "mixture",
            "domains": {
                each.name: {"weight": each.weight}
                | {key: fact for key, fact in each.bank.protocol.items() if key != "name"}
                | {"fitted": how_fitted(each.bank.bank.images.shape[1:], shape)}
                for each in loaded
            },
            "fitted_to": list(shape),
            "sha256": entry.checksum,
        },
        hashes,
        uneven=any(each.bank.uneven for each in loaded),
        domains=[Domain(each.name, len(each.bank.names), each.weight) for each in loaded],
    )


def _loaded(key: str, domains: object, held_out: bool = False) -> Iterator[_Loaded]:
    """The domains that a key names, each loaded as its data set does."""
    if not isinstance(domains, Mapping) or not (domains or held_out):
        raise ConfigError(key, domains, _SUCH_AS)
    files = {file.stem: file for group, file in search_path.files(FEW_SHOT) if group == "dataset"}
    for name, given in domains.items():
        if not isinstance(given, Mapping):
            raise ConfigError(f"{key}.{name}", given, "{} or {KEY: VALUE}, keys of that data set")
        settings = dict(given)
        choice, of_choice = settings.pop(CHOICE, name), f"{key}.{name}" + f".{CHOICE}" * (CHOICE in given)
        if choice not in files:
            raise ConfigError(of_choice, choice, f"{' or '.join(files)}; or {key}.{name}.{CHOICE}, one of these")
        node = choice_files.loaded(files[choice])
        load = getattr(imported(of_choice, node["_target_"]), "load", None)
        if load is None or load is mixture.load:  # type: ignore[attr-defined]
            raise ConfigError(of_choice, choice, "data sets with classes of images")
        known = inspect.signature(load).parameters
        allowed = [CHOICE, *([] if held_out else [WEIGHT]), *known]
        for setting in settings:
            if setting not in allowed:
                raise ConfigError(f"{key}.{name}", setting, f"as keys {', '.join(allowed)}")
        weight = None if held_out else positive_float(f"{key}.{name}.{WEIGHT}", settings.pop(WEIGHT, 1))
        own = {setting: node[setting] for setting in known if setting in node}
        try:
            bank = load(**{**own, **settings})
        except ConfigError as error:  # which names the key as if there were that data set alone
            raise ConfigError(error.key.replace("dataset", f"{key}.{name}", 1), error.got, error.allowed) from error
        images = bank.bank.images
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
            raise ConfigError(
                key, name, f"data sets of images; an example of this one has shape {list(images.shape[1:])}"
            )
        yield _Loaded(name, bank, weight)


def _splits(loaded: list[_Loaded]) -> dict[str, list[int]]:
    """The classes of each split, numbered through all domains. Of one that is held out, all are meta-test's."""
    found: dict[str, list[int]] = {split: [] for split in SPLITS}
    first = 0
    for each in loaded:
        its = each.bank.classes
        if each.weight is None:
            its = {"train": [], "val": [], "test": sorted(c for split in SPLITS for c in its[split])}
        for split in SPLITS:
            found[split] += [first + c for c in its[split]]
        first += len(each.bank.names)
    return found


def _fitted(loaded: list[_Loaded], shape: tuple[int, int, int]) -> Iterator[NamedClass]:
    """The classes of all domains, one after the other, their images brought to one shape."""
    fit = jax.jit(lambda images: fit_images(images.astype(np.float32) / 255, shape))
    for each in loaded:
        bank = each.bank.bank
        for name, first, count in zip(each.bank.names, bank.first.tolist(), bank.count.tolist(), strict=True):
            images = np.asarray(bank.images[first : first + count])
            if images.shape[1:] != shape:
                # To whole blocks, so that one program fits all.
                padded = np.resize(images, (-(-count // _BLOCK) * _BLOCK, *images.shape[1:]))
                blocks = (np.asarray(fit(block)) for block in padded.reshape(-1, _BLOCK, *images.shape[1:]))
                images = np.rint(255 * np.concatenate([*blocks])[:count]).astype(np.uint8)
            yield NamedClass(f"{each.name}/{name}", each.name, images)
