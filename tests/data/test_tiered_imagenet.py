import io
import pickle

import numpy as np
import pytest
from PIL import Image

from metarun.data import tiered_imagenet as module
from metarun.data.tiered_imagenet import tiered_imagenet
from metarun.errors import ConfigError, DataError

SETTINGS = {"way": 2, "shot": 1, "query_shot": 1}
SMALL = {"train": 3, "val": 2, "test": 2}
PER_CLASS = 3
NAMES = {"train": ["dog", "cat", "fox"], "val": ["crane", "crane"], "test": ["oak", "elm"]}


@pytest.fixture
def small(monkeypatch, tmp_path):
    """tieredImageNet of seven classes, three pictures each."""
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "CLASSES", SMALL)
    monkeypatch.setattr(module, "IMAGES", {split: PER_CLASS * number for split, number in SMALL.items()})
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


def pixels(split, c, k):
    return np.random.default_rng([len(split), c, k]).integers(0, 256, (84, 84, 3), np.uint8)


def png(image):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def in_folders(folder):
    for split, number in SMALL.items():
        for c in range(number):
            (folder / split / f"n{len(split)}{c}").mkdir(parents=True)
            for k in range(PER_CLASS):
                (folder / split / f"n{len(split)}{c}" / f"{k}.png").write_bytes(png(pixels(split, c, k)))


def in_archives(folder, protocol=2):
    """Rows out of order; a picture as a column of bytes, as OpenCV encodes it."""
    for split, number in SMALL.items():
        rows = [(c, k) for k in range(PER_CLASS) for c in reversed(range(number))]
        images = [np.frombuffer(png(pixels(split, c, k)), np.uint8)[:, None] for c, k in rows]
        labels = {"label_specific": np.array([c for c, _ in rows], np.int32), "label_specific_str": NAMES[split]}
        for part, content in (("images_png", images), ("labels", labels)):
            (folder / f"{split}_{part}.pkl").write_bytes(pickle.dumps(content, protocol))


@pytest.mark.parametrize("write", [in_folders, in_archives])
def test_a_copy_in_either_layout_gives_the_pictures_of_each_split(small, write):
    write(small)
    loaded = tiered_imagenet.load(source=str(small))
    assert {split: len(its) for split, its in loaded.classes.items()} == SMALL
    assert loaded.protocol["images"] == {"train": 9, "val": 6, "test": 6} and len({*loaded.names}) == 7
    for split, its in loaded.classes.items():
        for number, c in enumerate(its):
            its_images = loaded.bank.images[loaded.bank.first[c] :][: loaded.bank.count[c]]
            expected = np.stack([pixels(split, number, k) for k in range(PER_CLASS)])
            np.testing.assert_array_equal(its_images, expected)
    data = tiered_imagenet(**SETTINGS, source=str(small))
    assert data.protocol["name"] == "tiered_imagenet" and data.protocol["classes"] == SMALL


def test_what_a_copy_lacks_is_said(small, capsys):
    in_folders(small)
    (small / "val" / "n30" / "0.png").unlink()
    tiered_imagenet.load(source=str(small))
    assert "tieredImageNet's val has 5 of its 6 images in your copy." in capsys.readouterr().err


def test_another_number_of_classes_is_refused(small):
    in_folders(small)
    (small / "test" / "n40").rename(small / "n40")
    with pytest.raises(DataError, match="has 1 classes of test, where tieredImageNet has 2; it needs folders train"):
        tiered_imagenet.load(source=str(small))


def test_a_class_in_two_splits_is_refused(small):
    in_folders(small)
    (small / "val" / "n30").rename(small / "val" / "n50")
    with pytest.raises(DataError, match="has n50 in train and in val"):
        tiered_imagenet.load(source=str(small))


class Called:
    def __reduce__(self):
        return print, ("called",)


@pytest.mark.parametrize(
    "name, content",
    [
        ("val_labels.pkl", pickle.dumps({"label_specific": [0]})),
        ("val_labels.pkl", pickle.dumps({"label_specific": np.arange(6), "label_specific_str": ["a", "b"]})),
        ("train_images_png.pkl", b"no pickle"),
        ("test_images_png.pkl", pickle.dumps([Called()])),
    ],
)
def test_a_broken_archive_is_refused_and_nothing_in_it_called(small, capsys, name, content):
    in_archives(small)
    (small / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name} is no archive of tieredImageNet, or broken: .* Get it again"):
        tiered_imagenet.load(source=str(small))
    assert "called" not in capsys.readouterr().out


def test_a_broken_picture_is_named(small):
    in_archives(small)
    images = [np.zeros(4, np.uint8)] * 6
    (small / "val_images_png.pkl").write_bytes(pickle.dumps(images))
    with pytest.raises(DataError, match="val_images_png.pkl, row [0-9] of .* is broken"):
        tiered_imagenet.load(source=str(small))


def test_no_source_is_a_mistake(small):
    with pytest.raises(ConfigError, match="dataset.source=None: expected a folder with your copy of tieredImageNet"):
        tiered_imagenet.load()
