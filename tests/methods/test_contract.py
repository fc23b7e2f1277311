"""What must hold of every method that the command line knows, whatever it computes."""

from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from metarun.models.conv4 import conv4
from metarun.testing import check_method

CONF = Path(__file__).parents[2] / "conf" / "few_shot" / "method"
# Compares feature maps; for all others a network that compiles fast will do.
NETWORKS = {"relation": partial(conv4, filters=8, norm="layer")}
METHODS = sorted(file.stem for file in CONF.glob("*.yaml"))
# Their training takes as long to compile as that of all others together.
SLOW = ("conditional", "mann", "relation", "rnn", "snail")
# What a toy needs other than the default run: settings of the method; outer steps of its training, and the learning rate.
SETTINGS = {
    "mann": {"hidden": 64, "slots": 16, "numberings": 4},
    "maml_plus_plus": {"per_step_norm": False},
    "reptile": {"inner_optimizer": "sgd", "inner_lr": 0.05},
    "rnn": {"hidden": 64, "numberings": 2},
    "snail": {"filters": 32, "attention": [[16, 16], [32, 32], [32, 32]]},
}
TRAINING = {"fomaml": (300, 3e-3), "rnn": (900, 3e-3), "mann": (900, 1e-3), "reptile": (1200, 1e-3)}
# Unlike the rest, their training computes more than it compiles.
OPTIMISED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in METHODS])
def test_it_keeps_the_contract(name):
    options = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    options = options.get("method", options) | SETTINGS.get(name, {})  # some set keys of the run as well
    module, _, factory = options.pop("_target_").rpartition(".")
    steps, learning_rate = TRAINING.get(name, (300, 1e-3))
    check_method(
        getattr(import_module(module), factory),
        options,
        network=NETWORKS.get(name),
        steps=steps,
        learning_rate=learning_rate,
        compiler_options=OPTIMISED if name in SLOW else None,
        trains_on_queries=name == "reptile",
    )
