"""The schema of the command line: the names and types of its scalars. Importing this file does not import JAX."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

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


def is_among(key: str, keys: Collection[str]) -> bool:
    """Whether a key is one of some, or of a group that is one. `dataset.source` is that of each domain of a mixture, too."""
    parts = key.split(".")
    return key in keys or parts[0] in keys or f"{parts[0]}.{parts[-1]}" in keys


# The key that names the run whose parameters another begins with; and, in a run's identity, the hash of these.
INIT_FROM, INIT_SHA256 = "init_from", "init_from.sha256"
# In a run's identity, what in fact computes the physics of its environment, where there is any.
PHYSICS = "env.physics"
# Keys that came later, with the value at which a run is what it was without them and the same to be continued.
LATER = {
    INIT_FROM: None,
    "dataset.layout": "auto",
    "dataset.links": "inside",
    "dataset.range": None,
    "dataset.sampling": "equal",
    "env.engine": "mjx",
    PHYSICS: "MJX, Euler",
}
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
    """Keys of `distributed`; `several_processes.join` checks their values."""

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
    init_from: str | None = MISSING
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    cell: Any = MISSING  # `Cell` checks it
    method: Any = MISSING
    optimizer: Any = MISSING
    logger: Any = MISSING


@dataclass
class RunConfig(AnyRunConfig):
    """Types of the scalars of `metarun`; their values and meanings stand in `conf/few_shot/config.yaml`."""

    way: Any = MISSING  # a number or a range, as the next; the data set checks them
    shot: Any = MISSING
    query_shot: int = MISSING
    eval_query_shot: int | None = MISSING
    ensemble: int = MISSING
    train_way: Any = MISSING
    train_shot: Any = MISSING
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


SCHEMAS: dict[str, Any] = {FEW_SHOT: RunConfig, RL: RLConfig}
