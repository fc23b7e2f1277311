import csv
import io
import os
import pickle
import time
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from banks import images_of
from PIL import Image

from metarun.data import mini_imagenet as module
from metarun.data.class_split import SPLITS
from metarun.data.mini_imagenet import mini_imagenet
from metarun.errors import ConfigError, DataError

SETTINGS = {"way": 2, "shot": 1, "query_shot": 1}
REAL = Path(os.environ.get("METARUN_TEST_MINI_IMAGENET", "absent"))
SMALL = {"train": ["n03", "n01", "n02"], "val": ["n05", "n04"], "test": ["n06", "n07"]}
PER_CLASS = 4


@pytest.fixture
def small(monkeypatch, tmp_path):
    """miniImageNet of seven classes, four pictures each."""
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "CLASSES", SMALL)
    monkeypatch.setattr(module, "IMAGES_PER_CLASS", PER_CLASS)
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


def pixels(wnid, k):
    return np.random.default_rng([int(wnid[1:]), k]).integers(0, 256, (84, 84, 3), np.uint8)


def encoded(image, format="PNG"):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format)
    return stream.getvalue()


def name_of(wnid, k):
    return f"{wnid}{k:08}.jpg"


def write_csvs(folder, write, per_class=PER_CLASS):
    """The CSVs, their rows out of order, and by `write(name, bytes)` the pictures."""
    for split, classes in SMALL.items():
        rows = [(name_of(wnid, k), wnid) for k in reversed(range(per_class)) for wnid in classes]
        with open(folder / f"{split}.csv", "w", newline="") as file:
            csv.writer(file).writerows([("filename", "label"), *rows])
        for name, wnid in rows:
            write(name, encoded(pixels(wnid, int(name[len(wnid) : -4]))))


def in_a_folder(folder):
    (folder / "images").mkdir()
    write_csvs(folder, lambda name, data: (folder / "images" / name).write_bytes(data))


def in_zips(folder):
    with zipfile.ZipFile(folder / "a.zip", "w") as even, zipfile.ZipFile(folder / "b.zip", "w") as odd:
        archives = (even, odd)
        write_csvs(folder, lambda name, data: archives[int(name[-5]) % 2].writestr(f"images/{name}", data))


def folder_a_class(folder):
    for split, classes in SMALL.items():
        for wnid in classes:
            (folder / split / wnid).mkdir(parents=True)
            for k in range(PER_CLASS + 2):  # ImageNet has more than are taken
                (folder / split / wnid / name_of(wnid, k)).write_bytes(encoded(pixels(wnid, k)))


def in_pickles(folder, protocol=2):
    for split, classes in SMALL.items():
        images = np.stack([pixels(wnid, k) for wnid in reversed(classes) for k in range(PER_CLASS)])
        rows = {wnid: list(range(i * PER_CLASS, (i + 1) * PER_CLASS)) for i, wnid in enumerate(reversed(classes))}
        content = {"image_data": images, "class_dict": rows}
        (folder / f"mini-imagenet-cache-{split}.pkl").write_bytes(pickle.dumps(content, protocol))


@pytest.mark.parametrize("write", [in_a_folder, in_zips, folder_a_class, in_pickles])
def test_every_layout_gives_the_same_images_in_the_same_order(write, small):
    write(small)
    data = mini_imagenet(**SETTINGS, source=str(small))
    for split, source in zip(SPLITS, (data.train, data.val, data.test), strict=True):
        expected = np.stack([pixels(wnid, k) for wnid in SMALL[split] for k in range(PER_CLASS)])
        np.testing.assert_array_equal(images_of(source), expected)
        assert source.data.count.tolist() == [PER_CLASS] * len(SMALL[split])
    assert data.protocol["images"] == {"train": 12, "val": 8, "test": 8}
    assert data.protocol["classes"] == {"train": 3, "val": 2, "test": 2}


def test_layouts_give_the_same_bytes(small, tmp_path):
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder, write in zip(folders, (in_zips, folder_a_class), strict=True):
        folder.mkdir()
        write(folder)
    one, other = (mini_imagenet(**SETTINGS, source=str(folder)).protocol for folder in folders)
    assert one == other
    files = [sorted(entry.glob("*.*")) for entry in sorted((tmp_path / "cache").glob("mini_imagenet-*[0-9a-f]"))]
    assert len(files) == 2 and len(files[0]) == 4
    for a, b in zip(*files, strict=True):
        assert a.name == b.name and (a.name == "manifest.json" or a.read_bytes() == b.read_bytes())


def test_tables_with_a_byte_order_mark_and_a_row_twice(small):
    in_a_folder(small)
    for split in SPLITS:
        text = (small / f"{split}.csv").read_bytes()
        (small / f"{split}.csv").write_bytes(b"\xef\xbb\xbf" + text + text.splitlines(keepends=True)[-1])
    data = mini_imagenet(**SETTINGS, source=str(small))
    assert data.protocol["images"] == {"train": 12, "val": 8, "test": 8}
    np.testing.assert_array_equal(images_of(data.val)[:PER_CLASS], [pixels("n05", k) for k in range(PER_CLASS)])


def test_linked_folders_of_classes(small, tmp_path):
    folder_a_class(small)
    (small / "all").mkdir()
    (small / "test" / "n06").rename(small / "all" / "n06")  # one picture by two names is one picture
    (small / "test" / "n06").symlink_to("../all/n06")
    (small / "test" / "n07").rename(tmp_path / "n07")
    (small / "test" / "n07").symlink_to(tmp_path / "n07")
    with pytest.raises(DataError, match="has 1 links to folders that lead out of it: test/n07.*dataset.links=follow"):
        mini_imagenet(**SETTINGS, source=str(small))
    data = mini_imagenet(**SETTINGS, source=str(small), links="follow")
    expected = np.stack([pixels(wnid, k) for wnid in SMALL["test"] for k in range(PER_CLASS)])
    np.testing.assert_array_equal(images_of(data.test), expected)


def test_pictures_in_bytes_that_are_no_unicode(small):
    folder_a_class(small)
    folder = small / "test" / "n06"
    (folder / name_of("n06", 0)).rename(folder / os.fsdecode(b"a\xb9\xb7.jpg"))
    np.testing.assert_array_equal(images_of(mini_imagenet(**SETTINGS, source=str(small)).test)[0], pixels("n06", 0))
    (folder / os.fsdecode(b"a\xb9\xb7.jpg")).write_bytes(b"x")
    with pytest.raises(DataError, match=r"a\\xb9\\xb7.jpg of .* is broken"):
        mini_imagenet(**SETTINGS, source=str(small))


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_pickles_of_every_protocol(protocol, small):
    in_pickles(small, protocol)
    assert mini_imagenet(**SETTINGS, source=str(small)).protocol["images"]["train"] == 12


def test_pictures_of_another_size_are_brought_to_84(small):
    folder_a_class(small)
    (small / "test" / "n06" / name_of("n06", 0)).write_bytes(encoded(np.full((500, 375, 3), 90, np.uint8), "JPEG"))
    images = images_of(mini_imagenet(**SETTINGS, source=str(small)).test)
    np.testing.assert_allclose(images[0], 90, atol=2)


def test_a_shortfall_is_said(small, capsys):
    in_a_folder(small)
    for k in range(2):
        (small / "images" / name_of("n05", k)).unlink()
    data = mini_imagenet(**SETTINGS, source=str(small))
    assert data.protocol["images"]["val"] == 6
    assert "val has 6 of its 8 images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: [file.unlink() for file in folder.rglob("n05*")], "no picture of n05, of miniImageNet's val"),
        (lambda folder: (folder / "val.csv").write_text("a,b\n1,2\n"), "val.csv is not a table with the columns"),
        (lambda folder: (folder / "val.csv").write_bytes(b"filename,label\n\xff\xfe,n05\n"), "val.csv is not a table"),
        (lambda folder: (folder / "val.csv").write_bytes((folder / "test.csv").read_bytes()), "no picture of n05"),
        (
            lambda folder: (folder / "test.csv").write_text(
                (folder / "test.csv").read_text() + f"{name_of('n01', 0)},n01\n"
            ),
            "n01 in test, where",
        ),
        (
            lambda folder: (folder / "images" / name_of("n06", 2)).write_bytes(b"x"),
            f"{name_of('n06', 2)} of .* is broken",
        ),
    ],
)
def test_what_is_wrong_with_a_source_is_said(harm, said, small, tmp_path):
    in_a_folder(small)
    harm(small)
    with pytest.raises(DataError, match=said):
        mini_imagenet(**SETTINGS, source=str(small))
    assert not list((tmp_path / "cache").glob("mini_imagenet-*/manifest.json"))


class Evil:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder / "owned"),)


def test_a_malicious_pickle_is_refused_and_not_run(small):
    in_pickles(small)
    (small / "mini-imagenet-cache-val.pkl").write_bytes(pickle.dumps({"image_data": Evil(small), "class_dict": {}}))
    with pytest.raises(DataError, match="val.pkl is not a cache of miniImageNet.*wants to load posix.mkdir"):
        mini_imagenet(**SETTINGS, source=str(small))
    assert not (small / "owned").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>",
        pickle.dumps([1, 2]),
        pickle.dumps({"image_data": np.zeros((8, 84, 84, 3)), "class_dict": {"n05": [0], "n04": [1]}}),
        pickle.dumps({"image_data": np.zeros((2, 84, 84, 3), np.uint8), "class_dict": {"n05": [0], "n04": [2]}}),
        pickle.dumps({"image_data": np.zeros((2, 84, 84, 3), np.uint8), "class_dict": 3}),
    ],
    ids=["empty", "page", "list", "floats", "rows", "no rows"],
)
def test_a_pickle_of_something_else_is_named(content, small):
    in_pickles(small)
    (small / "mini-imagenet-cache-val.pkl").write_bytes(content)
    with pytest.raises(DataError, match="val.pkl is not a cache of miniImageNet"):
        mini_imagenet(**SETTINGS, source=str(small))


def test_without_a_source_it_says_what_is_needed():
    with pytest.raises(ConfigError, match="dataset.source=None: expected a folder with your copy of miniImageNet"):
        mini_imagenet(**SETTINGS)


def test_the_split_is_of_the_published_sizes_and_its_classes_are_distinct():
    assert [len(module.CLASSES[split]) for split in SPLITS] == [64, 16, 20]
    assert len(set(sum(module.CLASSES.values(), []))) == 100


@pytest.mark.skipif(not REAL.is_dir(), reason="METARUN_TEST_MINI_IMAGENET names no folder")
def test_the_real_one(monkeypatch, tmp_path):
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path))
    start = time.monotonic()
    data = mini_imagenet(**SETTINGS, source=str(REAL))
    assert time.monotonic() - start < 180
    assert data.protocol["images"]["train"] == 38_400 and data.protocol["images"]["test"] == 12_000
    task = jax.jit(data.test.sample)(data.test.data, jax.random.key(0))
    assert task.support.x.shape == (2, 84, 84, 3)
