"""The command line's schema, and where its YAML lives. Importing this file does not import JAX."""

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

# In the directory of a sweep: the command that it is of; what came of its points, once they are done; and of
# points that differ in their seeds alone, how the results are distributed.
SWEEP_COMMAND, SWEEP_DONE, SWEEP_SEEDS, SWEEP_OTHERS = "command.json", "sweep.json", "seeds.json", "others.json"
# Keys that move no number: where data lie, how often things are written, how a run is fitted to a device.
CIRCUMSTANCES = (
    "checkpoint_every",
    "time_limit",
    "resume",
    "code",
    "distributed",
    "logger",
    "cell",
    "dataset.source",
    "memory",
)
# Keys that came later, with the value at which a run is what it was without them and the same to be continued.
LATER = {"dataset.layout": "auto", "dataset.links": "inside", "dataset.range": None}
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
    code: str = MISSING
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
# search looks for the highest accuracy or reward, one point after the other unless a launcher can do more. A point that
# diverges ends neither a sweep nor a search.
PRESETS = {
    "hydra/launcher/submitit_slurm": {"max_num_timeout": 1000},
    "hydra/sweeper/basic": {"_target_": "hydra_plugins.metarun_sweeps.Grid"},
    "hydra/sweeper/optuna": {
        "_target_": "hydra_plugins.metarun_sweeps.Search",
        "direction": "maximize",
        "n_jobs": 1,
        "max_failure_rate": 1.0,
    },
}


def conf_dir(part: str = FEW_SHOT) -> Path:
    """A folder of YAML files, one of `FEW_SHOT`, `RL` and `COMMON`: in the installed package, or in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "conf", package.parent.parent / "conf"):
        if (candidate / part).is_dir():
            return candidate / part
    raise FileNotFoundError(f"metarun's configuration files are missing beside {package}: install the package again.")


class _CommonGroups(SearchPathPlugin):
    """Has Hydra find the groups that both commands share; `hydra.searchpath` would leave them out of `--help`."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("metarun", f"file://{conf_dir(COMMON)}")


def register() -> None:
    """Tells Hydra the schema and where the groups are. Calling it again changes nothing."""
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
    OmegaConf.register_new_resolver("groups", groups, replace=True)


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
        error.part = part  # type: ignore[union-attr]
        raise
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    return own, dict(config.hydra.runtime.choices)


def groups(part: str) -> str:
    """Returns the groups of a command with their options, a line each, for its `--help`; of experiments, how many."""
    folders = [folder for each in (part, COMMON) for folder in conf_dir(each).iterdir() if folder.is_dir()]
    found = {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}
    number = len(found.pop("experiment"))
    lines = [f"{name}: {', '.join(options)}" for name, options in sorted(found.items()) if options]
    return "\n".join([*lines, f"experiment: {number} published cells and short versions; metarun-reproduce --list"])
