import numpy as np
import pytest

from metarun.data.contents import class_of, content_hashes


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_square_image_and_its_turns_have_one_hash(channels):
    images = pictures(20, 5, 5, channels)
    hashes = content_hashes(images)
    assert hashes.dtype == np.uint64 and len(set(hashes.tolist())) == 20
    for turn in range(4):
        np.testing.assert_array_equal(content_hashes(np.rot90(images, turn, axes=(1, 2))), hashes)
    assert not set(content_hashes(images[:, ::-1]).tolist()) & set(hashes.tolist())


def test_an_oblong_image_is_known_as_it_is():
    images = pictures(20, 4, 5, 1)
    hashes = content_hashes(images)
    np.testing.assert_array_equal(content_hashes(images.copy()), hashes)
    assert not set(content_hashes(np.rot90(images, 2, axes=(1, 2))).tolist()) & set(hashes.tolist())


def test_the_smallest_change_of_any_pixel_is_another_content():
    image = pictures(1, 4, 4, 1)
    changed = np.repeat(image, 16, 0)
    changed.reshape(16, 16)[np.arange(16), np.arange(16)] ^= 1
    assert len(set(content_hashes(np.concatenate([image, changed])).tolist())) == 17


def test_hashes_are_the_same_on_every_machine():
    # Frozen: they are kept on disk.
    images = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3, 1)
    assert content_hashes(images).tolist() == FROZEN


FROZEN = [1490746271163532961, 6841529020236286407]


def test_no_images_have_no_hashes():
    assert content_hashes(np.empty((0, 4, 4, 1), np.uint8)).shape == (0,)


def test_the_class_of_a_content():
    hashes = content_hashes(pictures(6, 4, 4, 1))
    classes = [hashes[:2], hashes[2:3], hashes[[1, 3, 4]]]
    assert class_of(hashes, classes).tolist() == [0, 0, 1, 2, 2, -1]


@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (4, 4, 1), (2, 3, 4, 5)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.int64, np.complex64, bool, np.uint8])
def test_inputs_of_any_shape_and_type_have_contents(shape, dtype):
    size = max(1, int(np.prod(shape)))
    numbers = np.random.default_rng(1).permutation(20 * size).reshape(20, *shape)
    inputs = (
        numbers % 2 == 0 if dtype is bool else numbers.astype(dtype) * (dtype(1) if dtype is np.uint8 else dtype(3))
    )
    hashes = content_hashes(inputs)
    assert hashes.shape == (20,) and hashes.dtype == np.uint64
    np.testing.assert_array_equal(content_hashes(inputs.copy()[::-1]), hashes[::-1])
    distinct = len(np.unique(inputs.reshape(20, -1), axis=0)) if dtype in (bool, np.uint8) else 20
    assert len(set(hashes.tolist())) == distinct


def test_a_picture_has_one_content_in_levels_and_as_a_learner_sees_it():
    images = pictures(50, 4, 4, 3)
    np.testing.assert_array_equal(content_hashes(images.astype(np.float32) / 255), content_hashes(images))
    np.testing.assert_array_equal(
        content_hashes(images.astype(np.float32) * np.float32(1 / 255)), content_hashes(images)
    )
    between = images.astype(np.float32) / 255 + np.float32(0.002)
    assert not set(content_hashes(between).tolist()) & set(content_hashes(images).tolist())


def test_a_signal_is_not_turned_and_minus_zero_is_zero():
    signals = np.array([[1.5, 0.0], [0.0, 1.5], [1.5, -0.0]])
    first, second, third = content_hashes(signals).tolist()
    assert first == third != second
