"""Composition by Hydra: where the YAML lies, what is registered with Hydra, and the configuration of a command line.

Importing this file does not import JAX.
"""

from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metarun.config import experiments, hydra_versions, search_nodes
from metarun.config.schema import COMMON, FEW_SHOT, SCHEMAS

# What Hydra and its plugins leave to a user, as a run of ours wants it: a job whose time is up continues in the next; and a
# point that diverges does not end a sweep.
PRESETS = {
    "hydra/launcher/submitit_slurm": {"max_num_timeout": 1000},
    "hydra/sweeper/basic": {"_target_": "hydra_plugins.metarun_sweeps.Grid"},
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
    if _CommonGroups not in plugins.discover(SearchPathPlugin):
        plugins.register(_CommonGroups)
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
    """
    register()
    try:
        with hydra.initialize_config_dir(str(conf_dir(part)), **hydra_versions.BASE):
            return hydra.compose("config", list(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        error.part = part  # type: ignore[union-attr]
        raise


def groups(part: str) -> str:
    """Returns the groups of a command with their options, a line each, for its `--help`; of experiments, how many."""
    folders = [folder for each in (part, COMMON) for folder in conf_dir(each).iterdir() if folder.is_dir()]
    found = {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}
    found.pop(experiments.GROUP)
    number = len(list(experiments.names(conf_dir(part) / experiments.GROUP)))
    lines = [f"{name}: {', '.join(options)}" for name, options in sorted(found.items()) if options]
    return "\n".join([*lines, f"experiment: {number} published cells and short versions; metarun-reproduce --list"])
