"""Tasks of one's own: which rows a draw takes, how tasks are divided, and what is refused."""

from collections import Counter

import jax
import numpy as np
import pytest

from metarun.data.own_tasks import tasks
from metarun.errors import ConfigError, DataError
from metarun.trust.leaks import verdicts

SETTINGS = {"way": 2, "shot": 2, "query_shot": 3}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))


def saved(folder, name="own.npz", **given):
    np.savez(folder / name, **given)
    return str(folder / name)


def lines(counts, seed=0):
    """Rows of tasks y = slope * x + task, of unequal numbers, in random order: task, x and y."""
    random = np.random.default_rng(seed)
    task = random.permutation(np.repeat(np.arange(len(counts)), counts))
    x = random.uniform(-1, 1, (len(task), 1))
    return {"task": task, "x": x, "y": (task + 1) * x[:, 0] + task}


def draws(source, number=40):
    sample = jax.jit(jax.vmap(source.sample, (None, 0)))
    return jax.tree.map(np.asarray, sample(source.data, jax.random.split(jax.random.key(0), number)))


def test_a_draw_takes_different_rows_of_one_task(tmp_path):
    given = lines([6, 9, 7, 5, 12, 8, 6, 30, 6, 6])
    data = tasks(**SETTINGS, source=saved(tmp_path, **given), standardize="none")
    assert (data.objective, data.num_outputs, data.train_classes) == ("regression", 1, None)
    assert data.protocol["tasks"] == {"train": 6, "val": 2, "test": 2}
    task_of = {
        (x.item(), y.item()): task
        for task, x, y in zip(*(given[k].astype("f4") for k in ("task", "x", "y")), strict=True)
    }
    seen = {}
    for split in ("train", "val", "test"):
        found = draws(getattr(data, split))
        assert found.support.x.shape == (40, 2, 1) and found.query.y.shape == (40, 3, 1)
        x, y = (np.concatenate([getattr(part, name) for part in found], 1)[..., 0] for name in ("x", "y"))
        for xs, ys in zip(x, y, strict=True):
            of = [task_of[pair] for pair in zip(xs.tolist(), ys.tolist(), strict=True)]
            assert len(set(of)) == 1 and len(set(xs.tolist())) == 5
            seen.setdefault(split, Counter()).update(of[:1])
    assert [len(its) for its in seen.values()] == [6, 2, 2]  # each task of a split is drawn
    assert len(set().union(*seen.values())) == 10  # and no other
    # All tasks are as likely, whatever their rows: 40 draws of 6.
    assert max(seen["train"].values()) < 20


def test_every_row_of_a_task_can_be_support_or_query(tmp_path):
    given = lines([6] * 5)
    data = tasks(**SETTINGS, source=saved(tmp_path, **given), standardize="none")
    found = draws(data.test, 200)
    for part in found:
        assert len(np.unique(part.x)) == 6 * data.protocol["tasks"]["test"]


def test_the_test_has_its_own_number_of_queries(tmp_path):
    data = tasks(**SETTINGS, eval_query_shot=7, train_shot=1, source=saved(tmp_path, **lines([9] * 5)))
    shapes = [jax.eval_shape(s.sample, s.data, jax.random.key(0)) for s in (data.train, data.val, data.test)]
    assert [(s.support.x.shape[0], s.query.x.shape[0]) for s in shapes] == [(1, 3), (2, 7), (2, 7)]


def test_targets_are_standardised_by_those_of_training(tmp_path):
    given = lines([8] * 10)
    source = saved(tmp_path, **given)
    raw, data = (tasks(**SETTINGS, source=source, standardize_y=kind) for kind in ("none", "global"))
    found, wanted = (draws(its.test) for its in (data, raw))
    train = tasks.load(source=source).classes["train"]
    y = given["y"][np.isin(given["task"], [int(tasks.load(source=source).names[c]) for c in train])]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one.y, (other.y - y.mean()) / y.std(), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(one.x, other.x)
    assert data.protocol["standardize_y"] == "global"


def test_several_targets(tmp_path):
    given = lines([6] * 5)
    given["y"] = np.stack([given["y"], -given["y"]], 1)
    data = tasks(**SETTINGS, source=saved(tmp_path, **given))
    assert data.num_outputs == 2
    support = draws(data.train).support
    np.testing.assert_array_equal(support.y[..., 0], -support.y[..., 1])


def grouped(num_tasks=10, classes=3, count=6, seed=0):
    """Rows of tasks with classes: x says task, class and row."""
    task, label, row = (np.ravel(a) for a in np.meshgrid(range(num_tasks), range(classes), range(count), indexing="ij"))
    order = np.random.default_rng(seed).permutation(len(task))
    return {"task": task[order], "x": np.stack([task, label, row], 1)[order], "y": np.array(list("abc"))[label[order]]}


def test_classes_of_a_draw_are_of_one_task(tmp_path):
    data = tasks(**SETTINGS, source=saved(tmp_path, **grouped()), standardize="none")
    assert (data.objective, data.num_outputs, data.train_way) == ("classification", 2, 2)
    found = draws(data.train)
    assert found.support.x.shape == (40, 4, 3) and found.query.y.shape == (40, 6)
    x, y = (np.concatenate([getattr(part, name) for part in found], 1) for name in ("x", "y"))
    label_of = Counter()
    for xs, ys in zip(x, y, strict=True):
        assert len(set(xs[:, 0])) == 1 and len(np.unique(xs, axis=0)) == 10
        pairs = set(zip(xs[:, 1].tolist(), ys.tolist(), strict=True))
        assert len(pairs) == len({c for c, _ in pairs}) == 2  # a label for each of two classes
        label_of.update(pairs)
    assert len(label_of) == 6 and min(label_of.values()) > 4  # each class has each label now and then
    assert [np.bincount(ys).tolist() for ys in found.support.y] == [[2, 2]] * 40
    assert len(data.contents["train"]) == 6 * 3


def test_rows_and_classes_may_differ_from_task_to_task(tmp_path, capsys):
    ranges = {**SETTINGS, "way": [2, 3], "shot": [1, 3]}
    regression = tasks(**ranges, source=saved(tmp_path, **lines([9] * 10)))
    assert [*regression.varies] == ["shot"]
    found = draws(regression.test, 300)
    number = found.support.mask.sum(1)
    assert {*number} == {1, 2, 3} and np.bincount(number).max() < 150 and found.query.mask.all()

    given = grouped(num_tasks=30)
    kept = ~((given["task"] % 2 == 0) & (given["y"] == "a"))  # every other task has two classes
    given = {name: array[kept] for name, array in given.items()}
    for sampling in ("equal", "unequal"):
        data = tasks(**ranges, sampling=sampling, source=saved(tmp_path, "classes.npz", **given), standardize="none")
        assert [*data.varies] == ["way", "shot"] and data.num_outputs == data.train_way == 3
        assert data.protocol["sampling"] == sampling
        found, ways, even = draws(data.train, 300), Counter(), Counter()
        for xs, ys, mask in zip(*found.support, strict=True):
            (task,), shots = {*xs[mask][:, 0]}, np.bincount(ys[mask])
            ways.update([(task % 2, len(shots))])
            even.update([len({*shots}) == 1])
        assert {*ways} == {(0, 2), (1, 2), (1, 3)} and (sampling == "equal") == (len(even) == 1)
    assert "Left out" not in capsys.readouterr().err
    with pytest.raises(
        ConfigError, match=r"way=\[2, 4\]: expected at most 3, the classes of the task of train with most"
    ):
        tasks(**{**ranges, "way": [2, 4]}, source=str(tmp_path / "classes.npz"))
    with pytest.raises(ConfigError, match="dataset.sampling=unequal: expected equal"):
        tasks(**ranges, sampling="unequal", source=str(tmp_path / "own.npz"))


@pytest.mark.parametrize("shot", [2, [1, 2]], ids=["fixed", "varied"])
@pytest.mark.parametrize("given", [lines([6] * 5), grouped()], ids=["regression", "classification"])
def test_what_is_streamed_is_what_is_sampled(tmp_path, given, shot):
    source = tasks(**{**SETTINGS, "shot": shot}, source=saved(tmp_path, **given)).train
    stream = source.stream
    rows, rest = jax.jit(stream.choose)(stream.index, jax.random.key(3))
    streamed = stream.cut(jax.numpy.asarray(stream.items[np.asarray(rows)]), rest)
    sampled = jax.jit(source.sample)(source.data, jax.random.key(3))
    for one, other in zip(jax.tree.leaves(streamed), jax.tree.leaves(sampled), strict=True):
        np.testing.assert_array_equal(one, other)


def test_numbers_can_be_classes_and_whole_numbers_targets(tmp_path):
    given = grouped()
    given["y"] = given["x"][:, 1]
    source = saved(tmp_path, **given)
    assert tasks(**SETTINGS, source=source).objective == "classification"
    data = tasks(**SETTINGS, source=source, targets="numbers")
    assert (data.objective, data.num_outputs) == ("regression", 1)


def test_tasks_that_are_too_small_are_left_out_and_named(tmp_path, capsys):
    split = np.repeat(["train", "train", "val", "test"], [8, 4, 6, 6])
    given = {"task": np.repeat(["a", "b", "c", "d"], [8, 4, 6, 6]), "x": np.arange(24.0), "y": np.arange(24.0)}
    data = tasks(**SETTINGS, source=saved(tmp_path, **given, split=split))
    assert data.protocol["tasks"] == {"train": 1, "val": 1, "test": 1}
    assert "Left out of train, having less than 5 rows: b." in capsys.readouterr().err
    with pytest.raises(DataError, match="No task of val has 8 rows, the largest 6. Lower shot or query_shot"):
        tasks(way=2, shot=4, query_shot=4, source=str(tmp_path / "own.npz"))
    assert tasks(way=2, shot=4, query_shot=2, source=str(tmp_path / "own.npz")).num_outputs == 1


def test_tasks_with_too_few_classes_are_left_out_and_named(tmp_path, capsys):
    given = grouped()
    kept = ~((given["task"] == 0) & (given["y"] != "a"))
    source = saved(tmp_path, **{name: array[kept] for name, array in given.items()}, split=np.array(
        [("train", "train", "train", "train", "val", "val", "val", "test", "test", "test")[t] for t in given["task"]])[kept])  # fmt: skip
    data = tasks(**SETTINGS, source=source)
    assert data.protocol["tasks"] == {"train": 3, "val": 3, "test": 3}
    assert "Left out of train, having less than 2 classes: 0." in capsys.readouterr().err
    with pytest.raises(ConfigError, match="way=4: expected at most 3, the classes of the task of train with most"):
        tasks(**{**SETTINGS, "way": 4}, source=source)
    with pytest.raises(ConfigError, match="train_way=1: expected 2 or more"):
        tasks(**SETTINGS, train_way=1, source=source)


def test_a_task_of_training_in_the_test_is_found(tmp_path):
    given = lines([8] * 10)
    given["x"] = np.round(given["x"], 1)  # tasks may well ask at the same places
    given["y"] = (given["task"] + 1) * given["x"][:, 0]
    first = tasks(**SETTINGS, source=saved(tmp_path, **given))
    found = {"support_y": None, "query_y": None, "repeated": np.zeros(1)}
    assert verdicts(found, None, first.contents)["test_apart_from_train"]["passed"]
    loaded = tasks.load(source=str(tmp_path / "own.npz"))
    test, train = (int(loaded.names[loaded.classes[split][0]]) for split in ("test", "train"))
    for name in ("x", "y"):
        given[name][given["task"] == test] = given[name][given["task"] == train]
    leaked = verdicts(found, None, tasks(**SETTINGS, source=saved(tmp_path, **given)).contents)
    assert leaked["test_apart_from_train"]["passed"] is False and leaked["test_apart_from_train"]["value"] == 0.5
    assert leaked["labels_by_class"]["passed"] is None


GIVEN = lines([6] * 5)
BAD = {
    "no tasks": ({"x": GIVEN["x"], "y": GIVEN["y"]}, "has no task: it has x, y"),
    "one task": ({**GIVEN, "task": np.zeros(30, int)}, "one task only, 0"),
    "too few": ({**GIVEN, "task": GIVEN["task"] // 3}, "There are 2 tasks, too few"),
    "NaN": ({**GIVEN, "y": np.where(GIVEN["y"] < 0, np.nan, GIVEN["y"])}, "y of .*own.npz has NaN"),
    "axes": ({**GIVEN, "y": np.zeros((30, 2, 2))}, r"y of .*own.npz has shape \[30, 2, 2\]"),
    "unequal": ({**GIVEN, "y": GIVEN["y"][1:]}, "not equally long: task has 30, x has 30, y has 29"),
    "divided": (
        {**GIVEN, "split": np.array(["train", "test"] * 15)},
        "puts the task . into test and train: a task is in one split",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_refused_by_name(tmp_path, name):
    given, message = BAD[name]
    with pytest.raises(DataError, match=message):
        tasks(**SETTINGS, source=saved(tmp_path, **given))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"targets": "classes"}, "dataset.targets=classes: expected numbers or null: y of .* has floats"),
        ({"targets": "both"}, "dataset.targets=both: expected one of numbers, classes"),
        ({"standardize_y": "rows"}, "dataset.standardize_y=rows"),
        ({"query_shot": 0}, "query_shot=0"),
        ({"source": None}, "dataset.source=None"),
    ],
    ids=str,
)
def test_a_setting_that_cannot_be_used_is_named(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        tasks(**{**SETTINGS, "source": saved(tmp_path, **GIVEN), **settings})


def test_classes_have_no_scale(tmp_path):
    with pytest.raises(ConfigError, match="dataset.standardize_y=global: expected none: y are classes"):
        tasks(**SETTINGS, source=saved(tmp_path, **grouped()), standardize_y="global")


def test_text_is_no_number(tmp_path):
    with pytest.raises(ConfigError, match="dataset.targets=numbers: expected classes or null: y of .* is text"):
        tasks(**SETTINGS, source=saved(tmp_path, **grouped()), targets="numbers")
