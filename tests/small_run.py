"""Directories of runs and of pictures, made in a moment, for the commands that take one."""

import dataclasses
import sys

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from metarun.assembly.few_shot_run import build
from metarun.assembly.rl_run import build as build_rl
from metarun.config.composing import composed
from metarun.config.schema import FEW_SHOT, RL
from metarun.training import checkpoint
from metarun.training.run_state import Ledger, RunState

SIDE = 8


def pattern(name):
    """What the pictures of a class have in common: `[SIDE, SIDE]`, from 0 to 1."""
    return np.random.default_rng(list(name.encode())).random((SIDE, SIDE))


def draw(folder, name, count, *, first=0, ink_on_white=False):
    """Writes grey pictures of a class, its pattern under noise, into `folder`: light on black, or inverted."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(first, first + count):
        image = pattern(name) + 0.05 * np.random.default_rng([k, *name.encode()]).standard_normal((SIDE, SIDE))
        image[[0, -1]] = image[:, [0, -1]] = 0  # the ground
        levels = np.round(255 * image.clip(0, 1)).astype(np.uint8)
        Image.fromarray(255 - levels if ink_on_white else levels).save(folder / f"{k}.png")


def draw_classes(root, num_classes=12, count=6):
    """Writes a data set into `root`: a folder for each class."""
    for c in range(num_classes):
        draw(root / f"{c:02}", f"class {c}", count)


def arrays_in(path):
    """The arrays of an `.npz`, name -> array; the file is closed again."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def and_slowly(names, quick):
    """The parameters of a test, of which all but some are slow."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (name not in {*quick})) for name in names]


def begun(directory, *overrides, part=FEW_SHOT):
    """Makes the directory of a run that has saved its initial parameters, and been stopped."""
    config, choices = composed(overrides, part)
    run = {FEW_SHOT: build, RL: build_rl}[part](config, choices)
    (directory / ".hydra").mkdir(parents=True)
    OmegaConf.save(config, directory / ".hydra" / "config.yaml")
    of_hydra = {"hydra": {"runtime": {"choices": choices, "output_dir": "${run_dir:nowhere}"}}}
    OmegaConf.save(OmegaConf.create(of_hydra), directory / ".hydra" / "hydra.yaml")
    state = run.experiment.init()
    metadata = {"identity": run.identity, "ledger": dataclasses.asdict(Ledger()), "form": ""}
    checkpoint.save(directory / "checkpoints", 0, RunState(state, state.params), metadata)
    return directory


def call(entry, capsys, monkeypatch, *arguments):
    """Calls a console command. Returns its exit code, and what it prints on stdout and stderr."""
    monkeypatch.setattr(sys, "argv", [entry.__name__, *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        entry()
    said = capsys.readouterr()
    return stopped.value.code or 0, said.out, said.err


def refused(answer, *words):
    """The command ended as for a mistake, with one message that has all of `words`."""
    code, out, err = answer
    assert code == 2 and err.count("metarun: ") == 1 and "Traceback" not in err, (out, err)
    for word in words:
        assert word in err, err
