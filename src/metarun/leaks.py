"""Leaks in the data: what test tasks and the images behind them must not give away, whatever the method.

`traces` reduces drawn tasks of images to a few numbers each, `verdicts` judges those of all tasks. `classes_apart` is
of the images alone, so that it serves across data sets as well.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from metarun.checks import SIGMAS
from metarun.data.contents import class_of, content_hashes
from metarun.types import Task

# A class has leaked if more than this share of its different images is known. Real collections have a few pictures
# twice (Omniglot and miniImageNet two each); two samples of 600 from a class of ImageNet's 1,300 share 46%.
_LEAKED_SHARE = 1 / 3
# Queries that may show a support image: a collection may have a picture twice within a class.
_COPIES = 1e-3


def traces(tasks: Task, way: int, classes: Sequence[np.ndarray] | None) -> dict[str, np.ndarray]:
    """What `verdicts` reads of some tasks of images.

    Args:
      tasks: with a leading task axis, `[n]`.
      way: number of labels.
      classes: of the split that they are drawn from, the hashes of the contents of each class; None: images have been
        resized since, and cannot be known again.

    Returns:
      support_y `[n, num_support]` and query_y `[n, num_query]`: the labels;
      repeated `[n]`: the fraction of the queries whose pixels are those of a support image of the same task;
      classes `[n, way]`: the class that has each label, turned ones counted as the class itself; -1 if unknown. Absent
      without `classes`.
    """
    support, query = jax.tree.map(np.asarray, tasks)
    repeated = []
    for known, asked in zip(support.x, query.x, strict=True):
        seen = {image.tobytes() for image in known}
        repeated.append(np.mean([image.tobytes() in seen for image in asked]))
    found = {"support_y": support.y, "query_y": query.y, "repeated": np.array(repeated)}
    if classes is None:
        return found
    first = (support.y[:, :, None] == np.arange(way)).argmax(1)
    images = np.take_along_axis(support.x, first[:, :, None, None, None], 1).reshape(-1, *support.x.shape[2:])
    hashes = content_hashes(np.rint(255 * images).astype(np.uint8))
    return {**found, "classes": class_of(hashes, classes).reshape(first.shape)}


def verdicts(
    found: Mapping[str, np.ndarray], way: int, contents: Mapping[str, Sequence[np.ndarray]]
) -> dict[str, Mapping[str, Any]]:
    """The checks of the data, by name.

    Args:
      found: `traces` of all tasks.
      way: number of labels.
      contents: of the test's classes, and of those of training and validation where they can be had, see
        `types.DataSet`.
    """
    judged = {"labels_by_position": labels_by_position(found["support_y"], found["query_y"], way)}
    if "classes" in found:
        judged["labels_by_class"] = labels_by_class(found["classes"])
    judged["support_apart_from_query"] = is_rare(found["repeated"])
    if "train" in contents:
        judged["test_apart_from_train"] = classes_apart(contents["test"], contents["train"], contents["val"])
    return judged


def labels_by_position(support_y: np.ndarray, query_y: np.ndarray, way: int) -> Mapping[str, Any]:
    """Passes if the place of an image in the support or the query set says nothing about its label.

    Args:
      support_y, query_y: labels of each task, `[num_tasks, num_images]`, each label equally often in a task.
      way: number of labels.

    Returns:
      `support` and `query` are standard errors above chance, `value` the larger.
    """
    of_each = {"support": _unevenness(support_y, way), "query": _unevenness(query_y, way)}
    value = max(of_each.values())
    return {"passed": value <= SIGMAS, "value": value, **of_each}


def _unevenness(y: np.ndarray, way: int) -> float:
    """How uneven the labels at each position are over tasks, `[num_tasks, n]`, in standard errors above chance.

    Of T tasks let N_pl have label l at position p. The statistic is X = sum_pl (N_pl - T/way)^2 / (T/way). By chance
    each task's labels are a random arrangement in which each comes n/way times. A task alone contributes
    n (way - 1) / T to X, whatever its arrangement, and a pair of tasks 2 way/T (M - n/way), where M counts the places
    at which they agree. Over arrangements, M has the mean n/way and the variance n^2 (way - 1) / (way^2 (n - 1))
    (Hoeffding 1951), and pairs are uncorrelated. So X has the mean n (way - 1) and the variance
    2 (1 - 1/T) n^2 (way - 1) / (n - 1): but for 1/T, those of n / (n - 1) times a chi-square with (n - 1)(way - 1)
    degrees of freedom, to which it tends. Its cube root is nearly normal (Wilson and Hilferty 1931), so that four
    standard errors are as rare as in the other checks.
    """
    num_tasks, n = y.shape
    counts = np.stack([(y == label).sum(0) for label in range(way)])
    statistic = np.square(counts - num_tasks / way).sum() / (num_tasks / way)
    freedom = (n - 1) * (way - 1)
    spread = 2 / (9 * freedom)
    return float((np.cbrt(statistic * (n - 1) / n / freedom) - (1 - spread)) / np.sqrt(spread))


def labels_by_class(classes: np.ndarray) -> Mapping[str, Any]:
    """Passes if the labels do not follow the order in which the data set has its classes.

    The statistic is the correlation of a class's rank among those of its task with its label. By chance labels are
    dealt at random, hence a task's sum of products of the two, both centred, has the mean 0 and the variance
    sum(rank^2) sum(label^2) / (way - 1) (Hoeffding 1951); tasks are independent. A label that follows from the class in
    a way that does not rise or fall with its place in the order goes unseen.

    Args:
      classes: the class with each label, `[num_tasks, way]`; -1 where the image is none of the data set's. If most are
        that, there is nothing to judge by, and the check fails.

    Returns:
      `value` is the correlation over all tasks, `standard_error` what chance makes of it, `known` the fraction of the
      classes that could be told.
    """
    way = classes.shape[1]
    below, same = (op(classes[:, None, :], classes[:, :, None]) for op in (np.less, np.equal))
    rank = (below + same / 2).sum(2) - way / 2
    label = np.arange(way) - (way - 1) / 2
    product = (rank @ label).sum()
    squares = np.square(rank).sum(1) * np.square(label).sum()
    scale = max(np.sqrt(squares).sum(), 1e-9)  # 0 where every task has turns of a single class alone
    value, error = float(product / scale), float(np.sqrt(squares.sum() / (way - 1)) / scale)
    known = float(np.mean(classes >= 0))
    return {
        "passed": abs(value) <= SIGMAS * error and known > 0.5,
        "value": value,
        "standard_error": error,
        "known": known,
    }


def is_rare(repeated: np.ndarray) -> Mapping[str, Any]:
    """Passes if next to no query shows a support image; `value` is the mean fraction of `repeated: [num_tasks]`."""
    value = float(np.mean(repeated))
    return {"passed": value <= _COPIES, "value": value}


def classes_apart(
    test: Sequence[np.ndarray], train: Sequence[np.ndarray], val: Sequence[np.ndarray] = ()
) -> Mapping[str, Any]:
    """Passes if no class of meta-test is one of meta-training, by the content of their images.

    A class has leaked if more than a third of its different images occur, as they are or turned, in meta-training, in
    whatever class. The images may be of two data sets. Content is that of prepared pixels: a picture is known again
    only where both data sets were brought to one size and number of channels in the same way.

    Args:
      test, train, val: the hashes of the contents of each class, `[count]` uint64, of `contents.content_hashes`.

    Returns:
      `value` is the fraction of the test classes that have leaked; `images` the fraction of their images that occur in
      meta-training; `val` the fraction of the test classes that occur in meta-validation, for information.
    """
    different = [np.unique(its) for its in test]
    of_class = np.repeat(np.arange(len(test)), [len(its) for its in different])

    def shared(others: Sequence[np.ndarray]) -> tuple[float, float]:
        known = np.isin(np.concatenate(different), np.concatenate([np.empty(0, np.uint64), *others]))
        share = np.bincount(of_class, known) / np.bincount(of_class)
        return float(np.mean(share > _LEAKED_SHARE)), float(known.mean())

    (value, images), (in_val, _) = shared(train), shared(val)
    return {"passed": value == 0, "value": value, "images": images, "val": in_val}
