import json
import os

import numpy as np
import pytest
from banks import images_of
from PIL import Image

from metarun.data import class_bank
from metarun.data.image_folder import image_folder
from metarun.errors import ConfigError, DataError

SETTINGS = {"way": 2, "shot": 1, "query_shot": 2, "image_size": 4, "channels": 1}


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "pictures"
    folder.mkdir()
    return folder


def level(name):
    """A grey level of its own for each picture of a test."""
    return sum(name.encode()) % 256


def add(root, *classes, pictures=3):
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        for k in range(pictures):
            grey = level(f"{name}/{k}.png")
            Image.fromarray(np.full((4, 4), grey, np.uint8)).save(root / name / f"{k}.png")


def levels_of(source):
    bank = source.data
    return [bank.images[f : f + n, 0, 0, 0].tolist() for f, n in zip(bank.first, bank.count, strict=True)]


def expected(*classes, pictures=3):
    return [[level(f"{name}/{k}.png") for k in range(pictures)] for name in classes]


def test_folders_of_splits(root):
    add(root, "train/ox", "train/ant", "val/yak", "val/cow", "test/bee", "test/cat")
    data = image_folder(**SETTINGS, source=str(root))
    assert levels_of(data.train) == expected("train/ant", "train/ox")
    assert levels_of(data.val) == expected("val/cow", "val/yak")
    assert levels_of(data.test) == expected("test/bee", "test/cat")
    assert data.protocol["split"] == "folders" and data.protocol["classes"] == {"train": 2, "val": 2, "test": 2}
    assert images_of(data.train).shape == (6, 4, 4, 1)


def test_without_a_folder_of_validation_a_fifth_of_training_is_held_out(root):
    add(root, *(f"train/{k}" for k in range(10)), "test/a", "test/b")
    data = image_folder(**SETTINGS, source=str(root))
    held, kept = levels_of(data.val), levels_of(data.train)
    assert (len(held), len(kept)) == (2, 8)
    assert sorted(held + kept) == sorted(expected(*(f"train/{k}" for k in range(10))))
    assert levels_of(data.test) == expected("test/a", "test/b")
    other = image_folder(**SETTINGS, source=str(root), split_seed=1)
    assert levels_of(other.val) != held


def test_classes_are_shuffled_where_there_are_no_splits(root):
    names = [f"{k:02}" for k in range(25)]
    add(root, *names)
    data = image_folder(**SETTINGS, source=str(root))
    parts = [levels_of(source) for source in (data.train, data.val, data.test)]
    assert [len(part) for part in parts] == [16, 4, 5]
    assert sorted(sum(parts, [])) == sorted(expected(*names))
    assert data.protocol["split"] == "shuffled" and data.protocol["split_seed"] == 0
    assert levels_of(image_folder(**SETTINGS, source=str(root), split_seed=1).train) != parts[0]


def test_a_file_decides_the_split_and_classes_may_lie_deeper(root, tmp_path):
    add(root, "farm/ox", "farm/cow", "wild/yak", "wild/gnu", "zoo/ape", "zoo/emu")
    lists = {"train": ["wild/yak", "farm/ox"], "val": ["zoo/emu", "zoo/ape"], "test": ["farm/cow", "wild/gnu"]}
    (tmp_path / "split.json").write_text(json.dumps(lists))
    data = image_folder(**SETTINGS, source=str(root), split=str(tmp_path / "split.json"))
    assert levels_of(data.train) == expected("wild/yak", "farm/ox")
    assert levels_of(data.test) == expected("farm/cow", "wild/gnu")


def test_class_names_of_any_characters(root):
    names = ("Größe 大", 'a "b" c', "x=y,z", "new\nline", "$HOME", "%s", *map(str, range(6)))
    add(root, *names)
    data = image_folder(**SETTINGS, source=str(root), split="shuffled")
    assert sorted(sum(map(levels_of, (data.train, data.val, data.test)), [])) == sorted(expected(*names))


def test_what_is_no_picture_is_named_and_left_out(root, tmp_path, capsys):
    add(root, "train/ox", "train/ant", "val/yak", "val/cow", "test/bee", "test/cat")
    (root / "train" / "ox" / "notes.txt").write_text("an ox")
    whole = (root / "test" / "bee" / "0.png").read_bytes()
    (root / "test" / "bee" / "9.png").write_bytes(whole[:50])
    (root / "README").write_text("pictures")
    (tmp_path / "secret.png").write_bytes(whole)
    (root / "val" / "yak" / "out.png").symlink_to(tmp_path / "secret.png")
    data = image_folder(**SETTINGS, source=str(root), strict=False)
    said = capsys.readouterr().err
    assert "4 of the files" in said and "README (in no class's folder)" in said and "1 more" in said
    (report,) = (tmp_path / "cache").glob("image_folder-*/left_out.json")
    assert str(report) in said
    left_out = json.loads(report.read_text())
    assert list(left_out) == ["README", "test/bee/9.png", "train/ox/notes.txt", "val/yak/out.png"]
    assert "leads out" in left_out["val/yak/out.png"]
    assert levels_of(data.test) == expected("test/bee", "test/cat")
    with pytest.raises(DataError, match="4 of the files in .* Mend or remove them, or .* dataset.strict=false"):
        image_folder(**SETTINGS, source=str(root), strict=True)


def test_classes_of_too_few_pictures_are_left_out(root, capsys):
    add(root, "train/ox", "train/ant", "val/yak", "val/cow", "test/bee", "test/cat")
    add(root, "train/few", "test/less", pictures=2)
    data = image_folder(**SETTINGS, source=str(root))
    assert data.protocol["classes"] == {"train": 2, "val": 2, "test": 2}
    said = capsys.readouterr().err
    assert "Left out of train, having less than 3 images: train/few." in said and "test/less" in said
    with pytest.raises(DataError, match="No class of train has 5 images"):
        image_folder(**SETTINGS | {"shot": 3}, source=str(root))


def test_a_class_in_two_splits_is_refused(root):
    add(root, "train/ox", "train/ant", "val/yak", "val/ox", "test/bee", "test/cat")
    with pytest.raises(DataError, match="ox is in train and in val"):
        image_folder(**SETTINGS, source=str(root))
    with pytest.raises(DataError, match="dataset.split=shuffled"):
        image_folder(**SETTINGS, source=str(root), split="folders")


def test_a_change_is_noticed_and_what_has_not_changed_is_read_from_the_cache(root, capsys):
    add(root, "train/ox", "train/ant", "val/yak", "val/cow", "test/bee", "test/cat")
    first = image_folder(**SETTINGS, source=str(root))
    assert "Building image_folder" in capsys.readouterr().err
    image_folder(**SETTINGS, source=str(root))
    assert "Building" not in capsys.readouterr().err
    path = root / "train" / "ox" / "1.png"
    status = path.stat()
    grey = (level("train/ox/1.png") + 1) % 256
    Image.fromarray(np.full((4, 4), grey, np.uint8)).save(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    changed = image_folder(**SETTINGS, source=str(root))
    assert levels_of(changed.train)[1][1] == grey
    assert changed.protocol["sha256"] != first.protocol["sha256"]
    # The protocol is of what the pictures are, not of when they were written.
    os.utime(path)
    assert image_folder(**SETTINGS, source=str(root)).protocol == changed.protocol


def test_what_was_kept_in_an_older_form_is_prepared_anew(root, monkeypatch, capsys):
    add(root, "train/ox", "train/ant", "val/yak", "val/cow", "test/bee", "test/cat")
    monkeypatch.setattr(class_bank, "FORMAT", class_bank.FORMAT - 1)
    image_folder(**SETTINGS, source=str(root))
    monkeypatch.undo()
    monkeypatch.setenv("METARUN_CACHE", str(root.parent / "cache"))
    capsys.readouterr()
    image_folder(**SETTINGS, source=str(root))
    assert "Building image_folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"source": None}, "dataset.source=None: expected a folder"),
        ({"source": "/no/such"}, "dataset.source=/no/such: expected a folder"),
        ({"image_size": 0}, "dataset.image_size=0"),
        ({"channels": 4}, "dataset.channels=4: expected 1 .* or 3"),
        ({"split": "lake"}, "dataset.split=lake: expected folders, shuffled, cifar_fs, fc100, or the path"),
        ({"strict": "yes"}, "dataset.strict=yes"),
        ({"shot": "one"}, "shot=one"),
        ({"way": 3}, "way=3: expected 2 to 2"),
    ],
)
def test_settings_that_cannot_be_used(root, settings, said):
    add(root, "train/ox", "train/ant", "val/yak", "val/cow", "test/bee", "test/cat")
    with pytest.raises(ConfigError, match=said):
        image_folder(**{"source": str(root)} | SETTINGS | settings)


def test_folders_that_are_not_there(root):
    with pytest.raises(DataError, match="has 0 folders with pictures"):
        image_folder(**SETTINGS, source=str(root))
    add(root, "a", "b", "c")
    with pytest.raises(DataError, match="has a, b, c, where dataset.split=folders needs train, val and test"):
        image_folder(**SETTINGS, source=str(root), split="folders")
