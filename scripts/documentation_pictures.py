#!/usr/bin/env python
"""Makes the pictures of the README and of the first tutorial from real runs: the report of three methods, and a gallery.

    python scripts/documentation_pictures.py DIR    # trains in DIR, for two minutes; the same call continues

Needs a Chromium, which `--browser` names. The pictures go to `docs/_static/`, in few colours, because they are kept.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from PIL import Image

METHODS = ("maml", "protonet", "anil")
PICTURES = Path(__file__).parents[1] / "docs" / "_static"
WIDTH, HEIGHT = 1280, 1500
COLOURS = 128


def command(name: str, *arguments: str, cwd: Path) -> None:
    subprocess.run([Path(sys.executable).with_name(name), *arguments], cwd=cwd, check=True)


def keep(image: Image.Image, name: str, width: int) -> None:
    """Writes a picture in few colours, and says how large it is."""
    image = image.convert("RGB")
    if image.width > width:
        image = image.resize((width, image.height * width // image.width), Image.LANCZOS)
    path = PICTURES / name
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def without_ground(image: Image.Image, margin: int = 24) -> Image.Image:
    """The picture without the rows at its end that are as its last one is."""
    grey = image.convert("L").point(lambda level: 255 if level < 250 else 0)
    return image.crop((0, 0, image.width, min(image.height, grey.getbbox()[3] + margin)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--browser", default="chromium")
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    for method in METHODS:
        if not (arguments.directory / "outputs" / method / "result.json").exists():
            command("metarun", f"method={method}", f"hydra.run.dir=outputs/{method}", cwd=arguments.directory)
    command("metarun-report", "outputs", cwd=arguments.directory)
    page, shot = (arguments.directory / name for name in ("report.html", "report.png"))
    subprocess.run(
        [
            arguments.browser,
            *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-color-profile=srgb"),
            *(f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={shot}", page.resolve().as_uri()),
        ],
        check=True,
        capture_output=True,
    )
    with Image.open(shot) as image:
        keep(without_ground(image.convert("RGB")), "report.png", WIDTH)
    with Image.open(arguments.directory / "outputs" / METHODS[0] / "plots" / "gallery.png") as image:
        keep(image, "gallery.png", 900)


if __name__ == "__main__":
    main()
