import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

import pytest

from metarun.data import cache
from metarun.data.cache import build_once, cache_dir
from metarun.errors import DataError, MetarunError

PARAMETERS = {"size": 3, "levels": (0.1, 0.2)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_two(folder):
    (folder / "a.bin").write_bytes(b"abc" * 100)
    (folder / "b.bin").write_bytes(b"xyz")


def test_the_directory_follows_the_environment(monkeypatch, tmp_path):
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("METARUN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "metarun"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "metarun"


def test_built_once_and_found_again():
    first = build_once("thing", PARAMETERS, write_two)
    again = build_once("thing", PARAMETERS, lambda folder: pytest.fail("built twice"))
    assert first == again
    manifest = json.loads((first.folder / cache.MANIFEST).read_text())
    assert manifest["kind"] == "thing" and manifest["parameters"] == {"size": 3, "levels": [0.1, 0.2]}
    assert sorted(manifest["files"]) == ["a.bin", "b.bin"]


def test_other_parameters_are_another_entry_and_the_checksum_is_of_the_contents():
    first = build_once("thing", PARAMETERS, write_two)
    same = build_once("thing", {"size": 4}, write_two)
    other = build_once("thing", {"size": 5}, lambda folder: (folder / "a.bin").write_bytes(b"other"))
    assert len({first.folder, same.folder, other.folder}) == 3
    assert first.checksum == same.checksum != other.checksum


def test_a_build_that_fails_leaves_nothing(own_cache):
    def fail(folder):
        write_two(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_once("thing", PARAMETERS, fail)
    assert [path.suffix for path in own_cache.iterdir()] == [".lock"]
    build_once("thing", PARAMETERS, write_two)


def test_what_a_killed_build_left_is_swept_away(own_cache):
    entry = build_once("thing", PARAMETERS, write_two)
    partial = entry.folder.rename(entry.folder.with_name(entry.folder.name + ".partial"))
    (partial / "stray").write_text("half written")
    build_once("thing", PARAMETERS, write_two)
    assert not partial.exists() and not (entry.folder / "stray").exists()


@pytest.mark.parametrize("name", ["a.bin", cache.MANIFEST])
def test_a_truncated_file_is_named_with_the_folder_to_delete(name):
    entry = build_once("thing", PARAMETERS, write_two)
    os.truncate(entry.folder / name, 10)
    with pytest.raises(DataError) as caught:
        build_once("thing", PARAMETERS, write_two)
    assert str(entry.folder / name) in str(caught.value)
    assert f"Delete the folder {entry.folder} " in str(caught.value)


def test_an_altered_and_a_missing_file_are_named():
    entry = build_once("thing", PARAMETERS, write_two)
    (entry.folder / "b.bin").write_bytes(b"xyy")
    with pytest.raises(DataError, match="b.bin has been altered"):
        build_once("thing", PARAMETERS, write_two)
    (entry.folder / "b.bin").unlink()
    with pytest.raises(DataError, match="b.bin cannot be read"):
        build_once("thing", PARAMETERS, write_two)


def test_a_directory_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(MetarunError, match="METARUN_CACHE") as caught:
        build_once("thing", PARAMETERS, write_two)
    assert str(tmp_path / "file" / "cache") in str(caught.value)


def test_a_full_disk_is_said_plainly():
    def fill(folder):
        with open("/dev/full", "w") as file:
            file.write("x")

    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(MetarunError, match="No space left"):
        build_once("thing", PARAMETERS, fill)


def _build_and_log(log):
    def build(folder):
        with open(log, "a") as file:
            file.write("built\n")
        write_two(folder)

    build_once("thing", PARAMETERS, build)


def test_processes_at_the_same_time_build_it_once(tmp_path):
    log = tmp_path / "log"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_build_and_log, args=(log,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert log.read_text() == "built\n"


def _build_half_and_wait(ready):
    def build(folder):
        (folder / "a.bin").write_bytes(b"ab")
        ready.set()
        time.sleep(60)

    build_once("thing", PARAMETERS, build)


def test_after_a_kill_in_the_middle_the_next_build_is_whole(own_cache):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_build_half_and_wait, args=(ready,))
    process.start()
    assert ready.wait(60)
    process.kill()
    process.join()
    assert list(own_cache.glob("*" + cache.PARTIAL))
    entry = build_once("thing", PARAMETERS, write_two)
    assert (entry.folder / "a.bin").read_bytes() == b"abc" * 100 and cache.verified(entry.folder) == entry
    assert not list(own_cache.glob("*" + cache.PARTIAL))


def test_a_large_file_is_read_when_asked_for_and_not_at_every_use(monkeypatch):
    entry = build_once("thing", PARAMETERS, write_two)
    (entry.folder / "a.bin").write_bytes(b"abd" * 100)
    monkeypatch.setattr(cache, "READ_UP_TO", 200)
    assert build_once("thing", PARAMETERS, write_two) == entry
    with pytest.raises(DataError, match="a.bin has been altered"):
        cache.verified(entry.folder)
    (entry.folder / "a.bin").write_bytes(b"abc")
    with pytest.raises(DataError, match="has 3 bytes where 300 were written"):
        build_once("thing", PARAMETERS, write_two)
