"""`metarun-eval`, as a user calls it."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from small_run import begun, call, draw, draw_classes, refused

from metarun.commands import cli
from metarun.data.image_folder import image_folder
from metarun.training import checkpoint

SMALL = [
    "model=mlp",
    "model.hidden=[8]",
    "steps=4",
    "steps_per_dispatch=2",
    "eval_every=2",
    "val_tasks=4",
    "eval_tasks=12",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The directory of a finished run of prototypical networks on glyphs."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["metarun", "method=protonet", *SMALL, f"hydra.run.dir={directory}"])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    assert not stopped.value.code
    return directory


@pytest.fixture
def evaluate(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    return lambda *arguments: call(cli.eval_main, capsys, monkeypatch, *arguments)


def evaluation_of(run, pattern="*"):
    (file,) = (run / "evaluations").glob(f"{pattern}.json")
    return json.loads(file.read_text())


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_the_test_of_the_run_is_reproduced_to_the_last_bit(run, evaluate):
    before = (run / "result.json").read_bytes()
    code, out, err = evaluate(f"run={run}")
    assert code == 0, err
    assert (run / "result.json").read_bytes() == before
    ours, found = json.loads(before), evaluation_of(run, f"glyphs-5way-1shot-{json.loads(before)['protocol_id']}")
    shared = set(ours) & set(found) - {"seconds"}
    assert {"value", "ci95", "num_tasks", "protocol", "checks", "method", "dataset", "selected_steps"} <= shared
    assert {key: found[key] for key in shared} == {key: ours[key] for key in shared}
    assert (found["run"], found["trained_on"]) == (str(run), "glyphs")
    assert f"protonet on glyphs, 5-way 1-shot, seed 0, on {ours['device']}" in out
    assert f"Trained on glyphs, 4 steps; parameters of step {ours['selected_steps'][0]}." in out
    assert f"test accuracy {100 * ours['value']:.2f}% ±" in out and "relabelling" in out
    assert f"Written to {run}/evaluations/glyphs-5way-1shot-" in out


@pytest.mark.slow
def test_an_ensemble_is_asked_together_or_its_best_alone(evaluate, capsys, monkeypatch, tmp_path):
    own = f"hydra.run.dir={tmp_path / 'run'}"
    code, _, err = call(cli.main, capsys, monkeypatch, "method=protonet", *SMALL, "ensemble=2", own)
    assert code == 0, err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    steps = result["selected_steps"]
    assert result["protocol"]["ensemble"] == 2 and sorted(steps) == [2, 4]
    code, out, err = evaluate(f"run={tmp_path / 'run'}")
    assert code == 0, err
    assert f"an ensemble of the parameters of steps {steps[0]}, {steps[1]}." in out
    assert evaluation_of(tmp_path / "run", f"*{result['protocol_id']}")["value"] == result["value"]
    code, out, err = evaluate(f"run={tmp_path / 'run'}", "protocol=sweep")
    assert code == 0, err
    rows = {(row["key"], row["value"]): row["result"] for row in evaluation_of(tmp_path / "run", "sweep-*")}
    assert rows["ensemble", 1]["protocol"]["ensemble"] == 1 and rows["", ""]["value"] == result["value"]
    code, out, err = evaluate(f"run={tmp_path / 'run'}", "ensemble=1")
    assert code == 0 and f"parameters of step {steps[0]}." in out, err
    alone = evaluation_of(tmp_path / "run", f"*{rows['ensemble', 1]['protocol_id']}")
    assert alone["value"] == rows["ensemble", 1]["value"] and alone["selected_steps"] == steps[:1]


def test_a_larger_ensemble_than_was_kept_is_refused(run, evaluate):
    refused(evaluate(f"run={run}", "ensemble=2"), "ensemble=2: expected 1 or less", "has the run kept the parameters")


def test_the_task_may_be_another(run, evaluate):
    ours = json.loads((run / "result.json").read_text())
    code, _, err = evaluate(f"run={run}", "shot=3", "way=4", "eval_query_shot=2", "method.query_statistics=query")
    assert code == 0, err
    found = evaluation_of(run, "glyphs-4way-3shot-*")
    assert (found["way"], found["shot"], found["query_shot"]) == (4, 3, 2)
    assert found["checks"]["chance_before_adaptation"]["chance"] == 1 / 4
    assert found["protocol"]["method"]["query_statistics"] == "query"
    assert found["protocol_id"] != ours["protocol_id"]


def test_another_data_set_is_brought_to_the_shape_of_the_run_and_that_is_said(run, evaluate, tmp_path, monkeypatch):
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    for c in range(12):
        folder = tmp_path / "pictures" / f"{c}"
        folder.mkdir(parents=True)
        for k in range(3):
            noise = np.random.default_rng([c, k]).integers(0, 20, (12, 12, 3))
            Image.fromarray((20 * c + noise).astype(np.uint8)).save(folder / f"{k}.png")
    split = {"train": ["0"], "val": ["1"], "test": [f"{c}" for c in range(2, 12)]}  # enough of the test, no more
    (tmp_path / "split.json").write_text(json.dumps(split))
    settings = [f"dataset.split={tmp_path / 'split.json'}", "dataset.image_size=12", "eval_query_shot=2"]
    code, out, err = evaluate(
        f"run={run}", "dataset=image_folder", f"dataset.source={tmp_path / 'pictures'}", *settings
    )
    assert code == 0, err
    found = evaluation_of(run, "image_folder-5way-1shot-*")
    assert found["protocol"]["dataset"]["fitted"] == {
        "from": [12, 12, 3],
        "to": [28, 28, 1],
        "how": "linear, antialiased, proportions not kept, greys by BT.601",
    }
    assert "Images of image_folder are brought from 12x12x3 to 28x28x1, which the run was trained on: linear" in out
    # Levels of grey apart: nothing but what the images show can tell.
    assert found["value"] > 0.9 and found["checks"]["chance_with_shuffled_labels"]["passed"]


def test_test_classes_of_another_data_set_that_were_trained_on_are_found(evaluate, tmp_path, monkeypatch):
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    draw_classes(tmp_path / "own")
    images = ["dataset=image_folder", "dataset.image_size=8", "eval_query_shot=2"]
    small = ["method=protonet", "model=mlp", "model.hidden=[8]", "way=2", "eval_tasks=12", "query_shot=2"]
    run = begun(tmp_path / "run", *small, *images, f"dataset.source={tmp_path / 'own'}")
    (tmp_path / "split.json").write_text(json.dumps({"train": ["x"], "val": ["y"], "test": ["a", "b", "c", "d"]}))
    for other, names in (("apart", "xyabcd"), ("leaked", "xyabc")):
        for name in names:
            draw(tmp_path / other / name, f"new {name}", 6)
    own = image_folder.load(source=str(tmp_path / "own"), image_size=8)
    shutil.copytree(tmp_path / "own" / own.names[own.classes["train"][0]], tmp_path / "leaked" / "d")
    for other, passed in (("apart", True), ("leaked", False)):
        source, split = tmp_path / other, tmp_path / "split.json"
        code, out, err = evaluate(
            f"run={run}", *images[:1], f"dataset.source={source}", f"dataset.split={split}", *images[1:]
        )
        assert code == 0, err
        check = evaluation_of(run)["checks"]["test_apart_from_train"]
        assert (check["passed"], check["value"]) == (passed, 0 if passed else 1 / 4)
        shutil.rmtree(run / "evaluations")
    # Without the data that it was trained on, nothing is claimed of them.
    shutil.rmtree(tmp_path / "own")
    code, _, err = evaluate(
        f"run={run}", *images[:1], f"dataset.source={source}", f"dataset.split={split}", *images[1:]
    )
    assert code == 0, err
    check = evaluation_of(run)["checks"]["test_apart_from_train"]
    assert check["passed"] is None and "not at hand" in check["reason"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["method=maml"], ["method=maml", "only these may be changed", "dataset=OTHER", "eval_tasks"]),
        (["model.filters=8"], ["model.filters=8", "another learner"]),
        (["experiment=finn2017/maml_sinusoid"], ["experiment=finn2017/maml_sinusoid"]),
        (["method.distance=cosine"], ["method.distance=cosine"]),
        (["seed=1"], ["seed=1"]),
        (["steps=9"], ["steps=9"]),
        (["+colour=red"], ["+colour=red"]),
        (["shot=1,5"], ["shot=1,5"]),
        (["way=five"], ["way", "five"]),
        (["way=5000"], ["way=5000", "2 to"]),
        (["shot=0"], ["shot=0"]),
        (["eval_tasks=0"], ["eval_tasks=0"]),
        (["memory.chunk=0"], ["memory.chunk=0"]),
        (["method.eval_inner_steps=3"], ["method.eval_inner_steps", "read by nothing"]),
        (["dataset=nothing"], ["nothing", "glyphs", "omniglot"]),
        (["dataset={a:1}"], ["dataset={'a': 1}", "the name of a data set"]),
        (["dataset=sinusoid"], ["dataset=sinusoid", "classification"]),
        (["dataset.sauce=1"], ["dataset.sauce", "read by nothing", "dataset.flip"]),
        (["dataset=omniglot", "dataset.source=/nowhere"], ["/nowhere", "dataset.source"]),
        (["shot=[1"], ["shot=[1", "has to be quoted"]),
        (["omniglot"], ["omniglot: expected KEY=VALUE"]),
    ],
    ids=lambda value: " ".join(value) if "=" in value[0] else "",
)
def test_a_mistake_is_one_message(finished, evaluate, arguments, words):
    refused(evaluate(f"run={finished}", *arguments), *words)
    assert not (finished / "evaluations").exists()


def test_what_is_no_run_is_named(evaluate, tmp_path):
    refused(evaluate(), "run=None: expected the directory of a run")
    refused(evaluate(f"run={tmp_path}"), f"run={tmp_path}: expected the directory of a run")
    (tmp_path / ".hydra").mkdir()
    for name in ("config.yaml", "hydra.yaml"):
        (tmp_path / ".hydra" / name).write_text("{")
    refused(evaluate(f"run={tmp_path}"), f"{tmp_path}/.hydra cannot be read")


def test_a_run_without_a_checkpoint_or_of_before_is_named(run, evaluate):
    whole = checkpoint.newest(run / "checkpoints", print)
    identity = {key: value for key, value in whole.metadata["identity"].items() if key != "dataset.input_shape"}
    checkpoint.save(run / "checkpoints", 5, {"step": np.int32(5)}, {**whole.metadata, "identity": identity})
    refused(evaluate(f"run={run}"), "an earlier version of metarun")
    shutil.rmtree(run / "checkpoints")
    refused(evaluate(f"run={run}"), f"The run in {run} has no checkpoint yet.")


def test_a_configuration_that_another_command_left_behind_is_found(run, evaluate):
    file = run / ".hydra" / "config.yaml"
    text = file.read_text()
    file.write_text(text.replace("distance: euclidean", "distance: cosine"))
    words = "method.distance (euclidean then, cosine there)"
    refused(evaluate(f"run={run}"), f"{run}/.hydra is not that of the run's checkpoint: {words}.")
    file.write_text(text.replace("seed: 0", "seed: 1", 1))
    refused(evaluate(f"run={run}"), "seed (0 then, 1 there)")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Overrides for a data set of small pictures and a small network."""
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    draw_classes(tmp_path / "data", num_classes=18)
    settings = ["dataset=image_folder", f"dataset.source={tmp_path / 'data'}", "dataset.image_size=8"]
    return [
        *settings,
        "dataset.channels=1",
        "way=2",
        "eval_query_shot=2",
        "eval_tasks=8",
        "model=mlp",
        "model.hidden=[4]",
    ]


def test_a_network_with_an_output_a_class_keeps_its_way(folder, evaluate, tmp_path):
    run = begun(tmp_path / "run", "method=maml", *folder)
    refused(evaluate(f"run={run}", "way=3"), "way=3: expected 2: method=maml", "output for each class")
    code, out, err = evaluate(f"run={run}", "dataset.image_size=12", "method.eval_inner_steps=2")
    assert code == 0 and "from 12x12x1 to 8x8x1" in out, err
    assert evaluation_of(run)["protocol"]["method"]["eval_inner_steps"] == 2


def test_a_network_of_the_length_of_its_training_reads_longer_sequences(folder, evaluate, tmp_path):
    small = ["method.embedding=4", "method.filters=4", "method.attention=[[4,4],[4,4]]"]
    run = begun(tmp_path / "run", "method=snail", *small, *folder)
    code, _, err = evaluate(f"run={run}", "shot=3")
    assert code == 0 and evaluation_of(run)["shot"] == 3, err


def test_a_regression(evaluate, tmp_path):
    run = begun(tmp_path / "run", "experiment=finn2017/maml_sinusoid", "eval_tasks=4")
    code, out, err = evaluate(f"run={run}", "shot=7")
    assert code == 0 and "test mse" in out, err
    found = evaluation_of(run, "sinusoid-7shot-*")
    assert (found["way"], found["shot"], found["steps"]) == (None, 7, 0)
    answer = evaluate(f"run={run}", "dataset=glyphs", "shot=1", "eval_query_shot=2")
    refused(answer, "dataset=glyphs: expected data for regression", "these are for classification")
    refused(evaluate(f"run={run}", "way=3"), "way=3 is read by nothing")


def test_help_names_the_keys(evaluate):
    code, out, _ = evaluate("--help")
    assert code == 0 and "run=DIR [dataset=OTHER | env=OTHER]" in out
    for key in ("dataset.KEY", "way, shot", "eval_query_shot", "eval_tasks", "method.eval_inner_steps"):
        assert key in out
