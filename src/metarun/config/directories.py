"""Where runs go, what a run's directory says of how it was made, and that a command that did no work leaves none."""

import contextlib
import datetime
import fcntl
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write

from metarun.config.hydra_versions import resolver
from metarun.config.schema import INIT_SHA256
from metarun.errors import ConfigError, DataError, MetarunError
from metarun.system.files import LOCK, plain, write_bytes
from metarun.system.reading import MOST_YAML, json_of, text_of
from metarun.system.several_processes import launched

# In the directory of a sweep: the command that it is of; what came of its points, once they are done; and of
# points that differ in their seeds alone, how the results are distributed.
SWEEP_COMMAND, SWEEP_DONE, SWEEP_SEEDS, SWEEP_OTHERS = "command.json", "sweep.json", "seeds.json", "others.json"
OUTPUTS, SWEEPS = Path("outputs"), Path("multirun")
# In the directory of a run: how it was made, in the files that Hydra has for it.
HYDRA = ".hydra"
# What is written into the directory of a run; of the folders, those that a run cannot do without.
_FILES, _OWN = (LOCK, "result.json"), (HYDRA, "checkpoints")
FOLDERS = (*_OWN, "diverged", "plots", "evaluations", "predictions", "wandb")
# In the directory of a sweep: what Hydra writes there before it has a point made.
MULTIRUN = "multirun.yaml"
# In the directory of a search that names no storage: what has been tried.
JOURNAL = "search.log"
# What a directory holds before any work is done.
_NO_WORK = {LOCK, SWEEP_COMMAND, MULTIRUN, JOURNAL}
# The directories that this command makes: each with those above it that it makes as well, the deepest first.
_made: list[list[Path]] = []
# Of directories that this command is going to write in and that are there: what is in them, and what MULTIRUN says.
_there: dict[Path, tuple[set[str], bytes | None]] = {}


class Noted(Callback):
    """Has Hydra tell, before it makes the directory of a run or of a sweep, which that is going to be."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        if directory := _note_of(config, "hydra.run.dir"):
            with read_write(config.hydra.run):  # kept once found
                config.hydra.run.dir = directory

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        _note_of(config, "hydra.sweep.dir")


def register() -> None:
    """Tells Hydra how a run's directory is chosen. Calling it again changes nothing."""
    resolver("run_dir", _own_run_dir)
    # Kept once found: a point of a sweep is in the sweep's directory wherever it runs.
    resolver("sweep_dir", sweep_dir, use_cache=True)


def recorder(directory: Path, config: DictConfig, hydra: DictConfig) -> Callable[[], None]:
    """Returns what writes into the directory of a run how it was made: `config.yaml`, `hydra.yaml`, `overrides.yaml`.

    To be called once the run has been accepted, and not before: what is there may be another run's. Values that come of
    interpolations are written as what they are. It has to be made while these can be resolved.

    Args:
      directory: of the run.
      config: its configuration.
      hydra: a configuration with Hydra's own node alone.
    """
    texts = {
        "config.yaml": OmegaConf.to_yaml(config, resolve=True),
        "hydra.yaml": OmegaConf.to_yaml(hydra),
        "overrides.yaml": OmegaConf.to_yaml(hydra.hydra.overrides.task),
    }

    def record() -> None:
        for name, text in texts.items():
            write_bytes(directory / HYDRA / name, text.encode("utf-8", "surrogateescape"))

    return record


def refuse_odd(directory: Path) -> None:
    """Raises `MetarunError` where a run's directory has a link, or another thing, in the place of what is written there.

    A link would have a command write, or remove, what lies elsewhere.
    """
    for name in (*_FILES, *FOLDERS):
        path = directory / name
        try:
            mode = os.lstat(path).st_mode
        except OSError:  # it is not there; or nothing is to be had there, which whoever writes meets
            continue
        odd = (name in _FILES and not stat.S_ISREG(mode)) or (name in _OWN and not stat.S_ISDIR(mode))
        if stat.S_ISLNK(mode) or odd:
            wanted = "a file" if name in _FILES else "a folder"
            found = "a link, and nothing is written through one" if stat.S_ISLNK(mode) else f"no {wanted[2:]}"
            raise MetarunError(
                f"{path} is {found}: a run has {wanted} there. Move it away, or name another directory with "
                "hydra.run.dir=DIR."
            )


def contradictions(values: Mapping[str, Any], choices: Mapping[str, str], identity: Mapping[str, Any]) -> list[str]:
    """The keys, in words, in which a configuration is not that of the identity that a run's checkpoint has.

    Args:
      values: of the configuration, as plain values.
      choices: option chosen in each group.
      identity: flat, see `run_parts.identity`.
    """

    def now(key: str, then: Any) -> Any:
        group, _, inner = key.partition(".")
        value = values.get(group)
        if inner:
            # What is found out of the data, of source, or of the run that this one began at, is no setting.
            found = {} if key == INIT_SHA256 and value is not None else value
            return found.get(inner, then) if isinstance(found, Mapping) else None
        return choices.get(key) if isinstance(value, Mapping) else value

    found = {key: (then, plain(now(key, then))) for key, then in identity.items()}
    return [f"{key} ({then} then, {here} there)" for key, (then, here) in found.items() if then != here]


def note(directory: Path) -> None:
    """Remembers that this command is about to make `directory`, with those above it that are not there, or to write in it."""
    directory = directory.absolute()
    if missing := [path for path in (directory, *directory.parents) if not path.exists()]:
        _made.append(missing)
    elif directory.is_dir():
        file = directory / MULTIRUN
        _there[directory] = set(os.listdir(directory)), file.read_bytes() if file.is_file() else None


def remove_unused(*, refused: bool) -> None:
    """Removes, of the directories that this command has made, those in which no work was done.

    Args:
      refused: whether the command was; then a directory that was there before is left as it was.
    """
    while _made:
        directory, *above = _made.pop()
        with contextlib.suppress(OSError):  # where another process has its own there, it stays
            _remove_empty(directory)
            for parent in above:
                parent.rmdir()
    while _there:
        directory, (names, text) = _there.popitem()
        if refused:
            with contextlib.suppress(OSError):
                _put_back(directory, names, text)


def run_dir(overrides: list[str], process: int | None = None) -> str:
    """Returns the directory of a run that names none: that of the same command's unfinished run, or a new one.

    Several processes of a Slurm job go by its number, which it keeps when it is queued again.

    Args:
      overrides: the command line, as Hydra lists it.
      process: which of several this is, where it has been told.

    Raises:
      ConfigError: there are several processes, and nothing tells them where to meet.
    """
    if process is not None or launched()[0] > 1:
        if "SLURM_JOB_ID" not in os.environ:
            raise ConfigError("hydra.run.dir", "null", "a directory, the same for all processes of the run")
        return str(OUTPUTS / f"slurm-{os.environ['SLURM_JOB_ID']}")
    command = OmegaConf.to_yaml(OmegaConf.create(list(overrides)))
    runs = OUTPUTS.glob(f"*/*/{HYDRA}/overrides.yaml") if "resume=false" not in overrides else []
    for file in sorted(runs, reverse=True):
        directory = file.parent.parent
        begun = any((directory / name).is_dir() for name in ("checkpoints", "diverged"))
        unfinished = begun and not (directory / "result.json").exists()
        if unfinished and _text(file) == command and is_free(directory):
            return str(directory)
    return str(_new_directory(OUTPUTS))


def sweep_dir() -> str:
    """Returns the directory of a sweep that names none: that of the same command's unfinished sweep, or a new one.

    A search by `hydra/sweeper=optuna` begins a new one: what it knows is in its storage.
    """
    command = sys.argv[1:]
    begun = SWEEPS.glob(f"*/*/{SWEEP_COMMAND}") if not {"resume=false", "hydra/sweeper=optuna"} & {*command} else []
    text = json.dumps(command) + "\n"
    for file in sorted(begun, reverse=True):
        directory = file.parent
        unfinished = _text(file) == text and not _all_finished(directory / SWEEP_DONE)
        if unfinished and all(is_free(lock.parent) for lock in directory.glob(f"*/{LOCK}")):
            return str(directory)
    directory = _new_directory(SWEEPS)
    if directory.is_dir():
        (directory / SWEEP_COMMAND).write_text(text, encoding="utf-8")
    return str(directory)


def _own_run_dir(process: int | None, _root_: DictConfig) -> str:
    # As they were typed: an interpolation among them is for the key that it is given for.
    typed: Any = OmegaConf.to_container(_root_.hydra.overrides.task, resolve=False)
    return run_dir(typed, process)


def _note_of(config: DictConfig, key: str) -> Any:
    """Notes the directory that a key names, and returns what it names."""
    try:
        directory = OmegaConf.select(config, key)
    except Exception:  # which Hydra meets again, and raises, before it makes anything
        return None
    note(Path(str(directory)))
    return directory


def _text(file: Path) -> str | None:
    """What a small file of a run says; None where it cannot be read."""
    try:
        return text_of(file, MOST_YAML)
    except DataError:
        return None


def _all_finished(file: Path) -> bool:
    """Whether a `sweep.json` says that every point of the sweep has a result."""
    try:
        rows = json_of(file)
    except DataError:
        return False
    rows = rows if isinstance(rows, list) else [None]
    return all(isinstance(row, dict) and row.get("outcome", "finished") == "finished" for row in rows)


def _remove_empty(directory: Path) -> None:
    """Removes a directory in which nothing is but directories like it, and what is there before any work is done.

    It stays where another process, which has begun at the same moment, holds the lock of a run in it.
    """
    if directory.is_symlink() or not directory.is_dir() or any(_works_of(directory)):
        return
    if not all(is_free(lock.parent) for lock in directory.rglob(LOCK)):
        return
    for path, _, files in os.walk(directory, topdown=False):
        for name in files:
            Path(path, name).unlink()
        Path(path).rmdir()


def _put_back(directory: Path, names: set[str], text: bytes | None) -> None:
    """Takes out of a directory what this command has put there without doing work: points of a sweep, and `MULTIRUN`."""
    for name in set(os.listdir(directory)) - names - {MULTIRUN}:
        _remove_empty(directory / name)
    file = directory / MULTIRUN
    if text is not None and file.read_bytes() != text:
        write_bytes(file, text)
    elif text is None and set(os.listdir(directory)) - names == {MULTIRUN}:
        file.unlink()


def _works_of(directory: Path) -> Iterator[Path]:
    for path, folders, files in os.walk(directory):
        yield from (Path(path, name) for name in files if name not in _NO_WORK)
        yield from (Path(path, name) for name in folders if Path(path, name).is_symlink())


def _new_directory(parent: Path) -> Path:
    """Makes a directory named by the date and the time, which no other process is given."""
    now = datetime.datetime.now()
    day, second = parent / now.strftime("%Y-%m-%d"), now.strftime("%H-%M-%S")
    # Runs that start in the same second, as from a loop in the shell, each get a directory of their own.
    for attempt in range(1000):
        directory = day / (f"{second}-{attempt}" if attempt else second)
        if directory.exists():
            continue
        note(directory)
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError:
            pass  # Hydra makes it again, and that error is the one to show
        break
    return directory


def is_free(directory: Path) -> bool:
    """Whether no process holds the lock of a run."""
    try:
        with (directory / LOCK).open() as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return True
