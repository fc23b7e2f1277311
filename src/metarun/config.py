"""The command line's schema, where its YAML lives, and where a run goes. Importing this file does not import JAX."""

import datetime
import fcntl
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metarun.errors import ConfigError

OUTPUTS, SWEEPS = Path("outputs"), Path("multirun")
# Launchers that JAX knows by their variables: how many processes there are, and which of them this one is.
_LAUNCHERS = {"SLURM_STEP_NUM_TASKS": "SLURM_PROCID", "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK"}
# In the directory of a sweep: the command that it is of; what came of its points, once they are done; and of
# points that differ in their seeds alone, how the results are distributed.
SWEEP_COMMAND, SWEEP_DONE, SWEEP_SEEDS = "command.json", "sweep.json", "seeds.json"
# Keys that move no number: where data lie, how often things are written, how a run is fitted to a device.
CIRCUMSTANCES = (
    "checkpoint_every",
    "time_limit",
    "resume",
    "distributed",
    "logger",
    "cell",
    "dataset.source",
    "memory",
)
# These move none either, but a run that is resumed has to keep them.
PACE = ("log_every", "steps_per_dispatch")
# The folders of `conf/`: what each command composes from, besides what is common to both.
FEW_SHOT, RL, COMMON = "few_shot", "rl", "common"
COMMANDS = {FEW_SHOT: "metarun", RL: "metarun-rl"}


@dataclass
class MemoryConfig:
    """Keys of `memory`; `build` checks their values, which are of several types."""

    limit: Any = MISSING
    chunk: Any = MISSING
    remat: Any = MISSING
    stream: Any = MISSING


@dataclass
class DistributedConfig:
    """Keys of `distributed`; `processes.join` checks their values."""

    address: str | None = MISSING
    processes: int | None = MISSING
    process: int | None = MISSING


@dataclass
class AnyRunConfig:
    """Types of the scalars that every run has."""

    steps: int = MISSING
    meta_batch_size: int = MISSING
    outer_lr: float = MISSING
    precision: str = MISSING
    seed: int = MISSING
    eval_tasks: int = MISSING
    eval_every: int = MISSING
    val_tasks: int = MISSING
    eval_seed: int = MISSING
    checkpoint_every: int = MISSING
    log_every: int = MISSING
    steps_per_dispatch: int = MISSING
    time_limit: float | None = MISSING
    resume: Any = MISSING  # `RunSettings` checks it: as a bool, 2 would be true
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    cell: Any = MISSING  # `Cell` checks it
    method: Any = MISSING
    optimizer: Any = MISSING
    logger: Any = MISSING


@dataclass
class RunConfig(AnyRunConfig):
    """Types of the scalars of `metarun`; their values and meanings stand in `conf/few_shot/config.yaml`."""

    way: int = MISSING
    shot: int = MISSING
    query_shot: int = MISSING
    eval_query_shot: int | None = MISSING
    ensemble: int = MISSING
    train_way: int | None = MISSING
    train_shot: int | None = MISSING
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    model: Any = MISSING
    dataset: Any = MISSING


@dataclass
class RLMemoryConfig:
    """Keys of `memory` that a run of `metarun-rl` has."""

    limit: Any = MISSING
    chunk: Any = MISSING


@dataclass
class RLConfig(AnyRunConfig):
    """Types of the scalars of `metarun-rl`; their values and meanings stand in `conf/rl/config.yaml`."""

    memory: RLMemoryConfig = field(default_factory=RLMemoryConfig)
    env: Any = MISSING


SCHEMAS = {FEW_SHOT: RunConfig, RL: RLConfig}

# What the plugins of Hydra leave to a user, as a run of ours wants it: a job whose time is up continues in the next; and a
# search looks for the highest accuracy or reward, one point after the other unless a launcher can do more.
PRESETS = {
    "hydra/launcher/submitit_slurm": {"max_num_timeout": 1000},
    "hydra/sweeper/optuna": {"direction": "maximize", "n_jobs": 1},
}


def conf_dir(part: str = FEW_SHOT) -> Path:
    """A folder of YAML files, one of `FEW_SHOT`, `RL` and `COMMON`: in the installed package, or in a checkout."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "conf", package.parent.parent / "conf"):
        if (candidate / part).is_dir():
            return candidate / part
    raise FileNotFoundError(f"metarun's configuration files are missing beside {package}: install the package again.")


class _CommonGroups(SearchPathPlugin):
    """Has Hydra find the groups that both commands share; `hydra.searchpath` would leave them out of `--help`."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("metarun", f"file://{conf_dir(COMMON)}")


def register() -> None:
    """Tells Hydra the schema and how a run's directory is chosen. Calling it again changes nothing."""
    store = ConfigStore.instance()
    for part, schema in SCHEMAS.items():
        store.store(f"{part}_schema", schema)
    plugins = Plugins.instance()  # has them all loaded
    for path, preset in PRESETS.items():
        group, _, name = path.rpartition("/")
        if f"{name}.yaml" in store.list(group):
            given = store.load(f"{path}.yaml")
            store.store(name, OmegaConf.merge(given.node, preset), group, given.package, given.provider)
    if _CommonGroups not in plugins.discover(SearchPathPlugin):
        plugins.register(_CommonGroups)
    OmegaConf.register_new_resolver("run_dir", run_dir, replace=True)
    OmegaConf.register_new_resolver("hydra_dir", hydra_dir, replace=True)
    OmegaConf.register_new_resolver("groups", groups, replace=True)
    # Kept once found: a point of a sweep is in the sweep's directory wherever it runs.
    OmegaConf.register_new_resolver("sweep_dir", sweep_dir, replace=True, use_cache=True)


def composed(overrides: Sequence[str], part: str = FEW_SHOT) -> tuple[DictConfig, dict[str, str]]:
    """Returns the configuration of a command line, without Hydra's own node, and the option chosen in each group.

    Raises:
      HydraException, OmegaConfBaseException, ValueError: it cannot be composed; the error has the `part` whose keys it means.
    """
    register()
    try:
        with hydra.initialize_config_dir(str(conf_dir(part)), version_base="1.3"):
            config = hydra.compose("config", list(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        error.part = part
        raise
    own = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    return own, dict(config.hydra.runtime.choices)


def launched() -> tuple[int, int]:
    """Number of the processes that a launcher has started together, and which this is: (1, 0) without one."""
    for number, which in _LAUNCHERS.items():
        if int(os.environ.get(number, 1)) > 1:
            return int(os.environ[number]), int(os.environ.get(which, 0))
    return 1, 0


def hydra_dir(process: int | None) -> str | None:
    """Returns where Hydra writes within the directory of a run; None in a process that does not write.

    Args:
      process: which of several this is, where it has been told.
    """
    return None if process or launched()[1] else ".hydra"


def groups(part: str) -> str:
    """Returns the groups of a command with their options, a line each, for its `--help`; of experiments, how many."""
    folders = [folder for each in (part, COMMON) for folder in conf_dir(each).iterdir() if folder.is_dir()]
    found = {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}
    number = len(found.pop("experiment"))
    lines = [f"{name}: {', '.join(options)}" for name, options in sorted(found.items()) if options]
    return "\n".join([*lines, f"experiment: {number} published cells and short versions; metarun-reproduce --list"])


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
    runs = OUTPUTS.glob("*/*/.hydra/overrides.yaml") if "resume=false" not in overrides else []
    for file in sorted(runs, reverse=True):
        directory = file.parent.parent
        unfinished = (directory / "checkpoints").is_dir() and not (directory / "result.json").exists()
        if unfinished and file.read_text(encoding="utf-8") == command and _is_free(directory):
            return str(directory)
    return str(_new_directory(OUTPUTS))


def sweep_dir() -> str:
    """Returns the directory of a sweep that names none: that of the same command's unfinished sweep, or a new one.

    A search by `hydra/sweeper=optuna` begins a new one: what it knows is in its storage.
    """
    command = sys.argv[1:]
    begun = SWEEPS.glob(f"*/*/{SWEEP_COMMAND}") if not {"resume=false", "hydra/sweeper=optuna"} & {*command} else []
    for file in sorted(begun, reverse=True):
        directory = file.parent
        unfinished = not (directory / SWEEP_DONE).exists() and json.loads(file.read_text(encoding="utf-8")) == command
        if unfinished and all(_is_free(lock.parent) for lock in directory.glob("*/.lock")):
            return str(directory)
    directory = _new_directory(SWEEPS)
    if directory.is_dir():
        (directory / SWEEP_COMMAND).write_text(json.dumps(command) + "\n", encoding="utf-8")
    return str(directory)


def _new_directory(parent: Path) -> Path:
    """Makes a directory named by the date and the time, which no other process is given."""
    now = datetime.datetime.now()
    day, second = parent / now.strftime("%Y-%m-%d"), now.strftime("%H-%M-%S")
    # Runs that start in the same second, as from a loop in the shell, each get a directory of their own.
    for attempt in range(1000):
        directory = day / (f"{second}-{attempt}" if attempt else second)
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError:
            pass  # Hydra makes it again, and that error is the one to show
        break
    return directory


def _is_free(directory: Path) -> bool:
    """Whether no process holds the lock of a run."""
    try:
        with (directory / ".lock").open() as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return True
