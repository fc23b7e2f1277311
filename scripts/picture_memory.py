"""Measures the memory that a folder of pictures takes that are just under the limit of pixels, each a small file.

python scripts/picture_memory.py                  # 64 pictures of each mode, minutes each
python scripts/picture_memory.py --count 4 --modes RGBA

Prints, for each mode, the peak resident memory of a process that reads them all by as many threads as a run does, less
what it takes before. Linux alone.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 9_999  # 99,980,001 pixels of the hundred million that are allowed
MODES = ("L", "RGB", "RGBA", "P", "I;16", "F")
COUNT = 64


def write(folder: Path, mode: str, count: int) -> None:
    """Writes one picture and as many links to it within the folder."""
    first = folder / f"{0:03}.{'tif' if mode == 'F' else 'png'}"
    if mode in ("I;16", "F"):
        pixels = np.zeros((SIDE, SIDE), np.uint16 if mode == "I;16" else np.float32)
        pixels[: SIDE // 2] = 65535 if mode == "I;16" else 1
        image, options = Image.fromarray(pixels), {"transparency": 3} if mode == "I;16" else {"compression": "tiff_lzw"}
    else:
        image, options = Image.new(mode, (SIDE, SIDE), 1 if mode == "P" else None), {}
        image.paste(Image.new(mode, (SIDE, SIDE // 2), 2 if mode == "P" else "red" if mode != "L" else 200))
        if mode == "P":
            image.putpalette([0, 0, 0, 90, 90, 90, 200, 20, 20])
            options = {"transparency": 0}
    image.save(first, **options)
    for k in range(1, count):
        (folder / f"{k:03}{first.suffix}").symlink_to(first.name)


def read(folder: Path) -> None:
    """Reads all and prints how many there are, the peak beyond what the process took before in bytes, and seconds."""
    from metarun.data.pictures import in_folder, read_all

    before, began, left_out = _peak(), time.monotonic(), {}
    count = sum(
        1 for _ in read_all(list(in_folder(folder)), (84, 84, 3), left_out, (0, 1) if "F" in folder.name else None)
    )
    if left_out:
        sys.exit(f"left out: {left_out}")
    print(count, _peak() - before, time.monotonic() - began)


def _peak() -> int:
    # Not getrusage's, which begins with what the parent took.
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def main() -> None:
    """Measures each mode in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        return read(arguments.read)
    for mode in arguments.modes:
        with tempfile.TemporaryDirectory(suffix=f"-{mode}".replace(";", "")) as folder:
            write(Path(folder), mode, arguments.count)
            size = next(Path(folder).iterdir()).stat().st_size
            done = subprocess.run(
                [sys.executable, __file__, "--read", folder], capture_output=True, text=True, check=True
            )
            count, peak, seconds = done.stdout.split()
            print(
                f"{mode:5} {count} pictures of {SIDE}x{SIDE}, files of {size / 1e6:.1f} MB: peak "
                f"{float(peak) / 1e9:.2f} GB, {float(peak) / SIDE**2:.1f} bytes a pixel of one; {float(seconds):.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
