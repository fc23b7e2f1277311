"""The networks, data sets and environments that the command line knows keep the contract that additions are held to."""

from importlib import import_module

import pytest
from omegaconf import OmegaConf
from small_run import and_slowly

from metarun.config.composing import composed
from metarun.config.search_path import conf_dir
from metarun.testing import check_dataset, check_environment, check_model

# What makes a network small, and the shape of an input that it is made for.
NETWORKS = {
    "conv1d": ({"filters": 4}, (16, 2)),
    "conv4": ({"filters": 4}, (16, 16, 1)),
    "conv4_max_pool": ({"filters": 4}, (16, 16, 1)),
    "mlp": ({"hidden": [8]}, (5,)),
    "resnet12": ({"filters": [4, 4, 4, 4]}, (16, 16, 3)),
}
QUICK = ("bernoulli_bandit", "two_step")
# They need what an extra installs.
OF_EXTRAS = ("ant_direction", "ant_velocity", "cheetah_direction", "cheetah_velocity", "gymnax")
ENVIRONMENTS = sorted({file.stem for file in (conf_dir("rl") / "env").glob("*.yaml")} - {*OF_EXTRAS})


def of_choice(group, name, part="few_shot"):
    """The factory of a choice and its keys, as its YAML says."""
    node = OmegaConf.to_container(composed([f"{group}={name}"], part)[0][group])
    module, _, function = node.pop("_target_").rpartition(".")
    return getattr(import_module(module), function), node


def test_every_network_is_held_to_it():
    assert {file.stem for file in (conf_dir() / "model").glob("*.yaml")} == {*NETWORKS}


@pytest.mark.parametrize("name", and_slowly(NETWORKS, {*NETWORKS} - {"resnet12"}))
def test_a_network_keeps_the_contract(name):
    small, shape = NETWORKS[name]
    factory, settings = of_choice("model", name)
    check_model(factory, settings | small, shape=shape)


@pytest.mark.parametrize("name", ["glyphs", "sinusoid"])
def test_a_data_set_keeps_the_contract(name):
    check_dataset(*of_choice("dataset", name))


@pytest.mark.parametrize("name", and_slowly(ENVIRONMENTS, QUICK))
def test_an_environment_keeps_the_contract(name):
    check_environment(*of_choice("env", name, "rl"))
