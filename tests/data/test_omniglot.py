import io
import json
import os
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from banks import images_of
from PIL import Image
from small_omniglot import drawing, write_archives

from metarun.data import omniglot as module
from metarun.data.cache import file_sha256
from metarun.data.class_split import SPLITS
from metarun.data.omniglot import omniglot
from metarun.errors import ConfigError, DataError

SETTINGS = {"way": 2, "shot": 1, "query_shot": 1, "rotations": True}
DRAWINGS = 3
REAL = Path(os.environ.get("METARUN_TEST_OMNIGLOT", "absent"))


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "source"
    folder.mkdir()
    write_archives(folder, DRAWINGS)
    return folder


def listed(**changes):
    split = {"train": ["Alpha/character01", "Delta/character03"], "val": ["Beta/character02", "Beta/character01"]}
    return split | {"test": ["Gamma_(old)/character01", "Alpha/character02"]} | changes


def write_split(tmp_path, content):
    path = tmp_path / "split.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_lake_holds_alphabets_apart(source):
    data = omniglot(**SETTINGS, source=str(source), split="lake")
    assert data.protocol["classes"] == {"train": 5, "val": 2, "test": 3}
    assert data.protocol["rotations"] == {"train": True, "val": False, "test": False}
    assert data.protocol["split"] == "lake" and "split_seed" not in data.protocol
    assert images_of(data.test).shape == (9, 28, 28, 1) and data.test.data.count.tolist() == [3, 3, 3]


def test_images_are_area_averages_of_the_ink_in_order(source):
    images = images_of(omniglot(**SETTINGS, source=str(source), split="lake").train)
    # Enlarged to 420x420, each pixel of 28x28 is 15x15 whole ones.
    for k in range(1, DRAWINGS + 1):
        fine = np.kron(drawing([1, k])[1], np.ones((4, 4)))
        exact = 255 * fine.reshape(28, 15, 28, 15).mean((1, 3))
        np.testing.assert_allclose(images[k - 1, :, :, 0], exact, atol=0.5001)


def test_a_file_of_the_user_decides_the_split(source, tmp_path):
    path = write_split(tmp_path, listed())
    data = omniglot(**SETTINGS, source=str(source), split=path)
    every = omniglot(**SETTINGS, source=str(source), split="lake")
    assert data.protocol["classes"] == {"train": 2, "val": 2, "test": 2}
    assert data.protocol["split"] == "split.json" and data.protocol["split_sha256"] == file_sha256(Path(path))
    np.testing.assert_array_equal(images_of(data.train)[DRAWINGS:], images_of(every.test)[2 * DRAWINGS :])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (listed(val=["Beta/character02", "Beta/character09"]), "Beta/character09, which the source does not have"),
        (listed(val=["Alpha/character01"]), "Alpha/character01 more than once"),
        (listed(val=[]), "no class in val"),
        (listed(extra=[]), "not JSON of the form"),
        (listed(val="Beta"), "not have"),
        ({"train": []}, "not JSON of the form"),
        ("train: []", "not JSON of the form"),
        ([1], "not JSON of the form"),
    ],
)
def test_a_file_that_cannot_be_used(source, tmp_path, content, said):
    path = write_split(tmp_path, content)
    with pytest.raises(DataError, match="split.json") as caught:
        omniglot(**SETTINGS, source=str(source), split=path)
    assert said in str(caught.value)


def test_a_split_that_is_none(source):
    with pytest.raises(ConfigError, match="dataset.split=vinyals: expected maml, lake, or the path"):
        omniglot(**SETTINGS, source=str(source), split="vinyals")


def test_maml_is_of_all_characters(source):
    with pytest.raises(DataError, match="all 1623 characters; the source has 10"):
        omniglot(**SETTINGS, source=str(source))


def test_maml_shuffles_by_the_seed():
    names = [f"A/character{i:04d}" for i in range(1623)]
    one, same, other = module._maml(names, 0), module._maml(names, 0), module._maml(names, 1)
    assert one == same and one != other
    assert [len(one[split]) for split in SPLITS] == [1100, 100, 423]
    assert sorted(sum(one.values(), [])) == list(range(1623))
    # A frozen draw: a published split must not move.
    assert one["val"][:5] == [218, 764, 384, 710, 552]


def test_unpacked_folders_give_the_same(source, tmp_path):
    zipped = omniglot(**SETTINGS, source=str(source), split="lake")
    unpacked = tmp_path / "unpacked"
    for part in module.PARTS:
        with zipfile.ZipFile(source / f"{part}.zip") as archive:
            archive.extractall(unpacked)
    assert omniglot(**SETTINGS, source=str(unpacked), split="lake").protocol == zipped.protocol


def test_linked_folders_of_what_was_unpacked(source, tmp_path):
    zipped = omniglot(**SETTINGS, source=str(source), split="lake").protocol
    unpacked = tmp_path / "unpacked"
    for part in module.PARTS:
        with zipfile.ZipFile(source / f"{part}.zip") as archive:
            archive.extractall(unpacked)
    background = unpacked / "images_background"
    (background / ".kept").mkdir()
    for place, link in ((background / ".kept" / "Beta", "Beta"), (tmp_path / "elsewhere", "Alpha")):
        (background / link).rename(place)
        (background / link).symlink_to(place)
    with pytest.raises(
        DataError, match="images_background has 1 links to folders that lead out of it: Alpha.*links=follow"
    ):
        omniglot(**SETTINGS, source=str(unpacked), split="lake")
    assert omniglot(**SETTINGS, source=str(unpacked), split="lake", links="follow").protocol == zipped
    (background / "Gone").symlink_to("nowhere")
    with pytest.raises(DataError, match="Gone of .* cannot be read: a link to nothing"):
        omniglot(**SETTINGS, source=str(unpacked), split="lake", links="follow")


def test_a_list_with_a_byte_order_mark(source, tmp_path):
    path = tmp_path / "bom.json"
    path.write_bytes(json.dumps(listed()).encode("utf-8-sig"))
    data = omniglot(**SETTINGS, source=str(source), split=str(path))
    assert data.protocol["classes"] == {"train": 2, "val": 2, "test": 2}


def test_a_folder_that_is_not_there():
    with pytest.raises(ConfigError, match="dataset.source=/no/such: expected a folder that holds images_b"):
        omniglot(**SETTINGS, source="/no/such")


def test_a_missing_archive_is_named(source):
    (source / "images_evaluation.zip").unlink()
    with pytest.raises(DataError, match=f"{source}/images_evaluation.zip is missing. Get it from https://"):
        omniglot(**SETTINGS, source=str(source))


def test_a_corrupt_archive_is_named_and_nothing_is_cached(source, tmp_path):
    path = source / "images_evaluation.zip"
    whole = path.read_bytes()
    middle = len(whole) // 2
    damaged = whole[:middle] + bytes(b ^ 0xFF for b in whole[middle : middle + 20]) + whole[middle + 20 :]
    for broken in (whole[:middle], damaged, b"", b"<html>not found</html>"):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=f"{path} is corrupt"):
            omniglot(**SETTINGS, source=str(source), split="lake")
        assert not [entry for entry in (tmp_path / "cache").iterdir() if entry.is_dir()]
    path.write_bytes(whole)
    omniglot(**SETTINGS, source=str(source), split="lake")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("images_evaluation/Delta/character04/0099_01.png", b"no picture", "Delta/character04/0099_01.png cannot be"),
        ("images_evaluation/Delta/character04/0099_01.png", None, "0099_01.png is 8x9, not 105x105"),
    ],
)
def test_a_drawing_that_is_none_is_named(source, name, content, said):
    if content is None:
        stream = io.BytesIO()
        Image.new("1", (8, 9)).save(stream, "PNG")
        content = stream.getvalue()
    with zipfile.ZipFile(source / "images_evaluation.zip", "a") as archive:
        archive.writestr(name, content)
    with pytest.raises(DataError, match="Delta") as caught:
        omniglot(**SETTINGS, source=str(source), split="lake")
    assert said in str(caught.value)


def test_an_archive_of_something_else(source):
    with zipfile.ZipFile(source / "images_background.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing here")
    with pytest.raises(DataError, match="images_background has no drawing"):
        omniglot(**SETTINGS, source=str(source), split="lake")


@pytest.fixture
def local_downloads(source, monkeypatch):
    """Lets TFDS take the archives of `source` for the downloads, where it looks for what was fetched by hand."""
    tfds = pytest.importorskip("tensorflow_datasets")
    archives = {part: source / f"{part}.zip" for part in module.PARTS}
    official = {part: (path.stat().st_size, file_sha256(path)) for part, path in archives.items()}
    monkeypatch.setattr(module, "OFFICIAL", official)
    monkeypatch.setattr(module, "_require_network", lambda url: None)
    prepare = tfds.core.GeneratorBasedBuilder.download_and_prepare
    config = tfds.download.DownloadConfig(manual_dir=source)
    monkeypatch.setattr(
        tfds.core.GeneratorBasedBuilder,
        "download_and_prepare",
        lambda builder: prepare(builder, download_config=config),
    )
    return source


def test_through_tfds_comes_the_same_without_tensorflow(local_downloads, tmp_path, monkeypatch):
    downloaded = omniglot(**SETTINGS, split="lake")
    assert list((tmp_path / "cache" / "tfds").rglob("*.array_record*")) and "tensorflow" not in sys.modules
    # The archives themselves are another way to the same entry of the cache, so look elsewhere.
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "other"))
    direct = omniglot(**SETTINGS, split="lake", source=str(local_downloads))
    assert downloaded.protocol == direct.protocol
    np.testing.assert_array_equal(images_of(downloaded.val), images_of(direct.val))


def test_a_download_that_is_not_the_official_file_is_refused(local_downloads):
    with zipfile.ZipFile(local_downloads / "images_evaluation.zip", "a") as archive:
        archive.writestr("more", "bytes")
    with pytest.raises(DataError, match="wrong checksum"):
        omniglot(**SETTINGS, split="lake")


def test_offline_without_a_source_says_both_ways_out_at_once(monkeypatch, tmp_path):
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path))
    # A port that nothing listens on stands in for the network.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(module, "URL", f"http://127.0.0.1:{port}/")
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    start = time.monotonic()
    with pytest.raises(DataError, match="connect to the network .* set dataset.source=DIR"):
        omniglot(**SETTINGS)
    assert time.monotonic() - start < 15


def test_importing_it_does_not_import_tfds():
    code = "import sys, metarun.data.omniglot; print('tensorflow_datasets' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.skipif(not (REAL / "images_background.zip").exists(), reason="no archives: set METARUN_TEST_OMNIGLOT=DIR")
def test_the_real_archives():
    settings = {"way": 20, "shot": 1, "query_shot": 5, "source": str(REAL)}
    maml, lake = omniglot(**settings), omniglot(**settings, split="lake")
    assert maml.protocol["classes"] == {"train": 1100, "val": 100, "test": 423}
    assert lake.protocol["classes"] == {"train": 813, "val": 151, "test": 659}
    assert maml.protocol["sha256"] == REAL_SHA256
    images = images_of(maml.train)
    assert images.shape == (22000, 28, 28, 1) and 0.05 < images.mean() / 255 < 0.15


# The reduction is exact, so these are the bytes on every machine.
REAL_SHA256 = "899f60ebe532354de06cfc5321c28aadcafc3531f561be302ce97407c368eb6b"
