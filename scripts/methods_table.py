#!/usr/bin/env python
"""Runs every method of conf/few_shot/method through the `metarun` command, and writes what they reached as a Markdown table.

    python scripts/methods_table.py DIRECTORY [--methods maml,protonet,...] [--seconds S] [--experiments PREFIX] [metarun overrides ...]

Method NAME runs in DIRECTORY/NAME. The same call continues what was interrupted, runs again what failed, and leaves
finished runs as they are; the table is in DIRECTORY/methods.md, written anew after each run. Exits with 1 if a method
failed.

With --experiments, what runs is `experiment=PREFIX` and the method's name, and the methods are those that have one.

With --seconds, each method trains for about as long: a short run, in DIRECTORY/pace/NAME, tells how many outer steps that is.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from metarun.config import experiments

METARUN = str(Path(sys.executable).with_name("metarun"))
CONF = Path(__file__).parents[1] / "conf" / "few_shot"
METHODS, EXPERIMENTS = CONF / "method", CONF / "experiment"
BASELINE = "nearest_neighbor"
PACE = 1000  # outer steps by which a method's pace is measured
COLUMNS = ("method", "idea and paper", "test", "over raw pixels", "tasks/s", "minutes", "checks", "command")


def idea(method: str) -> str:
    """The method in a line, with its paper: the first comment of its YAML file that is not Hydra's."""
    lines = (METHODS / f"{method}.yaml").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if not line.startswith("# @")).removeprefix("# ")


def result_of(directory: Path) -> dict[str, Any] | None:
    """What a finished run says of itself; None if it is not finished."""
    path = directory / "result.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def measured(result: dict[str, Any]) -> str:
    if result["value"] is None:
        return "not finite"
    if result["metric"] == "accuracy":
        return f"{100 * result['value']:.2f} ± {100 * result['ci95']:.2f}%"
    return f"{result['value']:.4g} ± {result['ci95']:.2g} {result['metric']}"


def row(method: str, command: Sequence[str], result: dict[str, Any] | None, baseline: dict[str, Any] | None) -> str:
    """One line of the table, with `COLUMNS`."""
    cells = [f"`{method}`"]
    if result is None:
        cells += ["", "did not finish", "", "", "", ""]
    else:
        cells.append(idea(result["method"]))
        made = {name: check["passed"] for name, check in result["checks"].items() if check["passed"] is not None}
        failed = [name.replace("_", " ") for name, passed in made.items() if not passed]
        over = ""
        if baseline is not None and None not in (result["value"], baseline["value"]):
            difference = result["value"] - baseline["value"]
            over = f"{100 * difference:+.2f}" if result["metric"] == "accuracy" else f"{difference:+.4g}"
        cells += [
            measured(result),
            over,
            f"{result['tasks_per_second']:.0f}",
            f"{(result['seconds'] + result['compile_seconds']) / 60:.1f}",
            f"{len(made) - len(failed)} of {len(made)} passed" + (f"; failed: {', '.join(failed)}" if failed else ""),
        ]
    cells.append(f"`{shlex.join(command)}`")
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def table(directory: Path, methods: Iterable[str], arguments: Callable[[str], Sequence[str]]) -> str:
    """The table of the runs in `directory`, the raw-pixel baseline stated above it; `arguments` are those of a method."""
    baseline = result_of(directory / BASELINE)
    raw = f"`{BASELINE}`: {measured(baseline)}" if baseline else f"not run (method={BASELINE})"
    first = next(filter(None, (result_of(directory / method) for method in methods)), None)
    lines = [] if first is not None and first["metric"] != "accuracy" else [f"Raw-pixel baseline, {raw}.", ""]
    if first is not None:
        way = f"{first['way']}-way " if first["way"] else ""
        setting = f"{way}{first['shot']}-shot, {first['num_tasks']} test tasks, ± 95% interval over them"
        lines[:0] = [
            f"{first['dataset']}, {setting}; on {first['device']}; minutes of training, compilation included.",
            "",
        ]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    for method in methods:
        command = ["metarun", *arguments(method)]
        lines.append(row(method, command, result_of(directory / method), baseline))
    return "\n".join(lines) + "\n"


def paced(directory: Path, method: str, seconds: float, arguments: Sequence[str]) -> list[str]:
    """The arguments with as many `steps` as the method takes in so many seconds of training, by a run of PACE steps."""
    pace = directory / "pace" / method
    short = [
        f"steps={PACE}",
        f"log_every={PACE // 10}",
        "eval_every=0",
        "eval_tasks=4",
        f"hydra.run.dir={pace.resolve()}",
    ]
    if result_of(pace) is None:
        subprocess.run([METARUN, *arguments, *short], stdout=subprocess.DEVNULL)
    result = result_of(pace)
    if result is None:
        return [*arguments]
    tasks_per_step = OmegaConf.load(pace / ".hydra" / "config.yaml").meta_batch_size
    return [*arguments, f"steps={round(seconds * result['tasks_per_second'] / tasks_per_step)}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--methods", help="names with commas between them; all by default")
    parser.add_argument(
        "--seconds", type=float, help="of training, the same for every method; by default, its own steps"
    )
    parser.add_argument(
        "--experiments", metavar="PREFIX", help="run experiment=PREFIX and the name, such as unpublished/sinusoid_"
    )
    options, overrides = parser.parse_known_args()
    if options.experiments is None:
        selection = "method="
        known = sorted(file.stem for file in METHODS.glob("*.yaml"))
    else:
        selection, prefix = f"experiment={options.experiments}", options.experiments
        named = [name for name in experiments.names(EXPERIMENTS) if name.startswith(prefix)]
        known = sorted(name.removeprefix(prefix) for name in named)
    # The baseline first: every row is held against it.
    methods = sorted((options.methods or ",".join(known)).split(","), key=lambda method: method != BASELINE)
    if unknown := set(methods).difference(known):
        parser.error(f"no method is called {', '.join(sorted(unknown))}: expected some of {', '.join(known)}")
    failed, arguments = [], {method: [f"{selection}{method}", *overrides] for method in methods}
    for method in methods:
        print(f"{method}:", flush=True)
        if options.seconds is not None:
            arguments[method] = paced(options.directory, method, options.seconds, arguments[method])
        run = [METARUN, *arguments[method], f"hydra.run.dir={options.directory.resolve() / method}"]
        if subprocess.run(run).returncode != 0:
            failed.append(method)
        options.directory.mkdir(parents=True, exist_ok=True)
        (options.directory / "methods.md").write_text(
            table(options.directory, methods, arguments.__getitem__), encoding="utf-8"
        )
    print(f"{options.directory / 'methods.md'}: {len(methods) - len(failed)} of {len(methods)} methods ran.")
    if failed:
        print(f"Failed: {', '.join(failed)}.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
