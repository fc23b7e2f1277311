"""The additions keep what metarun promises of its own."""

from metarun_example.corridor import corridor
from metarun_example.faults import faults
from metarun_example.spectrum import spectrum
from metarun_example.tempered import tempered

from metarun.testing import check_dataset, check_environment, check_method, check_model


def test_method():
    check_method(tempered, {"temperature": 2.0})


def test_model():
    check_model(spectrum, {"hidden": 16}, shape=(32, 1))


def test_dataset():
    check_dataset(faults, {"length": 64})


def test_environment():
    check_environment(corridor, {"cells": 3})
