"""Other libraries on the same work, in turn with metarun: each measurement is a process of its own."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metarun.errors import MetarunError

OURS = "metarun"
# The library that a peer needs, its script, and the script's own arguments.
PEERS = {
    "TorchOpt": ("torchopt", "peer_torchopt.py", ()),
    "torch.func, loop": ("torch", "peer_torchfunc.py", ("--mode", "loop")),
    "torch.func, vmap": ("torch", "peer_torchfunc.py", ("--mode", "plain")),
    "higher": ("higher", "peer_higher.py", ()),
}
_MOST_STEPS = 10**6  # the scripts stop after so many steps or after their seconds, whichever is first


def compare(config: str, python: Path, scripts: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Measures metarun and every peer that is installed, round by round, so that a slow minute meets them all.

    Args:
      config: name of the work.
      python: the interpreter that has the peers.
      scripts: folder of the peers' scripts; each prints a line of JSON with `tasks_per_s` and `peak_rss_mb`.
      rounds: measurements of each.
      seconds: of a measurement, after warming up.

    Returns:
      {"config", "seconds", "rounds": name -> the lines, "median": name -> {"tasks_per_s", "peak_rss_mb"}, "best_peer",
      "ratio", "round_ratios"}; ratios are those of tasks/s, metarun's to the best peer's.

    Raises:
      MetarunError: no peer is installed, or a measurement fails.
    """
    arguments = ["--config", config, "--seconds", str(seconds)]
    benchmark = Path(__file__).parents[1] / "benchmark.py"
    commands = {OURS: [sys.executable, str(benchmark), "--json", *arguments]}
    for name, (library, script, own) in PEERS.items():
        if _has(python, library):
            limit = ["--steps", str(_MOST_STEPS)]
            commands[name] = [str(python), str(scripts / script), *arguments, *limit, *own]
        else:
            print(f"{name}: {python} has no {library}; left out.", file=sys.stderr)
    if len(commands) == 1:
        raise MetarunError(f"--peers={python}: expected a Python that has one of {', '.join(PEERS)}.")
    lines: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    for turn in range(rounds):
        for name, command in commands.items():
            line = line_of(command, own=name == OURS)
            lines[name].append(line)
            print(f"round {turn + 1}: {name}: {line['tasks_per_s']} tasks/s", file=sys.stderr, flush=True)
    return {"config": config, "seconds": seconds, "rounds": lines, **summary(lines)}


def summary(lines: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Medians over the rounds, and ratios of metarun to the best peer.

    Args:
      lines: name -> one line a round.

    Returns:
      {"median", "best_peer", "ratio", "round_ratios"}, see `compare`. The best peer is that of the highest median.
    """
    median = {
        name: {key: statistics.median(line[key] for line in of) for key in ("tasks_per_s", "peak_rss_mb")}
        for name, of in lines.items()
    }
    rate = {name: values["tasks_per_s"] for name, values in median.items()}
    best_peer = max((name for name in rate if name != OURS), key=lambda name: rate[name])
    round_ratios = []
    for turn in range(len(lines[OURS])):
        found = {name: of[turn]["tasks_per_s"] for name, of in lines.items()}
        round_ratios.append(round(found.pop(OURS) / max(found.values()), 3))
    return {
        "median": median,
        "best_peer": best_peer,
        "ratio": round(rate[OURS] / rate[best_peer], 3),
        "round_ratios": round_ratios,
    }


def table(found: Mapping[str, Any]) -> str:
    """The result of `compare` in Markdown, and its ratios in words."""
    rows = [
        "| | tasks/s | lowest to highest | peak memory, MB | cores withheld |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, median in found["median"].items():
        rates = [line["tasks_per_s"] for line in found["rounds"][name]]
        withheld = [(line["others_cores"] or 0) + (line["steal_cores"] or 0) for line in found["rounds"][name]]
        spread = f"{min(rates):.4g} to {max(rates):.4g}"
        rows.append(
            f"| {name} | {median['tasks_per_s']:.4g} | {spread} | {median['peak_rss_mb']:.0f} "
            f"| {statistics.median(withheld):.2f} |"
        )
    rounds = ", ".join(f"{ratio:.2f}" for ratio in found["round_ratios"])
    rows.append(f"\n{found['ratio']:.2f} times {found['best_peer']}, the best peer by median; by round {rounds}.")
    return "\n".join(rows)


def _has(python: Path, library: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({library!r}) is None)"
    try:
        return subprocess.run([str(python), "-c", code]).returncode == 0
    except OSError as error:
        raise MetarunError(f"--peers={python} cannot be run: {error.strerror}. Name a Python interpreter.") from error


def line_of(command: Sequence[str], *, own: bool) -> dict[str, Any]:
    """The last line of JSON that a command prints; `own`: it is of this Python."""
    environment = dict(os.environ)
    if not own:  # another Python, which has its own libraries and whose folders are not ours to write in
        environment.pop("PYTHONPATH", None)
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise MetarunError(f"{' '.join(command)} failed:\n{done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])
