#!/usr/bin/env python
"""Kills a run with SIGKILL at random moments, resumes it each time, and compares it with a run that was left alone.

    python scripts/kill_and_resume.py [--kills 10] [metarun arguments ...]

Exits with 0 if the final checkpoints are equal byte for byte, and the metrics in everything but time.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

METARUN = str(Path(sys.executable).with_name("metarun"))
SMALL = ["model.filters=16", "steps=600", "steps_per_dispatch=10", "eval_every=100", "val_tasks=50", "eval_tasks=50"]
OFTEN = ["checkpoint_every=20", "log_every=10"]
TIMES = ("seconds", "tasks_per_second")


def arrays(directory: Path) -> dict[str, np.ndarray]:
    """The arrays of the newest checkpoint of a run."""
    newest = max((directory / "checkpoints").iterdir(), key=lambda path: int(path.name))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(newest.absolute() / "arrays")


def metrics(directory: Path) -> list[dict]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def newest_step(directory: Path) -> int:
    names = [path.name for path in directory.glob("checkpoints/*")]
    return max((int(name) for name in names if name.isdecimal()), default=0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options, arguments = parser.parse_known_args()
    command = [METARUN, *(arguments or SMALL), *OFTEN]
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        alone, killed = Path(folder, "alone"), Path(folder, "killed")
        began = time.monotonic()
        subprocess.run([*command, f"hydra.run.dir={alone}"], check=True, stderr=subprocess.DEVNULL)
        duration = time.monotonic() - began
        kills = 0
        while kills < options.kills:
            before = newest_step(killed)
            process = subprocess.Popen(
                [*command, f"hydra.run.dir={killed}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            # Once it has moved on, so that ten kills do not all fall into the start.
            while newest_step(killed) == before and process.poll() is None:
                time.sleep(0.05)
            time.sleep(rng.uniform(0, duration / options.kills / 2))
            if process.poll() is not None:
                print(f"The run ended after {kills} kills: give it more steps.")
                return 1
            process.kill()
            process.wait()
            kills += 1
            print(f"kill {kills}: newest checkpoint at step {newest_step(killed)}", flush=True)
        subprocess.run([*command, f"hydra.run.dir={killed}"], check=True, stderr=subprocess.DEVNULL)
        ours, theirs = arrays(killed), arrays(alone)
        same_arrays = ours.keys() == theirs.keys() and all(
            np.asarray(ours[name]).tobytes() == np.asarray(theirs[name]).tobytes() for name in ours
        )
        same_metrics = metrics(killed) == metrics(alone)
        print(f"{len(ours)} arrays equal byte for byte: {same_arrays}; metrics equal but for time: {same_metrics}")
        return 0 if same_arrays and same_metrics else 1


if __name__ == "__main__":
    sys.exit(main())
