"""What `metarun-reproduce` does: a cell of a paper's table is run, or resumed, and its verdict said.

A whole cell is held to the published figure. A short version is no reproduction of it: it is held to what the same command has
given us, and so tells whether an installation computes what it should.

The run itself is the command that anybody can type, in a process of its own.
"""

import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text

from metarun.config import experiments, search_path
from metarun.config.composing import composed
from metarun.config.schema import CIRCUMSTANCES, COMMANDS, FEW_SHOT, PACE, RL, is_among
from metarun.errors import MetarunError, positive_int, some
from metarun.training.result import RESULT, read_result
from metarun.trust.cell import Cell, Figure, cell_of
from metarun.trust.equivalence import NOT_REPRODUCED, REPRODUCED, UNDECIDED, Ours, Verdict, difference_said, verdict
from metarun.trust.measured import Measured, measured
from metarun.trust.protocol import ABSENT, Difference, flattened

# Exit codes; 1 and 2 are those of errors.
EXIT = {REPRODUCED: 0, NOT_REPRODUCED: 3, UNDECIDED: 4}
# What the same verdicts are called of a short version.
SHORT = {REPRODUCED: "as expected", NOT_REPRODUCED: "not as expected", UNDECIDED: UNDECIDED}
OUTPUT = Path("outputs") / "reproduce"
_HEADINGS = (
    "Whole cells that have been run, by the paper's settings:",
    "Short versions, which check an installation: their result should be the one measured here, and is no reproduction:",
    "Whole cells that have not been run:",
)
_SHOWN = 12  # differing settings that are listed
# What differs between runs without moving a number.
_MOVES_NOTHING = {*CIRCUMSTANCES, *PACE}


class Named(NamedTuple):
    """A cell by its name.

    Attributes:
      name: PAPER/CELL, as in `experiment=PAPER/CELL`.
      part: of `conf/`, which says by which command it is run.
      cell: what its file states.
    """

    name: str
    part: str
    cell: Cell

    @property
    def published(self) -> Figure:
        """The paper's figure."""
        return next(iter(self.cell.published.values()))

    @property
    def measured(self) -> Measured | None:
        """What the same command has given us; None if it has not been run to its end."""
        return measured(self.name, self.part)

    @property
    def is_short(self) -> bool:
        """Whether it is a short version, and so no reproduction."""
        return self.cell.quick_of is not None

    @property
    def held_to(self) -> Figure:
        """What its result is held against: the paper's figure, or of a short version ours.

        Raises:
          MetarunError: a short version has not been run to its end by us.
        """
        if not self.is_short:
            return self.published
        ours = self.measured
        if ours is None:
            raise MetarunError(f"{self.name}: a short version of which there is no figure of ours to hold it against.")
        return Figure(ours.value, ours.interval, f"ours, {ours.date}, {ours.device}")

    def verdict_on(self, ours: Measured) -> str:
        """The verdict on what a whole cell has given us; "" of a short version, which that is the measure of."""
        if self.is_short:
            return ""
        figure = self.published
        return verdict(ours.ours, figure.value, figure.ci95, self.cell.margin, forecast=False).verdict


class Reproduction(NamedTuple):
    """What has come of a cell.

    Attributes:
      verdict: how it stands to the published figure.
      failed: checks that did not pass in some seed; with any, nothing counts as reproduced.
      results: `result.json` of each seed.
    """

    verdict: Verdict
    failed: Sequence[str]
    results: Sequence[Mapping[str, Any]]


def cells() -> Iterator[Named]:
    """Every cell, whole ones before their quick variants, with what its own file states of it.

    A name is of one cell, as `find` takes it: where both commands find it, for its folder is not told apart, of few-shot learning.
    """
    found = set()
    for part in (FEW_SHOT, RL):
        for folder in search_path.experiment_folders(part):
            for name in experiments.names(folder):
                node = (experiments.served(folder, name) or {}).get("cell")
                if node is not None and name not in found:
                    found.add(name)
                    yield Named(name, part, cell_of(node))


def listed(console: Console) -> None:
    """Prints every cell: whole ones with a verdict, short versions with what they should give, and whole ones not yet run."""
    groups: dict[str, list[tuple[str, ...]]] = {heading: [] for heading in _HEADINGS}
    for named in cells():
        figure, ours = named.published, named.measured
        accuracy = is_accuracy(named)
        mine = ("", "", "")
        if ours is not None:
            mine = (_with_ci95(ours.value, ours.interval, accuracy), named.verdict_on(ours), f"{ours.minutes:.0f}")
        heading = _HEADINGS[1 if named.is_short else 0 if ours is not None else 2]
        groups[heading].append((named.name, _with_ci95(figure.value, figure.ci95, accuracy), *mine, figure.source))
    header = ("cell", "published", "measured", "verdict", "minutes", "source")
    widths = [
        max(map(len, column)) for column in zip(header, *(row for rows in groups.values() for row in rows), strict=True)
    ]
    for heading, rows in groups.items():
        console.print(heading, markup=False, highlight=False, soft_wrap=True)
        for row in (header, *rows):  # a line each, however narrow the terminal: it is searched
            padded = [f"{text:<{width}}" for text, width in zip(row, widths, strict=True)]
            console.print("  ".join(padded).rstrip(), markup=False, highlight=False, soft_wrap=True)
        console.print()


def find(name: str | None) -> Named:
    """The cell of a name; raises `MetarunError`, naming near ones, where there is none."""
    if name is None:
        raise MetarunError("Which cell? Give one as PAPER/CELL; `metarun-reproduce --list` names all.")
    for part in (FEW_SHOT, RL):
        served = [experiments.served(folder, name) for folder in search_path.experiment_folders(part)]
        if any("cell" in node for node in served if node is not None):
            whole = composed([f"experiment={name}"], part)[0].cell  # which has what it takes from others, too
            return Named(name, part, cell_of(OmegaConf.to_container(whole)))
    known = [named.name for named in cells()]
    near = experiments.meant(name, known) or f"There is {known[0]}, for one."
    raise MetarunError(f"{name}: there is no such cell. {near} `metarun-reproduce --list` names all.")


def reproduce(name: str | None, settings: Mapping[str, str], console: Console) -> int:
    """Runs or resumes a cell, says its verdict, and returns the exit code.

    Args:
      name: PAPER/CELL.
      settings: `seeds`, how many, from seed 0 on; `output`, the directory that holds one for each seed; the others are
        handed to the command of the run.
      console: where the verdict goes.

    Raises:
      MetarunError: there is no such cell, a setting cannot be used, or a result is not that of its seed.
    """
    named = find(name)
    own = dict(settings)
    for key in ("seed", "experiment", "hydra.run.dir"):
        if key in own:
            raise MetarunError(f"{key}={own[key]}: metarun-reproduce sets it; its own are seeds=N and output=DIR.")
    asked = own.pop("seeds", "1")
    seeds = positive_int("seeds", int(asked) if asked.isdecimal() and len(asked) < 20 else asked)
    directory = Path(own.pop("output", _directory(named.name))).expanduser()
    overrides = [f"{key}={value}" for key, value in own.items()]
    _ = named.held_to  # refused before anything is trained, as are mistakes in the settings
    found = differing(named, overrides)  # which composes, and so finds them
    own_keys = [difference.key for difference in differing(named, overrides, whole=False)]
    code = _run(named, seeds, overrides, directory)
    if code:
        return code
    outcome = judged(named, [_of_seed(directory / str(seed) / RESULT, seed) for seed in range(seeds)])
    said(named, outcome, found, console, own_keys)
    return EXIT[outcome.verdict.verdict]


def _directory(name: str) -> Path:
    """Where a cell's runs are: `OUTPUT/PAPER/CELL`, or `OUTPUT/CELL`, where former versions have begun them."""
    former = OUTPUT / name.rpartition("/")[2]
    return former if former.is_dir() and not (OUTPUT / name).exists() else OUTPUT / name


def _of_seed(file: Path, seed: int) -> Mapping[str, Any]:
    result = read_result(file)
    if result["seed"] != seed:
        raise MetarunError(f"{file} is of seed {result['seed']}, not {seed}: name another directory with output=DIR.")
    return result


def judged(named: Named, results: Sequence[Mapping[str, Any]]) -> Reproduction:
    """The outcome of a cell, given what its seeds have found, `result.json` of each.

    Raises:
      MetarunError: a result is not a finite number, or there is nothing to hold it against.
    """
    if any(result["value"] is None for result in results):
        raise MetarunError(f"{named.name}: a seed's test is not finite, so there is nothing to compare.")
    if any(result["ci95"] is None for result in results):
        raise MetarunError(
            f"{named.name}: one task has no interval, so there is no verdict. Give eval_tasks=2 or more."
        )
    figure = named.held_to
    ours = Ours(
        values=[result["value"] for result in results],
        ci95=max(result["ci95"] for result in results),
        num_tasks=results[0]["num_tasks"],
    )
    found = verdict(ours, figure.value, figure.ci95, named.cell.margin)
    failed = sorted(
        {check for result in results for check, entry in result["checks"].items() if entry["passed"] is False}
    )
    if failed and found.verdict == REPRODUCED:
        found = found._replace(verdict=UNDECIDED, more_tasks=None, more_seeds=None)
    return Reproduction(found, failed, results)


def differing(named: Named, overrides: Sequence[str], *, whole: bool = True) -> list[Difference]:
    """The settings in which a run of a cell differs from the paper's: as `first` theirs, as `second` ours.

    Those of the test come first, for they alone make numbers incomparable. With `whole` false, those in which it differs
    from the cell as it stands, which may be a short version of the paper's.
    """
    other = named.cell.quick_of or named.name if whole else named.name

    def settings(config: DictConfig, choices: Mapping[str, str]) -> dict[str, Any]:
        values: Any = OmegaConf.to_container(config)
        return {**dict(flattened(values)), **_options(choices)}

    theirs = settings(*composed([f"experiment={other}"], named.part))
    ours = settings(*composed([f"experiment={named.name}", *overrides], named.part))

    found = [
        Difference(key, theirs.get(key, ABSENT), ours.get(key, ABSENT))
        for key in {**theirs, **ours}
        if not is_among(key, _MOVES_NOTHING) and theirs.get(key, ABSENT) != ours.get(key, ABSENT)
    ]
    return sorted(found, key=lambda difference: not _of_test(difference.key))


def said(
    named: Named, outcome: Reproduction, found: Sequence[Difference], console: Console, own_keys: Sequence[str] = ()
) -> None:
    """Prints what it is held to and what was found, the verdict, what would decide, and what differs from the paper's settings.

    Args:
      named, outcome: the cell, and what has come of it.
      found: settings in which the run differs from the paper's.
      console: where it goes.
      own_keys: of the settings in which it differs from the cell as it stands, which make it another command.
    """
    figure, cell, verdict = named.published, named.cell, outcome.verdict
    first = outcome.results[0]
    accuracy = first["metric"] == "accuracy"
    tasks, seeds = first["num_tasks"], len(outcome.results)
    scale, unit = (100, " points") if accuracy else (1, "")
    table = Table(box=None, pad_edge=False, show_header=False)
    over = f"{first['metric']}, 95% interval over {tasks} tasks"
    if seeds > 1:
        values = ", ".join(_number(result["value"], accuracy) for result in outcome.results)
        over += f" and {seeds} seeds ({values})"
    note = f"; {figure.note}" if figure.note else ""
    table.add_row("published", _with_ci95(figure.value, figure.ci95, accuracy), Text(figure.source + note))
    if named.is_short:
        expected = named.held_to
        table.add_row("expected", _with_ci95(expected.value, expected.ci95, accuracy), Text(expected.source))
    table.add_row(
        "this run" if named.is_short else "ours", _with_ci95(verdict.value, verdict.ci95, accuracy), Text(over)
    )
    table.add_row(
        "difference",
        difference_said(scale * verdict.difference, scale * verdict.difference_ci95),
        f"from {'expected' if named.is_short else 'published'}, {unit.strip()}{', ' * bool(unit)}95% interval; "
        f"margin ±{scale * cell.margin:.2g}",
    )
    console.print(Text(named.name, "bold"))
    console.print(table)
    say = partial(console.print, soft_wrap=True)
    colour = {REPRODUCED: "green", NOT_REPRODUCED: "red", UNDECIDED: "yellow"}[verdict.verdict]
    word = SHORT[verdict.verdict] if named.is_short else verdict.verdict
    say(Text.assemble("verdict: ", (word.upper(), f"bold {colour}"), ". ", _why(outcome)))
    if named.is_short:
        say(f"A short version, with {_share(named)}: it checks an installation, and reproduces nothing.")
    before = named.measured
    if before is not None and (own_keys or not named.is_short):
        minutes = "a minute" if before.minutes == 1 else f"{before.minutes:.0f} minutes"
        words = f"{_with_ci95(before.value, before.interval, accuracy)} in {minutes} on {before.device}"
        if own_keys:
            say(Text(f"Without {some(own_keys)}, the cell has given {words}: this is another command."))
        else:
            say(Text(f"This command has given {words}."))
    if not found and not cell.differs:
        say("Settings: those of the paper, as far as they are known.")
        return
    say("Differs from the paper's settings:")
    for text in cell.differs:
        say(Text(f"  {text}"))
    for difference in found[:_SHOWN]:
        say(Text(f"  {difference.key}: {difference.second}, the paper's {difference.first}"))
    if len(found) > _SHOWN:
        say(f"  and {len(found) - _SHOWN} more")


def _share(named: Named) -> str:
    """How much of its paper's training a short version has; of its test, where it is the test that is shorter."""
    short, whole = (composed([f"experiment={name}"], named.part)[0] for name in (named.name, named.cell.quick_of))
    short_tasks, whole_tasks = (config.steps * config.meta_batch_size for config in (short, whole))
    if short_tasks == whole_tasks:
        return f"{short.eval_tasks} of the paper's {whole.eval_tasks} test tasks"
    return f"{100 * short_tasks / whole_tasks:.2g}% of the tasks of the paper's training"


def _why(outcome: Reproduction) -> str:
    verdict, seeds = outcome.verdict, len(outcome.results)
    first = outcome.results[0]
    # Of what learns nothing every seed is the same.
    learnt = first["steps"] > 0 and first.get("sizes", {}).get("meta_params") != 0
    alone = " This is one seed's; seeds=5 covers how much seeds differ." if seeds == 1 and learnt else ""
    if outcome.failed:
        return f"Checks failed, so the number cannot be trusted: {', '.join(outcome.failed)}."
    if verdict.verdict == REPRODUCED:
        return f"The whole interval of the difference lies within the margin.{alone}"
    if verdict.verdict == NOT_REPRODUCED:
        return f"The whole interval of the difference lies beyond the margin.{alone}"
    ways = []
    if verdict.more_tasks is not None:
        total = outcome.results[0]["num_tasks"] + verdict.more_tasks
        ways.append(f"{verdict.more_tasks} more test tasks (eval_tasks={total})")
    if verdict.more_seeds is not None:
        ways.append(f"{verdict.more_seeds} more seeds (seeds={seeds + verdict.more_seeds})")
    where = "The interval of the difference crosses the margin."
    if ways:
        return f"{where} If the values stay, {' or '.join(ways)} would decide.{alone}"
    limit = "the interval of what it is held to is too wide" if seeds == 1 else "seeds differ too much"
    return f"{where} No number of test tasks would decide: {limit}.{alone}"


def _run(named: Named, seeds: int, overrides: Sequence[str], directory: Path) -> int:
    """The command of the seeds, which resumes what their directories hold; returns its exit code."""
    entry = {FEW_SHOT: "main", RL: "rl_main"}[named.part]
    program = f"import sys; from metarun.commands.cli import {entry}; sys.argv[0] = {COMMANDS[named.part]!r}; {entry}()"
    of_seeds = (
        ["seed=0", f"hydra.run.dir={directory / '0'}"]
        if seeds == 1
        else [f"seeds={seeds}", f"hydra.run.dir={directory}"]
    )
    own = [f"experiment={named.name}", *of_seeds, *(f"--config-dir={folder}" for folder in search_path.added())]
    process = subprocess.Popen([sys.executable, "-c", program, *own, *overrides])
    handed = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = {signum: signal.signal(signum, lambda signum, _: process.send_signal(signum)) for signum in handed}
    try:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:  # which the run has been sent as well, and saves upon
                continue
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _options(choices: Mapping[str, str]) -> dict[str, str]:
    """The option of each group, by names that no key has."""
    return {group: option for group, option in choices.items() if "/" not in group and group != experiments.GROUP}


def _of_test(key: str) -> bool:
    group = key.split(".")[0]
    named = key in ("way", "shot", "eval_query_shot", "eval_tasks", "eval_seed", "method.query_statistics")
    return named or group in ("dataset", "env") or key.startswith("method.eval_")


def is_accuracy(named: Named) -> bool:
    """Whether its figure is an accuracy, which is said in per cent; else it is an error or a reward."""
    return named.part == FEW_SHOT and "sinusoid" not in named.name


def _number(value: float, accuracy: bool) -> str:
    return f"{100 * value:.2f}%" if accuracy else f"{value:.4g}"


def _with_ci95(value: float, ci95: float | None, accuracy: bool) -> str:
    if ci95 is None:
        return _number(value, accuracy)
    return f"{_number(value, accuracy)} ± {100 * ci95:.2f}%" if accuracy else f"{value:.4g} ± {ci95:.2g}"
