#!/usr/bin/env python
"""Runs the papers' cells that have no figure yet, in an order of priority, for as long as there is time.

    python scripts/campaign.py --hours 8 --source omniglot=DIR --source mini_imagenet=DIR

Each cell is `metarun-reproduce CELL` with a directory of its own below --output. What its first steps take tells whether it can
end in the time that is left. If not, it is saved and set aside, and the next one has its turn; what time is left over goes to
those set aside. A result becomes a row of --table, and its `result.json` is kept beside the table, in `runs/`. With --seeds a
cell has its turn until its row is of so many; seeds that its directory holds already are not run again.

Stop it however you like, and give the same command again: it takes in the results that it finds, and continues what was begun.
Several campaigns, on one machine or on many, may share --output: a cell that one of them runs is passed over by the others.
One that finds nothing but such cells ends.

Exits with 0, with 1 if a cell could not be run, or with 75 if it was stopped.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import date
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple, NoReturn

from metarun.commands.console import pairs, told
from metarun.commands.reproduce import OUTPUT, Named, cells, differing
from metarun.config import search_path
from metarun.config.composing import composed
from metarun.config.directories import is_free
from metarun.errors import ConfigError, DataError, MetarunError
from metarun.system.files import one_at_a_time, write_bytes
from metarun.training.result import METRICS, RESULT, read_metrics, read_result
from metarun.training.stopping import REQUEUE
from metarun.trust import measured
from metarun.trust.measured import Measured

# The papers that are cited most come first, and of these the data that everybody reports.
ORDER = (
    *("finn2017/maml_mini_imagenet_*", "snell2017/protonet_mini_imagenet_5w?s", "finn2017/fomaml_mini_imagenet_*"),
    *("raghu2020/anil_mini_imagenet_*", "antoniou2019/*_mini_imagenet_*", "bertinetto2019/*", "finn2017/*_omniglot_*"),
    *("finn2017/*", "snell2017/*", "vinyals2016/*", "sung2018/*", "nichol2018/*", "santoro2016/*", "duan2016/*"),
    *("mishra2018/*", "li2017/*", "rajeswaran2019/*", "raghu2020/*", "antoniou2019/*", "*"),
)
REPRODUCE = str(Path(sys.executable).with_name("metarun-reproduce"))
_LINES = 2  # of the metrics, by whose distance a run's pace is told
_POLL = 0.5  # seconds
_PATIENCE = 600  # seconds within which a run has to tell its pace


class Asked(NamedTuple):
    """What a campaign is to do.

    Attributes:
      output: the directory of the runs.
      table: the table of results.
      overrides: cell -> settings that its command is given, which may not change what it is.
      at_once: how many runs at a time.
      device: what they run on, in words; "" for what the results say.
      seeds: how many of each cell, from seed 0 on.
    """

    output: Path
    table: Path
    overrides: Mapping[str, Sequence[str]]
    at_once: int = 1
    device: str = ""
    seeds: int = 1

    def directories(self, named: Named) -> list[Path]:
        """The directories of a cell's runs, one for each seed."""
        return [self.output / named.name / str(seed) for seed in range(self.seeds)]

    def is_free(self, named: Named) -> bool:
        """Whether nobody runs a cell."""
        return all(map(is_free, self.directories(named)))

    def log(self, named: Named) -> Path:
        """The file of what a cell's command prints."""
        return self.output / named.name / "log.txt"


class Pace(NamedTuple):
    """How a run comes on: the outer step it is at, of how many, tasks of a step, and seconds of a step."""

    step: int
    steps: int
    tasks: int
    seconds: float

    @property
    def left(self) -> float:
        """Seconds of training that are left."""
        return (self.steps - self.step) * self.seconds


class Running(NamedTuple):
    """A cell's command that runs: its process, its place among those at once, and the step from which it went on."""

    named: Named
    process: subprocess.Popen[bytes]
    place: int
    begun_at: int


def chosen(patterns: Sequence[str], table: Mapping[str, Measured], seeds: int = 1) -> list[Named]:
    """The whole cells that have no row of so many seeds, in the order of the patterns that their names match first.

    Raises:
      MetarunError: a pattern matches no whole cell, be it with a row or without.
    """
    whole = [named for named in cells() if not named.is_short]
    for pattern in patterns:
        if not any(fnmatchcase(named.name, pattern) for named in whole):
            raise ConfigError("--cells", pattern, "a pattern of whole cells, as `metarun-reproduce --list` names them")
    found: list[tuple[int, Named]] = []
    for named in whole:
        place = next((place for place, each in enumerate(patterns) if fnmatchcase(named.name, each)), None)
        if place is not None and not _has_row(named, table, seeds):
            found.append((place, named))
    return [named for _, named in sorted(found, key=lambda pair: pair[0])]


def _has_row(named: Named, table: Mapping[str, Measured], seeds: int) -> bool:
    return named.name in table and table[named.name].seeds >= seeds


def settings(named: Named, sources: Mapping[str, str], overrides: Sequence[str]) -> list[str]:
    """The settings of a cell's command: those given, and where its data are.

    Raises:
      MetarunError: one of them makes it another run than the cell.
    """
    _, choices = composed([f"experiment={named.name}"], named.part)
    source = sources.get(choices.get("dataset", ""))
    own = [*overrides, *([] if source is None else [f"dataset.source={source}"])]
    changed = [difference.key for difference in differing(named, overrides, whole=False)] if overrides else []
    if changed:
        raise MetarunError(f"{', '.join(changed)}: a campaign runs cells as they are, so this cannot be given.")
    return own


def pace(named: Named, directories: Sequence[Path], begun_at: int = 0) -> Pace | None:
    """How a cell's run comes on, by what it has written since a step; None while that is too little to tell.

    Seeds train together, so the last one's pace is that of all.
    """
    records = _records(directories[-1])
    timed = [(step, of["seconds"]) for step, of in records.items() if step > begun_at and of.get("seconds") is not None]
    if len(timed) >= _LINES and timed[-1][1] > timed[0][1]:
        (first, began), (last, now) = timed[0], timed[-1]
        return Pace(last, *_size(named.name, named.part), (now - began) / (last - first))
    return None


def _records(directory: Path) -> Mapping[int, Mapping[str, Any]]:
    """What a run has written of its steps; nothing where it has not."""
    with suppress(OSError, DataError):
        return read_metrics(directory / METRICS)[0]
    return {}


def row(results: Sequence[Mapping[str, Any]], kept: Sequence[bytes], device: str, day: date) -> Measured:
    """What the seeds of a cell have found as a row of the table.

    Args:
      results: of the seeds' runs.
      kept: their files, byte for byte.
      device: what they ran on, in words.
      day: when the last ended.
    """
    first, versions = results[0], results[0]["versions"]
    values = [result["value"] for result in results]
    return Measured(
        value=statistics.fmean(values),
        ci95=max(result["ci95"] for result in results),
        tasks=first["num_tasks"],
        seeds=len(results),
        steps=first["steps"],
        minutes=max(1, round(max(result["seconds"] + result["compile_seconds"] for result in results) / 60)),
        device=device,
        versions=", ".join(f"{name} {versions[name]}" for name in ("jax", "metarun")),
        commit=_commit(),
        date=day.isoformat(),
        note="",
        result=" ".join(map(measured.hash_of, kept)),
        by_seed=" ".join(f"{value:.4g}" for value in values) if len(values) > 1 else "",
    )


def collect(asked: Asked, pending: Iterable[Named]) -> Iterator[tuple[Named, str]]:
    """Takes the results that there are into the table, and yields each such cell with what is to be said of it.

    A result that is not finite, or whose checks have failed, is no figure, and becomes no row.
    """
    for named in pending:
        files = [directory / RESULT for directory in asked.directories(named)]
        if not all(file.exists() for file in files):
            continue
        kept, results = [file.read_bytes() for file in files], [read_result(file) for file in files]
        failed = sorted(
            {name for each in results for name, check in each["checks"].items() if check["passed"] is False}
        )
        if failed or any(each["value"] is None or each["ci95"] is None for each in results):
            yield named, f"no row: {'checks failed, ' + ', '.join(failed) if failed else 'the test is not finite'}"
            continue
        beside = f", beside {asked.at_once - 1} more" if asked.at_once > 1 else ""
        device = asked.device or results[0]["device"] + beside
        mine = row(results, kept, device, date.fromtimestamp(max(file.stat().st_mtime for file in files)))
        with one_at_a_time(asked.table):
            rows = measured.read(asked.table) if asked.table.exists() else {}
            if not _has_row(named, rows, asked.seeds):
                for seed, content in enumerate(kept):
                    write_bytes(asked.table.parent / measured.kept_as(named.name, seed), content)
                note = rows[named.name].note if named.name in rows else ""
                measured.write(asked.table, {**rows, named.name: mine._replace(note=note)})
        yield named, f"{named.verdict_on(mine)}: {mine.value:.4g} ± {mine.interval:.2g}, in {mine.minutes:g} min"


class Campaign:
    """Cells that run one after the other, or some at once, until the time is up or a signal comes.

    A cell is in `waiting` until it has a result or has failed. Those in `too_long` come last, and run for what time is left.
    """

    def __init__(self, asked: Asked, pending: Sequence[Named], say: Callable[[str], None], ending: Event) -> None:
        self.asked, self.say, self.ending = asked, say, ending
        self.waiting = {named.name: named for named in pending}
        self.too_long: set[str] = set()
        self.running: list[Running] = []
        self.failed: list[str] = []

    def run(self, seconds: float) -> None:
        """Goes on for so many seconds, or until all that is left is run by others; what runs then is saved."""
        deadline = time.monotonic() + seconds
        try:
            while True:
                self._take_in()
                for run in [*self.running]:
                    self._see_to(run, deadline - time.monotonic())
                if not self.waiting or time.monotonic() >= deadline:
                    return
                self._start()
                if not self.running:
                    self.say(f"What is left is run by others: {', '.join(self.waiting)}.")
                    return
                if self.ending.wait(_POLL):
                    return
        finally:
            stop([run.process for run in self.running])
            self._take_in()
            for run in self.running:
                if run.named.name in self.waiting:
                    self.say(f"{run.named.name}: saved")

    def _take_in(self) -> None:
        """Makes rows of the results that there are, be they of runs of this campaign or of others."""
        for named, words in collect(self.asked, [*self.waiting.values()]):
            self.say(f"{named.name}: {words}")
            del self.waiting[named.name]

    def _see_to(self, run: Running, left: float) -> None:
        """Sets a run aside that does not fit into the seconds that are left, and does away with one that has ended."""
        name, code = run.named.name, run.process.poll()
        if code is None:
            now = pace(run.named, self.asked.directories(run.named), run.begun_at)
            if now is None or now.left <= left or name in self.too_long:
                return
            stop([run.process])
            self.say(f"{name}: {now.left / 60:.0f} minutes more do not fit; saved at step {now.step}")
            self.too_long.add(name)
        elif name in self.waiting and code != REQUEUE and self.asked.is_free(run.named):
            self.say(f"{name}: exit code {code}; see {self.asked.log(run.named)}")
            self.failed.append(name)
            del self.waiting[name]
        self.running.remove(run)

    def _start(self) -> None:
        """Begins or continues what comes next, as many as there is room for. What another campaign runs is passed over."""
        for place in {*range(self.asked.at_once)} - {run.place for run in self.running}:
            busy = {run.named.name for run in self.running}
            in_turn = sorted(self.waiting.values(), key=lambda named: named.name in self.too_long)
            ready = (each for each in in_turn if each.name not in busy and self.asked.is_free(each))
            named = next(ready, None)
            if named is None:
                return
            self.running.append(start(self.asked, named, place))
            self.say(f"{named.name}: begun at step {self.running[-1].begun_at}")


def start(asked: Asked, named: Named, place: int) -> Running:
    """Begins or continues a cell's run, on its share of the machine."""
    log = asked.log(named)
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / asked.at_once:.2f}", **os.environ}
    cores = sorted(os.sched_getaffinity(0))
    share = cores[place :: asked.at_once] or cores
    command = [REPRODUCE, named.name, f"seeds={asked.seeds}", f"output={log.parent}", *asked.overrides[named.name]]
    command += [f"--config-dir={folder}" for folder in search_path.added()]
    begun_at = max(_records(asked.directories(named)[-1]), default=0)
    with log.open("ab") as written:
        process = subprocess.Popen(
            command,
            stdout=written,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the campaign, which has its runs saved
            preexec_fn=lambda: os.sched_setaffinity(0, share),
        )
    return Running(named, process, place, begun_at)


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Has runs save, all at once, and waits until they have ended."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        process.wait()


def forecast(asked: Asked, pending: Sequence[Named], faster: float, say: Callable[[str], None], ending: Event) -> None:
    """Prints what each cell's training would take, by its first steps, which are kept.

    Args:
      asked, pending: as of a campaign.
      faster: how many times the pace of this machine another one has.
      say: what prints a line.
      ending: set when it is to end.
    """
    say(f"{'cell':<48}  {'tasks/s':>8}  {'minutes':>8}" + (f"  {'elsewhere':>9}" if faster != 1 else ""))
    for named in pending:
        run = start(asked, named, 0)
        until, found = time.monotonic() + _PATIENCE, None
        while run.process.poll() is None and found is None and time.monotonic() < until and not ending.wait(_POLL):
            found = pace(named, asked.directories(named), run.begun_at)
        stop([run.process])
        if ending.is_set():
            return
        found = found or pace(named, asked.directories(named))
        if found is None:
            say(f"{named.name:<48}  not told; see {asked.log(named)}")
            continue
        minutes = found.steps * found.seconds / 60
        elsewhere = f"  {minutes / faster:9.1f}" if faster != 1 else ""
        say(f"{named.name:<48}  {found.tasks / found.seconds:8.4g}  {minutes:8.1f}{elsewhere}")


def main() -> NoReturn:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--hours", type=float, default=0, help="how long; 0, the default, takes in the results that there are"
    )
    parser.add_argument(
        "--cells", default=",".join(ORDER), metavar="PATTERNS", help="which, in this order, commas between"
    )
    parser.add_argument("--source", action="append", default=[], metavar="DATASET=DIR", help="where a data set is")
    parser.add_argument("--at-once", type=int, default=1, help="runs at a time, which share the device and the cores")
    parser.add_argument("--seeds", type=int, default=1, help="of each cell, from seed 0 on; 1")
    parser.add_argument("--device", default="", help="what the table is to call it; by default as the results do")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="directory of the runs (%(default)s)")
    parser.add_argument("--table", type=Path, default=measured.table_file(), help="of results (%(default)s)")
    parser.add_argument("--config-dir", action="append", default=[], metavar="DIR", help="with cells of your own")
    parser.add_argument("--list", action="store_true", help="name the cells in order, and run none")
    parser.add_argument(
        "--forecast", action="store_true", help="run the first steps of each, and say what all would take"
    )
    parser.add_argument(
        "--faster", type=float, default=1, metavar="TIMES", help="of --forecast: another machine's pace"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of all, such as log_every=10")
    options = parser.parse_intermixed_args()
    sys.exit(told(lambda: sys.exit(_acted(options))))


def _acted(options: argparse.Namespace) -> int:
    """Does what the options ask for, and returns the exit code."""
    if options.at_once < 1:
        raise ConfigError("--at-once", options.at_once, "1 or more")
    if options.seeds < 1:
        raise ConfigError("--seeds", options.seeds, "1 or more")
    if not options.hours >= 0:
        raise ConfigError("--hours", options.hours, "0 or more")
    search_path.add(options.config_dir)
    table = measured.read(options.table) if options.table.exists() else {}
    pending = chosen(options.cells.split(","), table, options.seeds)
    if options.list:
        print(*(named.name for named in pending), sep="\n", flush=True)
        return 0
    sources = pairs(options.source)
    overrides = {each.name: settings(each, sources, options.overrides) for each in pending}
    asked = Asked(options.output.absolute(), options.table, overrides, options.at_once, options.device, options.seeds)

    def say(words: str) -> None:
        print(words if options.forecast else f"{time.strftime('%H:%M:%S')} {words}", flush=True)

    ending = Event()
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, lambda *_: ending.set())
    if options.forecast:
        forecast(asked, pending, options.faster, say, ending)
        return REQUEUE if ending.is_set() else 0
    whole = Campaign(asked, pending, say, ending)
    whole.run(3600 * options.hours)
    say(f"{len(pending) - len(whole.waiting) - len(whole.failed)} of {len(pending)} cells have a result.")
    if ending.is_set():
        say("Stopped; the same command continues.")
        return REQUEUE
    return 1 if whole.failed else 0


@cache
def _size(cell: str, part: str) -> tuple[int, int]:
    """The outer steps of a cell, and the tasks of each; composed once, for it is asked for at every look at a run."""
    config, _ = composed([f"experiment={cell}"], part)
    return config.steps, config.meta_batch_size


def _commit() -> str:
    """The commit of this checkout; "" where there is none."""
    asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    with suppress(OSError):
        return subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    return ""


if __name__ == "__main__":
    main()
