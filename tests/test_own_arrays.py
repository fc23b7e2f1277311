"""Runs on arrays of one's own, as a user has them: trained, tested again, compared, reported, and refused."""

import json

import numpy as np
import pytest
from small_run import arrays_in, begun, call
from test_cli import metarun as command
from test_cli import refused

import metarun
from metarun.api import loader
from metarun.commands import cli
from metarun.data.arrays import arrays

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


@pytest.mark.slow
def test_rows_are_trained_on_tested_again_and_reported(files):
    data = ["dataset=arrays", f"dataset.source={files / 'rows.npz'}", "way=2"]
    done = command(*data, *SMALL, "model=mlp", "model.hidden=[8]", "method=protonet", "hydra.run.dir=rows", cwd=files)
    result = result_of(done, files / "rows")
    assert (result["dataset"], result["way"], result["split"]) == ("arrays", 2, "shuffled")
    stated = result["protocol"]["dataset"]
    assert (stated["standardize"], stated["input_shape"]) == ("feature", [6])
    assert result["checks"]["test_apart_from_train"]["passed"]
    assert [path.name for path in (files / "rows/plots").iterdir()] == ["learning_curve.png"]
    again = command("run=rows", command="metarun-eval", cwd=files)
    assert again.returncode == 0, again.stderr
    (evaluation,) = (files / "rows/evaluations").rglob("*.json")
    assert json.loads(evaluation.read_text())["value"] == result["value"]
    reported = command("rows", command="metarun-report", cwd=files)
    assert reported.returncode == 0 and "arrays" in (files / "report.html").read_text()
    refused(command(*data, *SMALL, "model=conv4", cwd=files), "model=conv4: expected model=mlp")
    refused(command(*data, "model=mlp", "dataset.flip=true", cwd=files), "dataset.flip")


@pytest.mark.slow
def test_signals_are_drawn(files):
    data = ["dataset=arrays", f"dataset.source={files / 'signals.npz'}", "way=2"]
    small = ["model=conv1d", "model.filters=4", "model.blocks=2", "method=protonet", "hydra.run.dir=signals"]
    result_of(command(*data, *SMALL, *small, cwd=files), files / "signals")
    assert (files / "signals/plots/gallery.png").stat().st_size > 10_000
    shown = command("show", "arrays", data[1], command="metarun-data", cwd=files)
    assert shown.returncode == 0 and "arrays: 32x2" in shown.stdout and (files / "arrays.png").stat().st_size > 10_000
    refused(
        command("show", "arrays", f"dataset.source={files / 'rows.npz'}", command="metarun-data", cwd=files),
        "Examples of shape [6] are not drawn",
    )


@pytest.mark.slow
def test_regression_on_tasks_of_ones_own(files):
    data = ["dataset=tasks", f"dataset.source={files / 'tasks.npz'}", "dataset.standardize_y=global"]
    small = ["model=mlp", "model.hidden=[8]", "method.inner_lr=0.01", "shot=2"]
    done = command(*data, *SMALL, *small, "hydra.run.dir=tasks", cwd=files)
    result = result_of(done, files / "tasks")
    assert (result["metric"], result["way"], result["shot"]) == ("mse", None, 2)
    assert result["checks"]["test_apart_from_train"]["passed"]
    again = command("run=tasks", "shot=1", command="metarun-eval", cwd=files)
    assert again.returncode == 0, again.stderr
    refused(command(*data, *SMALL, *small, "way=3", cwd=files), "way=3 is read by nothing")
    refused(command(*data, *SMALL, "shot=2", "method=protonet", "model=mlp", cwd=files), "method=protonet")
    refused(command(*data, *SMALL, *small, "shot=50", cwd=files), "No task of train has")


@pytest.fixture
def predict(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    return lambda *arguments: call(cli.predict_main, capsys, monkeypatch, *arguments)


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A run whose learner has seen nothing yet, and rows of three new classes, far from each other."""
    folder = tmp_path_factory.mktemp("asked")
    given = rows()
    np.savez(folder / "data.npz", x=100 + 50 * given["x"], y=given["y"])
    data = ["dataset=arrays", f"dataset.source={folder / 'data.npz'}", "query_shot=1", "eval_query_shot=2", "way=2"]
    begun(folder / "run", *data, "method=nearest_neighbor")
    random = np.random.default_rng(3)
    names = np.array(["ox", "ant", "bee"])[[0, 1, 2, 0, 1, 2, 2]]
    centres = {"ox": np.full(6, -300.0), "ant": np.full(6, 500.0), "bee": np.r_[np.full(3, -900.0), np.full(3, 900.0)]}
    np.savez(folder / "support.npz", x=np.stack([centres[n] for n in names]) + random.normal(size=(7, 6)), y=names)
    np.savez(folder / "query.npz", x=np.stack([centres[n] for n in ("bee", "ant", "ox")]))
    return folder


def test_rows_of_ones_own_are_answered(asked, predict, tmp_path):
    (asked / "data.npz").rename(asked / "gone.npz")  # the run's own data are not needed
    settings = [f"run={asked / 'run'}", f"support={asked / 'support.npz'}", f"query={asked / 'query.npz'}"]
    code, out, err = predict(*settings, f"output={tmp_path}")
    (asked / "gone.npz").rename(asked / "data.npz")
    assert code == 0, err
    header, *lines = (line.split(",") for line in (tmp_path / "probabilities.csv").read_text().splitlines())
    assert header == ["file", "predicted", "ant", "bee", "ox"]
    assert [line[:2] for line in lines] == [["0", "bee"], ["1", "ant"], ["2", "ox"]]
    # Distances are those of rows standardised by the run's training classes.
    loaded = arrays.load(source=str(asked / "data.npz"))
    train = arrays_in(asked / "data.npz")
    seen = train["x"][np.isin(train["y"], loaded.classes["train"])]
    support, query = (arrays_in(asked / f"{name}.npz")["x"] for name in ("support", "query"))
    squares = np.square((query[:, None] - support[None]) / seen.std(0)).sum(2)
    y = arrays_in(asked / "support.npz")["y"]
    logits = np.stack([-squares[:, y == name].min(1) for name in header[2:]], 1)
    wanted = np.exp(logits - logits.max(1, keepdims=True))
    found = np.array([line[2:] for line in lines], float)
    np.testing.assert_allclose(found, wanted / wanted.sum(1, keepdims=True), atol=1e-4)


def test_what_cannot_be_asked_is_refused(asked, predict, tmp_path):
    run, support, query = (
        f"{k}={asked / v}" for k, v in (("run", "run"), ("support", "support.npz"), ("query", "query.npz"))
    )
    np.savez(tmp_path / "wide.npz", x=np.zeros((2, 7)))
    np.savez(tmp_path / "nan.npz", x=np.full((2, 6), np.nan))
    np.savez(tmp_path / "objects.npz", x=np.zeros((2, 6)), y=np.array(["a", None], object))
    np.savez(tmp_path / "one.npz", x=np.zeros((2, 6)), y=np.array(["a", "a"]))
    for settings, words in [
        ([support, f"query={tmp_path / 'wide.npz'}"], ["rows of shape [7]: expected [6]"]),
        ([support, f"query={tmp_path / 'nan.npz'}"], ["NaN"]),
        ([f"support={tmp_path / 'objects.npz'}", query], ["a pickle"]),
        ([f"support={tmp_path / 'one.npz'}", query], ["one class only, a"]),
        ([support, f"query={tmp_path}"], ["query=", "a file FILE.npz"]),
        ([support, query, "invert=true"], ["invert=true", "for pictures"]),
        ([f"support={asked}", f"query={asked}"], ["a run on images in classes", "support=FILE.npz"]),
    ]:
        code, _, err = predict(run, *settings)
        assert code != 0 and "Traceback" not in err and all(word in err for word in words), err


def test_from_python_and_exported_it_answers_the_same(asked, predict, tmp_path):
    settings = [f"run={asked / 'run'}", f"support={asked / 'support.npz'}", f"query={asked / 'query.npz'}"]
    code, _, err = predict(*settings, f"output={tmp_path}")
    assert code == 0, err
    lines = (tmp_path / "probabilities.csv").read_text().splitlines()[1:]
    expected = np.array([line.split(",")[2:] for line in lines], float)
    support, queries = arrays_in(asked / "support.npz"), arrays_in(asked / "query.npz")["x"]
    run = metarun.load(asked / "run")
    learner = run.adapt(support["x"], support["y"])
    assert learner.classes == ["ant", "bee", "ox"]
    np.testing.assert_array_equal(learner.predict(queries), expected)
    about = metarun.export(run, tmp_path / "exported", way=3)
    assert len(about["standardized"][0]) == 6
    exported = loader.Learner(tmp_path / "exported")
    adapted = exported.adapt(support["x"], [learner.classes.index(name) for name in support["y"]])
    np.testing.assert_allclose(exported.predict(adapted, queries), expected, atol=1e-6)
