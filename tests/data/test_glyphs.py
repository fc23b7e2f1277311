import hashlib
import json
import subprocess
import sys
import unicodedata

import jax
import numpy as np
import pytest
from banks import images_of

from metarun.data import glyphs
from metarun.errors import ConfigError, DataError

SETTINGS = {"way": 5, "shot": 1, "query_shot": 5}
# Among them two that look like Latin A, and one whose proportions alone differ from another's.
SOME = ["A", "B", "É", "Α", "Γ", "А", "М", "м", "ᐁ", "א"]


@pytest.fixture(scope="module")
def data():
    """The whole data set, built if this machine has not built it before."""
    return glyphs.glyphs(**SETTINGS)


@pytest.fixture
def few_letters(monkeypatch):
    monkeypatch.setattr(glyphs, "_letters", lambda fonts: SOME)


def test_enough_classes_of_twenty_images_in_each_split(data):
    counts = data.protocol["classes"]
    assert sum(counts.values()) >= 1000
    assert counts["train"] > 0.6 * sum(counts.values()) and counts["val"] > 100 and counts["test"] > 250
    for split in ("train", "val", "test"):
        bank = getattr(data, split).data
        assert len(bank.count) == counts[split] and set(bank.count.tolist()) == {20}
        assert bank.images.shape[1:] == (28, 28, 1) and bank.images.dtype == np.uint8


def test_images_are_ink_on_black_centred_and_not_clipped(data):
    images = np.concatenate([images_of(source) for source in (data.train, data.val, data.test)])[..., 0]
    assert (images.max((1, 2)) > 150).all()
    assert (images[:, 0, 0] == 0).mean() > 0.999 and 0.05 < images.mean() / 255 < 0.3
    border = np.stack([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]])
    assert (border.max((0, 2)) > 64).mean() < 0.01
    where = np.arange(28) - 13.5
    total = images.sum((1, 2), dtype=float)
    for axis in (1, 2):
        centre = (images.sum(3 - axis, dtype=float) * where).sum(1) / total
        assert np.abs(centre.mean()) < 1 and np.abs(centre).max() < 9


def test_images_of_a_class_vary_yet_are_nearer_to_each_other_than_to_other_classes(data):
    images = images_of(data.test).reshape(-1, 20, 28 * 28).astype(np.float32)
    assert len(np.unique(images.reshape(-1, 28 * 28), axis=0)) == images.shape[0] * 20
    prototypes, held_out = images[:, :10].mean(1), images[:, 10:].reshape(-1, 28 * 28)
    prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
    nearest = (held_out @ prototypes.T).argmax(1)
    accuracy = (nearest == np.repeat(np.arange(len(images)), 10)).mean()
    # Chance is 1 in 310. Averages should find classes, and be far from enough.
    assert 0.15 < accuracy < 0.6


def test_whole_scripts_are_held_apart():
    scripts = [script for of_split in glyphs.SCRIPTS.values() for script in of_split]
    assert len(scripts) == len(set(scripts))
    for letter in "AzЖאⴀᐁԱა":
        assert unicodedata.name(letter).startswith(glyphs._script(letter))
    assert glyphs._script("+") is None


def test_look_alikes_are_one_class_and_others_stay(few_letters):
    classes = list(glyphs._draw_all())
    kept = [chr(int(one.name[2:6], 16)) for one in classes]
    assert kept == ["A", "B", "É", "Γ", "М", "ᐁ", "א"]
    assert [one.group for one in classes] == [
        "LATIN",
        "LATIN",
        "LATIN",
        "GREEK",
        "CYRILLIC",
        "CANADIAN SYLLABICS",
        "HEBREW",
    ]


def test_a_fresh_process_draws_the_same_bytes(few_letters):
    code = (
        "import hashlib; from metarun.data import glyphs;"
        f"glyphs._letters = lambda fonts: {SOME!r};"
        "print(hashlib.sha256(b''.join(one.images.tobytes() for one in glyphs._draw_all())).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    here = b"".join(one.images.tobytes() for one in glyphs._draw_all())
    assert hashlib.sha256(here).hexdigest() == there


def test_the_images_of_a_class_do_not_hang_on_which_others_there_are(few_letters, data):
    images = next(glyphs._draw_all()).images
    every = images_of(data.train).reshape(-1, 20, 28, 28, 1)
    assert (every == images).all((1, 2, 3, 4)).sum() == 1


def test_built_once_then_read_from_the_cache(few_letters, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path))
    monkeypatch.setattr(glyphs, "SCRIPTS", {"train": ("LATIN",), "val": ("GREEK", "CYRILLIC"), "test": ("HEBREW", "C")})
    settings = {"way": 2, "shot": 1, "query_shot": 1, "rotations": True, "test_rotations": True}
    first = glyphs.glyphs(**settings)
    assert "Building glyphs" in capsys.readouterr().err
    monkeypatch.setattr(glyphs, "_draw_all", lambda: pytest.fail("built twice"))
    again = glyphs.glyphs(**settings)
    assert capsys.readouterr().err == "" and first.protocol == again.protocol
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {"matplotlib", "pillow", "numpy", "unicode"} <= set(manifest["parameters"])
    with open(folder / "images.npy", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(DataError, match="images.npy has 1000 bytes"):
        glyphs.glyphs(**settings)


def test_more_classes_or_images_than_there_are(data):
    with pytest.raises(ConfigError, match="number of classes in the val split"):
        glyphs.glyphs(**{**SETTINGS, "way": data.protocol["classes"]["val"] + 1})
    with pytest.raises(ConfigError, match="at most 20, the images of the smallest class in the train split"):
        glyphs.glyphs(**{**SETTINGS, "shot": 16})


def test_a_task_can_be_drawn(data):
    task = jax.jit(data.train.sample)(data.train.data, jax.random.key(0))
    assert task.support.x.shape == (5, 28, 28, 1) and task.query.x.shape == (25, 28, 28, 1)
    assert data.objective == "classification" and data.num_outputs == 5
    assert data.protocol["rotations"] == {"train": False, "val": False, "test": False}


def test_fonts_that_are_absent_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr("matplotlib.get_data_path", lambda: str(tmp_path))
    with pytest.raises(DataError, match=str(tmp_path)):
        next(glyphs._draw_all())


def test_importing_it_imports_neither_tfds_nor_matplotlib():
    code = "import sys, metarun.data.glyphs; print({'tensorflow_datasets', 'matplotlib'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
