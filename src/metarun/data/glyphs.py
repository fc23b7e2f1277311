"""The embedded data set: characters of many scripts, drawn from the DejaVu fonts that matplotlib ships."""

import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from metarun.data import class_bank
from metarun.data.cache import build_once
from metarun.data.class_bank import NamedClass, SplitBank
from metarun.data.episodes import few_shot_of
from metarun.errors import DataError

# Whole scripts, so that the alphabets of meta-test are unseen. Cyrillic resembles Latin in manner, but its letters
# that look like Latin or Greek ones are merged into those.
SCRIPTS = {
    "train": ("LATIN", "GREEK", "COPTIC", "OLD ITALIC", "LISU", "CANADIAN SYLLABICS"),
    "val": ("ARMENIAN", "GEORGIAN"),
    "test": ("CYRILLIC", "ARABIC", "HEBREW", "LAO"),
}
STYLES = {
    "DejaVuSans": ("", "-Oblique", "-Bold", "-BoldOblique"),
    "DejaVuSerif": ("", "-Italic", "-Bold", "-BoldItalic"),
    "DejaVuSansMono": ("", "-Oblique", "-Bold", "-BoldOblique"),
}
FACES = tuple(family + style for family, styles in STYLES.items() for style in styles)

# What the images are made by; part of the key in the cache.
RECIPE: dict[str, Any] = {
    "recipe": 1,  # to be raised with any change of this file that moves a byte
    "scripts": SCRIPTS,
    "side": 28,
    "images_per_class": 20,
    "min_faces": 4,
    # Characters are drawn on a canvas of `oversampling` pixels to one of the image, the longer side of the ink
    # filling `ink` of it, and blurred so that the level at which ink begins sets the width of the strokes.
    "oversampling": 2,
    "ink": 0.6,
    "font_size": 64,
    "blur": 1.0,
    # Two characters count as one from this mean cosine similarity of their drawings, stretched to squares of
    # `alike_side`, with proportions (width to height) that differ by no more than this.
    "alike": 0.86,
    "alike_side": 20,
    "alike_log_proportion": 0.6,
    # Half-widths of uniform distributions; an image spans [-1, 1].
    "rotation_degrees": 18.0,
    "shear": 0.25,
    "log_scale": 0.16,
    "shift": 0.1,
    "elastic": 0.09,
    # Above 1 / (2 EDGE), so that the background stays black.
    "ink_level": (0.26, 0.56),
}
CANVAS = RECIPE["side"] * RECIPE["oversampling"]
# The centres of the pixels of an image, which spans [-1, 1]: `[2 (down, across), side, side]`.
AXIS = ((np.arange(RECIPE["side"]) + 0.5) / (RECIPE["side"] / 2) - 1).astype(np.float32)
GRID = np.stack(np.meshgrid(AXIS, AXIS, indexing="ij"))
# Elastic deformation is a grid of random bumps, each a bell along an axis: `[bumps, side]`.
BASIS = np.exp(-0.5 * ((AXIS - np.linspace(-1, 1, 5, dtype=np.float32)[:, None]) / 0.3) ** 2)
# How steeply ink sets in over the blurred edge.
EDGE = 2.0


@few_shot_of
def glyphs() -> SplitBank:
    """Returns few-shot classification of characters, with whole scripts held apart between the splits.

    A class is a character, 20 images of 28x28 a class: the faces of the fonts that have it, upright, slanted, bold,
    with and without serifs, under random rotation, shear, scale, shift, elastic deformation and stroke width. Of
    characters that look alike, such as Latin A, Greek Alpha and Cyrillic A, the first in Unicode's order stays. About
    1,225 classes remain: 63% for meta-training, 12% for meta-validation, 25% for meta-test.

    Built once, in about 10 s, and cached. The bytes are the same at every build with the same versions of matplotlib
    (the fonts), Pillow, NumPy and Python's Unicode tables; between kinds of processor a grey level may differ by
    one. The protocol has their checksum.

    Raises:
      ConfigError: a number that is not positive or that asks for more than there is.
      DataError: the cached file is broken, or matplotlib comes without its fonts.
      MetarunError: the cache directory cannot be written.
    """
    versions = {
        "matplotlib": version("matplotlib"),
        "pillow": PIL.__version__,
        "numpy": np.__version__,
        "unicode": unicodedata.unidata_version,
    }
    parameters = {**RECIPE, **versions, "format": class_bank.FORMAT}
    entry = build_once("glyphs", parameters, lambda folder: class_bank.save(folder, _draw_all()))
    bank, names, scripts, hashes = class_bank.load(entry.folder)
    return SplitBank(
        bank,
        names,
        {split: [i for i, script in enumerate(scripts) if script in SCRIPTS[split]] for split in SCRIPTS},
        {"name": "glyphs", "split": "scripts", "sha256": entry.checksum},
        hashes,
    )


def _draw_all() -> Iterator[NamedClass]:
    import matplotlib  # slow to import, and only the first use needs it

    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    try:
        fonts = {face: _Font(str(folder / f"{face}.ttf")) for face in FACES}
    except OSError as error:
        raise DataError(
            f"The fonts of matplotlib cannot be read in {folder}: {error}. Reinstall matplotlib."
        ) from error
    drawings = {
        letter: {face: font.draw(letter) for face, font in fonts.items() if letter in font.characters}
        for letter in _letters(fonts)
    }
    for letter in _distinguishable(drawings):
        name = f"U+{ord(letter):04X} {unicodedata.name(letter)}"
        yield NamedClass(name, _script(letter) or "", _vary(drawings[letter].values(), ord(letter)))


class _Font:
    """One face: which characters it has, and how they look."""

    def __init__(self, path: str):
        from matplotlib.ft2font import FT2Font  # as above

        self.characters = {chr(code) for code in FT2Font(path).get_charmap()}
        # The basic layout, because Pillow is built with or without the other.
        self._font = ImageFont.truetype(path, RECIPE["font_size"], layout_engine=ImageFont.Layout.BASIC)

    def draw(self, character: str) -> Image.Image:
        """Draws a character, white on black, cut to its ink."""
        left, top, right, bottom = map(int, self._font.getbbox(character))  # whole, though Pillow types floats
        drawing = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(drawing).text((-left, -top), character, fill=255, font=self._font)
        return drawing.crop(drawing.getbbox())


def _script(character: str) -> str | None:
    name = unicodedata.name(character, "")
    return next((script for scripts in SCRIPTS.values() for script in scripts if name.startswith(script + " ")), None)


def _letters(fonts: Mapping[str, _Font]) -> list[str]:
    """Lists the letters of known scripts that enough faces have, the first face among them, in Unicode's order."""
    return [
        character
        for character in sorted(fonts[FACES[0]].characters)
        if unicodedata.category(character) in ("Lu", "Ll", "Lt", "Lo")
        and _script(character)
        and sum(character in font.characters for font in fonts.values()) >= RECIPE["min_faces"]
    ]


def _distinguishable(drawings: Mapping[str, Mapping[str, Image.Image]]) -> list[str]:
    """Lists the letters, in order, that look like none of those listed before them.

    Two letters look alike if, over the faces that have both (the first has all), their drawings nearly coincide once
    stretched to a common square, as long as that takes no more than the images' own variation.

    As a letter that looks like an earlier one is left out, rather than grouped with it, no chain of resemblances can
    join letters that differ, or bring one shape into two splits.
    """
    letters = list(drawings)
    have = np.array([[face in drawings[letter] for face in FACES] for letter in letters], np.float32)
    similarity = np.zeros((len(letters), len(letters)), np.float32)
    side = RECIPE["alike_side"]
    for column, face in zip(have.T, FACES, strict=True):
        owners = np.flatnonzero(column)
        drawn = [drawings[letters[i]][face] for i in owners]
        shapes = np.stack([np.asarray(one.resize((side, side), Image.Resampling.BOX), np.float32) for one in drawn])
        shapes = shapes.reshape(len(owners), -1)
        shapes /= np.linalg.norm(shapes, axis=1, keepdims=True)
        proportion = np.log([one.width / one.height for one in drawn]).astype(np.float32)
        near = np.abs(proportion[:, None] - proportion) < RECIPE["alike_log_proportion"]
        similarity[np.ix_(owners, owners)] += (shapes @ shapes.T) * near
    similarity /= have @ have.T
    kept: list[int] = []
    for i in range(len(letters)):
        if np.all(similarity[i, kept] < RECIPE["alike"]):
            kept.append(i)
    return [letters[i] for i in kept]


def _master(drawing: Image.Image) -> np.ndarray:
    """Brings a drawing to size, centred and blurred: `[canvas, canvas]` uint8."""
    zoom = RECIPE["ink"] * CANVAS / max(drawing.size)
    width, height = (max(1, round(zoom * side)) for side in drawing.size)
    canvas = Image.new("L", (CANVAS, CANVAS))
    canvas.paste(
        drawing.resize((width, height), Image.Resampling.BICUBIC), ((CANVAS - width) // 2, (CANVAS - height) // 2)
    )
    return np.asarray(canvas.filter(ImageFilter.GaussianBlur(RECIPE["blur"])))


def _vary(drawings: Iterable[Image.Image], seed: int) -> np.ndarray:
    """Makes the images of one class from its drawings in the faces that have it: `[20, 28, 28, 1]` uint8."""
    masters = np.stack([_master(drawing) for drawing in drawings])
    # A seed of its own for each class: its images do not hang on which other classes there are.
    random = np.random.default_rng([RECIPE["recipe"], seed])
    num = RECIPE["images_per_class"]

    def uniform(half_width: float, *shape: int) -> np.ndarray:
        return random.uniform(-half_width, half_width, (num, *shape)).astype(np.float32)

    angle, shear = uniform(np.radians(RECIPE["rotation_degrees"])), uniform(RECIPE["shear"])
    stretch, shift = np.exp(uniform(RECIPE["log_scale"], 2)), uniform(RECIPE["shift"], 2)
    bumps = uniform(RECIPE["elastic"], 2, len(BASIS), len(BASIS))
    thickest, thinnest = RECIPE["ink_level"]
    level = random.uniform(thickest, thinnest, (num, 1, 1)).astype(np.float32)
    # Every face before any a second time.
    face = np.concatenate([random.permutation(len(masters)) for _ in range(-(-num // len(masters)))])[:num]

    # From each point of the image back to the point of the canvas that it shows.
    cos, sin = np.cos(angle), np.sin(angle)
    back = np.stack([np.stack([cos, sin], -1), np.stack([shear * cos - sin, shear * sin + cos], -1)], 1)
    back *= stretch[:, :, None]
    bumps = BASIS.T @ bumps @ BASIS
    points = (back @ GRID.reshape(2, -1)).reshape(bumps.shape) + bumps + shift[:, :, None, None]
    ink = _sampled(masters, face, (points + 1) * (CANVAS / 2) - 0.5)
    ink = np.clip((ink / 255 - level) * EDGE + 0.5, 0, 1)
    return np.rint(255 * ink).astype(np.uint8)[..., None]


def _sampled(masters: np.ndarray, face: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Interpolates linearly: image `n` is `masters[face[n]]` at `points[n]: [2 (down, across), side, side]` pixels."""
    points = np.clip(points, 0, CANVAS - 1.001)
    corner = points.astype(np.int32)
    down, across = np.moveaxis(points - corner, 1, 0)
    first = (face.astype(np.int32)[:, None, None] * CANVAS + corner[:, 0]) * CANVAS + corner[:, 1]
    pixels = masters.reshape(-1).astype(np.float32)
    upper = pixels[first] * (1 - across) + pixels[first + 1] * across
    lower = pixels[first + CANVAS] * (1 - across) + pixels[first + CANVAS + 1] * across
    return upper * (1 - down) + lower * down
