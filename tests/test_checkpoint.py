import hashlib
import json
import logging
import os
import random
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from small_disk import fill, needs_root, small_disk
from small_run import call

from metarun.commands import cli
from metarun.errors import MetarunError
from metarun.system.files import canonical_json, plain
from metarun.training import checkpoint


class Pair(NamedTuple):
    params: Any
    rest: Any


def state_of(seed):
    key = jax.random.key(seed)
    w = jax.random.normal(key, (3, 4))
    return Pair(
        params={"Dense_0": {"kernel": w, "bias": jnp.array([0.1, -0.0, jnp.nan, jnp.inf])}},
        rest=(
            jnp.int32(seed),
            jax.random.key(seed + 1),
            w.astype(jnp.bfloat16),
            np.arange(3, dtype=np.float64) / 3,
            jnp.zeros((0, 2)),
            np.array([True, False]),
            [],
        ),
    )


def raw(leaf):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
    return str(leaf.dtype), leaf.shape, array.tobytes()


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert [raw(leaf) for leaf in jax.tree.leaves(found)] == [raw(leaf) for leaf in jax.tree.leaves(expected)]


def never(message):
    raise AssertionError(message)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_arrays_come_back_bit_for_bit(tmp_path):
    checkpoint.save(tmp_path, 7, state_of(7), {"seconds": 0.1, "best": None})
    saved = checkpoint.newest(tmp_path, never)
    assert (saved.step, saved.metadata) == (7, {"seconds": 0.1, "best": None})
    loaded = checkpoint.load(saved, state_of(0))
    assert_same(loaded, state_of(7))
    assert isinstance(loaded.params["Dense_0"]["kernel"], jax.Array)
    assert loaded.rest[2].dtype == ml_dtypes.bfloat16


def test_the_newest_two_are_kept(tmp_path):
    for step in (9, 10, 100):
        checkpoint.save(tmp_path, step, state_of(step), {})
    assert names(tmp_path) == ["10", "100"]
    assert checkpoint.newest(tmp_path, never).step == 100


def test_an_empty_or_absent_directory_holds_none(tmp_path):
    assert checkpoint.newest(tmp_path, never) is None
    assert checkpoint.newest(tmp_path / "absent", never) is None


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-3])


DAMAGES = [flip_a_byte, truncate, lambda path: path.unlink()]


@pytest.mark.parametrize("damage", DAMAGES, ids=["flipped", "truncated", "deleted"])
@pytest.mark.parametrize("file", ["manifest.json", "arrays.bin"])
def test_a_damaged_one_is_passed_over(tmp_path, damage, file):
    checkpoint.save(tmp_path, 10, state_of(10), {})
    checkpoint.save(tmp_path, 20, state_of(20), {})
    damage(next((tmp_path / "20").glob(file)))
    said = []
    saved = checkpoint.newest(tmp_path, said.append)
    assert_same(checkpoint.load(saved, state_of(0)), state_of(10))
    assert len(said) == 1
    assert f"{tmp_path / '20'} is damaged" in said[0] and "step 10" in said[0]

    # The run goes on from step 10, and never loses the one that it stands on.
    checkpoint.save(tmp_path, 15, state_of(15), {})
    assert names(tmp_path) == ["10", "15"]
    checkpoint.save(tmp_path, 20, state_of(20), {})
    assert_same(checkpoint.load(checkpoint.newest(tmp_path, never), state_of(0)), state_of(20))


def test_a_damaged_one_is_replaced(tmp_path):
    checkpoint.save(tmp_path, 10, state_of(10), {})
    truncate(tmp_path / "10" / "manifest.json")
    checkpoint.save(tmp_path, 10, state_of(11), {})
    assert_same(checkpoint.load(checkpoint.newest(tmp_path, never), state_of(0)), state_of(11))


def test_all_damaged_is_an_error(tmp_path):
    for step in (10, 20):
        checkpoint.save(tmp_path, step, state_of(step), {})
        flip_a_byte(tmp_path / str(step) / "manifest.json")
    with pytest.raises(MetarunError, match=r"No checkpoint in .* can be read.*/20.*/10.*hydra\.run\.dir.*resume=false"):
        checkpoint.newest(tmp_path, never)


def test_another_architecture_is_named(tmp_path):
    checkpoint.save(tmp_path, 10, {"params": {"w": jnp.zeros((3, 4)), "b": jnp.zeros(4)}}, {})
    other = {"params": {"w": jnp.zeros((3, 5)), "b": jnp.zeros(4, jnp.bfloat16), "c": jnp.zeros(1)}}
    with pytest.raises(MetarunError) as error:
        checkpoint.load(checkpoint.newest(tmp_path, never), other)
    for part in (
        str(tmp_path / "10"),
        "params/w is [3, 4] float32 in the checkpoint and [3, 5] float32 here",
        "params/b is [4] float32 in the checkpoint and [4] bfloat16 here",
        "params/c is absent in the checkpoint and [1] float32 here",
        "hydra.run.dir=DIR",
        "resume=false",
    ):
        assert part in str(error.value)


def test_a_part_can_be_loaded(tmp_path):
    checkpoint.save(tmp_path, 10, state_of(10), {})
    saved = checkpoint.newest(tmp_path, never)
    template = Pair(state_of(0).params, None)
    assert_same(checkpoint.load(saved, template, partial=True).params, state_of(10).params)
    with pytest.raises(MetarunError, match=r"rest/0 is \[\] int32 in the checkpoint and absent here"):
        checkpoint.load(saved, template)


def test_ambiguous_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="same path"):
        checkpoint.save(tmp_path, 1, {"a": {"b": np.zeros(1)}, "a/b": np.ones(1)}, {})


def test_leftovers_of_a_killed_process_go(tmp_path):
    checkpoint.save(tmp_path, 10, state_of(10), {})
    shutil.copytree(tmp_path / "10", tmp_path / "20.tmp")
    assert checkpoint.newest(tmp_path, never).step == 10
    checkpoint.remove_leftovers(tmp_path)
    assert names(tmp_path) == ["10"]


@needs_root
def test_a_full_disk_costs_no_earlier_checkpoint(tmp_path, caplog, capfd):
    big = {"w": np.random.default_rng(0).normal(size=100_000)}  # 0.8 MB that does not compress
    with small_disk(tmp_path / "disk", "700k") as disk:
        checkpoint.save(disk, 10, state_of(10), {})
        with caplog.at_level(logging.DEBUG), pytest.raises(MetarunError) as error:
            checkpoint.save(disk, 20, big, {})
        assert f"Cannot write {disk / '20'}: the disk is full (about 0.80 MB needed, 0." in str(error.value)
        assert "MB free)" in str(error.value)
        assert names(disk) == ["10"]
        assert_same(checkpoint.load(checkpoint.newest(disk, never), state_of(0)), state_of(10))
        checkpoint.save(disk, 20, state_of(20), {})
        assert names(disk) == ["10", "20"]
    assert "Traceback" not in capfd.readouterr().err


@needs_root
def test_a_disk_without_a_free_byte(tmp_path):
    with small_disk(tmp_path / "disk", "200k") as disk:
        checkpoint.save(disk, 10, state_of(10), {})
        fill(disk / "filler")
        with pytest.raises(MetarunError, match="the disk is full"):
            checkpoint.save(disk, 20, state_of(20), {})
        (disk / "filler").unlink()
        assert names(disk) == ["10"]
        assert_same(checkpoint.load(checkpoint.newest(disk, never), state_of(0)), state_of(10))


# ---- Any name that the file system has.

NAMES = [
    "lr[1]",
    "hidden=[40,40]",
    "a*b",
    "a?b",
    "{x}",
    "~",
    "%",
    "%s",
    "a b",
    "ü",
    "模型",
    "n" * 255,
    "#",
    "-r",
    ".r",
    "a\nb",
]
NAMES += [
    "[",
    "[!a]",
    "**",
    "\\",
    "'",
    '"',
    "$HOME",
    "a:b",
    "s3:",
    "a|b",
    "\t",
    " ",
    os.fsdecode(b"\xff\xfe"),
    "e\u0301",
]
LETTERS = "ab[]{}*?!~%= #.-:;,|&$'\"\\\n\tüé模\U0001f600" + os.fsdecode(b"\xff\x80")


def walk(count, seed):
    """Directories at random depth, of names that no shell likes."""
    rng = random.Random(seed)
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(1, 3)):
            drawn = "".join(rng.choice(LETTERS) for _ in range(rng.randint(1, 12)))
            parts.append(rng.choice([drawn, rng.choice(NAMES)]))
        yield [part if part not in (".", "..") else "x" for part in parts]


@pytest.mark.parametrize("relative", [False, True])
def test_it_is_read_back_from_any_directory(tmp_path, monkeypatch, relative):
    monkeypatch.chdir(tmp_path)
    parts = [[name] for name in NAMES] + list(walk(40, seed=int(relative)))
    state, template = state_of(1), state_of(0)
    for number, names_of in enumerate(parts):
        directory = (type(tmp_path)() if relative else tmp_path).joinpath(str(number), *names_of)
        for step in (1, 2):
            checkpoint.save(directory, step, state, {"number": number})
        assert names(directory) == ["1", "2"]
        saved = checkpoint.newest(directory, never)
        assert (saved.step, saved.metadata) == (2, {"number": number})
        assert_same(checkpoint.load(saved, template), state)


def test_it_is_read_back_through_a_link(tmp_path):
    (tmp_path / "lr[1]").mkdir()
    (tmp_path / "a*").symlink_to("lr[1]")
    checkpoint.save(tmp_path / "a*", 1, state_of(1), {})
    assert_same(checkpoint.load(checkpoint.newest(tmp_path / "lr[1]", never), state_of(0)), state_of(1))


@pytest.mark.slow
def test_a_run_in_a_directory_named_like_a_pattern_can_be_tested(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny = ["method=protonet", "model=mlp", "model.hidden=[4]", "way=2", "query_shot=1", "eval_query_shot=1"]
    tiny += ["steps=1", "meta_batch_size=1", "eval_every=0", "eval_tasks=4"]
    code, _, err = call(cli.main, capsys, monkeypatch, *tiny, "hydra.run.dir='lr[1]'")
    assert code == 0, err
    code, _, err = call(cli.eval_main, capsys, monkeypatch, "run=lr[1]")
    assert code == 0 and list((tmp_path / "lr[1]" / "evaluations").glob("*.json")), err


def test_a_kill_at_any_moment_leaves_one_that_is_whole(tmp_path, monkeypatch):
    directory = tmp_path / "lr[1]" / "checkpoints"
    for step in (1, 2):
        checkpoint.save(directory, step, state_of(step), {})
    moments = []

    def watched(name):
        true = getattr(os, name)

        def call_of(*args, **options):
            copy = tmp_path / f"moment {len(moments)}"
            moments.append(copy)
            with monkeypatch.context() as patch:
                for other, function in originals.items():
                    patch.setattr(os, other, function)
                shutil.copytree(directory, copy)
            return true(*args, **options)

        return call_of

    originals = {name: getattr(os, name) for name in ("mkdir", "fsync", "rename", "replace", "unlink", "rmdir")}
    with monkeypatch.context() as patch:
        for name in originals:
            patch.setattr(os, name, watched(name))
        checkpoint.save(directory, 3, state_of(3), {})
    found = []
    for copy in moments:
        checkpoint.remove_leftovers(copy)
        saved = checkpoint.newest(copy, never)
        assert_same(checkpoint.load(saved, state_of(0)), state_of(saved.step))
        found.append(saved.step)
    assert found == sorted(found) and set(found) == {2, 3} and len(found) > 8


def test_what_is_not_read_as_it_was_written_costs_no_other(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, state_of(1), {})
    checkpoint.save(tmp_path, 2, state_of(2), {})
    write_json = checkpoint.write_json

    def and_a_bad_disk(path, value):
        write_json(path, value)
        flip_a_byte(path.with_name("arrays.bin"))

    monkeypatch.setattr(checkpoint, "write_json", and_a_bad_disk)
    with pytest.raises(MetarunError, match="does not match its checksum.*the disk or the memory may be at fault"):
        checkpoint.save(tmp_path, 3, state_of(3), {})
    assert names(tmp_path) == ["1", "2"]
    assert_same(checkpoint.load(checkpoint.newest(tmp_path, never), state_of(0)), state_of(2))


@pytest.mark.parametrize("kind", ["file", "link", "unicode digits", "leading zero"])
def test_what_somebody_has_put_beside_them_is_no_obstacle(tmp_path, kind):
    checkpoint.save(tmp_path, 1, state_of(1), {})
    name = {"file": "7", "link": "7", "unicode digits": "７", "leading zero": "007"}[kind]
    if kind == "link":
        (tmp_path / name).symlink_to("1")
    elif kind == "file":
        (tmp_path / name).write_text("")
    else:
        (tmp_path / name).mkdir()
    assert checkpoint.newest(tmp_path, lambda text: None).step == 1
    checkpoint.save(tmp_path, 7, state_of(7), {})
    assert_same(checkpoint.load(checkpoint.newest(tmp_path, never), state_of(0)), state_of(7))
    checkpoint.save(tmp_path, 8, state_of(8), {})
    assert {"7", "8"} <= {*names(tmp_path)}


# ---- What a stranger gives is data.


def as_orbax_wrote_it(directory, step, state, metadata):
    """Writes a checkpoint in the earlier format."""
    import orbax.checkpoint as ocp

    def fingerprint(path):
        return [path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()]

    place, leaves = directory / str(step), checkpoint.named_leaves(state)
    place.mkdir(parents=True)
    arrays = {name: array for name, leaf in leaves.items() if (array := checkpoint._host_array(leaf)).size}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(place.absolute() / "arrays", args=ocp.args.PyTreeSave(arrays))
    files = [path for path in place.rglob("*") if path.is_file()]
    write_manifest(
        place,
        step=step,
        metadata=metadata,
        leaves={name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in leaves.items()},
        files={str(path.relative_to(place)): fingerprint(path) for path in files},
    )


def write_manifest(place, **content):
    content = {"sha256": hashlib.sha256(canonical_json(content).encode()).hexdigest(), **plain(content)}
    (place / "manifest.json").write_text(json.dumps(content))


def manifest_of(place):
    content = json.loads((place / "manifest.json").read_text())
    del content["sha256"]
    return content


def test_what_orbax_wrote_is_read_still(tmp_path):
    as_orbax_wrote_it(tmp_path / "ok", 7, state_of(7), {"seconds": 0.1})
    (tmp_path / "ok").rename(tmp_path / "lr[1]")
    saved = checkpoint.newest(tmp_path / "lr[1]", never)
    assert (saved.step, saved.metadata, saved.arrays) == (7, {"seconds": 0.1}, None)
    assert_same(checkpoint.load(saved, state_of(0)), state_of(7))
    part = checkpoint.load(saved, Pair(state_of(0).params, None), partial=True)
    assert_same(part.params, state_of(7).params)
    flip_a_byte(next((tmp_path / "lr[1]" / "7" / "arrays" / "d").glob("*")))
    with pytest.raises(MetarunError, match="does not match its checksum"):
        checkpoint.newest(tmp_path / "lr[1]", never)


def change(**entries):
    return lambda place: write_manifest(place, **{**manifest_of(place), **entries})


def link_to_outside(name):
    def damage(place):
        outside = place.parent.parent / "outside"
        (place / name).rename(outside)
        (place / name).symlink_to(outside)

    return damage


def a_pipe(place):
    (place / "arrays.bin").unlink()
    os.mkfifo(place / "arrays.bin")


def a_huge_manifest(place):
    os.truncate(place / "manifest.json", 2**40)  # of zeros that take no space


def huge_arrays(place):
    os.truncate(place / "arrays.bin", 2**43)


HOSTILE = {
    "list": lambda place: (place / "manifest.json").write_text("[1]"),
    "deep": lambda place: (place / "manifest.json").write_text("[" * 100_000),
    "pickle": lambda place: (place / "manifest.json").write_bytes(b"\x80\x04cos\nsystem\n(S'touch x'\ntR."),
    "utf-16": lambda place: (place / "manifest.json").write_text("{}", encoding="utf-16"),
    "huge manifest": a_huge_manifest,
    "huge arrays": huge_arrays,
    "pipe": a_pipe,
    "linked arrays": link_to_outside("arrays.bin"),
    "linked manifest": link_to_outside("manifest.json"),
    "leaves": change(leaves=[1]),
    "leaf": change(leaves={"w": 1}),
    "shape": change(leaves={"w": [["3"], "float32"]}),
    "negative": change(leaves={"w": [[-3], "float32"]}),
    "metadata": change(metadata=None),
    "step": change(step=True),
    "other names": change(arrays={"../../etc/passwd": [0, ""]}),
    "no arrays": change(arrays={}),
    "size": lambda place: change(arrays={"w": [-1, ""], "b": [25, ""]})(place),
    "digest": change(arrays={"b": [4, 7], "w": [24, None]}),
}


@pytest.mark.parametrize("damage", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_one_is_one_message(tmp_path, damage):
    checkpoint.save(tmp_path / "c", 1, {"b": np.ones(1, np.float32), "w": np.ones((2, 3), np.float32)}, {})
    damage(tmp_path / "c" / "1")
    with pytest.raises(MetarunError, match="No checkpoint in .* can be read"):
        checkpoint.newest(tmp_path / "c", never)


@pytest.mark.parametrize("leaf", [[[10**15], "float32"], [[6], "object"], [[6], "float64"], [[2], "key<fry>"]])
def test_another_shape_or_type_than_is_stored_is_one_message(tmp_path, leaf):
    checkpoint.save(tmp_path, 1, {"w": np.ones(6, np.float32)}, {})
    change(leaves={"w": leaf})(tmp_path / "1")
    saved = checkpoint.newest(tmp_path, never)
    with pytest.raises(MetarunError, match="of another architecture"):
        checkpoint.load(saved, {"w": np.ones(6, np.float32)})
    if leaf[1] == "float64":
        with pytest.raises(MetarunError, match="w has 24 bytes, which are not those of its shape"):
            checkpoint.load(saved, {"w": np.ones(6, np.float64)})


@pytest.mark.parametrize("kind", ["above", "absolute", "linked", "device"])
def test_the_files_of_a_hostile_one_lie_in_its_directory(tmp_path, kind):
    as_orbax_wrote_it(tmp_path / "c", 1, {"w": np.ones(6, np.float32)}, {})
    place, outside = tmp_path / "c" / "1", tmp_path / "outside"
    outside.write_bytes(b"secret")
    file = next((place / "arrays" / "d").glob("*"))
    entry = [6, hashlib.sha256(b"secret").hexdigest()]
    files = manifest_of(place)["files"]
    if kind == "linked":
        file.rename(outside)
        file.symlink_to(outside)
    elif kind == "device":
        file.unlink()
        os.mkfifo(file)
    else:
        name = str(outside) if kind == "absolute" else "../../outside"
        change(files={**files, name: entry})(place)
    with pytest.raises(MetarunError, match="is not in its directory|is neither a file nor a directory"):
        checkpoint.newest(tmp_path / "c", never)


def test_what_orbax_is_to_read_is_no_larger_than_what_is_asked_for(tmp_path):
    as_orbax_wrote_it(tmp_path, 1, {"w": np.zeros(4_000_000, np.float32)}, {})
    change(leaves={"w": [[6], "float32"]})(tmp_path / "1")
    saved = checkpoint.newest(tmp_path, never)
    with pytest.raises(MetarunError, match="w is not stored with the shape and type of the manifest"):
        checkpoint.load(saved, {"w": np.ones(6, np.float32)})
