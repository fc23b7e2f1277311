"""What a result says of the machine and the software that it comes from. Importing this file does not import JAX."""

import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

# Variables of the libraries that compute, and those of them that say only where things are or how much is said.
_COMPILE = ("JAX_", "XLA_", "LIBTPU_", "TF_XLA_", "NVIDIA_TF32_", "CUDA_VISIBLE_")
_ASIDE = (
    *("JAX_COMPILATION_CACHE_DIR", "JAX_TRACEBACK_FILTERING", "JAX_LOGGING_LEVEL", "XLA_PYTHON_CLIENT_MEM_FRACTION"),
    "JAX_NUM_CPU_DEVICES",  # which `device` of a result says
)
_PACKAGES = ("metarun", "jax", "jaxlib", "flax", "optax", "hydra-core", "orbax-checkpoint", "numpy")


def device_name(devices: Sequence[Any]) -> str:
    """Returns number and kind of `devices`, JAX's, which are all of one kind; of a CPU the model."""
    kind = devices[0].device_kind
    if devices[0].platform == "cpu" and (cpuinfo := Path("/proc/cpuinfo")).exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        kind = names[0] if names else kind
    return f"{len(devices)} x {kind}"


def environment() -> dict[str, str]:
    """Returns the variables of the environment that can move a number by how programs are compiled, as they are now."""
    return {
        name: value for name, value in sorted(os.environ.items()) if name.startswith(_COMPILE) and name not in _ASIDE
    }


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the libraries that can move a result."""
    return {"python": python_version(), **{name: version(name) for name in _PACKAGES}}
