"""`metarun-data`, as a user calls it."""

import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from metarun.commands import cli


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A folder of twelve classes, four grey pictures each; the cache is empty and the working directory too."""
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for c in range(12):
        folder = tmp_path / "pictures" / f"class {c:02}"
        folder.mkdir(parents=True)
        for k in range(4):
            Image.fromarray(np.full((8, 8), 20 * c + k, np.uint8)).save(folder / f"{k}.png")
    return tmp_path / "pictures"


def call(monkeypatch, capsys, *arguments):
    """Returns the exit code, and what is printed on stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["metarun-data", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.data_main()
    said = capsys.readouterr()
    return stopped.value.code, said.out, said.err


def settings(pictures):
    return f"dataset.source={pictures}", "dataset.image_size=8", "dataset.channels=1"


def test_list_names_what_there_is_and_what_is_prepared(pictures, monkeypatch, capsys):
    code, out, _ = call(monkeypatch, capsys, "list")
    assert code == 0 and "Nothing is prepared in" in out
    lines = dict(line.split(maxsplit=1) for line in out.splitlines() if len(line.split()) > 1)
    assert "miniImageNet" in lines["mini_imagenet"] and "own pictures" in lines["image_folder"]
    call(monkeypatch, capsys, "prepare", "image_folder", *settings(pictures))
    assert "image_folder-" in call(monkeypatch, capsys, "list")[1]


def test_prepare_states_the_counts_of_each_split(pictures, monkeypatch, capsys):
    code, out, err = call(monkeypatch, capsys, "prepare", "image_folder", *settings(pictures))
    assert code == 0 and "Building image_folder" in err
    assert "image_folder: 8x8x1, ready in" in out
    counts = [line.split() for line in out.splitlines()[1:4]]
    assert [(line[0], line[1], line[3]) for line in counts] == [
        ("train", "8", "32"),
        ("val", "2", "8"),
        ("test", "2", "8"),
    ]
    assert "Building" not in call(monkeypatch, capsys, "prepare", "image_folder", *settings(pictures))[2]


def test_verify_finds_a_changed_byte(pictures, tmp_path, monkeypatch, capsys):
    call(monkeypatch, capsys, "prepare", "image_folder", *settings(pictures))
    code, out, _ = call(monkeypatch, capsys, "verify")
    assert code == 0 and "whole" in out and "All 1 entries" in out
    (images,) = (tmp_path / "cache").glob("image_folder-*/images.npy")
    with open(images, "r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    code, out, err = call(monkeypatch, capsys, "verify")
    assert code == 2 and "broken" in out and "has been altered" in out and "1 of 1 entries" in err
    code, _, err = call(monkeypatch, capsys, "prepare", "image_folder", *settings(pictures))
    assert code == 2 and "has been altered" in err


def test_show_draws_every_split(pictures, monkeypatch, capsys):
    code, out, _ = call(monkeypatch, capsys, "show", "image_folder", *settings(pictures))
    assert code == 0 and "Some classes of each split: image_folder.png" in out
    with Image.open("image_folder.png") as sheet:
        drawn = np.asarray(sheet.convert("L"))
    # Every grey level of the pictures is somewhere on the sheet.
    assert {20 * c + k for c in range(12) for k in range(4)} <= set(np.unique(drawn).tolist())
    assert call(monkeypatch, capsys, "show", "image_folder", *settings(pictures), "--output", "a.png")[0] == 0
    with Image.open("a.png") as sheet:
        assert sheet.size == drawn.shape[::-1]


def test_names_of_any_bytes_are_prepared_verified_and_drawn(pictures, monkeypatch, capsys):
    (pictures / "class 00").rename(pictures / os.fsdecode("狗".encode("gbk")))
    (pictures / "class 01").rename(pictures / "$猫$\n")
    for command in (["prepare", "image_folder"], ["show", "image_folder"]):
        code, _, err = call(monkeypatch, capsys, *command, *settings(pictures))
        assert code == 0, err
    assert call(monkeypatch, capsys, "verify")[0] == 0
    with Image.open("image_folder.png") as sheet:
        assert {0, 20} <= set(np.unique(np.asarray(sheet.convert("L"))).tolist())


def test_classes_that_are_nearly_all_black_or_white_are_named_with_the_remedy(pictures, monkeypatch, capsys):
    white = np.full((8, 8), 255, np.uint8)
    white[4, 4] = 0  # a dot is more than a hundredth of it
    for name, level in (("class 03", 11), ("class 07", 240)):
        for path in (pictures / name).iterdir():
            Image.fromarray(np.full((8, 8), level, np.uint8)).save(path)
    for path in (pictures / "class 09").iterdir():
        Image.fromarray(white).save(path)
    code, out, _ = call(monkeypatch, capsys, "show", "image_folder", *settings(pictures))
    assert code == 0
    assert "2 of the 12 classes shown are nearly all black: " in out and "class 00" in out and "class 03" in out
    assert "1 of the 12 classes shown are nearly all white: class 07. If" in out and "dataset.range says" in out
    for name in ("class 00", "class 03", "class 07"):
        shutil.copytree(pictures / "class 05", pictures / name, dirs_exist_ok=True)
    out = call(monkeypatch, capsys, "prepare", "image_folder", *settings(pictures))[1]
    assert "nearly" not in out


def test_floats_are_brought_to_the_range_that_is_given_or_refused_by_name(pictures, monkeypatch, capsys):
    for path in pictures.rglob("*.png"):
        grey = np.asarray(Image.open(path))
        Image.fromarray((grey / 255).astype(np.float32)).save(path.with_suffix(".tif"))
        path.unlink()
    code, _, err = call(monkeypatch, capsys, "prepare", "image_folder", *settings(pictures))
    assert code == 2 and "class 00/0.tif: its values are floats from 0 to 0" in err and "dataset.range=[0,1]" in err
    given = [*settings(pictures), "dataset.range=[0,1]"]
    assert call(monkeypatch, capsys, "show", "image_folder", *given)[0] == 0
    with Image.open("image_folder.png") as sheet:
        drawn = np.asarray(sheet.convert("L"))
    assert {20 * c + k for c in range(12) for k in range(4)} <= set(np.unique(drawn).tolist())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["prepare", "image_folder"], "dataset.source=None: expected a folder"),
        (["prepare", "imagenet"], "imagenet"),
        (["prepare", "sinusoid"], "dataset=sinusoid: expected one with classes of images"),
        (["prepare", "image_folder", "dataset.sauce=1"], "Did you mean dataset.source"),
        (["show", "glyphs", "--output", "/dev/null/a.png"], "/dev/null/a.png"),
        (["destroy"], "invalid choice"),
        ([], "required"),
    ],
)
def test_a_mistake_is_one_message(arguments, said, monkeypatch, capsys):
    code, _, err = call(monkeypatch, capsys, *arguments)
    assert code != 0 and said in err and "Traceback" not in err
