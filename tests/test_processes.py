"""Runs that several processes compute together: real ones, connected as on several machines."""

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from small_run import call, refused
from test_cli import SMALL, metarun
from warm_commands import Started

from metarun.commands import cli
from metarun.training import checkpoint

pytestmark = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="with one core, XLA has as many threads as devices, and sums otherwise"
)

ARGUMENTS = [*SMALL, "steps=40", "meta_batch_size=6", "eval_every=20", "checkpoint_every=20", "eval_tasks=60"]
LONG = [*ARGUMENTS, "steps=160", "eval_every=80"]
SHORT = ["model=mlp", "model.hidden=[8]", *SMALL[1:], "meta_batch_size=6"]


def start(directory, *arguments, devices=1, of=2):
    """Starts the processes of a run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}
    shared = [*arguments, f"hydra.run.dir={directory}", f"distributed.address={address}"]
    return [
        Started("metarun", [*shared, f"distributed.processes={of}", f"distributed.process={number}"], env=environment)
        for number in range(of)
    ]


def ended(started, timeout=240):
    """The exit codes of processes, and what they said."""
    said = ["".join(process.communicate(timeout=timeout)) for process in started]
    return [process.returncode for process in started], said


def await_checkpoint(directory, process, after=0):
    """Waits until a run has saved a step beyond `after`, and returns it."""
    deadline = time.monotonic() + 240
    while not (steps := checkpoint._steps(Path(directory, "checkpoints"))) or steps[0] <= after:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    return steps[0]


def arrays(directory):
    """The newest checkpoint of a run, name -> array."""
    saved = checkpoint.newest(Path(directory) / "checkpoints", pytest.fail)
    data, begin, found = (saved.path / "arrays.bin").read_bytes(), 0, {}
    for name, (size, _) in saved.arrays.items():
        shape, dtype = saved.leaves[name]
        shape, dtype = ([-1], "uint32") if dtype.startswith("key<") else (shape, dtype)
        found[name] = np.frombuffer(data[begin : begin + size], dtype).reshape(shape)
        begin += size
    return found


def assert_same_arrays(found, expected):
    found, expected = arrays(found), arrays(expected)
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def run_alone(directory, settings):
    """Makes a run of one process with two devices, and returns its directory."""
    done = metarun(*settings, f"hydra.run.dir={directory}", cwd=directory.parent, JAX_NUM_CPU_DEVICES="2")
    assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return run_alone(tmp_path_factory.mktemp("alone") / "run", LONG)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [SHORT, LONG], ids=["short", "long"])
def test_two_processes_compute_what_one_does_with_as_many_devices(settings, request, tmp_path):
    alone = request.getfixturevalue("alone") if settings is LONG else run_alone(tmp_path / "alone", settings)
    codes, said = ended(start(tmp_path / "run", *settings))
    assert codes == [0, 0], said
    assert_same_arrays(tmp_path / "run", alone)
    found, expected = (json.loads((run / "result.json").read_text()) for run in (tmp_path / "run", alone))
    for key in ("value", "ci95", "val", "checks", "protocol_id", "device"):
        assert found[key] == expected[key]
    assert "2 devices x 3 tasks" in said[0] and "test accuracy" in said[0]
    assert "devices" not in said[1] and "accuracy" not in said[1]  # the first alone speaks


@pytest.mark.slow
def test_a_signal_to_one_stops_all_and_any_number_of_devices_continues(alone, tmp_path):
    started = start(tmp_path / "run", *LONG)
    await_checkpoint(tmp_path / "run", started[0])
    started[1].terminate()
    codes, said = ended(started)
    assert codes == [75, 75] and "Stopped by SIGTERM at step" in said[0], said
    step = checkpoint.newest(tmp_path / "run" / "checkpoints", pytest.fail).step
    # Other programs, so equal within rounding: after a few steps, for it grows.
    more = [f"steps={step + 4}", "meta_batch_size=6"]
    for name, devices in (("one", "1"), ("three", "3")):
        copied = tmp_path / name
        subprocess.run(["cp", "-r", tmp_path / "run", copied], check=True)
        done = metarun(*LONG, *more, f"hydra.run.dir={copied}", cwd=tmp_path, JAX_NUM_CPU_DEVICES=devices)
        assert done.returncode == 0 and f"Resuming at step {step}" in done.stderr, done.stderr
        assert "within rounding" in done.stderr
    for name, array in arrays(tmp_path / "one").items():
        np.testing.assert_allclose(arrays(tmp_path / "three")[name], array, rtol=1e-3, atol=1e-4, err_msg=name)

    codes, said = ended(start(tmp_path / "run", *LONG))
    assert codes == [0, 0] and f"Resuming at step {step}" in said[0], said
    assert_same_arrays(tmp_path / "run", alone)


@pytest.mark.slow
def test_who_loses_another_ends_soon_and_says_so(alone, tmp_path):
    step = 0
    for victim in (0, 1):
        started = start(tmp_path / "run", *LONG)
        step = await_checkpoint(tmp_path / "run", started[0], after=step)
        started[victim].send_signal(signal.SIGKILL)
        began = time.monotonic()
        codes, said = ended(started, timeout=60)
        assert time.monotonic() - began < 60
        assert codes[victim] == -signal.SIGKILL
        # JAX may notice first, and ends the process with words of its own.
        assert codes[1 - victim] in (75, -signal.SIGABRT), said
        assert "Another process of this run has ended" in said[1 - victim] or "another task died" in said[1 - victim]
    codes, said = ended(start(tmp_path / "run", *LONG))
    assert codes == [0, 0] and "Resuming at step" in said[0], said
    assert_same_arrays(tmp_path / "run", alone)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["distributed.processes=2"], ["distributed.address=None", "host:port"]),
        (["distributed.address=here"], ["distributed.address=here", "host:port"]),
        (["distributed.address=h:1", "distributed.processes=2"], ["distributed.process=None", "whole number"]),
        (["distributed.address=h:1", "distributed.processes=2", "distributed.process=2"], ["process=2", "0 to 1"]),
    ],
)
def test_what_cannot_be_joined_is_said(tmp_path, settings, words, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(call(cli.main, capsys, monkeypatch, *SMALL, *settings, "hydra.run.dir=run"), *words)


def test_several_processes_have_to_be_told_where_to_meet(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = ["distributed.address=h:1", "distributed.processes=2", "distributed.process=0"]
    refused(call(cli.main, capsys, monkeypatch, *SMALL, *settings), "hydra.run.dir", "the same for all processes")
