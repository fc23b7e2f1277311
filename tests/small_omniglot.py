"""Archives in the layout of Omniglot's two, of ten characters."""

import io
import zipfile

import numpy as np
from PIL import Image

ALPHABETS = {
    "images_background": {"Alpha": 2, "Beta": 3, "Gamma_(old)": 2},
    "images_evaluation": {"Delta": 3},
}


def drawing(seed):
    """A drawing as they come, 105x105, one bit, black on white; and its ink."""
    ink = np.random.default_rng(seed).random((105, 105)) < 0.1
    stream = io.BytesIO()
    Image.fromarray(~ink).save(stream, "PNG")
    return stream.getvalue(), ink


def write_archives(folder, drawings):
    """Writes two archives in the layout of Omniglot's, `drawings` of each character."""
    number = 0
    for part, alphabets in ALPHABETS.items():
        with zipfile.ZipFile(folder / f"{part}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"__MACOSX/{part}/Alpha/character01/._0001_01.png", b"no picture")
            for alphabet, characters in alphabets.items():
                for character in range(1, characters + 1):
                    number += 1
                    # Out of order, as an archive may be.
                    for k in reversed(range(1, drawings + 1)):
                        name = f"{part}/{alphabet}/character{character:02d}/{number:04d}_{k:02d}.png"
                        archive.writestr(name, drawing([number, k])[0])
