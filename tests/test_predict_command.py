"""`metarun-predict`, as a user calls it; and every method, as it does."""

import csv
import os
import shutil

import jax
import numpy as np
import PIL.EpsImagePlugin
import pytest
from many_runs import write_run
from PIL import Image
from small_run import begun, call, draw, draw_classes, refused

from metarun.api import learner as api_learner
from metarun.assembly.few_shot_run import build_learner, recorded, shapes_of
from metarun.assembly.saved_run import read
from metarun.commands import cli, prediction
from metarun.config.search_path import conf_dir
from metarun.training import checkpoint
from metarun.training.ensemble import Ensemble
from metarun.training.run_state import load_selected
from metarun.types import Split

METHODS = sorted(file.stem for file in (conf_dir() / "method").glob("*.yaml"))
NAMES = ("ant", "bee", "cat")
# What makes a method quick on pictures of 8x8.
SETTINGS = {
    "conditional": ["method.filters=4"],
    "from_scratch": ["method.inner_steps=20"],
    "mann": ["method.hidden=8", "method.slots=4", "method.width=4", "method.heads=2"],
    "maml_plus_plus": ["method.per_step_norm=false"],
    "relation": ["model=conv4", "model.filters=4"],
    "reptile": ["query_shot=2"],
    "rnn": ["method.hidden=8"],
    "snail": ["method.filters=4", "method.attention=[[4,4],[4,4]]"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A data set, `data`; three new classes of two, three and four pictures, `support`; and three of each, `query`."""
    root = tmp_path_factory.mktemp("folders")
    draw_classes(root / "data")
    for number, name in enumerate(NAMES):
        draw(root / "support" / name, name, 2 + number)
        draw(root / "query" / name, name, 3, first=10)
    return root


@pytest.fixture(scope="module")
def runs(folders):
    """`name -> directory` of a run of that method, for tasks of three classes."""

    def run(name):
        directory = folders / name
        if not directory.exists():
            data = ["dataset=image_folder", f"dataset.source={folders / 'data'}", "dataset.image_size=8"]
            small = ["dataset.channels=1", "way=3", "eval_query_shot=3", "dataset.split=" + str(split)]
            network = [] if name == "relation" else ["model=mlp", "model.hidden=[8]"]
            extra = SETTINGS.get(name, [])
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("METARUN_CACHE", str(folders / "cache"))
                begun(directory, f"method={name}", *data, *small, *network, *extra)
        return directory

    split = folders / "split.json"
    names = [f'"{c:02}"' for c in range(12)]
    parts = (", ".join(names[start : start + 4]) for start in (0, 4, 8))
    split.write_text('{{"train": [{}], "val": [{}], "test": [{}]}}'.format(*parts))
    return run


@pytest.fixture
def predict(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    return lambda *arguments: call(cli.predict_main, capsys, monkeypatch, *arguments)


def rows_of(folder):
    with (folder / "probabilities.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header[:2] == ["file", "predicted"]
    return header[2:], {row[0]: (row[1], np.array(row[2:], float)) for row in rows}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_answers(name, runs, folders, predict, tmp_path, monkeypatch):
    run = runs(name)
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "none"))  # its own data are not at hand
    settings = [f"run={run}", f"support={folders / 'support'}", f"query={folders / 'query'}", f"output={tmp_path}"]
    code, out, err = predict(*settings)
    assert code == 0, err
    classes, rows = rows_of(tmp_path)
    assert classes == list(NAMES)
    assert list(rows) == [f"{c}/{k}.png" for c in NAMES for k in (10, 11, 12)]
    for predicted, probabilities in rows.values():
        assert abs(probabilities.sum() - 1) < 1e-12 and (probabilities >= 0).all()
        assert predicted == classes[probabilities.argmax()]
    assert (tmp_path / "predictions.png").stat().st_size > 10_000
    apart = "Each picture is answered by itself" in out
    assert apart == ("query_statistics: query" in (run / ".hydra" / "config.yaml").read_text())
    assert "answered together" not in out
    # An answer does not depend on the order of the queries.
    (tmp_path / "query").mkdir()
    for number, file in enumerate(reversed(rows)):
        shutil.copy(folders / "query" / file, tmp_path / "query" / f"{number}.png")
    assert predict(*settings[:2], f"query={tmp_path / 'query'}", f"output={tmp_path / 'reversed'}")[0] == 0
    reordered = rows_of(tmp_path / "reversed")[1].values()
    for (_, ours), (_, others) in zip(reversed(rows.values()), reordered, strict=True):
        np.testing.assert_allclose(ours, others, atol=1e-4)


def test_classes_that_are_clearly_different_are_told_apart(runs, folders, predict, tmp_path):
    settings = [f"support={folders / 'support'}", f"query={folders / 'query'}", f"output={tmp_path}"]
    for name in ("nearest_neighbor", "protonet"):
        code, out, _ = predict(f"run={runs(name)}", *settings)
        assert code == 0
        for file, (predicted, _) in rows_of(tmp_path)[1].items():
            assert file.startswith(f"{predicted}/")
            assert any(line.split()[:2] == [file, predicted] for line in out.splitlines())


def test_where_a_network_has_an_output_a_class_their_number_is_given(runs, folders, predict, tmp_path):
    shutil.copytree(folders / "support", tmp_path / "support")
    draw(tmp_path / "support" / "dog", "dog", 1)
    settings = [f"support={tmp_path / 'support'}", f"query={folders / 'query'}", f"output={tmp_path}"]
    refused(predict(f"run={runs('maml')}", *settings), "has 4 classes: expected 3", "method=maml")
    for name in ("protonet", "from_scratch", "pretrain", "hypernetwork"):
        assert predict(f"run={runs(name)}", *settings)[0] == 0
        classes, rows = rows_of(tmp_path)
        assert classes == [*NAMES, "dog"] and len(rows) == 9


def test_ink_on_white_is_inverted_where_the_data_are_light_on_dark(runs, folders, predict, tmp_path):
    run = runs("nearest_neighbor")
    for name in NAMES:
        draw(tmp_path / "query" / name, name, 3, first=10, ink_on_white=True)
    settings = [f"run={run}", f"support={folders / 'support'}", f"query={tmp_path / 'query'}", f"output={tmp_path}"]
    code, out, _ = predict(*settings)
    assert code == 0
    assert "support: not inverted (invert=auto; the level at the border, 0 black and 1 white, is 0.00, that of" in out
    assert "query: inverted (invert=auto; the level at the border, 0 black and 1 white, is 1.00, that of" in out
    inverted = rows_of(tmp_path)[1]
    assert all(file.startswith(f"{predicted}/") for file, (predicted, _) in inverted.items())
    assert "query: not inverted (invert=false" in predict(*settings, "invert=false")[1]
    assert any(file.split("/")[0] != predicted for file, (predicted, _) in rows_of(tmp_path)[1].items())
    assert predict(*settings[:2], f"query={folders / 'query'}", settings[3])[0] == 0
    for file, (_, probabilities) in rows_of(tmp_path)[1].items():
        np.testing.assert_array_equal(probabilities, inverted[file][1])


def test_by_default_it_is_written_below_the_run_and_broken_files_are_named(runs, folders, predict, tmp_path):
    run = shutil.copytree(runs("nearest_neighbor"), tmp_path / "run")
    query = shutil.copytree(folders / "query", tmp_path / "some pictures")
    (query / "notes.txt").write_text("no picture")
    (query / "cut.png").write_bytes((query / "ant" / "10.png").read_bytes()[:60])
    support = shutil.copytree(folders / "support", tmp_path / "support")
    (support / "stray.png").write_bytes((query / "ant" / "10.png").read_bytes())
    code, out, _ = predict(f"run={run}", f"support={support}", f"query={query}")
    assert code == 0
    assert f"2 of the files in {query} cannot be used: " in out and "notes.txt (no picture of a known format)" in out
    assert f"1 of the files in {support} cannot be used: stray.png (in no class's folder). They are left out." in out
    (folder,) = (run / "predictions" / "some pictures").iterdir()
    assert len(rows_of(folder)[1]) == 9 and (folder / "predictions.png").exists()
    assert f"probabilities.csv and predictions.png in {folder}" in out
    # Another support set of the same name is another prediction; the same once more is no other.
    before = (folder / "probabilities.csv").read_bytes()
    other = shutil.copytree(support, tmp_path / "other" / "support")
    (other / "ant").rename(other / "wasp")
    for shown in (other, support):
        assert predict(f"run={run}", f"support={shown}", f"query={query}")[0] == 0
    (second,) = {*folder.parent.iterdir()} - {folder}
    assert "wasp" in rows_of(second)[0] and "ant" in rows_of(folder)[0]
    assert (folder / "probabilities.csv").read_bytes() == before


def test_many_queries_are_answered_in_blocks(runs, folders, predict, tmp_path, monkeypatch):
    settings = [f"run={runs('protonet')}", f"support={folders / 'support'}", f"query={folders / 'query'}"]
    assert predict(*settings, f"output={tmp_path / 'at once'}")[0] == 0
    monkeypatch.setattr(api_learner, "BLOCK", 4)
    assert predict(*settings, f"output={tmp_path / 'in blocks'}")[0] == 0
    rows, blocks = (rows_of(tmp_path / name)[1] for name in ("at once", "in blocks"))
    assert list(rows) == list(blocks)
    for file in rows:
        np.testing.assert_allclose(rows[file][1], blocks[file][1], atol=1e-5)


def test_softmax_is_exact_for_outputs_of_any_size():
    outputs = np.array([[1000.0, 999.0], [-3e38, 0.0]], np.float32)
    expected = [[1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))], [0, 1]]
    np.testing.assert_allclose(api_learner.softmax(outputs), expected, rtol=1e-12)


def test_what_a_run_holds_is_enough_to_make_its_learner(runs):
    run = read(str(runs("pretrain")), print)
    data = recorded(run.checkpoint.metadata["identity"])
    assert data == ("classification", 3, 4, 0.0, (8, 8, 1))
    params = load_selected(run.checkpoint, shapes_of(build_learner(run.config, run.choices, data), data))
    assert params["head"]["kernel"].shape == (8, 4)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"run": None}, ["run=None: expected the directory of a run"]),
        ({"support": None}, ["support=None: expected a folder with a folder of pictures for each class"]),
        ({"query": None}, ["query=None: expected a folder of pictures"]),
        ({"query": "/nowhere"}, ["query=/nowhere: expected a folder of pictures"]),
        ({"invert": "maybe"}, ["invert=maybe: expected one of auto, true, false"]),
        ({"query_statistics": "batch"}, ["query_statistics=batch: expected one of auto, query, support, each"]),
        ({"query_statistics": "each"}, ["query_statistics=each: expected auto: method=nearest_neighbor has no such"]),
        (
            {"way": "3"},
            [
                "way: there is no such key; there are run, support, query, invert, range, links, query_statistics, output."
            ],
        ),
        ({"support": "empty"}, ["empty has 0 folders with pictures: expected support=DIR"]),
        ({"query": "empty"}, ["empty has no pictures: expected query=DIR"]),
        ({"output": "/dev/null/out"}, ["Cannot write /dev/null/out", "output=DIR"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_mistake_is_one_message(runs, folders, predict, tmp_path, monkeypatch, settings, words):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    given = {"run": runs("nearest_neighbor"), "support": folders / "support", "query": folders / "query"} | settings
    refused(predict(*(f"{key}={value}" for key, value in given.items() if value is not None)), *words)


def test_a_run_on_other_than_images_is_refused(predict, folders, tmp_path):
    run = begun(tmp_path / "run", "experiment=finn2017/maml_sinusoid")
    answer = predict(f"run={run}", f"support={folders / 'support'}", f"query={folders / 'query'}")
    refused(answer, f"run={run}: expected a run on images in classes; it is on sinusoid")


def test_answers_that_are_not_finite_are_an_error(runs, folders, predict, tmp_path):
    run = shutil.copytree(runs("protonet"), tmp_path / "run")
    saved = checkpoint.newest(run / "checkpoints", print)
    data = recorded(saved.metadata["identity"])
    given = read(str(run), print)
    params = load_selected(saved, shapes_of(build_learner(given.config, given.choices, data), data))
    params["dense0"]["kernel"] = np.full_like(params["dense0"]["kernel"], np.nan)
    checkpoint.save(run / "checkpoints", 1, {"selected": params}, saved.metadata)
    answer = predict(f"run={run}", f"support={folders / 'support'}", f"query={folders / 'query'}")
    refused(answer, "Adaptation to these examples diverges")


def test_an_ensemble_answers_with_the_mean_of_its_outputs(runs, folders, predict, tmp_path):
    run = shutil.copytree(runs("protonet"), tmp_path / "run")
    saved, given = checkpoint.newest(run / "checkpoints", print), read(str(run), print)
    data = recorded(saved.metadata["identity"])
    method = build_learner(given.config, given.choices, data)
    first = load_selected(saved, shapes_of(method, data))
    second = jax.tree.map(lambda leaf: leaf + 0.3, first)
    metadata = dict(saved.metadata)
    metadata["ledger"] = {**metadata["ledger"], "best": [{"step": 7, "value": 1, "ci95": 0}] * 2}
    checkpoint.save(run / "checkpoints", 9, {"selected": Ensemble((first, second))}, metadata)
    settings = [f"support={folders / 'support'}", f"query={folders / 'query'}", f"output={tmp_path}"]
    code, out, err = predict(f"run={run}", *settings)
    assert code == 0 and "an ensemble of the parameters of steps 7, 7." in out, err
    shown = prediction._read_support(folders / "support", (8, 8, 1), None, print)
    asked = prediction._read_query(folders / "query", (8, 8, 1), None, print)
    support, query = Split(shown.images.astype(np.float32) / 255, shown.labels), asked.images.astype(np.float32) / 255
    adapted = [method.adapt(params, support, jax.random.key(0)) for params in (first, second)]
    outputs = [np.asarray(method.predict(each, query)) for each in adapted]
    expected = api_learner.softmax((outputs[0] + outputs[1]) / 2)
    found = np.array([probabilities for _, probabilities in rows_of(tmp_path)[1].values()])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(api_learner.softmax(outputs[0]) - expected).max() > 1e-3


def test_pictures_in_colour_become_the_greys_that_the_run_knows(runs, folders, predict, tmp_path):
    for name in NAMES:
        (tmp_path / "query" / name).mkdir(parents=True)
        with Image.open(folders / "query" / name / "10.png") as image:
            image.convert("RGB").resize((24, 24), Image.Resampling.BOX).save(tmp_path / "query" / name / "10.png")
    settings = [f"run={runs('nearest_neighbor')}", f"support={folders / 'support'}", f"output={tmp_path}"]
    code, out, _ = predict(*settings, f"query={tmp_path / 'query'}")
    assert code == 0 and "Pictures are brought to 8x8x1" in out
    assert all(file.startswith(f"{predicted}/") for file, (predicted, _) in rows_of(tmp_path)[1].items())


def test_pictures_are_brought_to_the_range_of_the_runs_own_data(runs, folders, predict, tmp_path, monkeypatch):
    """The same pictures as floats give the same answers, in a run on floats by its own range and in another by the key."""

    def as_floats(folder, to):
        for path in sorted(folder.rglob("*.png")):
            target = (to / path.relative_to(folder)).with_suffix(".tif")
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((np.asarray(Image.open(path)) / 51).astype(np.float32)).save(target)
        return to

    support, query = (as_floats(folders / name, tmp_path / name) for name in ("support", "query"))
    run = runs("nearest_neighbor")
    plain = [f"run={run}", f"support={folders / 'support'}", f"query={folders / 'query'}", f"output={tmp_path / 'a'}"]
    assert predict(*plain)[0] == 0
    floats = [f"support={support}", f"query={query}", f"output={tmp_path / 'b'}"]
    refused(predict(f"run={run}", *floats), "0.tif: its values are floats from 0 to ", "range=[0,", "or range=file")
    refused(predict(f"run={run}", *floats, "range=dark"), "range=dark: expected [BLACK,WHITE]")
    code, out, err = predict(f"run={run}", *floats, "range=[0,5]")
    assert code == 0 and "black and white are 0 and 5, as given." in out, err
    expected, given = (list(rows_of(tmp_path / name)[1].values()) for name in "ab")
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    data = [
        f"dataset.source={as_floats(folders / 'data', tmp_path / 'data')}",
        "dataset.image_size=8",
        "dataset.channels=1",
    ]
    settings = [
        "dataset=image_folder",
        *data,
        "way=2",
        "shot=1",
        "query_shot=1",
        "eval_query_shot=1",
        "dataset.range=set",
    ]
    own = begun(tmp_path / "run", "method=nearest_neighbor", "model=mlp", *settings)
    code, out, err = predict(f"run={own}", *floats)
    assert code == 0 and "black and white are 0 and 5, as in the run's data." in out, err
    for ours, others, theirs in zip(expected, given, rows_of(tmp_path / "b")[1].values(), strict=True):
        np.testing.assert_allclose(ours[1], others[1], atol=1e-6)
        np.testing.assert_allclose(ours[1], theirs[1], atol=1e-6)


def test_a_document_among_the_pictures_is_not_opened(runs, folders, predict, tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(PIL.EpsImagePlugin, "Ghostscript", lambda *arguments, **settings: called.append(arguments))
    query = shutil.copytree(folders / "query", tmp_path / "query")
    (query / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    settings = [f"run={runs('nearest_neighbor')}", f"support={folders / 'support'}", f"output={tmp_path / 'out'}"]
    code, out, _ = predict(*settings, f"query={query}")
    assert code == 0 and "x.png (no picture of a known format)" in out and called == []


def test_an_identity_without_the_key_is_that_of_an_earlier_run(runs):
    identity = read(str(runs("nearest_neighbor")), print).checkpoint.metadata["identity"]
    assert not [key for key in identity if key in ("dataset.range", "dataset.black_and_white")]


def test_help_names_the_keys(predict):
    code, out, _ = predict("--help")
    assert code == 0 and "run=DIR support=DIR query=DIR" in out
    for key in ("support", "query", "invert", "output", "probabilities.csv"):
        assert key in out


def test_names_of_any_bytes(runs, folders, predict, tmp_path):
    gbk = os.fsdecode("狗".encode("gbk"))
    support, query = (shutil.copytree(folders / name, tmp_path / name / gbk) for name in ("support", "query"))
    (support / "ant").rename(support / gbk)
    (query / "ant" / "10.png").rename(query / "ant" / f"{gbk}\n猫.png")
    settings = [f"run={runs('nearest_neighbor')}", f"support={support}", f"query={query}", f"output={tmp_path / 'out'}"]
    code, out, err = predict(*settings)
    assert code == 0, err
    with (tmp_path / "out" / "probabilities.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        header, *rows = csv.reader(file)
    assert header[2:] == ["bee", "cat", gbk]
    assert {row[0]: row[1] for row in rows}[f"ant/{gbk}\n猫.png"] == gbk
    assert r"ant/\xb9\xb7\n猫.png" in out and (tmp_path / "out" / "predictions.png").stat().st_size > 10_000


def test_linked_folders_are_followed_or_refused_by_name(runs, folders, predict, tmp_path):
    support, query = (shutil.copytree(folders / name, tmp_path / name) for name in ("support", "query"))
    (query / "ant").rename(tmp_path / "ant")
    (query / "ant").symlink_to("../ant")
    (query / "bee" / "up").symlink_to("..")
    settings = [f"run={runs('nearest_neighbor')}", f"support={support}", f"query={query}", f"output={tmp_path / 'out'}"]
    refused(predict(*settings), "query has 1 links to folders that lead out of it: ant.", "unless you set links=follow")
    code, out, _ = predict(*settings, "links=follow")
    assert code == 0 and "bee/up (a link to a folder that it is in)" in out
    assert list(rows_of(tmp_path / "out")[1]) == [f"{c}/{k}.png" for c in NAMES for k in (10, 11, 12)]
    (support / "wasp").symlink_to("bee")
    refused(predict(*settings, "links=follow"), "bee and wasp of", "are one folder, by a link")


def test_a_picture_has_one_answer_alone_and_among_others_unless_asked_for(runs, folders, predict, tmp_path):
    directory = tmp_path / "run"
    data = ["dataset=image_folder", f"dataset.source={folders / 'data'}", "dataset.image_size=8", "dataset.channels=1"]
    runs("maml")  # has written the split
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METARUN_CACHE", str(folders / "cache"))
        split = f"dataset.split={folders / 'split.json'}"
        begun(directory, "method=maml", "model.filters=8", *data, split, "way=3", "eval_query_shot=3")
    count = {"passed": True, "alone": 0.52, "together": 0.88}
    of_another = write_run(tmp_path / "other", checks={"query_count": {"value": 0.36, **count}})
    shutil.copy(of_another / "result.json", directory)
    settings = [f"run={directory}", f"support={folders / 'support'}"]

    def answers(query, output, *more):
        code, out, err = predict(*settings, f"query={query}", f"output={tmp_path / output}", *more)
        assert code == 0, err
        return rows_of(tmp_path / output)[1], out

    together, said = answers(folders / "query", "together")
    assert "88.00% of the queries rightly together, and 52.00% one at a time" in said
    asked, said = answers(folders / "query", "asked", "query_statistics=query")
    assert "answered together" in said
    differs = []
    for number, name in enumerate(NAMES):
        one = tmp_path / f"one{number}"
        one.mkdir()
        shutil.copy(folders / "query" / name / "10.png", one / "it.png")
        alone = answers(one, f"alone{number}")[0]["it.png"][1]
        np.testing.assert_allclose(alone, together[f"{name}/10.png"][1], atol=1e-5)
        of_all = answers(one, f"asked{number}", "query_statistics=query")[0]["it.png"][1]
        differs.append(np.abs(of_all - asked[f"{name}/10.png"][1]).max())
    assert max(differs) > 1e-3
