import json
import os
import unicodedata

import numpy as np
import pytest
from banks import images_of
from PIL import Image

from metarun.assembly.run_parts import identity
from metarun.data import class_bank
from metarun.data.class_split import shuffled_or_from_file
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
    with pytest.raises(DataError, match="No class of train has 5 images, the largest 3. Lower shot or query_shot"):
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
        ({"source": 5}, "dataset.source=5: expected a folder"),
        ({"source": "~no-such-user/x"}, "dataset.source=~no-such-user/x: expected a folder"),
        ({"source": "x" * 5000}, "expected a folder"),
        ({"split": ["train"]}, r"dataset.split=\['train'\]: expected folders, shuffled"),
        ({"split": 5}, "dataset.split=5: expected folders, shuffled"),
        ({"split": "~no-such-user/x"}, "dataset.split=~no-such-user/x: expected folders, shuffled"),
        ({"image_size": 0}, "dataset.image_size=0"),
        ({"channels": 4}, "dataset.channels=4: expected 1 .* or 3"),
        (
            {"split": "lake"},
            "dataset.split=lake: expected folders, shuffled, cifar_fs, fc100, meta_dataset_cub, .*, or the path",
        ),
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


SPLIT_FOLDERS = ("train/ox", "train/ant", "val/yak", "val/cow", "test/bee", "test/cat")


def written(path, lists, encoding="utf-8"):
    path.write_bytes(json.dumps(lists, ensure_ascii=False).encode(encoding))
    return str(path)


def test_a_stray_picture_does_not_change_how_a_folder_is_read(root, capsys):
    add(root, *SPLIT_FOLDERS)
    plain = image_folder(**SETTINGS, source=str(root))
    add(root, "train", "val", pictures=1)
    capsys.readouterr()
    data = image_folder(**SETTINGS, source=str(root))
    for split in ("train", "val", "test"):
        assert levels_of(getattr(data, split)) == levels_of(getattr(plain, split))
    assert {**data.protocol, "sha256": ""} == {**plain.protocol, "sha256": ""}
    assert (
        "2 of the files in" in (said := capsys.readouterr().err) and "train/0.png, val/0.png. They are left out" in said
    )
    with pytest.raises(DataError, match="train/0.png, val/0.png. Put them elsewhere"):
        image_folder(**SETTINGS, source=str(root), strict=True)


@pytest.mark.parametrize(
    "called", [("Train", "VAL", "Test"), ("training", "valid", "evaluation"), ("train", "dev", "test")]
)
def test_folders_of_splits_by_their_other_names(called, root):
    add(
        root,
        *(
            name.replace(split, its)
            for split, its in zip(("train", "val", "test"), called, strict=True)
            for name in SPLIT_FOLDERS
            if name.startswith(split)
        ),
    )
    data = image_folder(**SETTINGS, source=str(root))
    assert data.protocol["split"] == "folders"
    assert levels_of(data.train) == expected(f"{called[0]}/ant", f"{called[0]}/ox")
    assert levels_of(data.val) == expected(f"{called[1]}/cow", f"{called[1]}/yak")
    assert levels_of(data.test) == expected(f"{called[2]}/bee", f"{called[2]}/cat")


def test_a_missing_folder_of_validation_is_said(root, capsys):
    add(root, *(f"Train/{k}" for k in range(10)), "test/a", "test/b")
    data = image_folder(**SETTINGS, source=str(root))
    assert data.protocol["classes"] == {"train": 8, "val": 2, "test": 2}
    assert "has no folder val: 2 of train's 10 classes are held out for it." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "because", "as_splits", "as_classes"),
    [
        (
            ["extra/fox", "extra/elk"],
            "extra beside",
            "train 2, val 2, test 2 classes",
            "train 5, val 1, test 2, shuffled",
        ),
        (
            ["valid/fox", "valid/elk"],
            "val and valid, which are both val",
            "an error",
            "train 5, val 1, test 2, shuffled",
        ),
        (["Train/fox", "Train/elk"], "Train and train, which are both train", "an error", "train 5, val 1, test 2, sh"),
    ],
)
def test_a_layout_in_doubt_is_refused_with_both_readings_and_the_key(root, more, because, as_splits, as_classes):
    add(root, *SPLIT_FOLDERS, *more)
    with pytest.raises(DataError, match="can be read in two ways") as refused:
        image_folder(**SETTINGS, source=str(root))
    said = str(refused.value)
    assert because in said and "Say which by dataset.layout" in said
    as_one, as_other = said.split("dataset.layout=splits,")[1].split("dataset.layout=classes,")
    assert as_splits in as_one and as_classes in as_other and "each of 8 folders" in as_other


def test_the_key_decides_a_layout_in_doubt(root, capsys):
    add(root, *SPLIT_FOLDERS, "extra/fox", "extra/elk")
    data = image_folder(**SETTINGS, source=str(root), layout="splits")
    assert levels_of(data.train) == expected("train/ant", "train/ox") and data.protocol["split"] == "folders"
    assert "6 of the files in" in (said := capsys.readouterr().err) and "extra/elk/0.png" in said
    data = image_folder(**SETTINGS | {"way": 2}, source=str(root), layout="classes", split=None, test_only=True)
    assert data.protocol["classes"] == {"train": 5, "val": 1, "test": 2} and data.protocol["split"] == "shuffled"


@pytest.mark.parametrize(
    ("names", "because"),
    [
        (
            [f"data/{name}" for name in SPLIT_FOLDERS],
            "data/test/bee, data/train/ant, data/val/cow (or is it dataset.source=/",
        ),
        ([f"{c}/{split}" for c in "abcdef" for split in ("train", "test")], "such as a/test, a/train"),
        (["train/ox", "train/ant", "train/elk", "val/yak", "val/cow"], "no folder test"),
        (["train", "val", "test"], "which has pictures but no folders of classes"),
        (["train/ox", "train/ant", "val", "test/bee", "test/cat"], "val, which has pictures but no folders"),
    ],
    ids=["a folder above", "splits below classes", "no test", "pictures alone", "pictures alone in one"],
)
def test_other_layouts_in_doubt(root, names, because):
    add(root, *names)
    with pytest.raises(DataError, match="can be read in two ways") as refused:
        image_folder(**SETTINGS, source=str(root))
    assert because in str(refused.value)


def test_a_class_may_be_called_as_a_split_is(root):
    names = ["train", "bus", "car", "ship/val", *map(str, range(8))]
    add(root, *names)
    data = image_folder(**SETTINGS, source=str(root))
    assert data.protocol["split"] == "shuffled" and sum(data.protocol["classes"].values()) == 12


@pytest.mark.parametrize("settings", [{"split": "shuffled"}, {"layout": "classes"}, {"layout": "splits"}, {}])
def test_classes_of_one_name_in_two_splits_are_refused_in_every_reading(settings, root, tmp_path):
    names = [f"{split}/k{c}" for split, n in (("train", 6), ("valid", 3), ("test", 3)) for c in range(n)]
    add(root, *names)
    with pytest.raises(DataError, match="k0, k1, k2 is in .* and in .* and in .* a class is in one split only"):
        image_folder(**SETTINGS, source=str(root), **settings)
    # Who names the folders of each split says that they are different classes.
    lists = {split: [n for n in names if n.startswith(split)] for split in ("train", "val", "test")}
    data = image_folder(**SETTINGS, source=str(root), split=written(tmp_path / "split.json", lists))
    assert data.protocol["classes"] == {"train": 6, "val": 3, "test": 3}


def test_a_layout_that_the_split_contradicts_is_refused(root):
    add(root, *SPLIT_FOLDERS)
    for settings, said in (
        (
            {"split": "folders", "layout": "classes"},
            "dataset.layout=classes: expected splits, or auto, with dataset.split=f",
        ),
        ({"split": "shuffled", "layout": "splits"}, "dataset.layout=splits: expected classes, or auto"),
        ({"layout": "both"}, "dataset.layout=both: expected one of auto, splits, classes"),
    ):
        with pytest.raises(ConfigError, match=said):
            image_folder(**SETTINGS, source=str(root), **settings)


def test_at_their_defaults_the_keys_that_came_later_are_no_part_of_what_a_run_is():
    values = {"optimizer": {}, "dataset": {"split": None, "layout": "auto", "links": "inside"}}
    choices = {"dataset": "image_folder", "optimizer": "adam"}
    assert identity(values, choices, {}) == {**choices, "dataset.split": None}
    values["dataset"]["layout"] = "classes"
    assert identity(values, choices, {})["dataset.layout"] == "classes"


@pytest.mark.parametrize(
    ("number", "would"), [(1, "1, val 0, test 0"), (2, "1, val 1"), (3, "2, val 1"), (4, "3, val 1")]
)
def test_too_few_classes_to_shuffle_says_how_many_are_enough(number, would):
    with pytest.raises(DataError, match=f"There are {number} classes, .* needs 5 or more: they would be train {would}"):
        shuffled_or_from_file("abcdef"[:number], "shuffled", 0)


@pytest.mark.parametrize(("number", "sizes"), [(5, (3, 1, 1)), (6, (4, 1, 1)), (25, (16, 4, 5))])
def test_enough_classes_are_shuffled_in_their_shares(number, sizes):
    parts, _ = shuffled_or_from_file([*map(str, range(number))], "shuffled", 0)
    assert tuple(map(len, parts.values())) == sizes


def test_a_split_of_one_class_is_no_range_for_way(root):
    add(root, *"abcdef")
    with pytest.raises(
        DataError, match=r"way=2: the val split \(classes: train 4, val 1, test 1\) has 1 class, and a task"
    ):
        image_folder(**SETTINGS, source=str(root))


GBK = os.fsdecode("狗".encode("gbk"))
ACCENTS = ("Übung", "café", "niño", "señal", "Ñandú", "crème")


def test_names_in_bytes_that_are_no_unicode_are_kept(root, tmp_path):
    names = [GBK, *map(str, range(5))]
    add(root, *names[1:])
    (root / GBK).mkdir()
    for k in range(3):
        Image.fromarray(np.full((4, 4), 250 + k, np.uint8)).save(root / GBK / f"{k}.png")
    (root / GBK / f"{GBK}.txt").write_text("a dog")
    lists = {"train": [GBK, "0"], "val": ["1", "2"], "test": ["3", "4"]}
    (tmp_path / "raw.json").write_bytes(json.dumps(lists, ensure_ascii=False).encode("utf-8", "surrogateescape"))
    (tmp_path / "escaped.json").write_text(json.dumps(lists))
    for name in ("raw.json", "escaped.json"):
        data = image_folder(**SETTINGS, source=str(root), split=str(tmp_path / name))
        assert levels_of(data.train) == [[250, 251, 252], *expected("0")]
    (entry,) = (tmp_path / "cache").glob("image_folder-*[0-9a-f]")
    assert class_bank.load(entry).names == sorted(names)
    assert list(json.loads((entry / "left_out.json").read_bytes())) == [f"{GBK}/{GBK}.txt"]
    loaded = image_folder.load(source=str(root), image_size=4, channels=1)
    assert sorted(loaded.names[c] for its in loaded.classes.values() for c in its) == sorted(names)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("forms", [("NFD", "NFC"), ("NFC", "NFD")])
def test_a_list_may_spell_letters_as_the_folders_do_not(forms, encoding, root, tmp_path):
    on_disk, listed = ([unicodedata.normalize(form, name) for name in ACCENTS] for form in forms)
    add(root, *on_disk)
    lists = {"train": listed[:2], "val": listed[2:4], "test": listed[4:]}
    data = image_folder(**SETTINGS, source=str(root), split=written(tmp_path / "split.json", lists, encoding))
    assert [levels_of(s) for s in (data.train, data.val, data.test)] == [
        expected(*on_disk[k : k + 2]) for k in (0, 2, 4)
    ]


def test_folders_that_look_alike_are_refused_by_name(root):
    add(root, *map(str, range(6)), "caf\u00e9", "cafe\u0301")
    with pytest.raises(DataError, match=r"called café, by different characters: 'cafe\\u0301' and 'caf\\xe9'"):
        image_folder(**SETTINGS, source=str(root))


def test_links_to_class_folders_within_the_source_are_followed(root, tmp_path):
    add(root, *(f"all/{name}" for name in ("ox", "ant", "yak", "cow", "bee", "cat")))
    for name in SPLIT_FOLDERS:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).symlink_to(root / "all" / name.split("/")[1])
    (tmp_path / "by a link").symlink_to(root)
    data = image_folder(**SETTINGS, source=str(tmp_path / "by a link"), layout="splits")
    assert levels_of(data.train) == expected("all/ant", "all/ox")
    assert levels_of(data.test) == expected("all/bee", "all/cat")
    with pytest.raises(DataError, match="all/bee and test/bee of .* are one folder, by a link"):
        image_folder(**SETTINGS, source=str(root), layout="classes")


def test_links_to_folders_out_of_the_source_are_refused_by_name_or_followed(root, tmp_path):
    add(root, *map(str, range(11)))
    add(tmp_path / "raw", *map(str, range(11, 16)))
    for c in range(11, 16):
        (root / str(c)).symlink_to(f"../raw/{c}")
    with pytest.raises(
        DataError, match="has 5 links to folders that lead out of it: 11, 12, 13 and 2 more.*dataset.links=f"
    ):
        image_folder(**SETTINGS, source=str(root))
    data = image_folder(**SETTINGS, source=str(root), links="follow")
    found = sum((levels_of(source) for source in (data.train, data.val, data.test)), [])
    assert sorted(found) == sorted(expected(*map(str, range(16))))
    with pytest.raises(ConfigError, match="dataset.links=all: expected one of inside, follow"):
        image_folder(**SETTINGS, source=str(root), links="all")
