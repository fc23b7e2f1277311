"""From a composed configuration to the objects of a run of meta-reinforcement learning."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
from omegaconf import DictConfig

from metarun.assembly import returned
from metarun.assembly.keys import Keys
from metarun.assembly.run_parts import (
    Run,
    circumstances,
    identity,
    layouts_of,
    loggers_of,
    selection_of,
    set_by_user,
    settings_of,
)
from metarun.assembly.starting import identity_of, start_of
from metarun.compiled.memory import available, parse_limit
from metarun.compiled.task_map import default_layout
from metarun.config.schema import INIT_FROM, PHYSICS, RL
from metarun.errors import positive_int, seed_of
from metarun.rl.environment import random_agent
from metarun.rl.experiment import rl_experiment
from metarun.system.backend import matmul_precision
from metarun.system.several_processes import join


def build(config: DictConfig, choices: Mapping[str, str], *, begun: Mapping[str, Any] | None = None) -> Run:
    """Makes the objects of a run.

    Args:
      config: the composed configuration, without Hydra's own node.
      choices: option chosen in each group, e.g. {"method": "rl2"}.
      begun: the identity of the run's checkpoint, where it has one already.

    Raises:
      ConfigError: for a value that cannot be used.
      MetarunError: for a key that nothing reads.
    """
    keys = Keys.of(config, choices, RL)
    join(**keys["distributed"])
    with matmul_precision(keys["precision"]):
        environment = keys.call("env")
        if (factory := keys.factory("env")).is_added:
            returned.refuse(factory.choice, returned.environment_faults(environment))
    # Every learner is held against random actions.
    yardsticks = {"random": random_agent(environment.actions), **environment.yardsticks}
    environment = environment._replace(yardsticks=yardsticks)
    meta_batch_size = positive_int("meta_batch_size", keys["meta_batch_size"])
    # Steps of a trial are small: on a CPU, too, all trials of a device go together.
    layouts = layouts_of(keys["memory"]["chunk"], meta_batch_size, default_layout()._replace(chunk=None))
    optimizers = []

    def optimizer(**given: Any) -> Any:
        optimizers.append(keys.call("optimizer", **given))
        return optimizers[-1]

    learner = partial(keys.call, "method", environment=environment, optimizer=optimizer)
    learners = {layout.chunk_of(meta_batch_size): learner(layout=layout) for layout in layouts}
    if (factory := keys.factory("optimizer")).is_added and optimizers:
        params = jax.eval_shape(next(iter(learners.values())).init, jax.random.key(0))
        returned.refuse(factory.choice, returned.optimizer_faults(optimizers[0], params))
    settings = settings_of(keys, trains=next(iter(learners.values())).trains)
    devices = list(layouts[0].mesh.devices.flat)
    start = start_of(keys[INIT_FROM], begun)
    experiment = rl_experiment(
        learners,
        environment,
        layouts,
        seed=seed_of("seed", keys["seed"]),
        eval_seed=seed_of("eval_seed", keys["eval_seed"]),
        meta_batch_size=meta_batch_size,
        protocol={
            "environment": choices["env"],
            **selection_of(settings),
            **(start.protocol if start else {}),
        },
        start=start.params if start else None,
        precision=keys["precision"],
        bytes_available=available(devices, parse_limit(keys["memory"]["limit"])),
    )
    facts = {
        "method": choices["method"],
        "env": choices["env"],
        "episodes": environment.episodes,
        "horizon": environment.horizon,
        **circumstances(keys, experiment, devices),
    }
    loggers = loggers_of(keys, choices)
    keys.read.add("optimizer")  # which a yardstick has no use for
    keys.refuse_unread(set_by_user(keys, RL))
    trained_on = keys.code() | identity_of(start)
    if "physics" in environment.protocol:  # which `env.engine=auto` leaves to the machine
        trained_on[PHYSICS] = environment.protocol["physics"]
    return Run(experiment, settings, facts, identity(keys.values, choices, trained_on), loggers)
