"""Tasks that differ in way and shot."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_episodes import assert_uniform, draw, image_numbers, numbered_bank

from metarun.data.class_bank import Domain, SplitBank
from metarun.data.contents import content_hashes
from metarun.data.episodes import episodes, few_shot_data_set
from metarun.data.task_sizes import TaskSizes, shots, task_sizes
from metarun.errors import ConfigError, positive_range

NUM_TASKS = 3000


@pytest.fixture(scope="module", params=["equal", "unequal"])
def drawn(request):
    source = episodes(numbered_bank(), task_sizes([2, 4], [1, 3], 2, request.param), rotations=False)
    return request.param, draw(source, NUM_TASKS)


def sizes_of(tasks):
    """Way and the shots of each class, `[num_tasks, 4]`, from labels and masks alone."""
    return ((tasks.support.y[:, :, None] == np.arange(4)) & tasks.support.mask[:, :, None]).sum(1)


def test_sets_have_their_examples_first_and_are_as_long_as_the_largest(drawn):
    _, tasks = drawn
    assert tasks.support.x.shape[:2] == (NUM_TASKS, 4 * 3) and tasks.query.x.shape[:2] == (NUM_TASKS, 4 * 2)
    for part in tasks:
        assert (np.diff(part.mask.astype(int), axis=1) <= 0).all()


def test_ways_and_shots_are_uniform_in_their_ranges(drawn):
    sampling, tasks = drawn
    shots = sizes_of(tasks)
    ways = (shots > 0).sum(1)
    assert_uniform(np.bincount(ways)[2:], NUM_TASKS / 3, NUM_TASKS)
    assert_uniform(np.bincount(shots[:, 0])[1:], NUM_TASKS / 3, NUM_TASKS)
    of_two_classes = shots[:, 0] == shots[:, 1]
    if sampling == "equal":
        assert of_two_classes.all()
    else:
        assert_uniform([of_two_classes.sum()], NUM_TASKS / 3, NUM_TASKS)


def test_classes_are_distinct_and_images_are_of_their_class_and_no_query(drawn):
    _, tasks = drawn
    for task in range(200):
        support, query = (jax.tree.map(lambda x, task=task: x[task], part) for part in tasks)
        (known, asked), (seen, answers) = zip(
            *[(image_numbers(part)[part.mask], part.y[part.mask]) for part in (support, query)], strict=True
        )
        assert len({*known, *asked}) == len(known) + len(asked)
        classes = {label: {*(known[seen == label] // 5), *(asked[answers == label] // 5)} for label in {*seen}}
        assert all(len(its) == 1 for its in classes.values())
        assert len(set.union(*classes.values())) == len(classes)
        assert [*np.bincount(answers)] == [2] * len(classes)


def test_a_place_says_nothing_of_a_label(drawn):
    _, tasks = drawn
    large = tasks.support.y[(sizes_of(tasks) > 0).sum(1) == 4]
    assert_uniform(np.bincount(large[:, 0], minlength=4), len(large) / 4, len(large))


def test_meta_dataset_s_rule_is_that_of_its_formulas():
    count, there = jnp.array([600, 40, 25, 100]), jnp.array([True, True, True, False])
    query_shot = 10
    found = np.asarray(shots(jax.random.key(3), count, there, query_shot))
    beta_key, alpha_key = jax.random.split(jax.random.key(3))
    beta, alpha = (
        1 - jax.random.uniform(beta_key),
        np.asarray(jax.random.uniform(alpha_key, (4,), minval=np.log(0.5), maxval=np.log(2))),
    )
    size = min(500, sum(int(np.ceil(np.float32(beta) * min(100, c - 10))) for c in (600, 40, 25)))
    weight = np.exp(alpha[:3]) * np.array([600, 40, 25])
    expected = np.minimum(np.floor(weight / weight.sum() * (size - 3)) + 1, np.array([590, 30, 15]))
    np.testing.assert_array_equal(found[:3], expected)
    many = jax.vmap(lambda key: shots(key, count, there, query_shot))(jax.random.split(jax.random.key(4), 500))
    assert many[:, :3].min() >= 1 and many[:, :3].sum(1).max() <= 500


def test_meta_dataset_s_tasks_have_500_support_examples_at_most():
    sizes = TaskSizes((5, 50), (1, 100), 10, "meta_dataset")
    assert sizes.most_support == 500
    _, drawn = jax.vmap(lambda key: sizes.draw(key, jnp.full(50, 600)))(jax.random.split(jax.random.key(0), 300))
    assert drawn.sum(1).max() <= 500 and drawn.max() <= 100


def test_a_data_set_says_in_what_its_tasks_differ():
    bank = SplitBank(
        numbered_bank((6,) * 15),
        [str(c) for c in range(15)],
        {"train": [*range(5)], "val": [*range(5, 10)], "test": [*range(10, 15)]},
        {"name": "mine"},
        content_hashes(np.asarray(numbered_bank((6,) * 15).images)),
    )
    fixed = few_shot_data_set(bank, way=3, shot=2, query_shot=1)
    varied = few_shot_data_set(bank, way=[2, 4], shot=2, query_shot=1)
    assert [*fixed.varies] == [] and "sampling" not in fixed.protocol
    assert [*varied.varies] == ["way"] and varied.num_outputs == 4 and varied.protocol["sampling"] == "equal"
    assert (
        jax.eval_shape(varied.train_classes.sample, varied.train_classes.data, jax.random.key(0)).support.mask is None
    )
    with pytest.raises(ConfigError, match="dataset.sampling=unequal: expected equal; or give a range"):
        few_shot_data_set(bank, way=3, shot=2, query_shot=1, sampling="unequal")
    with pytest.raises(ConfigError, match=r"way=\[2, 6\]: expected 2 to 5"):
        few_shot_data_set(bank, way=[2, 6], shot=2, query_shot=1)
    with pytest.raises(ConfigError, match="begins with 1"):
        few_shot_data_set(bank, way=[2, 4], shot=[2, 3], query_shot=1, sampling="meta_dataset")


COUNTS = [4, 2, *[4] * 25]
CLASS_OF = np.repeat(np.arange(27), COUNTS)


def of_two_domains(**settings):
    """Two domains, of six classes and of three in each split, of four images each but for a class of two."""
    bank, first = numbered_bank(COUNTS), np.array([0, 6, 12, 18, 21, 24])
    loaded = SplitBank(
        bank,
        [str(c) for c in range(27)],
        {
            split: [*range(first[i], first[i] + 6), *range(first[3 + i], first[3 + i] + 3)]
            for i, split in enumerate(("train", "val", "test"))
        },
        {"name": "mine"},
        content_hashes(np.asarray(bank.images)),
        uneven=True,
        domains=[Domain("large", 18, 1), Domain("small", 9, 1)],
    )
    return few_shot_data_set(loaded, query_shot=1, **settings)


def test_a_domain_of_few_classes_has_tasks_of_as_many_as_it_has():
    data = of_two_domains(way=[2, 5], shot=2)
    tasks = draw(data.train, NUM_TASKS)
    shots = ((tasks.support.y[:, :, None] == np.arange(5)) & tasks.support.mask[:, :, None]).sum(1)
    ways = (shots > 0).sum(1)
    classes = np.array([len({*CLASS_OF[image_numbers(part)[part.mask]]}) for part in _each(tasks.support, 300)])
    np.testing.assert_array_equal(classes, ways[:300])
    small = np.array([CLASS_OF[image_numbers(part)[0]] >= 18 for part in _each(tasks.support, NUM_TASKS)])
    assert_uniform([small.sum()], NUM_TASKS / 2, NUM_TASKS)
    assert_uniform(np.bincount(ways[small])[2:], small.sum() / 2, small.sum())
    assert_uniform(np.bincount(ways[~small])[2:], (~small).sum() / 4, (~small).sum())
    alone = draw(data.domains["small"], 50)
    assert alone.support.y.shape[1] == 3 * 2 and {*((alone.support.mask.sum(1)) // 2)} == {2, 3}
    with pytest.raises(
        ConfigError, match=r"way=\[4, 5\]: expected 2 to 3, the number of classes in small of the train"
    ):
        of_two_domains(way=[4, 5], shot=2)
    with pytest.raises(ConfigError, match=r"way=\[2, 7\]: expected 2 to 5, the number of classes in the "):
        of_two_domains(way=[2, 7], shot=2)


@pytest.mark.parametrize("sampling", ["unequal", "meta_dataset"])
def test_a_class_of_few_images_has_a_shot_of_as_many_as_it_has(sampling, capsys):
    data = of_two_domains(way=[2, 5], shot=[1, 3], sampling=sampling)
    assert data.protocol["classes"]["train"] == 9 and not capsys.readouterr().err
    seen = []
    for task in zip(*[_each(part, 600) for part in draw(data.train, 600)], strict=True):
        known, asked = (image_numbers(part)[part.mask] for part in task)
        assert len({*known, *asked}) == len(known) + len(asked)
        assert {*CLASS_OF[known]} == {*CLASS_OF[asked]}
        its = np.bincount(CLASS_OF[known], minlength=27)
        assert its.max() <= 3
        seen += [its[1]] if its[1] else []
    assert len(seen) > 100 and {*seen} == {1}  # of its two images one is a query
    assert of_two_domains(way=[2, 5], shot=[1, 3]).protocol["classes"]["train"] == 8
    assert "having less than 4 images: 1." in capsys.readouterr().err
    with pytest.raises(
        ConfigError, match=r"shot\+query_shot=4\+1: expected at most 4, the images of the largest class"
    ):
        of_two_domains(way=[2, 5], shot=[1, 4], sampling=sampling)


def _each(part, number):
    return [jax.tree.map(lambda x, task=task: x[task], part) for task in range(number)]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([20, 5], r"way=\[20, 5\]: expected the smaller number first, \[5,20\]"),
        ([1, 2, 3], "expected a range of two numbers"),
        ([0, 3], "way=0: expected a whole number, 1 or more"),
        ("abc", "expected a whole number, 1 or more, or a range"),
        (None, "way=null: expected a whole number"),
    ],
)
def test_what_is_no_range_is_refused(value, words):
    with pytest.raises(ConfigError, match=words):
        positive_range("way", value)


def test_the_ends_of_a_range():
    assert positive_range("way", 5) == (5, 5) and positive_range("way", [2, 9]) == (2, 9)
