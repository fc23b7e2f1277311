import jax
import numpy as np
import pytest
from banks import images_of

from metarun.data import class_bank
from metarun.data.class_bank import SplitBank
from metarun.data.contents import content_hashes
from metarun.data.episodes import episodes, few_shot_data_set
from metarun.data.task_sizes import task_sizes
from metarun.errors import ConfigError, DataError

NUM_CLASSES, PER_CLASS = 6, 5


def numbered_bank(counts=(PER_CLASS,) * NUM_CLASSES, side=2):
    """A bank whose images are constant and hold their own number."""
    numbers = np.split(np.arange(sum(counts), dtype=np.uint8), np.cumsum(counts)[:-1])
    return class_bank.stack(np.tile(n[:, None, None, None], (1, side, side, 1)) for n in numbers)


def marked_bank(num_classes=3, per_class=2):
    """A bank whose images tell their turn: the top left pixel is bright, the next one dim."""
    images = np.zeros((per_class, 3, 3, 1), np.uint8)
    images[:, 0, 0], images[:, 0, 1] = 255, 51
    return class_bank.stack([images] * num_classes)


def draw(source, num_tasks, seed=0):
    keys = jax.random.split(jax.random.key(seed), num_tasks)
    tasks = jax.jit(jax.vmap(source.sample, (None, 0)))(source.data, keys)
    return jax.tree.map(np.asarray, tasks)


def image_numbers(split):
    return np.rint(split.x[..., 0, 0, 0] * 255).astype(int)


@pytest.fixture(scope="module")
def tasks():
    return draw(episodes(numbered_bank(), task_sizes(3, 1, 2), rotations=False), 4000)


def assert_uniform(counts, expected, trials):
    """Every count within five standard deviations of a binomial."""
    probability = expected / trials
    spread = np.sqrt(trials * probability * (1 - probability))
    assert np.abs(np.asarray(counts) - expected).max() < 5 * spread, (counts, expected, spread)


def test_shapes_and_types():
    task = draw(episodes(numbered_bank(), task_sizes(3, 2, 1), rotations=True), 1)
    assert task.support.x.shape == (1, 6, 2, 2, 1) and task.query.x.shape == (1, 3, 2, 2, 1)
    assert task.support.x.dtype == np.float32 and task.support.y.dtype == np.int32
    assert sorted(task.support.y[0]) == [0, 0, 1, 1, 2, 2] and sorted(task.query.y[0]) == [0, 1, 2]


def test_images_are_scaled_to_one():
    task = draw(episodes(marked_bank(), task_sizes(2, 1, 1), rotations=False), 1)
    np.testing.assert_allclose(np.unique(task.support.x), [0, 0.2, 1])


def test_one_label_is_one_class_and_no_image_comes_twice(tasks):
    support, query = image_numbers(tasks.support), image_numbers(tasks.query)
    every = np.concatenate([support, query], 1)
    assert all(len(set(row)) == 9 for row in every)
    labels = np.concatenate([tasks.support.y, tasks.query.y], 1)
    for row, label in zip(every // PER_CLASS, labels, strict=True):
        assert len(set(zip(row, label, strict=True))) == 3 == len(set(row))


def test_classes_and_images_are_drawn_uniformly(tasks):
    num_tasks = len(tasks.support.y)
    support, query = image_numbers(tasks.support), image_numbers(tasks.query)
    assert_uniform(np.bincount((support // PER_CLASS).ravel(), minlength=6), num_tasks / 2, num_tasks)
    assert_uniform(np.bincount(support.ravel(), minlength=30), num_tasks / 10, num_tasks)
    assert_uniform(np.bincount(query.ravel(), minlength=30), num_tasks / 5, num_tasks)
    # Pairs too: uniform margins would not show a class that keeps company.
    for a in range(NUM_CLASSES):
        has = (support // PER_CLASS == a).any(1)
        together = [((support // PER_CLASS == b).any(1) & has).sum() for b in range(NUM_CLASSES) if b != a]
        assert_uniform(together, num_tasks / 5, num_tasks)


@pytest.mark.parametrize("split", ["support", "query"])
def test_neither_class_nor_position_tells_the_label(tasks, split):
    part = getattr(tasks, split)
    num_tasks, num_images = part.y.shape
    for position in range(num_images):
        assert_uniform(np.bincount(part.y[:, position], minlength=3), num_tasks / 3, num_tasks)
    classes = image_numbers(part) // PER_CLASS
    shots = num_images // 3
    for label in range(3):
        chosen = np.bincount(classes[part.y == label], minlength=NUM_CLASSES) / shots
        assert_uniform(chosen, num_tasks / NUM_CLASSES, num_tasks)


def test_query_order_does_not_follow_support_order(tasks):
    agree = (tasks.query.y[:, :3] == tasks.support.y).sum(0)
    assert_uniform(agree, len(tasks.support.y) / 3, len(tasks.support.y))


def test_classes_of_unequal_size():
    source = episodes(numbered_bank((3, 7, 4)), task_sizes(3, 1, 2), rotations=False)
    tasks = draw(source, 3000)
    support = np.bincount(image_numbers(tasks.support).ravel(), minlength=14)
    for rows in np.split(support, [3, 10]):
        assert_uniform(rows, 3000 / len(rows), 3000)


def test_rotations_make_four_uniform_classes_of_one():
    source = episodes(marked_bank(), task_sizes(12, 1, 1), rotations=True)
    task = draw(source, 1)
    upright = marked_bank().images[0] / np.float32(255)
    turns = np.stack([np.rot90(upright, k) for k in range(4)])

    def turns_of(images):
        same = np.isclose(images[..., None, :, :, :], turns).all((-3, -2, -1))
        assert (same.sum(-1) == 1).all()
        return same.argmax(-1)

    of_support = turns_of(task.support.x[0])[np.argsort(task.support.y[0])]
    assert sorted(of_support) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    np.testing.assert_array_equal(turns_of(task.query.x[0]), of_support[task.query.y[0]])

    tasks = draw(episodes(marked_bank(), task_sizes(2, 1, 1), rotations=True), 2000)
    assert_uniform(np.bincount(turns_of(tasks.support.x).ravel()), 1000, 2000)


def test_the_key_decides_the_task():
    source = episodes(numbered_bank(), task_sizes(3, 1, 1), rotations=True)
    one, same, other = draw(source, 5, seed=1), draw(source, 5, seed=1), draw(source, 5, seed=2)
    np.testing.assert_array_equal(one.support.x, same.support.x)
    assert not np.array_equal(one.support.x, other.support.x)


def test_a_scan_draws_the_same_tasks():
    source = episodes(numbered_bank(), task_sizes(3, 1, 1), rotations=True)

    @jax.jit
    def scanned(data, keys):
        return jax.lax.scan(lambda carry, key: (carry, source.sample(data, key)), None, keys)[1]

    one = scanned(source.data, jax.random.split(jax.random.key(0), 4))
    jax.tree.map(np.testing.assert_array_equal, one, draw(source, 4))


@pytest.mark.parametrize(
    ("change", "key", "said"),
    [
        ({"way": 7}, "way", "2 to 6, the number of classes in the val split"),
        ({"way": 1}, "way", "2 to 6"),
        ({"way": 0}, "way", "1 or more"),
        ({"way": "abc"}, "way", "whole number"),
        ({"shot": -1}, "shot", "1 or more"),
        ({"query_shot": 2.5}, "query_shot", "whole number"),
        ({"shot": 3, "query_shot": 3}, "shot+query_shot", "3+3: expected at most 5"),
        ({"rotations": "maybe"}, "dataset.rotations", "true or false"),
    ],
)
def test_numbers_that_cannot_be(change, key, said):
    settings = {"way": 3, "shot": 1, "query_shot": 1, "rotations": False, **change}
    with pytest.raises(ConfigError) as caught:
        rotations = settings.pop("rotations")
        episodes(numbered_bank(), task_sizes(**settings), rotations=rotations, split="the val split")
    assert caught.value.key == key and said in str(caught.value)


def test_rotations_need_square_images():
    oblong = class_bank.stack([np.zeros((2, 2, 3, 1), np.uint8)] * 2)
    with pytest.raises(DataError, match="rotations=false"):
        episodes(oblong, task_sizes(2, 1, 1), rotations=True)


def numbers(**sizes):
    classes = {"train": [0, 5], "val": [1, 2], "test": [3, 4]}
    bank = numbered_bank()
    loaded = SplitBank(bank, "abcdef", classes, {"name": "numbers"}, content_hashes(bank.images))
    return few_shot_data_set(
        loaded, **{"way": 2, "shot": 1, "query_shot": 1, "eval_query_shot": 2} | sizes, rotations=True
    )


def test_few_shot_keeps_the_splits_apart_and_states_the_protocol():
    data = numbers()
    assert data.objective == "classification" and data.num_outputs == 2
    assert set(image_numbers(draw(data.val, 50).support).ravel() // PER_CLASS) == {1, 2}
    assert [draw(source, 1).query.y.shape[1] for source in (data.train, data.val, data.test)] == [2, 4, 4]
    assert data.protocol == {
        "name": "numbers",
        "classes": {"train": 2, "val": 2, "test": 2},
        "rotations": {"train": True, "val": False, "test": False},
        "image_size": [2, 2],
    }


def test_the_contents_of_a_split_are_those_of_its_images():
    data = numbers()
    for split, its in data.contents.items():
        assert [len(hashes) for hashes in its] == [PER_CLASS, PER_CLASS]
        np.testing.assert_array_equal(np.concatenate(its), content_hashes(images_of(getattr(data, split))))


def test_training_tasks_may_have_another_size_than_those_of_the_test():
    data = numbers(train_way=5, train_shot=2)
    assert (data.num_outputs, data.train_way) == (2, 5)
    train, test = (jax.tree.map(lambda x: x[0], draw(source, 1)) for source in (data.train, data.test))
    assert sorted(train.support.y.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert sorted(test.support.y.tolist()) == [0, 1]
    with pytest.raises(ConfigError, match="train_way=9: expected 2 to 8"):
        numbers(train_way=9)
    with pytest.raises(ConfigError, match=f"train_shot.query_shot={PER_CLASS}.1: expected at most {PER_CLASS}"):
        numbers(train_shot=PER_CLASS)


def test_for_a_test_alone_the_other_splits_may_be_too_small_for_a_task():
    bank, classes = numbered_bank(), {"train": [0], "val": [1], "test": [2, 3, 4, 5]}
    loaded = SplitBank(bank, "abcdef", classes, {"name": "numbers"}, content_hashes(bank.images))
    with pytest.raises(DataError, match=r"way=3: the train split \(classes: train 1, val 1, test 4\) has 1 class, and"):
        few_shot_data_set(loaded, way=3, shot=1, query_shot=2)
    data = few_shot_data_set(loaded, way=3, shot=1, query_shot=2, test_only=True)
    assert data.protocol["classes"] == {"train": 1, "val": 1, "test": 4}
    first, *others = (draw(source, 20) for source in (data.test, data.train, data.val, data.train_classes))
    assert set(image_numbers(first.query).ravel() // PER_CLASS) == {2, 3, 4, 5}
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, first, other)


def test_without_tasks_every_turned_class_has_a_label_of_its_own():
    data = numbers(train_way=8)
    assert data.num_train_classes == 8
    task, same = (jax.tree.map(lambda x: x[0], draw(source, 1)) for source in (data.train_classes, data.train))
    np.testing.assert_array_equal(task.query.x, same.query.x)
    own = dict(zip(same.query.y.tolist(), task.query.y.tolist(), strict=True))
    assert sorted(own.values()) == list(range(8))
    np.testing.assert_array_equal(task.support.y, [own[label] for label in same.support.y.tolist()])
    # Labels 0 to 3 are the first class's turns, 4 to 7 those of the second.
    numbers_of = image_numbers(jax.tree.map(lambda x: x[None], task.query)).ravel() // PER_CLASS
    np.testing.assert_array_equal(numbers_of, np.where(task.query.y < 4, 0, 5))


def test_images_of_meta_training_alone_are_changed():
    plain, changed = numbers(), numbers(jitter=0.5)
    task = jax.jit(changed.train.sample)(changed.train.data, jax.random.key(0))
    shades = set((255 * np.asarray(task.support.x[:, 0, 0, 0])).round(3).tolist())
    assert not shades <= {float(n) for n in range(256)}
    for split in ("val", "test"):
        ours, theirs = getattr(changed, split), getattr(plain, split)
        for one, other in zip(jax.tree.leaves(draw(ours, 3)), jax.tree.leaves(draw(theirs, 3)), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"flip": 1}, "dataset.flip=1: expected true or false"),
        ({"shift": 2}, "dataset.shift=2: expected less than 2"),
        ({"shift": -1}, "dataset.shift=-1"),
        ({"jitter": 1.5}, "dataset.jitter=1.5: expected a number of at most 1"),
    ],
)
def test_changes_that_cannot_be(setting, said):
    with pytest.raises(ConfigError, match=said):
        numbers(**setting)
