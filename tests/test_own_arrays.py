"""Runs on arrays of one's own, as a user has them: trained, tested again, compared, reported, and refused."""

import json

import numpy as np
import pytest
from test_cli import metarun, refused

SMALL = [
    "steps=4",
    "steps_per_dispatch=2",
    "eval_every=2",
    "val_tasks=4",
    "eval_tasks=6",
    "query_shot=1",
    "eval_query_shot=2",
]


def rows(shape=(6,), num_classes=12, count=5):
    random = np.random.default_rng(0)
    centres = random.normal(size=(num_classes, *shape))
    y = np.repeat(np.arange(num_classes), count)
    return {"x": centres[y] + 0.2 * random.normal(size=(len(y), *shape)), "y": y}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrays")
    np.savez(folder / "rows.npz", **rows())
    np.savez(folder / "signals.npz", **rows((32, 2)))
    random = np.random.default_rng(1)
    task = np.repeat(np.arange(10), random.integers(5, 9, 10))
    x = random.normal(size=(len(task), 3))
    np.savez(folder / "tasks.npz", task=task, x=x, y=x @ [1, 2, 3] * task)
    return folder


def result_of(done, directory):
    assert done.returncode == 0, done.stderr
    result = json.loads((directory / "result.json").read_text())
    assert {name for name, check in result["checks"].items() if check["passed"] is False} == set()
    return result


def test_rows_are_trained_on_tested_again_and_reported(files):
    data = ["dataset=arrays", f"dataset.source={files / 'rows.npz'}", "way=2"]
    done = metarun(*data, *SMALL, "model=mlp", "model.hidden=[8]", "method=protonet", "hydra.run.dir=rows", cwd=files)
    result = result_of(done, files / "rows")
    assert (result["dataset"], result["way"], result["split"]) == ("arrays", 2, "shuffled")
    stated = result["protocol"]["dataset"]
    assert (stated["standardize"], stated["input_shape"]) == ("feature", [6])
    assert result["checks"]["test_apart_from_train"]["passed"]
    assert [path.name for path in (files / "rows/plots").iterdir()] == ["learning_curve.png"]
    again = metarun("run=rows", command="metarun-eval", cwd=files)
    assert again.returncode == 0, again.stderr
    (evaluation,) = (files / "rows/evaluations").rglob("*.json")
    assert json.loads(evaluation.read_text())["value"] == result["value"]
    reported = metarun("rows", command="metarun-report", cwd=files)
    assert reported.returncode == 0 and "arrays" in (files / "report.html").read_text()
    refused(metarun(*data, *SMALL, "model=conv4", cwd=files), "model=conv4: expected model=mlp")
    refused(metarun(*data, "model=mlp", "dataset.flip=true", cwd=files), "dataset.flip")


def test_signals_are_drawn(files):
    data = ["dataset=arrays", f"dataset.source={files / 'signals.npz'}", "way=2"]
    small = ["model=conv1d", "model.filters=4", "model.blocks=2", "method=protonet", "hydra.run.dir=signals"]
    result_of(metarun(*data, *SMALL, *small, cwd=files), files / "signals")
    assert (files / "signals/plots/gallery.png").stat().st_size > 10_000
    shown = metarun("show", "arrays", data[1], command="metarun-data", cwd=files)
    assert shown.returncode == 0 and "arrays: 32x2" in shown.stdout and (files / "arrays.png").stat().st_size > 10_000
    refused(
        metarun("show", "arrays", f"dataset.source={files / 'rows.npz'}", command="metarun-data", cwd=files),
        "Examples of shape [6] are not drawn",
    )


def test_regression_on_tasks_of_ones_own(files):
    data = ["dataset=tasks", f"dataset.source={files / 'tasks.npz'}", "dataset.standardize_y=global"]
    small = ["model=mlp", "model.hidden=[8]", "method.inner_lr=0.01", "shot=2"]
    done = metarun(*data, *SMALL, *small, "hydra.run.dir=tasks", cwd=files)
    result = result_of(done, files / "tasks")
    assert (result["metric"], result["way"], result["shot"]) == ("mse", None, 2)
    assert result["checks"]["test_apart_from_train"]["passed"]
    again = metarun("run=tasks", "shot=1", command="metarun-eval", cwd=files)
    assert again.returncode == 0, again.stderr
    refused(metarun(*data, *SMALL, *small, "way=3", cwd=files), "way=3 is read by nothing")
    refused(metarun(*data, *SMALL, "shot=2", "method=protonet", "model=mlp", cwd=files), "method=protonet")
    refused(metarun(*data, *SMALL, *small, "shot=50", cwd=files), "No task of train has")
