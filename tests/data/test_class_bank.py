import numpy as np
import pytest

from metarun.data import class_bank
from metarun.data.class_bank import NamedClass
from metarun.data.contents import content_hashes


def three_classes():
    return [np.full((count, 2, 3, 1), 10 * count, np.uint8) for count in (2, 1, 4)]


def test_stacked_classes_are_found_by_first_and_count():
    bank = class_bank.stack(three_classes())
    assert bank.images.shape == (7, 2, 3, 1) and bank.images.dtype == np.uint8
    assert bank.first.tolist() == [0, 2, 3] and bank.count.tolist() == [2, 1, 4]
    assert bank.first.dtype == bank.count.dtype == np.int32


def test_the_bank_of_some_classes_keeps_the_order_asked_for_and_copies_no_image():
    whole = class_bank.stack(three_classes())
    bank = class_bank.of_classes(whole, [2, 0])
    assert bank.images is whole.images
    assert bank.first.tolist() == [3, 0] and bank.count.tolist() == [4, 2]


def test_a_saved_bank_comes_back(tmp_path):
    images, names, groups = three_classes(), ["a", "β", "c"], ["latin", "greek", "latin"]
    class_bank.save(tmp_path, map(NamedClass, names, groups, images))
    loaded = class_bank.load(tmp_path)
    for got, expected in zip(loaded.bank, class_bank.stack(images), strict=True):
        np.testing.assert_array_equal(got, expected)
        assert got.dtype == expected.dtype
    assert loaded.names == names and loaded.groups == groups
    np.testing.assert_array_equal(loaded.hashes, content_hashes(loaded.bank.images))


@pytest.mark.parametrize("num_classes", [1, 1500])
def test_classes_written_in_turn_are_the_file_that_numpy_writes(num_classes, tmp_path):
    images = [np.full((k % 7 + 1, 3, 2, 1), k % 256, np.uint8) for k in range(num_classes)]
    class_bank.save(tmp_path, (NamedClass(str(k), "", one) for k, one in enumerate(images)))
    np.save(tmp_path / "whole.npy", np.concatenate(images))
    assert (tmp_path / class_bank.IMAGES).read_bytes() == (tmp_path / "whole.npy").read_bytes()
