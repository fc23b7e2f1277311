import logging
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from small_disk import fill, needs_root, small_disk

from metarun import checkpoint
from metarun.errors import MetarunError


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
@pytest.mark.parametrize("file", ["manifest.json", "arrays/_METADATA", "arrays/d/*"])
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
