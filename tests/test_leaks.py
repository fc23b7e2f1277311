"""The checks of the data find the leaks that are planted here, each by its own check, and pass honest sources."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from metarun.compiled.task_map import default_layout
from metarun.data import class_bank
from metarun.data.class_bank import SplitBank
from metarun.data.contents import content_hashes
from metarun.data.episodes import episodes, few_shot_data_set
from metarun.data.image_folder import image_folder
from metarun.data.task_sizes import task_sizes
from metarun.few_shot.experiment import few_shot_experiment as experiment
from metarun.few_shot.methods.nearest_neighbor import nearest_neighbor
from metarun.training.optimizers import adam
from metarun.trust import leaks
from metarun.types import DataSet, Split, Task, TaskSource

WAY, SHOT, QUERY_SHOT, PER_CLASS = 3, 2, 3, 6
NUM_TASKS = 200
CLASSES = {"train": range(12), "val": range(12, 16), "test": range(16, 28)}


def noise(num_classes=28, seed=0):
    """Classes of pictures that are all different."""
    return np.random.default_rng(seed).integers(0, 256, (num_classes, PER_CLASS, 4, 4, 1), np.uint8)


def data_of(images, classes=CLASSES, **settings):
    bank = class_bank.stack(images)
    loaded = SplitBank(bank, range(len(images)), classes, {"name": "noise"}, content_hashes(bank.images))
    return few_shot_data_set(loaded, **{"way": WAY, "shot": SHOT, "query_shot": QUERY_SHOT} | settings)


@functools.cache
def sampler(sample):
    return jax.jit(jax.vmap(sample, (None, 0)))


def checks_of(data, source=None, seed=0, num_tasks=NUM_TASKS):
    """The checks of tasks that `source` draws, which would be the test tasks of `data`."""
    source = source or data.test
    keys = jax.random.split(jax.random.key(seed), num_tasks)
    tasks = sampler(source.sample)(source.data, keys)
    found = leaks.traces(tasks, WAY, data.contents["test"])
    return leaks.verdicts(found, WAY, data.contents)


def failing(checks):
    return {name for name, check in checks.items() if check["passed"] is False}


def planted(source, change):
    """The source whose tasks went through `change`."""
    return source._replace(sample=lambda data, key: change(source.sample(data, key)))


def sorted_by_label(split):
    order = jnp.argsort(split.y)
    return Split(split.x[order], split.y[order])


def numbered_in_order(task):
    """The task whose classes, labelled by their number in the bank, are labelled by their rank."""
    known = jnp.unique(task.support.y, size=WAY)
    return Task(*(Split(part.x, jnp.searchsorted(known, part.y).astype(jnp.int32)) for part in task))


@pytest.mark.parametrize("rotations", [False, True])
def test_an_honest_source_passes_every_check(rotations):
    data = data_of(noise(), test_rotations=rotations)
    for seed in range(10):
        checks = checks_of(data, seed=seed)
        assert not failing(checks)
        assert checks["labels_by_class"]["known"] == 1
    assert [checks[name]["value"] for name in ("support_apart_from_query", "test_apart_from_train")] == [0, 0]


@pytest.mark.parametrize("part", ["support", "query"])
def test_labels_sorted_with_the_images_are_found(part):
    data = data_of(noise())
    source = planted(data.test, lambda task: task._replace(**{part: sorted_by_label(getattr(task, part))}))
    checks = checks_of(data, source, num_tasks=20)
    assert failing(checks) == {"labels_by_position"}
    other = {"support": "query", "query": "support"}[part]
    assert checks["labels_by_position"][part] > 4 > checks["labels_by_position"][other]


def test_a_label_that_is_likelier_at_one_place_is_found():
    def nudged(task):
        # In a third of the tasks, told by a pixel, label 0 is brought to the first place.
        first = jnp.argmin(task.query.y)
        swapped = jnp.arange(task.query.y.size).at[0].set(first).at[first].set(0)
        order = jnp.where(task.query.x[0, 0, 0, 0] < 1 / 3, swapped, jnp.arange(task.query.y.size))
        return task._replace(query=jax.tree.map(lambda x: x[order], task.query))

    data = data_of(noise())
    assert failing(checks_of(data, planted(data.test, nudged), num_tasks=400)) == {"labels_by_position"}


@pytest.mark.parametrize("rotations", [False, True])
def test_labels_in_the_order_of_the_classes_are_found(rotations):
    data = data_of(noise(), test_rotations=rotations)
    of_numbers = episodes(data.test.data, task_sizes(WAY, SHOT, QUERY_SHOT), rotations=rotations, own_labels=True)
    source = planted(of_numbers, numbered_in_order)
    checks = checks_of(data, source, num_tasks=40)
    assert failing(checks) == {"labels_by_class"}
    # A class and the same one turned have one rank.
    assert checks["labels_by_class"]["value"] == pytest.approx(1, abs=0.1 if rotations else 1e-6)


def test_labels_in_the_reverse_order_are_found_too():
    classes = np.tile(np.arange(4)[::-1], (20, 1))
    assert not leaks.labels_by_class(classes)["passed"]
    assert leaks.labels_by_class(classes)["value"] == pytest.approx(-1)


def test_tasks_of_images_that_the_data_set_does_not_have_cannot_be_judged():
    checks = checks_of(data_of(noise()), data_of(noise(seed=1)).test)
    assert failing(checks) == {"labels_by_class"} and checks["labels_by_class"]["known"] == 0


@pytest.mark.parametrize("rotations", [False, True])
def test_a_support_image_among_the_queries_is_found(rotations):
    def repeated(task):
        # Of the first support image's class one query, in every task.
        place = jnp.argmax(task.query.y == task.support.y[0])
        return task._replace(query=task.query._replace(x=task.query.x.at[place].set(task.support.x[0])))

    data = data_of(noise(), test_rotations=rotations)
    checks = checks_of(data, planted(data.test, repeated), num_tasks=20)
    assert failing(checks) == {"support_apart_from_query"}
    assert checks["support_apart_from_query"]["value"] == pytest.approx(1 / (WAY * QUERY_SHOT))


@pytest.mark.parametrize("turn", [0, 1, 2, 3])
def test_a_test_class_that_is_in_meta_training_is_found(turn):
    images = noise()
    # The same pictures, in another order.
    images[3] = np.rot90(images[20, ::-1], turn, axes=(1, 2))
    check = checks_of(data_of(images))["test_apart_from_train"]
    assert not check["passed"]
    assert check["value"] == check["images"] == pytest.approx(1 / 12) and check["val"] == 0


def test_one_class_in_two_splits_is_found():
    images = noise()
    check = checks_of(data_of(images, CLASSES | {"train": range(18)}))["test_apart_from_train"]
    assert not check["passed"] and check["value"] == pytest.approx(2 / 12) and check["val"] == 0
    # A class of validation is stated; it was not trained on.
    check = checks_of(data_of(images, CLASSES | {"val": range(12, 17)}))["test_apart_from_train"]
    assert check["passed"] and check["value"] == 0 and check["val"] == pytest.approx(1 / 12)


def test_part_of_a_class_is_found_and_a_few_pictures_that_are_twice_are_not():
    images = noise()
    images[0, :2] = images[20, :2]
    images[5, 0] = images[21, 3] = images[22, 4] = 0
    # Many blank images are one content.
    images[23, :3] = 0
    check = checks_of(data_of(images))["test_apart_from_train"]
    assert check["passed"] and check["value"] == 0
    assert check["images"] == pytest.approx((2 + 1 + 1 + 1) / (12 * PER_CLASS - 2))
    images[0, 2] = images[20, 2]
    check = checks_of(data_of(images))["test_apart_from_train"]
    assert not check["passed"] and check["value"] == pytest.approx(1 / 12)


def test_a_class_of_another_data_set_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))

    def folder(name, classes):
        for place, images in classes.items():
            (tmp_path / name / place).mkdir(parents=True)
            for k, image in enumerate(images):
                Image.fromarray(image[:, :, 0]).save(tmp_path / name / place / f"{k}.png")
        settings = {"way": 2, "shot": 1, "query_shot": 1, "image_size": 4, "channels": 1}
        return image_folder(**settings, source=str(tmp_path / name)).contents

    places = ("train/a", "train/b", "val/c", "val/d", "test/e", "test/f")
    ours, others = noise(6), noise(6, seed=1)
    one = folder("one", dict(zip(places, ours, strict=True)))
    apart = folder("apart", dict(zip(places, others, strict=True)))
    # The same pictures in other files, under another name.
    others[4] = ours[1]
    overlaps = folder("overlaps", dict(zip(places, others, strict=True)))
    assert leaks.classes_apart(apart["test"], one["train"], one["val"]) == {
        "passed": True,
        "value": 0,
        "images": 0,
        "val": 0,
    }
    found = leaks.classes_apart(overlaps["test"], one["train"], one["val"])
    assert not found["passed"] and found["value"] == found["images"] == 0.5


def statistic(sigmas, n, way):
    """The sum of squares from which `_unevenness` comes."""
    spread = 2 / (9 * (n - 1) * (way - 1))
    return (sigmas * np.sqrt(spread) + 1 - spread) ** 3 * (way - 1) * n


@pytest.mark.parametrize(("num_tasks", "labels"), [(1, (0, 0, 1, 1)), (3, (0, 0, 1, 1)), (3, (0, 1, 2)), (4, (0, 1))])
def test_unevenness_has_the_mean_and_variance_of_its_derivation(num_tasks, labels):
    n, way = len(labels), max(labels) + 1
    arrangements = sorted(set(itertools.permutations(labels)))
    every = itertools.product(arrangements, repeat=num_tasks)
    x = [statistic(leaks._unevenness(np.array(tasks), way), n, way) for tasks in every]
    assert np.mean(x) == pytest.approx(n * (way - 1))
    assert np.var(x) == pytest.approx(2 * (1 - 1 / num_tasks) * n**2 * (way - 1) / (n - 1))


@pytest.mark.parametrize(("way", "shot"), [(2, 1), (5, 1), (5, 15)])
def test_unevenness_of_random_labels_is_of_standard_size(way, shot):
    random = np.random.default_rng(0)
    labels = np.tile(np.arange(way), shot)
    sigmas = [leaks._unevenness(random.permuted(np.tile(labels, (100, 1)), axis=1), way) for _ in range(500)]
    assert abs(np.mean(sigmas)) < 0.15 and 0.85 < np.std(sigmas) < 1.15 and max(sigmas) < 4


@pytest.mark.parametrize("classes", [(7, 2, 5), (4, 4, 9), (1, 3, 3, 8)])
def test_correlation_has_the_mean_and_variance_of_its_derivation(classes):
    checks = [leaks.labels_by_class(np.array([order])) for order in itertools.permutations(classes)]
    values, errors = ([check[name] for check in checks] for name in ("value", "standard_error"))
    assert np.mean(values) == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(errors, np.std(values))


def test_turns_of_one_class_alone_say_nothing():
    check = leaks.labels_by_class(np.full((10, 3), 4))
    assert check["passed"] and check["value"] == check["standard_error"] == 0


def test_an_evaluation_judges_the_tasks_that_it_draws():
    data = data_of(noise())
    run = experiment(
        {"": nearest_neighbor(objective="classification", num_outputs=WAY)},
        data._replace(test=planted(data.test, lambda task: Task(*map(sorted_by_label, task)))),
        adam(outer_lr=0.01, steps=1),
        [default_layout()],
        seed=0,
        eval_seed=0,
        meta_batch_size=2,
        protocol={},
    )
    params = run.init().params
    checks = run.evaluate(params, "test", 60, checks=True).checks
    assert len(checks) == 9 and failing(checks) == {"labels_by_position"}
    assert checks["labels_by_class"]["known"] == 1
    assert run.evaluate(params, "test", 60).checks == {}


@pytest.mark.parametrize("labels", [[(0, 0, 0, 1), (0, 1, 1, 1)], [(0, 0, 1, 2), (0, 1, 1, 2), (0, 0, 0, 2)]])
def test_unevenness_of_labels_that_are_not_equally_often_has_the_mean_and_variance_of_its_derivation(labels):
    # By hand from its definition, over every arrangement of each task's own labels.
    n, way = len(labels[0]), max(map(max, labels)) + 1
    expected = np.array([sum(task.count(label) for task in labels) / n for label in range(way)])
    x, sigmas = [], []
    for tasks in itertools.product(*(sorted(set(itertools.permutations(task))) for task in labels)):
        counts = (np.array(tasks)[:, :, None] == np.arange(way)).sum(0)
        x.append((np.square(counts - expected) / expected).sum())
        sigmas.append(leaks._unevenness(np.array(tasks), way))
    scatters = []
    for task in labels:
        c = np.array([task.count(label) for label in range(way)])
        scatters.append((np.diag(c) - np.outer(c, c) / n) / expected)
    mean, all_pairs = np.trace(sum(scatters)), np.trace(sum(scatters) @ sum(scatters))
    assert np.mean(x) == pytest.approx(mean)
    assert np.var(x) == pytest.approx(2 / (n - 1) * (all_pairs - sum(np.trace(g @ g) for g in scatters)))
    freedom = mean**2 * (n - 1) / all_pairs
    spread = 2 / (9 * freedom)
    np.testing.assert_allclose(sigmas, (np.cbrt(np.array(x) / mean) - 1 + spread) / np.sqrt(spread))


def test_uneven_labels_are_no_leak_where_their_place_is_random_and_one_where_it_is_not():
    random = np.random.default_rng(0)
    labels = np.array([[0] * 12 + [1] * 5 + [2] * 3] * 200)
    labels[::2] = (labels[::2] + 1) % 3
    shuffled = [leaks._unevenness(random.permuted(labels, axis=1), 3) for _ in range(100)]
    assert abs(np.mean(shuffled)) < 0.4 and max(shuffled) < 4
    assert leaks._unevenness(labels, 3) > 4
    assert leaks._unevenness(np.zeros((50, 1), int), 3) == leaks._unevenness(np.zeros((50, 6), int), 3) == 0


def vectors():
    """A data set of one's own: classes of vectors, whose contents are known."""
    values = np.random.default_rng(0).standard_normal((28, PER_CLASS, 5))  # float64

    def sample(classes, key):
        class_key, example_key, order_key = jax.random.split(key, 3)
        chosen = jax.random.choice(class_key, len(classes), (WAY,), replace=False)
        examples = jax.vmap(lambda key: jax.random.permutation(key, PER_CLASS))(jax.random.split(example_key, WAY))

        def split(which, key):
            y = jax.random.permutation(key, jnp.repeat(jnp.arange(WAY, dtype=jnp.int32), which.size))
            place = jnp.take_along_axis(jnp.cumsum(y[:, None] == jnp.arange(WAY)[None], 0), y[:, None], 1)[:, 0] - 1
            return Split(jnp.asarray(classes)[chosen[y], examples[y, which[place]]], y)

        halves = jnp.arange(SHOT), SHOT + jnp.arange(QUERY_SHOT)
        return Task(*(split(which, key) for which, key in zip(halves, jax.random.split(order_key), strict=True)))

    def of(split):
        return TaskSource(values[list(CLASSES[split])].astype(np.float32), sample)

    contents = {split: [content_hashes(values[c]) for c in its] for split, its in CLASSES.items()}
    return DataSet(of("train"), of("val"), of("test"), "classification", WAY, {"name": "vectors"}, contents=contents)


def test_classes_of_vectors_are_checked_as_those_of_pictures_are():
    data = vectors()
    checks = checks_of(data)
    assert len(checks) == 4 and all(check["passed"] for check in checks.values())
    assert checks["labels_by_class"]["known"] == 1

    def repeated(task):
        place = jnp.argmax(task.query.y == task.support.y[0])
        return task._replace(query=task.query._replace(x=task.query.x.at[place].set(task.support.x[0])))

    assert failing(checks_of(data, planted(data.test, repeated), num_tasks=20)) == {"support_apart_from_query"}
    known = data._replace(contents={**data.contents, "train": data.contents["test"][:1]})
    assert failing(checks_of(known, num_tasks=20)) == {"test_apart_from_train"}


@pytest.mark.parametrize(
    ("contents", "resized", "reasons"),
    [
        (None, False, {"labels_by_class": "DataSet.contents", "test_apart_from_train": "DataSet.contents"}),
        (("test",), False, {"test_apart_from_train": "not at hand"}),
        (("train", "val", "test"), True, {"labels_by_class": "resized"}),
    ],
)
def test_what_cannot_be_checked_says_why(contents, resized, reasons):
    data = data_of(noise())
    known = contents and {split: data.contents[split] for split in contents}
    tasks = sampler(data.test.sample)(data.test.data, jax.random.split(jax.random.key(0), 50))
    found = leaks.traces(tasks, WAY, None if resized or known is None else known["test"])
    judged = leaks.verdicts(found, WAY, known, resized)
    assert list(judged) == [
        "labels_by_position",
        "labels_by_class",
        "support_apart_from_query",
        "test_apart_from_train",
    ]
    for name, check in judged.items():
        if name in reasons:
            assert check["passed"] is check["value"] is None and reasons[name] in check["reason"]
        else:
            assert check["passed"]


def test_labels_in_a_fixed_order_are_found_in_data_that_list_no_contents():
    ordered = lambda task: Task(*map(sorted_by_label, task))
    data = vectors()._replace(contents=None)
    tasks = sampler(planted(data.test, ordered).sample)(data.test.data, jax.random.split(jax.random.key(0), 50))
    assert failing(leaks.verdicts(leaks.traces(tasks, WAY, None), WAY, None)) == {"labels_by_position"}
