"""Arrays of one's own: what is read, how it is divided and standardised, and what is refused."""

import json
import os
import pickle
import zipfile

import jax
import numpy as np
import pytest

from metarun.data import array_files
from metarun.data.array_files import NAMES, NUMBERS, read
from metarun.data.arrays import arrays
from metarun.data.class_split import SPLITS, shuffled_or_from_file
from metarun.data.contents import class_of, content_hashes
from metarun.errors import ConfigError, DataError
from metarun.trust.leaks import classes_apart

SETTINGS = {"way": 2, "shot": 1, "query_shot": 2}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))


def drawn(num_classes=10, count=4, shape=(3,), seed=0):
    """Rows in random order: `x: [n, *shape]` float64, `y: [n]` names."""
    random = np.random.default_rng(seed)
    y = random.permutation(np.repeat([f"class {c}" for c in range(num_classes)], count))
    return random.normal(5, 3, (len(y), *shape)), y


def saved(folder, name="own.npz", **given):
    np.savez(folder / name, **given)
    return str(folder / name)


def rows_of(loaded, name):
    c = list(loaded.names).index(name)
    return np.asarray(loaded.bank.images[loaded.bank.first[c] :][: loaded.bank.count[c]])


@pytest.mark.parametrize("shape", [(), (3,), (16, 2), (4, 4, 1)], ids=str)
def test_each_class_has_its_rows(tmp_path, shape):
    x, y = drawn(shape=shape)
    loaded = arrays.load(source=saved(tmp_path, x=x, y=y), standardize="none")
    assert sorted(loaded.names) == sorted(set(y)) and loaded.bank.images.dtype == np.float32
    for name in set(y):
        np.testing.assert_array_equal(
            rows_of(loaded, name), x[y == name].astype(np.float32).reshape(4, *(shape or (1,)))
        )
    wanted, stated = shuffled_or_from_file(loaded.names, "shuffled", 0)
    assert loaded.classes == {split: sorted(its) for split, its in wanted.items()}
    assert stated.items() <= loaded.protocol.items() and loaded.protocol["standardize"] == "none"


@pytest.mark.parametrize(
    "x_type, labels",
    [(np.float16, np.int64), (np.int16, np.uint8), (np.uint8, "U"), (np.float64, "S"), (">f4", np.int32), (bool, "U")],
    ids=str,
)
def test_any_type_of_numbers_and_of_names_will_do(tmp_path, x_type, labels):
    x = np.random.default_rng(0).integers(0, 200, (40, 3)).astype(x_type)
    y = np.repeat(np.arange(10), 4)
    y = (
        np.array([f"ä{c}".encode() if labels == "S" else f"ä{c}" for c in y])
        if labels in ("U", "S")
        else y.astype(labels)
    )
    loaded = arrays.load(source=saved(tmp_path, x=x, y=y), standardize="none")
    assert list(loaded.names) == [f"ä{c}" if labels in ("U", "S") else str(c) for c in range(10)]
    np.testing.assert_array_equal(rows_of(loaded, loaded.names[3]), x[12:16].astype(np.float32))


def test_a_folder_and_a_compressed_file_are_as_the_file(tmp_path, monkeypatch):
    x, y = drawn()
    (tmp_path / "own").mkdir()
    np.save(tmp_path / "own/x.npy", np.asfortranarray(x))
    np.save(tmp_path / "own/y.npy", y)
    np.savez_compressed(tmp_path / "small.npz", x=x, y=y)
    sources = [saved(tmp_path, x=x, y=y), str(tmp_path / "own"), str(tmp_path / "small.npz")]
    assert len({arrays.load(source=source).protocol["sha256"] for source in sources}) == 1
    monkeypatch.setattr(array_files, "LARGE", 1)  # mapped, and gone through in blocks
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "another"))
    assert len({arrays.load(source=source).protocol["sha256"] for source in sources}) == 1
    for source in sources:
        found = read(tmp_path / source, {"x": NUMBERS, "y": NAMES}, scratch=tmp_path)
        assert isinstance(found["x"], np.memmap)
        np.testing.assert_array_equal(found["x"], x)


@pytest.mark.parametrize("kind", ["feature", "global", "none"])
def test_standardised_by_the_classes_of_training_alone(tmp_path, kind):
    x, y = drawn(num_classes=12, shape=(20, 2))
    x[:, :, 1] = 7.3  # of one value
    loaded = arrays.load(source=saved(tmp_path, x=x, y=y), standardize=kind)
    train = np.concatenate([x[y == loaded.names[c]] for c in loaded.classes["train"]])
    axes = {"feature": (0, 1), "global": (0, 1, 2)}.get(kind)
    mean, deviation = (train.mean(axes), train.std(axes)) if axes else (0, 1)
    deviation = np.where(deviation < 1e-9, 1, deviation)
    for name in loaded.names:
        np.testing.assert_allclose(rows_of(loaded, name), (x[y == name] - mean) / deviation, rtol=1e-5, atol=1e-5)
    if kind == "none":
        assert loaded.standardized is None
    else:
        shift, factor = map(np.array, loaded.standardized)
        np.testing.assert_allclose(shift, np.ravel(mean), rtol=1e-12)
        np.testing.assert_allclose(factor, np.ravel(1 / deviation), rtol=1e-9)


def test_digits_are_standardised_as_scikit_learn_does(tmp_path):
    datasets = pytest.importorskip("sklearn.datasets")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    x, y = datasets.load_digits(return_X_y=True)
    data = arrays(**SETTINGS, source=saved(tmp_path, x=x, y=y), split_seed=3)
    loaded = arrays.load(source=str(tmp_path / "own.npz"), split_seed=3)
    scaler = preprocessing.StandardScaler().fit(x[np.isin(y, loaded.classes["train"])])
    for c in range(10):
        np.testing.assert_allclose(rows_of(loaded, str(c)), scaler.transform(x[y == c]), rtol=1e-5, atol=1e-5)
    assert data.protocol["classes"] == {"train": 6, "val": 2, "test": 2} and data.protocol["input_shape"] == [64]
    assert not {"rotations", "image_size"} & set(data.protocol) and data.ground is None


def test_drawn_rows_are_those_of_their_classes(tmp_path):
    x, y = drawn(num_classes=12, count=5)
    data = arrays(**SETTINGS, source=saved(tmp_path, x=x, y=y))
    task = jax.jit(data.train.sample)(data.train.data, jax.random.key(0))
    assert task.support.x.shape == (2, 3) and task.query.x.shape == (4, 3) and task.support.x.dtype == np.float32
    contents = data.contents["train"]
    known = {side: class_of(content_hashes(np.asarray(part.x)), contents) for side, part in task._asdict().items()}
    assert (known["support"] >= 0).all() and len(set(known["support"])) == 2
    of_label = dict(zip(np.asarray(task.support.y).tolist(), known["support"], strict=True))
    assert [of_label[label] for label in np.asarray(task.query.y).tolist()] == known["query"].tolist()
    rows = np.concatenate([task.support.x, task.query.x])
    assert len(np.unique(rows, axis=0)) == 6  # no row twice


def test_a_split_given_by_an_array_is_taken(tmp_path):
    x, y = drawn(num_classes=6)
    given = {f"class {c}": ("train", "train", "Training", "val", "dev", "TEST")[c] for c in range(6)}
    source = saved(tmp_path, x=x, y=y, split=np.array([given[name] for name in y]))
    loaded = arrays.load(source=source)
    assert loaded.classes == {"train": [0, 1, 2], "val": [3, 4], "test": [5]} and loaded.protocol["split"] == "given"
    shuffled = arrays.load(source=source, split="shuffled")
    assert shuffled.protocol["split"] == "shuffled" and shuffled.classes != loaded.classes


def test_a_split_given_by_files_is_taken(tmp_path):
    (tmp_path / "own").mkdir()
    for number, split in enumerate(SPLITS):
        x, y = drawn(num_classes=3, seed=number)
        saved(tmp_path / "own", f"{split}.npz", x=x, y=np.char.add(f"{split} ", y))
    loaded = arrays.load(source=str(tmp_path / "own"))
    for split in SPLITS:
        assert {loaded.names[c] for c in loaded.classes[split]} == {f"{split} class {c}" for c in range(3)}
    (tmp_path / "own/val.npz").unlink()
    loaded = arrays.load(source=str(tmp_path / "own"))
    assert [len(loaded.classes[split]) for split in SPLITS] == [2, 1, 3] and loaded.protocol["split_seed"] == 0
    x, y = drawn(num_classes=3, seed=2)
    saved(tmp_path / "own", "val.npz", x=x, y=np.char.add("test ", y))
    with pytest.raises(DataError, match="class test class 0 is in the files of val and of test"):
        arrays.load(source=str(tmp_path / "own"))


def test_a_split_given_by_a_list_is_taken(tmp_path):
    x, y = drawn(num_classes=5)
    listed = {"train": ["class 4", "class 2"], "val": ["class 0"], "test": ["class 1"]}
    (tmp_path / "list.json").write_text(json.dumps(listed))
    settings = {"source": saved(tmp_path, x=x, y=y), "split": str(tmp_path / "list.json")}
    assert arrays.load(**settings).classes == {"train": [2, 4], "val": [0], "test": [1]}
    listed["test"] = ["class 3"]
    (tmp_path / "list.json").write_text(json.dumps(listed))
    assert arrays.load(**settings).classes["test"] == [3]


def test_a_file_that_is_written_to_is_read_again(tmp_path):
    x, y = drawn()
    first = arrays.load(source=saved(tmp_path, x=x, y=y), standardize="none")
    again = arrays.load(source=saved(tmp_path, x=x + 1, y=y), standardize="none")
    np.testing.assert_allclose(rows_of(again, "class 0"), rows_of(first, "class 0") + 1, rtol=1e-6)


def test_classes_that_are_too_small_are_left_out_and_named(tmp_path, capsys):
    x, y = drawn(num_classes=7)
    split = np.array(["train"] * 3 + ["val"] * 2 + ["test"] * 2)[[int(name[-1]) for name in y]]
    kept = np.ones(len(y), bool)
    kept[np.flatnonzero(y == "class 1")[:2]] = False
    source = saved(tmp_path, x=x[kept], y=y[kept], split=split[kept])
    data = arrays(**SETTINGS, source=source)
    assert data.protocol["classes"] == {"train": 2, "val": 2, "test": 2}
    assert "Left out of train, having less than 3 examples: class 1." in capsys.readouterr().err
    with pytest.raises(DataError, match="No class of train has 10 examples, the largest 4. Lower shot or query_shot"):
        arrays(way=2, shot=1, query_shot=9, source=source)


def test_a_class_of_training_in_the_test_is_found(tmp_path):
    x, y = drawn(num_classes=12)
    first = arrays(**SETTINGS, source=saved(tmp_path, x=x, y=y))
    assert classes_apart(first.contents["test"], first.contents["train"])["passed"]
    names = np.unique(y)
    loaded = arrays.load(source=str(tmp_path / "own.npz"))
    test, train = names[loaded.classes["test"][0]], names[loaded.classes["train"][0]]
    x[y == test] = x[y == train]
    leaked = arrays(**SETTINGS, source=saved(tmp_path, x=x, y=y))
    assert not classes_apart(leaked.contents["test"], leaked.contents["train"])["passed"]


X, Y = drawn()
NAN, FAR = X.copy(), X.copy()
NAN[17, 1], NAN[20, 0] = np.nan, np.inf
FAR[5] = 1e300


class Trap:
    """What a pickle makes when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


BAD = {
    "NaN": ({"x": NAN, "y": Y}, "x of .*own.npz has NaN, infinity.* in 2 of 40 rows, the first in row 17"),
    "too large": ({"x": FAR, "y": Y}, "float32 has no room for in 1 of 40 rows, the first in row 5"),
    "objects": ({"x": X, "y": Y.astype(object)}, "y of .*own.npz holds Python objects, a pickle.*astype"),
    "objects beside": ({"x": X, "y": Y, "more": Y.astype(object)}, "more of .*own.npz holds Python objects"),
    "unequal": ({"x": X, "y": Y[:-1]}, "not equally long: x has 40, y has 39 rows"),
    "one class": ({"x": X, "y": np.zeros(40, int)}, "one class only, 0"),
    "complex": ({"x": X + 1j, "y": Y}, "x of .*own.npz has complex numbers"),
    "records": ({"x": np.zeros(40, [("a", "f4")]), "y": Y}, "x of .*own.npz has records"),
    "text": ({"x": np.array(["1"] * 40), "y": Y}, "x of .*own.npz has text .*expected numbers"),
    "dates": ({"x": np.zeros(40, "M8[s]"), "y": Y}, "x of .*own.npz has dates"),
    "floats as classes": (
        {"x": X, "y": X[:, 0]},
        r"y of .*own.npz has floats \(float64\): expected whole numbers or text",
    ),
    "two axes of classes": ({"x": X, "y": Y[:, None]}, r"y of .*own.npz has shape \[40, 1\]"),
    "a single value": ({"x": X, "y": np.array(3)}, "y of .*own.npz is a single value"),
    "no rows": ({"x": X[:0], "y": Y[:0]}, "have no rows"),
    "no numbers": ({"x": X[:, :0], "y": Y}, "a row has no numbers"),
    "other names": ({"images": X, "labels": Y}, "has no x, y: it has images, labels"),
    "no text": ({"x": X, "y": np.array([b"\xff", b"a"] * 20)}, "y of .*own.npz has bytes that are no text"),
    "too few classes": ({"x": X[:2], "y": np.array(["a", "b"])}, "There are 2 classes, too few"),
    "unknown split": (
        {"x": X, "y": Y, "split": np.array(["here"] * 40)},
        "split of .*own.npz has here: expected train",
    ),
    "divided class": (
        {"x": X, "y": Y, "split": np.array(["train", "test"] * 20)},
        "puts the class class . into test and train",
    ),
    "no test": ({"x": X, "y": Y, "split": np.array(["train"] * 40)}, "no class in test"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_refused_by_name(tmp_path, name):
    given, message = BAD[name]
    with pytest.raises(DataError, match=message):
        arrays(**SETTINGS, source=saved(tmp_path, **given))
    assert not list((tmp_path / "cache").glob("*/manifest.json"))


def test_no_pickle_is_read(tmp_path):
    trap = Trap(tmp_path / "sprung")
    np.save(tmp_path / "trap.npy", np.array([trap] * 40, object), allow_pickle=True)
    (tmp_path / "trap.npz").write_bytes(pickle.dumps(trap))
    with zipfile.ZipFile(tmp_path / "member.npz", "w") as archive:
        archive.writestr("x.npy", pickle.dumps(trap))
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("x.pkl", pickle.dumps(trap))
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "trap.npy").rename(folder / "x.npy")
    np.save(folder / "y.npy", Y)
    for source, message in [
        ("trap.npz", "trap.npz is a pickle"),
        ("member.npz", "x of .*member.npz is a pickle"),
        ("other.npz", "other.npz holds x.pkl, which is no array"),
        ("folder", "x of .*folder holds Python objects"),
    ]:
        with pytest.raises(DataError, match=message):
            arrays(**SETTINGS, source=str(tmp_path / source))
    assert not (tmp_path / "sprung").exists()


def test_broken_files_are_refused(tmp_path):
    source = saved(tmp_path, x=X, y=Y)
    whole = (tmp_path / "own.npz").read_bytes()
    (tmp_path / "own.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="own.npz is no .npz file"):
        arrays(**SETTINGS, source=source)
    changed = bytearray(whole)
    changed[whole.index(X.tobytes())] ^= 1
    (tmp_path / "own.npz").write_bytes(changed)
    with pytest.raises(DataError, match="own.npz cannot be read as arrays.*CRC"):
        arrays(**SETTINGS, source=source)
    folder = tmp_path / "folder"
    folder.mkdir()
    np.save(folder / "x.npy", X)
    np.save(folder / "y.npy", Y)
    for length in (0, 5, 60, 200):
        (folder / "x.npy").write_bytes((folder / "x.npy").read_bytes()[:length])
        with pytest.raises(DataError, match="x of .*folder is broken|folder cannot be read as arrays"):
            arrays(**SETTINGS, source=str(folder))
        np.save(folder / "x.npy", X)
    # A header that promises more than there is must not have it allocated.
    with open(folder / "x.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (10**12, 10**3)})
    with pytest.raises(DataError, match="x of .*folder is broken"):
        arrays(**SETTINGS, source=str(folder))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"source": None}, "dataset.source=None: expected a file FILE.npz with x and y"),
        ({"source": "nowhere.npz"}, "dataset.source=nowhere.npz"),
        ({"source": "x" * 5000}, "dataset.source=x"),
        ({"standardize": "rows"}, "dataset.standardize=rows: expected one of none, feature, global"),
        ({"split": "given"}, "dataset.split=given: expected shuffled or a JSON file"),
        ({"split": "nowhere.json"}, "dataset.split=nowhere.json: expected given, shuffled"),
        ({"split": 3}, "dataset.split=3"),
        ({"split_seed": -1}, "dataset.split_seed=-1"),
    ],
    ids=str,
)
def test_a_setting_that_cannot_be_used_is_named(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        arrays(**SETTINGS, **({"source": saved(tmp_path, x=X, y=Y)} | settings))
