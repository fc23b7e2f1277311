"""`metarun-export`: what it writes answers as metarun does, with JAX alone."""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest
from small_run import arrays_in, begun, call, draw_classes, refused

import metarun
from metarun.api import export, loader
from metarun.commands import cli
from metarun.config.schema import RL

# What `pip install jax` installs.
JAX_ALONE = ("jax", "jaxlib", "numpy", "ml_dtypes", "opt_einsum", "scipy")
SMALL = {
    "maml": ["model=mlp", "model.hidden=[8]"],
    "conv4": ["method=maml", "model.filters=4"],
    "r2d2": ["model=mlp", "model.hidden=[8]"],
    "snail": ["model=mlp", "model.hidden=[8]", "method.filters=4", "method.attention=[[4,4],[4,4]]"],
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """`name -> directory` of a run on pictures, for tasks of three classes."""
    root = tmp_path_factory.mktemp("runs")
    draw_classes(root / "data", num_classes=20)

    def directory(name):
        if not (root / name).exists():
            data = ["dataset=image_folder", f"dataset.source={root / 'data'}", "dataset.image_size=8"]
            settings = [*data, "dataset.channels=1", "way=3", "shot=2", "query_shot=1", "eval_query_shot=1"]
            method = [] if name == "conv4" else [f"method={name}"]
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("METARUN_CACHE", str(root / "cache"))
                begun(root / name, *settings, *method, *SMALL[name])
        return root / name

    return directory


def questions(seed=1):
    """A support set of three classes in turn, and queries."""
    draw = np.random.default_rng(seed)
    return draw.random((6, 8, 8, 1), np.float32), np.arange(6) % 3, draw.random((11, 8, 8, 1), np.float32)


def answered(directory, x, y, queries):
    """What a learner that was exported answers, asked in a process that has JAX alone."""
    np.savez(directory / "asked.npz", x=x, y=y, queries=queries)
    words = f"""
import sys
sys.path += [{str(directory / "site")!r}, {str(directory / "exported")!r}]
import numpy as np
from load import Learner
asked, learner = np.load({str(directory / "asked.npz")!r}), Learner()
np.save({str(directory / "answers.npy")!r}, learner.predict(learner.adapt(asked["x"], asked["y"]), asked["queries"]))
import importlib.util
assert not [name for name in ("metarun", "flax", "hydra", "optax") if importlib.util.find_spec(name)]
assert "flatbuffers.zip" in sys.modules["flatbuffers"].__file__
"""
    (directory / "site").mkdir()
    for name in JAX_ALONE:
        installed = Path(find_spec(name).origin).parent
        for path in (installed, installed.with_name(f"{name}.libs")):
            if path.exists():
                (directory / "site" / path.name).symlink_to(path)
    base = Path(sys.base_prefix) / "bin" / "python3"
    done = subprocess.run([base, "-I", "-S", "-c", words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return np.load(directory / "answers.npy")


def test_it_answers_with_jax_alone_as_metarun_does(directories, tmp_path, capsys, monkeypatch):
    settings = [f"run={directories('conv4')}", f"output={tmp_path / 'exported'}"]
    code, out, err = call(cli.export_main, capsys, monkeypatch, *settings)
    assert code == 0 and "answers any number of queries" in out, err
    assert sorted(path.name for path in (tmp_path / "exported").iterdir()) == [
        "adapt.stablehlo",
        "export.json",
        "flatbuffers.zip",
        "load.py",
        "params.npz",
        "predict.stablehlo",
    ]
    x, y, queries = questions()
    found = answered(tmp_path, np.round(255 * x).astype(np.uint8), y, queries)
    expected = metarun.load(directories("conv4")).adapt(np.round(255 * x).astype(np.uint8), y).predict(queries)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.ptp(expected) > 1e-3
    about = json.loads((tmp_path / "exported" / "export.json").read_text())
    assert (about["way"], about["x_shape"], about["examples"]) == (3, [None, 8, 8, 1], 6)
    assert about["platforms"] == ["cpu", "cuda", "tpu"] and 0 < about["largest_difference"] < 1e-6


@pytest.mark.parametrize("name, examples", [("maml", None), ("r2d2", None), ("snail", 6)])
def test_a_method_takes_any_number_of_examples_where_it_can(name, examples, directories, tmp_path):
    run = metarun.load(directories(name))
    about = metarun.export(run, tmp_path)
    assert about["examples"] == examples
    read = loader.Learner(tmp_path)
    x, y, queries = questions()
    for rows in ([0, 1, 2, 3, 4, 5], [5, 3, 4, 0, 1])[: 1 if examples else 2]:
        learner = run.adapt(x[rows], y[rows])
        for number in (1, 11):
            found = read.predict(read.adapt(x[rows], y[rows]), queries[:number])
            np.testing.assert_allclose(found, learner.predict(queries[:number]), atol=1e-6)
    stored = arrays_in(tmp_path / "params.npz")
    assert sum(stored[key].size for key in stored) == sum(leaf.size for leaf in jax.tree.leaves(run.params))


def test_another_way_and_shot_can_be_asked_for(directories, tmp_path, capsys, monkeypatch):
    settings = [f"output={tmp_path / 'new'}", "way=4", "shot=3"]
    refused(
        call(cli.export_main, capsys, monkeypatch, f"run={directories('maml')}", *settings),
        "has 4 classes: expected 3",
    )
    assert not (tmp_path / "new").exists()
    about = metarun.export(metarun.load(directories("r2d2")), tmp_path / "new", way=4, shot=3)
    assert about["way"] == 4
    x, _, queries = questions()
    read = loader.Learner(tmp_path / "new")
    assert read.predict(read.adapt(x, [0, 1, 2, 3, 0, 1]), queries).shape == (11, 4)


def test_a_regression_is_exported_as_numbers(tmp_path):
    run = metarun.load(begun(tmp_path / "run", "experiment=finn2017/maml_sinusoid", "model.hidden=[8]"))
    about = metarun.export(run, tmp_path / "exported")
    assert about["way"] is None and about["y_shape"] == [None, 1]
    x = np.linspace(-5, 5, 10)[:, None]
    read = loader.Learner(tmp_path / "exported")
    found = read.predict(read.adapt(x, np.sin(x)), x)
    np.testing.assert_allclose(found, run.adapt(x, np.sin(x)).outputs(x), atol=1e-6)


def test_what_cannot_be_exported_is_refused_with_a_reason(directories, tmp_path, monkeypatch, capsys):
    run = metarun.load(directories("maml"))
    functions = run.functions()

    def called_back(params, support, key):
        wanted = jax.ShapeDtypeStruct((), np.float32)
        adapted = functions.method.adapt(params, support, key)
        offset = jax.pure_callback(lambda: np.float32(0), wanted)
        return jax.tree.map(lambda leaf: leaf + offset if leaf.ndim else leaf, adapted)

    monkeypatch.setattr(
        run, "functions", lambda *_: functions._replace(method=functions.method._replace(adapt=called_back))
    )
    with pytest.raises(metarun.errors.MetarunError, match="method=maml cannot be exported: .*callback"):
        metarun.export(run, tmp_path / "new")
    monkeypatch.setattr(export, "CLOSE", -1)
    answer = call(cli.export_main, capsys, monkeypatch, f"run={directories('r2d2')}", f"output={tmp_path / 'new'}")
    refused(answer, "method=r2d2 cannot be exported: ValueError: its answers differ by")
    assert not (tmp_path / "new").exists()


def test_mistakes_are_one_message(directories, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rl = begun(tmp_path / "rl", "method.hidden=4", "env.episodes=4", part=RL)
    run = f"run={directories('r2d2')}"
    for settings, message in {
        (run,): "output=None: expected a folder to write to",
        (run, "output=new", "way=many"): "way=many: expected a whole number, 1 or more",
        (run, "output=new", "shot=0"): "shot=0: expected a whole number, 1 or more",
        (run, "output=new", "ways=3"): "ways: there is no such key; there are run, output, way, shot",
        (run, "output=new", "query_statistics=own"): "query_statistics=own: expected one of",
        (f"run={rl}", "output=new"): "is a run of metarun-rl",
        ("run=nowhere", "output=new"): "run=nowhere: expected the directory of a run",
    }.items():
        refused(call(cli.export_main, capsys, monkeypatch, *settings), message)
        assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    code, _, err = call(cli.export_main, capsys, monkeypatch, run, "output=file/new")
    assert code != 0 and err.count("metarun: output=file/new: ") == 1 and "Traceback" not in err
    Path("others").mkdir()
    Path("others/thesis.tex").write_text("")
    of_run = Path(directories("r2d2")) / "checkpoints" / "new"
    for output, said in {
        "file": "this is a file",
        "others": "this one has thesis.tex",
        of_run: "this one is a part of the run",
        of_run.parents[1]: "this one has .hydra",
    }.items():
        refused(call(cli.export_main, capsys, monkeypatch, run, f"output={output}"), f"output={output}: expected a new")
        assert not of_run.exists() and [*Path("others").iterdir()] == [Path("others/thesis.tex")]
        with pytest.raises(metarun.errors.MetarunError, match=said):
            metarun.export(metarun.load(directories("r2d2")), output)
    shutil.rmtree(rl)
