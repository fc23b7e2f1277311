#!/usr/bin/env python
"""What the images' conventions are worth to the nearest neighbour by raw pixels, on Omniglot.

    python scripts/pixel_baseline.py DIR [--tasks 1000]

DIR has `images_background.zip` and `images_evaluation.zip`. The table has accuracies in %, with 95% intervals over tasks, for 5-way
1-shot, 5-way 5-shot, 20-way 1-shot and 20-way 5-shot. It is NumPy and Pillow alone, and shares nothing with `metarun method=nearest_neighbor`, which
should give what the rows scaled by areas have, with ink 1 or the Euclidean distance, but for the draw of the test classes.

Source of the figures that it is held against: Vinyals et al. 2016, Matching Networks, table 1.
"""

import argparse
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SETTINGS = ((5, 1), (5, 5), (20, 1), (20, 5))  # way, shot
ARCHIVES = ("images_background.zip", "images_evaluation.zip")
QUERIES = 5  # of each class
TEST_CLASSES = 423  # of 1,623, which are shuffled
SCALED = {"areas": Image.Resampling.BOX, "Lanczos": Image.Resampling.LANCZOS, "nearest pixel": Image.Resampling.NEAREST}
PUBLISHED = "| Vinyals et al. 2016 | | | cosine | 41.7 | 63.2 | 26.7 | 42.6 |"


def drawings(folder: Path) -> list[list[Image.Image]]:
    """The drawings of each character of the test, paper white."""
    of_character: dict[str, list[Image.Image]] = {}
    for name in ARCHIVES:
        with zipfile.ZipFile(folder / name) as archive:
            for entry in archive.namelist():
                if entry.endswith(".png"):
                    image = Image.open(io.BytesIO(archive.read(entry))).convert("L")
                    of_character.setdefault(entry.rpartition("/")[0], []).append(image)
    order = np.random.default_rng(0).permutation(sorted(of_character))
    return [of_character[name] for name in order[-TEST_CLASSES:]]


def pixels(characters: Sequence[Sequence[Image.Image]], how: Image.Resampling, turned: bool) -> np.ndarray:
    """`[classes, drawings, 28 * 28]`, ink 1 on 0; each character turned by 0, 90, 180 and 270 degrees is a class, or by 0 alone."""
    images = np.array([[np.asarray(each.resize((28, 28), how)) for each in of_one] for of_one in characters])
    turns = [np.rot90(images, turn, axes=(2, 3)) for turn in range(4 if turned else 1)]
    x = 1 - np.concatenate(turns) / 255
    return x.reshape(*x.shape[:2], -1)


def accuracies(x: np.ndarray, measure: str, way: int, shot: int, num_tasks: int) -> np.ndarray:
    """The accuracy on each task, `[num_tasks]`: a query has the class of the support image that is most similar to it."""
    rng, found = np.random.default_rng(1), []
    for _ in range(num_tasks):
        classes = rng.choice(len(x), way, replace=False)
        drawn = np.stack([x[each][rng.permutation(x.shape[1])[: shot + QUERIES]] for each in classes])
        support, query = drawn[:, :shot].reshape(way * shot, -1), drawn[:, shot:].reshape(way * QUERIES, -1)
        if measure == "cosine":
            support, query = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (support, query))
        similarity = 2 * query @ support.T - (support**2).sum(1)  # less the squared distance, but for a constant
        found.append(np.mean(similarity.argmax(1) // shot == np.repeat(np.arange(way), QUERIES)))
    return np.array(found)


def row(x: np.ndarray, measure: str, num_tasks: int) -> list[str]:
    """The accuracy in each setting, in %, with its interval."""
    of_tasks = [100 * accuracies(x, measure, way, shot, num_tasks) for way, shot in SETTINGS]
    return [f"{each.mean():.1f} ± {1.96 * each.std(ddof=1) / num_tasks**0.5:.1f}" for each in of_tasks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="with both archives of Omniglot")
    parser.add_argument("--tasks", type=int, default=1000, help="of each setting; 1000")
    options = parser.parse_args()
    if missing := [name for name in ARCHIVES if not (options.folder / name).is_file()]:
        parser.error(f"DIR={options.folder} has no {missing[0]}: expected a folder with {' and '.join(ARCHIVES)}")
    characters = drawings(options.folder)
    print("| scaled by | test classes | ink | measure | 5-way 1-shot | 5-way 5-shot | 20-way 1-shot | 20-way 5-shot |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for scaled, how in SCALED.items():
        for turned in (True, False):
            ink = pixels(characters, how, turned)
            # To the Euclidean distance it is the same which of them is 1.
            for words, x, measure in (("1", ink, "cosine"), ("0", 1 - ink, "cosine"), ("1 or 0", ink, "euclidean")):
                convention = [scaled, "turned, too" if turned else "upright", words, measure]
                print(f"| {' | '.join(convention + row(x, measure, options.tasks))} |", flush=True)
    print(PUBLISHED)


if __name__ == "__main__":
    main()
