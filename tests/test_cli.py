"""The command as a user has it: in a process of its own, with its exit codes and its words."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_run
import warm_commands
from small_disk import fill, needs_root, small_disk

from metarun.commands import cli
from metarun.data.cache import cache_dir
from metarun.training.result import faults_of

METARUN = Path(sys.executable).with_name("metarun")
# A run of seconds: the smallest network on the embedded data.
SMALL = ["model.filters=4", "steps=4", "steps_per_dispatch=2", "eval_every=2", "val_tasks=4", "eval_tasks=4"]


def metarun(*arguments, cwd, timeout=900, command="metarun", fresh=False, **environment):
    """Runs a command: in a process that is forked with everything imported, or as the `fresh` one of the console script."""
    env = {**os.environ, **environment}
    if not fresh:
        return warm_commands.ran(command, *arguments, cwd=cwd, timeout=timeout, env=env)
    command = METARUN.with_name(command)
    return subprocess.run([command, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)


def refused(done, *words):
    """The command failed with one message that has all of `words`, and without a traceback."""
    assert done.returncode != 0, done.stdout
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    messages = [line for line in done.stderr.splitlines() if line.startswith("metarun: ")]
    assert len(messages) == 1, done.stderr
    message = done.stderr[done.stderr.index("metarun: ") :]
    for word in words:
        assert word in message, done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The directory of a finished small run."""
    cwd = tmp_path_factory.mktemp("finished")
    done = metarun(*SMALL, "hydra.run.dir=run", cwd=cwd, fresh=True)
    assert done.returncode == 0, done.stderr
    return cwd / "run", done


def test_a_run_leaves_what_it_promises(finished):
    directory, done = finished
    result = json.loads((directory / "result.json").read_text())
    for key in [
        "metric",
        "value",
        "ci95",
        "num_tasks",
        "method",
        "dataset",
        "way",
        "shot",
        "query_shot",
        "split",
        "protocol",
        "protocol_id",
        "steps",
        "seconds",
        "tasks_per_second",
        "device",
        "versions",
        "seed",
        "checks",
    ]:
        assert key in result
    assert faults_of(result) == []
    assert (result["method"], result["dataset"], result["way"], result["shot"]) == ("maml", "glyphs", 5, 1)
    assert 0 <= result["value"] <= 1 and result["num_tasks"] == 4 and result["steps"] == 4
    assert set(result["checks"]) >= {"chance_before_adaptation", "query_order", "query_count", "relabelling"}
    for check in result["checks"].values():
        assert isinstance(check["passed"], bool) and isinstance(check["value"], float), check
    steps = [json.loads(line)["step"] for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4]
    assert (directory / ".hydra" / "config.yaml").exists()
    assert list(directory.glob("events.*"))
    for name in ("learning_curve.png", "gallery.png"):
        assert (directory / "plots" / name).stat().st_size > 10_000
    assert f"{100 * result['value']:.2f}% ±" in done.stdout


def test_the_plan_is_printed_and_kept(finished):
    directory, done = finished
    plan = json.loads((directory / "result.json").read_text())["plan"]
    assert (plan["tasks"], plan["variant"]) == (-(-8 // plan["devices"]), "inner steps kept")
    assert 0 < plan["bytes_predicted"] < plan["bytes_available"]
    (line,) = [line for line in done.stderr.splitlines() if "a device; compiled in" in line]
    assert f" x {plan['tasks']} tasks, one at a time; inner steps kept; " in line
    assert line.endswith(f"{plan['compile_seconds']:.1f} s")


@pytest.mark.parametrize(
    "line, words",
    [
        ("metarun method=pro", {"method=protonet", "method=proto_maml"}),
        ("metarun method=protonet outer", {"outer_lr="}),
        ("metarun-rl env=two", {"env=two_step"}),
        ("metarun hydra/sweeper=op", {"hydra/sweeper=optuna"}),
    ],
)
def test_a_shell_completes_choices_and_keys(tmp_path, line, words):
    command, _, typed = line.partition(" ")
    done = metarun("-sc", "query=bash", cwd=tmp_path, command=command, COMP_LINE=line, COMP_POINT=str(len(line)))
    assert done.returncode == 0 and set(done.stdout.split()) == words, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["way=0"], ["wya=5"], ["-m", "way=0", "seed=0,1"], ["-m", "way=0,-1"]])
def test_no_line_of_hydra_stands_before_a_message(tmp_path, arguments):
    done = metarun(*arguments, cwd=tmp_path, HYDRA_FULL_ERROR="0")
    refused(done)
    assert [line for line in done.stderr.splitlines() if not line.startswith("sweep: ")][0].startswith("metarun: ")


def test_help_names_groups_and_keys(tmp_path):
    done = metarun("--help", cwd=tmp_path, fresh=True)
    assert done.returncode == 0
    for word in [
        "method",
        "dataset",
        "model",
        "optimizer",
        "experiment",
        "logger",
        "way",
        "shot",
        "steps",
        "method.inner_lr",
        "hydra.run.dir",
    ]:
        assert word in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["way=5000"], ["way=5000", "2 to"]),
        (["way=1"], ["way=1"]),
        (["shot=15", "query_shot=10"], ["shot", "query_shot", "20"]),
        (["shot=0"], ["shot=0", "1 or more"]),
        (["steps=-3"], ["steps=-3", "1 or more"]),
        (["meta_batch_size=0"], ["meta_batch_size=0"]),
        (["outer_lr=-1"], ["outer_lr=-1", "above 0"]),
        (["seed=-1"], ["seed=-1"]),
        (["method.inner_lr=abc"], ["method.inner_lr=abc", "a number above 0"]),
        (["method.inner_steps=-1"], ["method.inner_steps=-1"]),
        (["way=five"], ["way", "five"]),
        (["method=mmal"], ["mmal", "maml", "fomaml"]),
        (["wya=5"], ["wya", "Did you mean way"]),
        (["method.inner_lrr=0.1"], ["method.inner_lrr", "Did you mean method.inner_lr"]),
        (["method.proximity=2"], ["method.proximity", "there is with method=imaml"]),
        (["+method.inner_lrr=0.1"], ["method.inner_lrr", "method.inner_lr"]),
        (["+colour=red"], ["colour", "read by nothing"]),
        (["dataset=sinusoid"], ["model=conv4", "mlp"]),
        (["memory.limit=lots"], ["memory.limit=lots", "8GB"]),
        (["memory.limt=1GB"], ["memory.limt", "Did you mean memory.limit"]),
        (["memory.limit=100KB"], ["100 KB are available", "of a device by prediction", "memory.limit"]),
        (["eval_query_shot=20"], ["shot+eval_query_shot=1+20", "20"]),
        (["dataset=omniglot", "dataset.source=/nowhere"], ["/nowhere", "dataset.source"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value[0], str) and "=" in value[0] else "",
)
def test_a_mistake_is_named(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_run.refused(small_run.call(cli.main, capsys, monkeypatch, *SMALL, *arguments), *words)


def test_a_corrupt_zip_is_named(tmp_path):
    (tmp_path / "images_background.zip").write_bytes(b"PK\x03\x04 and then nothing")
    (tmp_path / "images_evaluation.zip").write_bytes(b"")
    done = metarun(
        *SMALL, "dataset=omniglot", f"dataset.source={tmp_path}", cwd=tmp_path, METARUN_CACHE=str(tmp_path / "c")
    )
    refused(done, "images_background.zip")


def test_a_truncated_cache_file_is_named_and_kept(finished, tmp_path):
    cache = tmp_path / "cache"
    for images in cache_dir().glob("glyphs*/images.npy"):
        shutil.copytree(images.parent, cache / images.parent.name)
    files = list(cache.glob("glyphs*/images.npy"))
    for images in files:
        images.write_bytes(images.read_bytes()[:1000])
    env = {"METARUN_CACHE": str(cache)}
    done = metarun(*SMALL, "hydra.run.dir=run", cwd=tmp_path, **env)
    (named,) = (images.parent for images in files if str(images.parent) in done.stderr)
    refused(done, "images.npy", str(named))
    assert all(images.stat().st_size == 1000 for images in files)
    shutil.rmtree(named)
    assert metarun(*SMALL, "hydra.run.dir=run", cwd=tmp_path, **env).returncode == 0


def test_a_checkpoint_of_another_architecture_is_refused_and_kept(finished):
    directory, _ = finished
    before = sorted(file.read_bytes() for file in directory.glob("checkpoints/**/*") if file.is_file())
    arguments = [*SMALL[1:], "model.filters=6", f"hydra.run.dir={directory}"]
    refused(metarun(*arguments, cwd=directory.parent), "model.filters", "4", "6", str(directory))
    assert before == sorted(file.read_bytes() for file in directory.glob("checkpoints/**/*") if file.is_file())


def test_an_unwritable_output_directory_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    refused(metarun(*SMALL, f"hydra.run.dir={tmp_path}/file/run", cwd=tmp_path), f"{tmp_path}/file")


@pytest.mark.slow
@needs_root
def test_a_full_disk_is_named_and_the_run_continues_when_there_is_room(tmp_path):
    with small_disk(tmp_path / "disk", "4m") as disk:
        arguments = [*SMALL, "checkpoint_every=2", f"hydra.run.dir={disk}/run"]
        assert metarun(*arguments, "steps=2", cwd=tmp_path).returncode == 0
        fill(disk / "filler")
        refused(metarun(*arguments, cwd=tmp_path), str(disk), "full")
        (disk / "filler").unlink()
        done = metarun(*arguments, cwd=tmp_path)
        assert done.returncode == 0 and "Resuming at step 2 of 4" in done.stderr, done.stderr


def test_the_same_command_continues_what_a_signal_stopped(tmp_path):
    arguments = [*SMALL[:1], "steps=100000", "steps_per_dispatch=2", "eval_every=0", "log_every=2", "eval_tasks=4"]
    process = subprocess.Popen(
        [METARUN, *arguments], cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 240
    while (
        not list(tmp_path.glob("outputs/*/*/metrics.jsonl"))
        or not next(tmp_path.glob("outputs/*/*/metrics.jsonl")).read_text()
    ):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "continues" in errors and "Traceback" not in errors
    (directory,) = tmp_path.glob("outputs/*/*")
    (checkpoint,) = (directory / "checkpoints").iterdir()
    again = subprocess.Popen(
        [METARUN, *arguments], cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    for line in again.stderr:
        if line.startswith("Resuming at step"):
            break
    again.send_signal(2)
    again.communicate(timeout=120)
    assert line.startswith(f"Resuming at step {checkpoint.name} ")
    assert again.returncode == 130
    assert list(tmp_path.glob("outputs/*/*")) == [directory]


@pytest.mark.slow
def test_a_sweep_makes_a_result_each(tmp_path):
    done = metarun("-m", *SMALL, "seed=0,1", "hydra.sweep.dir=sweep", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = [json.loads((tmp_path / "sweep" / job / "result.json").read_text()) for job in "01"]
    assert [result["seed"] for result in results] == [0, 1]
    assert results[0]["protocol_id"] == results[1]["protocol_id"]
    assert results[0]["value"] != results[1]["value"]
