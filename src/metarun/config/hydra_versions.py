"""What differs between the versions of Hydra that metarun runs on, 1.3 and 1.4, so that nothing else has to know."""

import warnings
from collections.abc import Callable
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

_IS_1_3 = hydra.__version__.startswith("1.3")
# Since 1.4 Hydra has one behaviour, that of its version, and warns of whoever names another.
BASE: dict[str, Any] = {"version_base": "1.3"} if _IS_1_3 else {}


def store(
    name: str, node: Any, group: str | None = None, package: str | None = None, provider: str | None = "metarun"
) -> None:
    """Stores a node with Hydra, in the place of one of the same name; Hydra 1.4 wants to be told of the latter."""
    replace: dict[str, Any] = {} if _IS_1_3 else {"replace": True}
    ConfigStore.instance().store(name, node, group, package, provider, **replace)


def resolver(name: str, function: Callable[..., Any], *, use_cache: bool = False) -> None:
    """Registers a resolver of interpolations, in the place of one of the same name; the OmegaConf of 1.4 calls it otherwise."""
    register: Any = OmegaConf.register_new_resolver if _IS_1_3 else OmegaConf.register_resolver
    register(name, function, replace=True, use_cache=use_cache)


def hush() -> None:
    """Has Hydra 1.4 not warn of what the YAML of metarun itself has called; of a user's own it does."""
    warnings.filterwarnings("ignore", r"hydra\.utils\.instantiate\(\) resolved _target_='metarun\.", UserWarning)
