"""The command line's schema, where its YAML lives, and where a run goes. Importing this file does not import JAX."""

import datetime
import fcntl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import MISSING, DictConfig, OmegaConf

OUTPUTS = Path("outputs")
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
    resume: bool = MISSING
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
    for part, schema in SCHEMAS.items():
        ConfigStore.instance().store(f"{part}_schema", schema)
    if _CommonGroups not in Plugins.instance().discover(SearchPathPlugin):
        Plugins.instance().register(_CommonGroups)
    OmegaConf.register_new_resolver("run_dir", run_dir, replace=True)


def composed(overrides: Sequence[str], part: str = FEW_SHOT) -> tuple[DictConfig, dict[str, str]]:
    """Returns the configuration of a command line, without Hydra's own node, and the option chosen in each group."""
    register()
    with hydra.initialize_config_dir(str(conf_dir(part)), version_base="1.3"):
        config = hydra.compose("config", list(overrides), return_hydra_config=True)
    own = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    return own, dict(config.hydra.runtime.choices)


def run_dir(overrides: list[str]) -> str:
    """Returns the directory of a run that names none: that of the same command's unfinished run, or a new one.

    Args:
      overrides: the command line, as Hydra lists it.
    """
    command = OmegaConf.to_yaml(OmegaConf.create(list(overrides)))
    runs = OUTPUTS.glob("*/*/.hydra/overrides.yaml") if "resume=false" not in overrides else []
    for file in sorted(runs, reverse=True):
        directory = file.parent.parent
        unfinished = (directory / "checkpoints").is_dir() and not (directory / "result.json").exists()
        if unfinished and file.read_text(encoding="utf-8") == command and _is_free(directory):
            return str(directory)
    now = datetime.datetime.now()
    day, second = OUTPUTS / now.strftime("%Y-%m-%d"), now.strftime("%H-%M-%S")
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
    return str(directory)


def _is_free(directory: Path) -> bool:
    """Whether no process holds the lock of a run."""
    try:
        with (directory / ".lock").open() as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return True
