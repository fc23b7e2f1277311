#!/usr/bin/env python
"""Kills a run at random moments, damages its checkpoints, fills its disk; and compares it with a run that was left alone.

    python scripts/inject_faults.py [--faults 100] [--seed 0] [metarun arguments ...]

Every fault is a SIGKILL; after a third of them random bytes of a random file of one checkpoint are overwritten, and
before another third the disk is filled while the run goes on, so that it cannot save (as root, who can mount one for it).
Exits with 0 if each time the same command continued, and the final checkpoints are equal byte for byte and the metrics in
everything but time.
"""

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

METARUN = str(Path(sys.executable).with_name("metarun"))
SMALL = ["model.filters=4", "steps_per_dispatch=10", "eval_every=200", "val_tasks=50", "eval_tasks=50"]
OFTEN = ["checkpoint_every=20", "log_every=20"]
TIMES = ("seconds", "tasks_per_second")


def arrays(directory: Path) -> dict[str, np.ndarray]:
    """The arrays of the newest checkpoint of a run, as bytes."""
    newest = max((directory / "checkpoints").iterdir(), key=lambda path: int(path.name))
    stored = json.loads((newest / "manifest.json").read_text())["arrays"]
    sizes = [size for size, _ in stored.values()]
    data = np.split(np.fromfile(newest / "arrays.bin", np.uint8), np.cumsum(sizes)[:-1])
    return dict(zip(stored, data, strict=True))


def metrics(directory: Path) -> list[dict]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def newest_step(directory: Path) -> int:
    names = [path.name for path in directory.glob("checkpoints/*")]
    return max((int(name) for name in names if name.isdecimal()), default=0)


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[bool]:
    """Mounts a small file system in memory on `path`, where that is allowed; says whether it was."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(path)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(path: Path) -> None:
    """Leaves no free byte on the disk of the new file `path`."""
    with path.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(4096))


def damage(directory: Path, rng: random.Random) -> bool:
    """Overwrites random bytes of a file of one of two checkpoints; returns whether there were two."""
    saved = sorted(path for path in directory.glob("checkpoints/*") if path.name.isdecimal())
    if len(saved) < 2:
        return False
    chosen = rng.choice(saved)
    file = rng.choice(sorted(path for path in chosen.rglob("*") if path.is_file() and path.stat().st_size))
    content = bytearray(file.read_bytes())
    for _ in range(rng.randint(1, 20)):
        content[rng.randrange(len(content))] ^= rng.randint(1, 255)
    file.write_bytes(content)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options, arguments = parser.parse_known_args()
    command = [METARUN, *(arguments or SMALL), f"steps={200 * options.faults + 200}", *OFTEN]
    rng, done, lost, noisy = random.Random(options.seed), Counter(), 0, 0
    with tempfile.TemporaryDirectory() as folder, small_disk(Path(folder, "disk")) as can_be_filled:
        alone, injured, filler = Path(folder, "alone"), Path(folder, "disk", "run"), Path(folder, "disk", "filler")
        subprocess.run([*command, f"hydra.run.dir={alone}"], check=True, capture_output=True)
        while done.total() < options.faults:
            before, said = newest_step(injured), Path(folder, "said")
            with said.open("w") as stream:
                process = subprocess.Popen([*command, f"hydra.run.dir={injured}"], stdout=stream, stderr=stream)
            # Once it has moved on, so that the faults do not all fall into the start.
            while newest_step(injured) <= before and process.poll() is None:
                time.sleep(0.01)
            kind = rng.choice(["kill", "damage", "full disk"] if can_be_filled else ["kill", "damage"])
            time.sleep(rng.uniform(0, 0.5))
            if kind == "full disk":
                fill(filler)
                time.sleep(rng.uniform(0, 3))
            process.kill()
            code = process.wait()
            filler.unlink(missing_ok=True)
            if code == 0:
                print(f"The run ended after {done.total()} faults: give it more steps.")
                return 1
            words = said.read_text()
            # It ended by SIGKILL, or because of the disk; never by an error of its own.
            if code != -9 and "the disk is full" not in words:
                lost += 1
                print(words)
            noisy += "Traceback" in words
            if kind == "damage" and not damage(injured, rng):
                kind = "kill"
            kind += " that ended it" * (code != -9)
            done[kind] += 1
            print(f"{done.total()}: {kind}, newest checkpoint at step {newest_step(injured)}", flush=True)
        subprocess.run([*command, f"hydra.run.dir={injured}"], check=True, capture_output=True)
        ours, theirs = arrays(injured), arrays(alone)
        same_arrays = ours.keys() == theirs.keys() and all(
            np.asarray(ours[name]).tobytes() == np.asarray(theirs[name]).tobytes() for name in ours
        )
        same_metrics = metrics(injured) == metrics(alone)
    print(
        ", ".join(f"{number} x {kind}" for kind, number in done.items()),
        f"; {lost} times another end, {noisy} with a traceback",
        sep="",
    )
    print(f"{len(ours)} arrays equal byte for byte: {same_arrays}; metrics equal but for time: {same_metrics}")
    return 0 if same_arrays and same_metrics and not lost else 1


if __name__ == "__main__":
    sys.exit(main())
