import numpy as np

from metarun.data import class_bank
from metarun.data.class_bank import NamedBank


def three_classes():
    return [np.full((count, 2, 3, 1), 10 * count, np.uint8) for count in (2, 1, 4)]


def test_stacked_classes_are_found_by_first_and_count():
    bank = class_bank.stack(three_classes())
    assert bank.images.shape == (7, 2, 3, 1) and bank.images.dtype == np.uint8
    assert bank.first.tolist() == [0, 2, 3] and bank.count.tolist() == [2, 1, 4]
    assert bank.first.dtype == bank.count.dtype == np.int32


def test_select_keeps_the_order_asked_for():
    bank = class_bank.select(class_bank.stack(three_classes()), [2, 0])
    assert bank.images[:, 0, 0, 0].tolist() == [40, 40, 40, 40, 20, 20]
    assert bank.first.tolist() == [0, 4] and bank.count.tolist() == [4, 2]


def test_a_saved_bank_comes_back(tmp_path):
    named = NamedBank(class_bank.stack(three_classes()), ["a", "β", "c"], ["latin", "greek", "latin"])
    class_bank.save(tmp_path, named)
    bank, names, groups = class_bank.load(tmp_path)
    for loaded, saved in zip(bank, named.bank, strict=True):
        np.testing.assert_array_equal(loaded, saved)
        assert loaded.dtype == saved.dtype
    assert names == named.names and groups == named.groups
