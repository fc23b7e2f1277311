"""The Python interface: what it gives is what the commands give, and what it refuses it says in one message."""

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image
from small_run import begun, call, draw, draw_classes
from test_cli import metarun as command

import metarun
from metarun.api import training
from metarun.api.calls import as_overrides
from metarun.commands import cli
from metarun.config.schema import RL
from metarun.errors import ConfigError, MetarunError, Stopped
from metarun.training import checkpoint
from metarun.training.ensemble import Ensemble

NAMES = ("ant", "bee", "cat")
TINY = ["model=mlp", "model.hidden=[8]", "val_tasks=4", "eval_tasks=4", "steps_per_dispatch=2", "eval_every=2"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A data set, `data`; three new classes of two, three and four pictures, `support`; and three of each, `query`."""
    root = tmp_path_factory.mktemp("folders")
    draw_classes(root / "data", num_classes=20)
    for number, name in enumerate(NAMES):
        draw(root / "support" / name, name, 2 + number)
        draw(root / "query" / name, name, 3, first=10)
    return root


@pytest.fixture(scope="module")
def directories(folders):
    """`name -> directory` of a run of that method on pictures, for tasks of three classes."""

    def directory(name, *more):
        data = ["dataset=image_folder", f"dataset.source={folders / 'data'}", "dataset.image_size=8"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("METARUN_CACHE", str(folders / "cache"))
            small = ["dataset.channels=1", "way=3", "eval_query_shot=1"]
            return begun(folders / "-".join([name, *more]), f"method={name}", *data, *small, *more)

    made = {name: directory(name, "model=mlp", "model.hidden=[8]") for name in ("maml", "protonet")}
    return {**made, "conv4": directory("maml", "model.filters=4")}


@pytest.fixture(scope="module")
def runs(directories):
    return {name: metarun.load(directory) for name, directory in directories.items()}


def read(folder):
    """Pictures by their folder's names, `[n, 8, 8, 1]` uint8, and the names."""
    files = sorted(folder.rglob("*.png"), key=lambda file: file.relative_to(folder).parts)
    return np.stack([np.asarray(Image.open(file))[..., None] for file in files]), [file.parent.name for file in files]


def shown(count=6, seed=0):
    """Pictures of three classes, and their classes."""
    return np.random.default_rng(seed).random((count, 8, 8, 1), np.float32), np.arange(count) % 3


@pytest.mark.parametrize("name", ["maml", "protonet", "conv4"])
def test_it_answers_as_metarun_predict_does_to_the_bit(name, directories, runs, folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    settings = [f"run={directories[name]}", f"support={folders / 'support'}", f"query={folders / 'query'}"]
    code, _, err = call(cli.predict_main, capsys, monkeypatch, *settings, f"output={tmp_path}")
    assert code == 0, err
    with (tmp_path / "probabilities.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    support, names = read(folders / "support")
    queries, _ = read(folders / "query")
    learner = runs[name].adapt(support, names)
    assert learner.classes == header[2:] == list(NAMES)
    expected = np.array([row[2:] for row in rows], float)
    np.testing.assert_array_equal(learner.predict(queries), expected)
    # Bytes of a picture and their fractions of white are the same picture.
    again = runs[name].adapt(jnp.asarray(support / np.float32(255)), np.array(names))
    np.testing.assert_array_equal(again.predict(jnp.asarray(queries / np.float32(255))), expected)


def test_rows_of_classes_in_turn_are_those_class_after_class(runs):
    x, y = shown(9)
    in_turn, together = runs["maml"].adapt(x, y), np.argsort(y, kind="stable")
    after = runs["maml"].adapt(x[together], y[together])
    queries = shown(5, seed=1)[0]
    np.testing.assert_array_equal(in_turn.predict(queries), after.predict(queries))


def test_classes_are_in_the_order_that_is_asked_for(runs):
    (x, y), queries = shown(), shown(5, seed=1)[0]
    names = np.array(["ant", "bee", "cat"])[y]
    usual, other = (runs["protonet"].adapt(x, names, classes=order) for order in (None, ["cat", "ant", "bee"]))
    assert (usual.classes, other.classes) == (["ant", "bee", "cat"], ["cat", "ant", "bee"])
    np.testing.assert_allclose(usual.predict(queries)[:, [2, 0, 1]], other.predict(queries), atol=1e-6)
    np.testing.assert_allclose(usual.predict(queries).sum(1), 1, atol=1e-12)
    assert runs["protonet"].adapt(x, y + 5).classes == [5, 6, 7]


def test_a_learner_can_be_adapted_again_without_compiling(runs):
    run = runs["conv4"]
    run.adapt(*shown())
    functions = run.functions(3)
    before = functions.adapt._cache_size(), functions.predict._cache_size()
    for seed in range(3):
        run.adapt(*shown(seed=seed))
    assert (functions.adapt._cache_size(), functions.predict._cache_size()) == before
    assert run.functions() is functions


def test_the_pure_functions_beneath_can_be_transformed(runs):
    run, (x, y) = runs["maml"], shown()
    method, key = run.method, jax.random.key(0)
    support = metarun.api.learner.Split(jnp.asarray(x), jnp.asarray(y, jnp.int32))

    def loss(params):
        return method.predict(method.adapt(params, support, key), support.x)[:, 0].sum()

    gradient = jax.jit(jax.grad(loss))(run.params)
    assert jax.tree.structure(gradient) == jax.tree.structure(run.params)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) > 0


X, Y = shown()
WRONG = {
    "shape": (X[..., 0], Y, {}, "x=an array of shape [6, 8, 8]: expected [n, 8, 8, 1]"),
    "none": (X[:0], Y[:0], {}, "x=an array of shape [0, 8, 8, 1]"),
    "range": (255 * X, Y, {}, "expected pictures as floats in [0, 1]"),
    "whole": (X.astype(np.int32), Y, {}, "x=an array of int32: expected uint8, or floats in [0, 1]"),
    "object": (X.astype(object), Y, {}, "x=an array of object"),
    "nan": (np.where(X > 0.5, np.nan, X), Y, {}, "it has NaN or infinity"),
    "lengths": (X, Y[:-1], {}, "y=5 for 6 examples: expected one for each row of x"),
    "one": (X, 3, {}, "y=one value for 6 examples"),
    "floats": (X, Y.astype(float), {}, "expected [n], whole numbers or names"),
    "mixed": (X, np.array(["a", 1, None] * 2, object), {}, "y=an array of objects"),
    "single": (X, [0] * 6, {}, "y=1 class: expected 2 or more"),
    "many": (X, np.arange(6), {}, "The support set has 6 classes: expected 3, for method=maml"),
    "classes": (X, Y, {"classes": [0, 1, 4]}, "classes=3 names: expected those of y, each once; they differ in 2, 4"),
    "twice": (X, Y, {"classes": [0, 1, 2, 2]}, "one of them twice"),
    "statistics": (X, Y, {"query_statistics": "batch"}, "query_statistics=batch: expected one of auto, query"),
}


@pytest.mark.parametrize("name", WRONG)
def test_arrays_that_cannot_be_used_are_refused(name, runs):
    x, y, settings, message = WRONG[name]
    with pytest.raises(MetarunError) as raised:
        runs["maml"].adapt(x, y, **settings)
    assert message in str(raised.value)


def test_training_is_that_of_the_command(tmp_path, monkeypatch):
    settings = ["method=protonet", *TINY, "meta_batch_size=2", "seed=3"]
    done = command(*settings, "steps=4", "hydra.run.dir=typed", cwd=tmp_path, fresh=True)
    assert done.returncode == 0, done.stderr
    words = f"import metarun; metarun.train(*{settings}, steps=4, directory='called')"
    subprocess.run([sys.executable, "-c", words], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    run, typed = metarun.load("called"), metarun.load("typed")
    for mine, theirs in zip(jax.tree.leaves(run.params), jax.tree.leaves(typed.params), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    same = ("value", "ci95", "protocol_id", "steps", "selected_steps", "val", "seed", "checks")
    assert {key: run.result[key] for key in same} == {key: typed.result[key] for key in same}
    assert run.config == typed.config and run.config["seed"] == 3
    for name in (".hydra/config.yaml", ".hydra/overrides.yaml"):
        assert Path("called", name).read_text() == Path("typed", name).read_text().replace("typed", "called")
    assert sorted(path.name for path in Path("called").iterdir() if not path.name.startswith("events")) == sorted(
        path.name for path in Path("typed").iterdir() if not path.name.startswith("events")
    )
    # The command finds the run complete, and goes further with it.
    done = command(*settings, "steps=4", "hydra.run.dir=called", cwd=tmp_path)
    assert done.returncode == 0 and "called is complete: 4 steps." in done.stderr
    done = command(*settings, "steps=6", "hydra.run.dir=called", cwd=tmp_path)
    assert done.returncode == 0 and "Resuming at step 4 of 6." in done.stderr
    assert metarun.train(*settings, steps=6, directory="called").result["steps"] == 6


@pytest.mark.slow
def test_a_run_that_was_stopped_is_continued_by_the_same_call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = ["method=protonet", *TINY, "steps=6", "meta_batch_size=2"]
    with pytest.raises(Stopped, match="Stopped by its time_limit at step 2 of 6"):
        metarun.train(*settings, time_limit=1e-5, directory="cut")
    cut = metarun.load("cut")
    assert cut.result is None and [*cut.metrics["step"]] == [2]
    whole, cut = (metarun.train(*settings, directory=name) for name in ("whole", "cut"))
    for mine, theirs in zip(jax.tree.leaves(cut.params), jax.tree.leaves(whole.params), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.fixture
def heeds_ctrl_c():
    """As in a terminal: what a script starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_is_a_keyboard_interrupt(heeds_ctrl_c, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = ["method=protonet", *TINY, "steps=400", "steps_per_dispatch=1", "eval_every=0", "meta_batch_size=2"]
    monkeypatch.setattr(training, "report_of", lambda part: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        metarun.train(*settings, directory="cut")
    assert not [*tmp_path.iterdir()]  # nothing had begun
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    saving = checkpoint.save

    def asked_to_stop(*given):
        saving(*given)
        if given[1] == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(checkpoint, "save", asked_to_stop)
    with pytest.raises(
        KeyboardInterrupt, match="Stopped by SIGINT at step 2 of 400; the same command continues .*cut "
    ):
        metarun.train(*settings, "checkpoint_every=1", directory="cut")
    assert metarun.load("cut").saved.checkpoint.step == 2


def test_a_run_is_found_again_wherever_the_program_goes(directories, tmp_path, monkeypatch):
    monkeypatch.chdir(directories["maml"].parent)
    run = metarun.load(directories["maml"].name)
    monkeypatch.chdir(tmp_path)
    assert run.directory == directories["maml"] and run.adapt(*shown()).classes == [0, 1, 2]


def test_a_mistake_raises_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wrong = {
        ("wya=5",): "wya: there is no such key for this choice. Did you mean way?",
        ("method=mmal",): "mmal",
        ("way=five",): "way=five: expected a whole number",
        ("way=5000",): "way=5000: expected",
        ("way=2,5",): "way=2,5: expected one value",
        ("way",): "way: expected a text of the form KEY=VALUE",
        ("method.inner_lr=abc",): "method.inner_lr=abc: expected a number above 0",
        ("dataset=omniglot", "dataset.source=nowhere"): "nowhere",
    }
    for overrides, message in wrong.items():
        for directory in (None, "new"):
            with pytest.raises(MetarunError) as raised:
                metarun.train(*overrides, directory=directory)
            assert message in str(raised.value)
            assert not [*tmp_path.iterdir()], overrides
    with pytest.raises(ConfigError, match="way=<object"):
        metarun.train(way=object())
    with pytest.raises(ConfigError, match="run=nowhere: expected the directory of a run"):
        metarun.load("nowhere")


def test_metrics_are_the_columns_of_metrics_jsonl(directories, runs):
    directory = directories["protonet"]
    lines = [{"step": 1, "a": 0.5}, {"step": 2, "a": None, "val/b": 3}, {"step": 4, "val/b": 1.25}]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = runs["protonet"].metrics
    assert [*metrics] == ["step", "a", "val/b"] and metrics["step"].dtype == np.int64
    np.testing.assert_array_equal(metrics["a"], [0.5, np.nan, np.nan])
    np.testing.assert_array_equal(metrics["val/b"], [np.nan, 3, 1.25])


@pytest.mark.slow  # for these libraries come with the extra `dev` alone
@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_metrics_are_a_table(library, directories, runs):
    frames = pytest.importorskip(library)
    text = '{"step": 1, "a": 0.5}\n{"step": 3, "b": 2}\n'
    (directories["protonet"] / "metrics.jsonl").write_text(text)
    table = frames.DataFrame(runs["protonet"].metrics)
    assert list(table.columns) == ["step", "a", "b"] and table.shape == (2, 3)
    assert [*table["step"]] == [1, 3] and table["b"][1] == 2


def test_evaluation_is_that_of_metarun_eval(tmp_path, capsys, monkeypatch):
    run = metarun.load(begun(tmp_path / "run", "method=protonet", *TINY))
    result = run.evaluate("shot=2", eval_tasks=4)
    (file,) = (tmp_path / "run" / "evaluations").iterdir()
    assert (result["shot"], result["num_tasks"]) == (2, 4) and result["checks"]
    file.unlink()
    code, _, err = call(cli.eval_main, capsys, monkeypatch, f"run={tmp_path / 'run'}", "shot=2", "eval_tasks=4")
    assert code == 0, err
    typed = json.loads(file.read_text())
    assert {**typed, "seconds": 0} == {**result, "seconds": 0}
    with pytest.raises(MetarunError, match="outer_lr=1: of a run that is trained, only these may be changed"):
        run.evaluate(outer_lr=1)
    with pytest.raises(MetarunError, match="wya=1"):
        run.evaluate("wya=1")


def test_an_ensemble_answers_with_the_mean_of_its_outputs(directories, runs, tmp_path):
    saved, first = runs["maml"].saved.checkpoint, jax.device_get(runs["maml"].params)
    second = jax.tree.map(lambda leaf: leaf + np.float32(0.3), first)
    best = [{"step": 7, "value": 1, "ci95": 0}] * 2
    metadata = {**saved.metadata, "ledger": {**saved.metadata["ledger"], "best": best}}
    copy = tmp_path / "run"
    subprocess.run(["cp", "-r", directories["maml"], copy], check=True)
    checkpoint.save(copy / "checkpoints", 9, {"selected": Ensemble((first, second))}, metadata)
    run = metarun.load(copy)
    assert isinstance(run.params, Ensemble)
    (x, y), queries = shown(), shown(4, seed=1)[0]
    learner = run.adapt(x, y)
    one = runs["maml"].adapt(x, y).outputs(queries)
    support, _ = metarun.api.learner.support_of(x, y, run.data, None)
    alone = metarun.api.learner.Learner(run.functions(3), second, support, NAMES)
    np.testing.assert_allclose(learner.outputs(queries), (one + alone.outputs(queries)) / 2, rtol=1e-6)
    assert np.abs(one - learner.outputs(queries)).max() > 1e-3


def test_a_regression_gives_numbers(tmp_path):
    run = metarun.load(begun(tmp_path / "run", "experiment=finn2017/maml_sinusoid", "model.hidden=[8]"))
    x = np.linspace(-5, 5, 10)[:, None]
    learner = run.adapt(x, np.sin(x))
    expected = run.adapt(x, np.sin(x)[:, 0]).outputs(x)  # one number each may come without an axis for it
    assert learner.classes == [] and learner.outputs(x).shape == (10, 1)
    np.testing.assert_array_equal(learner.outputs(x), expected)
    assert np.abs(run.adapt(x, 10 + np.sin(x)).outputs(x) - expected).max() > 0.1  # it has looked at the targets
    with pytest.raises(MetarunError, match="this is a regression: use outputs"):
        learner.predict(x)
    with pytest.raises(ConfigError, match="y=shape"):
        run.adapt(x, np.stack([x, x], 1))


def test_a_learner_trained_on_a_range_of_ways_answers_any_of_them_and_fewer(tmp_path):
    small = ["model=mlp", "model.hidden=[8]", "method.size=16", "method.layers=1", "method.embedding=8"]
    run = metarun.load(begun(tmp_path / "run", "method=transformer", "way=[3,4]", "shot=[1,2]", *small))
    x = np.random.default_rng(0).random((10, 28, 28, 1), np.float32)
    for way in (2, 3, 4):
        learner = run.adapt(x[:8], np.arange(8) % way)
        assert learner.predict(x[8:]).shape == (2, way)
        np.testing.assert_allclose(learner.predict(x[8:]).sum(1), 1, rtol=1e-6)
    with pytest.raises(MetarunError, match="has 5 classes: expected 4"):
        run.adapt(x, np.arange(10) % 5)


def test_a_run_of_reinforcement_learning_is_tested_and_not_adapted(tmp_path):
    run = metarun.load(begun(tmp_path / "run", "method.hidden=4", "env.episodes=4", "eval_tasks=4", part=RL))
    result = run.evaluate(eval_tasks=2)
    assert result["num_tasks"] == 2 and result["env"] == "bernoulli_bandit"
    assert sum(leaf.size for leaf in jax.tree.leaves(run.params)) == result["sizes"]["meta_params"]
    with pytest.raises(MetarunError, match="is a run of metarun-rl: its learner acts in an environment"):
        run.adapt(X, Y)


VALUES = [5, -0.1, 1e-07, True, None, "maml", "a b", "it's", "back\\", "a\\'b", "x=1,2", "null", "1e3", "", "ü$(x)"]


@pytest.mark.parametrize("value", [*VALUES, [1, "a b"], [[4, 4]], {"a": 1}, [None, True]], ids=repr)
def test_a_value_arrives_as_what_it_is(value):
    (override,) = OverridesParser.create().parse_overrides(as_overrides([], {"key": value}))
    assert override.value() == value and type(override.value()) is type(value)


def test_numbers_of_numpy_and_paths_arrive_too():
    given = as_overrides(["way=5"], {"a": np.float32(0.5), "b": np.int64(3), "c": Path("/tmp/a b"), "d": np.True_})
    assert given == ["way=5", "a=0.5", "b=3", "c='/tmp/a b'", "d=true"]


def test_importing_it_imports_no_jax():
    words = "import metarun, sys; dir(metarun); metarun.errors.MetarunError; print([m for m in sys.modules if m in "
    words += "('jax', 'hydra', 'numpy')])"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    with pytest.raises(AttributeError, match="has no attribute 'tarin'"):
        metarun.tarin  # noqa: B018


def test_a_program_in_64_bits_is_not_changed(directories):
    jax.config.update("jax_enable_x64", True)
    try:
        with pytest.raises(MetarunError, match="jax_enable_x64 is on"):
            metarun.load(directories["maml"])
        assert jax.config.jax_enable_x64
    finally:
        jax.config.update("jax_enable_x64", False)


def test_a_program_that_has_computed_already_can_load_a_run(directories):
    words = (
        f"import jax; jax.numpy.ones(3).sum(); import metarun; print(metarun.load({str(directories['protonet'])!r}))"
    )
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("<metarun.Run ") and "protonet, image_folder, 0 steps>" in done.stdout
