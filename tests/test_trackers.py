"""Runs in real trackers: an MLflow server on this machine, with SQLite; and the files that W&B writes offline."""

import importlib.util
import json
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from test_cli import metarun
from warm_commands import Started

from metarun.training import trackers

pytestmark = pytest.mark.slow

SMALL = (
    "method=protonet",
    "model=mlp",
    "model.hidden=[8]",
    "way=2",
    "meta_batch_size=2",
    "eval_tasks=4",
    "val_tasks=4",
)
SMALL += ("eval_query_shot=2", "steps_per_dispatch=2", "log_every=2")
VERDICTS = {True: "passed", False: "failed", None: "not checked"}
SHORT = ("steps=8", "checkpoint_every=4", "eval_every=4")


def installed(package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def lines_of(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def result_of(directory):
    return json.loads((directory / "result.json").read_text())


def stopped(number, *arguments, cwd, run):
    """A run that a signal ends once it has a checkpoint, and has logged something since."""
    started = Started("metarun", (*arguments, "steps=200000", "checkpoint_every=20", "eval_every=0"), cwd=cwd)
    end = time.monotonic() + 120
    while time.monotonic() < end and started.poll() is None:
        checkpoints = [int(path.name) for path in (run / "checkpoints").glob("[0-9]*") if path.name.isdecimal()]
        if checkpoints and lines_of(run)[-1]["step"] > max(checkpoints) + 2:
            break
        time.sleep(0.05)
    started.send_signal(number)
    _, err = started.communicate(timeout=120)
    assert checkpoints, err
    return lines_of(run)[-1]["step"]


# ---- MLflow.


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of an MLflow server with a database of its own."""
    installed("mlflow")
    home = tmp_path_factory.mktemp("server")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{home}/runs.db", "--artifacts-destination", str(home / "artifacts")]
    with (home / "said").open("w") as said:
        process = subprocess.Popen(command, cwd=home, stdout=said, stderr=said, start_new_session=True)
    try:
        end = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < end and process.poll() is None, (home / "said").read_text()
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.fixture(scope="module")
def client(server):
    import mlflow

    return mlflow.MlflowClient(tracking_uri=server)


def to(server):
    return "logger=mlflow", f"logger.mlflow.uri={server}"


def id_of(directory):
    return json.loads((directory / trackers.IDS).read_text())["mlflow"]["id"]


def assert_holds(client, directory, run_id):
    """MLflow's run has each line of `metrics.jsonl` once, under its step."""
    lines = lines_of(directory)
    for name in {name for line in lines for name in line} - {"step"}:
        history = [(each.step, each.value) for each in client.get_metric_history(run_id, name)]
        assert sorted(history) == [(line["step"], line[name]) for line in lines if line.get(name) is not None], name


def test_mlflow_holds_what_was_run(server, client, tmp_path):
    done = metarun(*SMALL, *SHORT, "logger=[tensorboard,mlflow]", to(server)[1], "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    directory, result = tmp_path / "run", result_of(tmp_path / "run")
    (found,) = client.search_runs(
        [client.get_experiment_by_name("metarun").experiment_id],
        f"params.method = 'protonet' and tags.checks = 'passed' and tags.directory = '{directory}'",
    )
    run_id = found.info.run_id
    assert (run_id, found.info.status, found.info.run_name) == (id_of(directory), "FINISHED", f"{tmp_path.name}/run")
    said = {"way": "2", "model.hidden": "[8]", "dataset": "glyphs", "seed": "0", "steps": "8", "train_way": "null"}
    assert said.items() <= found.data.params.items()
    assert not [key for key in found.data.params if key.startswith("logger")]
    assert_holds(client, directory, run_id)
    assert found.data.metrics["test/accuracy"] == result["value"] and found.data.metrics["test/ci95"] == result["ci95"]
    for name, check in result["checks"].items():
        assert found.data.tags[f"verdict/{name}"] == VERDICTS[check["passed"]]
        assert found.data.metrics.get(f"check/{name}") == check.get("value")
    assert found.data.tags["protocol_id"] == result["protocol_id"] and found.data.tags["outcome"] == "finished"
    names = {"result.json", "plots/learning_curve.png", "plots/gallery.png"}
    there = {each.path for folder in (None, "plots") for each in client.list_artifacts(run_id, folder)}
    assert names <= there
    for name in names:
        copy = Path(client.download_artifacts(run_id, name, tmp_path))
        assert copy.read_bytes() == (directory / name).read_bytes()
    assert list(directory.glob("events.*"))


def test_a_run_is_continued_in_mlflow_under_its_id(server, client, tmp_path):
    directory, place = tmp_path / "run", "hydra.run.dir=run"
    last = stopped(signal.SIGKILL, *SMALL, *to(server), place, cwd=tmp_path, run=directory)
    run_id = id_of(directory)
    assert client.get_run(run_id).info.status == "RUNNING"
    done = metarun(*SMALL, *to(server), place, f"steps={last + 20}", "eval_every=0", "time_limit=0.0001", cwd=tmp_path)
    assert done.returncode == 75, done.stderr
    found = client.get_run(run_id)
    assert found.info.status == "KILLED" and found.data.tags["outcome"] == "interrupted"
    assert "Stopped by its time_limit" in found.data.tags["reason"]
    # What is lost here is there, and what was lost there is had from here.
    done = metarun(*SMALL, *to(server), place, f"steps={last + 20}", "eval_every=0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = client.get_run(run_id)
    assert (id_of(directory), found.info.status, found.data.tags["outcome"]) == (run_id, "FINISHED", "finished")
    steps = [each.step for each in client.get_metric_history(run_id, "train/loss")]
    assert sorted(steps) == [line["step"] for line in lines_of(directory)]
    assert (found.data.params["steps"], found.data.tags["changed/steps"]) == ("200000", str(last + 20))
    assert found.data.tags["reason"] == "" and found.data.metrics["test/accuracy"] == result_of(directory)["value"]


def test_a_run_that_begins_without_mlflow_is_whole_there(server, client, tmp_path):
    directory, place = tmp_path / "run", "hydra.run.dir=run"
    stopped(signal.SIGTERM, *SMALL, "logger=jsonl", place, cwd=tmp_path, run=directory)
    steps = f"steps={lines_of(directory)[-1]['step'] + 10}"
    done = metarun(*SMALL, *to(server), place, steps, "eval_every=0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_holds(client, directory, id_of(directory))


def test_what_mlflow_has_lost_begins_anew(server, client, tmp_path):
    directory, arguments = tmp_path / "run", (*SMALL, *SHORT, *to(server), "hydra.run.dir=run")
    assert metarun(*arguments, cwd=tmp_path).returncode == 0
    first = id_of(directory)
    client.delete_run(first)
    assert metarun(*arguments, "steps=12", cwd=tmp_path).returncode == 0
    assert id_of(directory) != first
    assert_holds(client, directory, id_of(directory))


def test_points_of_a_sweep_are_runs_of_their_own(server, client, tmp_path):
    done = metarun(*SMALL, *SHORT, "seeds=2", *to(server), "hydra.sweep.dir=sweep", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    experiment = client.get_experiment_by_name("metarun").experiment_id
    found = client.search_runs([experiment], f"tags.sweep = '{tmp_path / 'sweep'}'")
    assert {run.data.params["seed"]: run.info.run_id for run in found} == {
        seed: id_of(tmp_path / "sweep" / seed) for seed in ("0", "1")
    }
    for run in found:
        assert_holds(client, tmp_path / "sweep" / run.data.params["seed"], run.info.run_id)


def test_a_run_that_diverges_has_failed_there(server, client, tmp_path):
    diverging = ("method=maml", "method.inner_lr=1e30", "model=mlp", "model.hidden=[4]", "way=2", "meta_batch_size=2")
    done = metarun(*diverging, *SHORT, "eval_tasks=2", *to(server), "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 2 and "not finite" in done.stderr or "nan" in done.stderr, done.stderr
    found = client.get_run(id_of(tmp_path / "run"))
    assert (found.info.status, found.data.tags["outcome"]) == ("FAILED", "diverged")
    assert f"in step 1 of the run in {tmp_path / 'run'}" in found.data.tags["reason"].replace(
        "run in run", f"run in {tmp_path / 'run'}"
    )


def test_a_server_that_is_away_costs_no_run(tmp_path):
    installed("mlflow")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    began = time.monotonic()
    done = metarun(*SMALL, *SHORT, *to(f"http://127.0.0.1:{port}"), "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "run" / "result.json").exists(), done.stderr
    assert done.stderr.count("the run goes on without one of its logs") == 1 and "Traceback" not in done.stderr
    assert time.monotonic() - began < 90  # and not the minutes that MLflow would try by itself


# ---- W&B.


def records_of(file):
    """The records of a `.wandb` file, as bytes: after 7 bytes, a log of LevelDB, whose blocks have 32 KiB."""
    data, block, record = file.read_bytes(), 2**15, b""
    assert data[:4] == b":W&B"
    place = 7
    while place < len(data):
        if block - place % block < 7:  # what is left of a block has no room for a head
            place += block - place % block
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def offline(directory):
    """What each piece of a run has written offline, the oldest first: config, history, summary, exit code."""
    from wandb.proto import wandb_internal_pb2

    def values(items):
        return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}

    pieces = []
    for file in sorted((directory / "wandb").glob("offline-run-*/*.wandb")):
        found = {"config": {}, "history": [], "summary": {}}
        for data in records_of(file):
            record = wandb_internal_pb2.Record.FromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                found |= {"id": record.run.run_id, "project": record.run.project, "group": record.run.run_group}
                found["config"] |= values(record.run.config.update)
            elif kind == "config":
                found["config"] |= values(record.config.update)
            elif kind == "history":
                line = values(record.history.item)
                found["history"].append({"step": line["_step"], **{k: v for k, v in line.items() if k[0] != "_"}})
            elif kind == "summary":
                found["summary"] |= values(record.summary.update)
            elif kind == "exit":
                found["exit"] = record.exit.exit_code
        pieces.append(found)
    return pieces


def test_wandb_holds_what_was_run(tmp_path):
    installed("wandb")
    arguments = (*SMALL, *SHORT, "logger=wandb", "logger.wandb.mode=offline", "logger.wandb.project=own")
    done = metarun(*arguments, "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    directory, result = tmp_path / "run", result_of(tmp_path / "run")
    (piece,) = offline(directory)
    assert (piece["project"], piece["exit"], piece["summary"]["outcome"]) == ("own", 0, "finished")
    assert {"method": "protonet", "way": 2, "model.hidden": [8], "train_way": None}.items() <= piece["config"].items()
    assert piece["history"] == [
        {key: value for key, value in line.items() if value is not None} for line in lines_of(directory)
    ]
    assert piece["summary"]["test/accuracy"] == result["value"] and piece["summary"]["checks"] in ("passed", "failed")
    for name, check in result["checks"].items():
        assert piece["summary"].get(f"check/{name}") == check.get("value")
        assert piece["summary"][f"verdict/{name}"] == VERDICTS[check["passed"]]
    folder = next((directory / "wandb").glob("offline-run-*")) / "files"
    assert (folder / "result.json").read_bytes() == (directory / "result.json").read_bytes()
    pictures = {path.read_bytes() for path in folder.rglob("*.png")}
    assert {path.read_bytes() for path in (directory / "plots").glob("*.png")} == pictures
    assert not (tmp_path / "wandb").exists()


def test_a_run_is_continued_in_wandb_under_its_id(tmp_path):
    installed("wandb")
    directory = tmp_path / "run"
    arguments = (*SMALL, "logger=wandb", "logger.wandb.mode=offline", "hydra.run.dir=run")
    stopped(signal.SIGTERM, *arguments, cwd=tmp_path, run=directory)
    steps = f"steps={lines_of(directory)[-1]['step'] + 10}"
    done = metarun(*arguments, steps, "eval_every=0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = offline(directory)
    assert first["id"] == second["id"]
    assert (first["exit"], first["summary"]["outcome"]) == (255, "interrupted")
    assert (second["exit"], second["summary"]["outcome"]) == (0, "finished")
    logged = [line["step"] for piece in (first, second) for line in piece["history"]]
    assert logged == [line["step"] for line in lines_of(directory)]


def test_points_of_a_sweep_are_runs_of_their_own_in_wandb(tmp_path):
    installed("wandb")
    arguments = (*SMALL, *SHORT, "seeds=2", "logger=wandb", "logger.wandb.mode=offline", "hydra.sweep.dir=sweep")
    done = metarun(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for seed in (0, 1):
        (piece,) = offline(tmp_path / "sweep" / str(seed))
        assert (piece["config"]["seed"], piece["group"]) == (seed, str(tmp_path / "sweep"))
        assert piece["summary"]["test/accuracy"] == result_of(tmp_path / "sweep" / str(seed))["value"]
        assert [line["step"] for line in piece["history"]] == [2, 4, 6, 8]
