"""Composition by Hydra: what is registered with it, and the configuration of a command line.

Importing this file does not import JAX.
"""

from collections.abc import Sequence

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metarun.config import experiments, hydra_versions, search_nodes
from metarun.config.schema import FEW_SHOT, SCHEMAS
from metarun.config.search_path import conf_dir, experiment_folders, folders, options, refuse_clashes

# What Hydra and its plugins leave to a user, as a run of ours wants it: a job whose time is up continues in the next; and a
# point that diverges does not end a sweep.
PRESETS = {
    "hydra/launcher/submitit_slurm": {"max_num_timeout": 1000},
    "hydra/sweeper/basic": {"_target_": "hydra_plugins.metarun_sweeps.Grid"},
}


class _Folders(SearchPathPlugin):
    """Has Hydra find the groups of every folder of ours; `hydra.searchpath` would leave them out of `--help`."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        own = {str(conf_dir(part)): part for part in SCHEMAS}
        for element in list(search_path.get_path()):
            if part := own.get(str(element.path).removeprefix("file://")):
                for folder in folders(part)[1:]:
                    search_path.append("metarun", f"file://{folder}")


def register() -> None:
    """Tells Hydra the schema and where the groups are. Calling it again changes nothing."""
    store = ConfigStore.instance()
    for part, schema in SCHEMAS.items():
        hydra_versions.store(f"{part}_schema", schema)
    plugins = Plugins.instance()  # has them all loaded
    for path, preset in PRESETS.items():
        group, _, name = path.rpartition("/")
        if f"{name}.yaml" in store.list(group):
            given = store.load(f"{path}.yaml")
            hydra_versions.store(name, OmegaConf.merge(given.node, preset), group, given.package, given.provider)
    hydra_versions.store("together", {"_target_": "hydra_plugins.metarun_together.Together"}, "hydra/launcher")
    search_nodes.register()
    experiments.register()
    if _Folders not in plugins.discover(SearchPathPlugin):
        plugins.register(_Folders)
    hydra_versions.resolver("groups", groups)
    hydra_versions.hush()


def composed(overrides: Sequence[str], part: str = FEW_SHOT) -> tuple[DictConfig, dict[str, str]]:
    """Returns the configuration of a command line, without Hydra's own node, and the option chosen in each group.

    Raises:
      HydraException, OmegaConfBaseException, ValueError: as `with_hydra`.
    """
    config = with_hydra(overrides, part)
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    return own, dict(config.hydra.runtime.choices)


def with_hydra(overrides: Sequence[str], part: str) -> DictConfig:
    """Returns the configuration of a command line with Hydra's own node.

    Raises:
      HydraException, OmegaConfBaseException, ValueError: it cannot be composed; the error has the `part` whose keys it means.
      MetarunError: a choice is the name of two files.
    """
    register()
    try:
        with hydra.initialize_config_dir(str(conf_dir(part)), **hydra_versions.BASE):
            config = hydra.compose("config", list(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError, RecursionError) as error:
        error.part = part  # type: ignore[union-attr]
        raise
    refuse_clashes(dict(config.hydra.runtime.choices), part)
    return config


def groups(part: str) -> str:
    """Returns the groups of a command with their options, a line each, for its `--help`; of experiments, how many."""
    number = sum(1 for folder in experiment_folders(part) for _ in experiments.names(folder))
    lines = [f"{name}: {', '.join(found)}" for name, found in options(part).items()]
    return "\n".join([*lines, f"experiment: {number} published cells and short versions; metarun-reproduce --list"])
