"""Leaks in the data: what test tasks and the examples behind them must not give away, whatever the method.

`traces` reduces drawn tasks to a few numbers each, `verdicts` judges those of all tasks. `classes_apart` is
of the images alone, so that it serves across data sets as well.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from metarun.data.contents import class_of, content_hashes
from metarun.trust.checks import SIGMAS, mask_of, not_checked
from metarun.types import Task

# A class has leaked if more than this share of its different images is known. Real collections have a few pictures
# twice (Omniglot and miniImageNet two each); two samples of 600 from a class of ImageNet's 1,300 share 46%.
_LEAKED_SHARE = 1 / 3
# Why a check of classes cannot be made.
NO_CLASSES = "targets are numbers, so that there are no classes"
# Queries that may show a support image: a collection may have a picture twice within a class.
_COPIES = 1e-3


def traces(tasks: Task, way: int | None, classes: Sequence[np.ndarray] | None) -> dict[str, np.ndarray]:
    """What `verdicts` reads of some tasks.

    Args:
      tasks: with a leading task axis, `[n]`, of inputs of any shape.
      way: number of labels; None: targets are numbers.
      classes: of the split that they are drawn from, the hashes of the contents of each class; None: unknown.

    Returns:
      repeated `[n]`: the fraction of the queries whose inputs are those of a support example of the same task. Of classes
      besides:
      support_y `[n, num_support]` and query_y `[n, num_query]`: the labels, -1 for padding;
      classes `[n, way]`: the class that has each label, turned ones counted as the class itself; -1 if unknown. Absent
      without `classes`.
    """
    support, query = jax.tree.map(np.asarray, tasks)
    is_known, is_asked = mask_of(support), mask_of(query)
    repeated = []
    for known, its, asked, of_them in zip(support.x, is_known, query.x, is_asked, strict=True):
        seen = {one.tobytes() for one in known[its]}
        repeated.append(np.mean([one.tobytes() in seen for one in asked[of_them]] or [False]))
    found = {"repeated": np.array(repeated)}
    if way is None:
        return found
    found |= {"support_y": np.where(is_known, support.y, -1), "query_y": np.where(is_asked, query.y, -1)}
    if classes is None:
        return found
    has_label = found["support_y"][:, :, None] == np.arange(way)
    first = support.x[np.arange(len(support.x))[:, None], has_label.argmax(1)]
    numbers = class_of(content_hashes(first.reshape(-1, *first.shape[2:])), classes).reshape(-1, way)
    return {**found, "classes": np.where(has_label.any(1), numbers, -1)}


def verdicts(
    found: Mapping[str, np.ndarray],
    way: int | None,
    contents: Mapping[str, Sequence[np.ndarray]] | None,
    resized: bool = False,
) -> dict[str, Mapping[str, Any]]:
    """The checks of the data, by name; those that cannot be made say why.

    Args:
      found: `traces` of all tasks.
      way: number of labels; None: targets are numbers.
      contents: of the test's classes, and of those of training and validation where they can be had, see
        `types.DataSet`.
      resized: whether inputs have been resized since their contents were hashed, so that they are not known again.
    """
    contents, missing = contents or {}, None
    if way is None:
        missing = NO_CLASSES
    elif "test" not in contents:
        missing = "the data set does not say what its classes hold (DataSet.contents)"
    judged = {
        "labels_by_position": not_checked(NO_CLASSES)
        if way is None
        else labels_by_position(found["support_y"], found["query_y"], way)
    }
    if missing or resized:
        judged["labels_by_class"] = not_checked(
            missing or "the pictures have been resized, so that their classes cannot be known again"
        )
    else:
        # Where no task is padded, all labels have to be there.
        y = found["support_y"]
        there = (y[:, :, None] == np.arange(found["classes"].shape[1])).any(1) if (y < 0).any() else None
        judged["labels_by_class"] = labels_by_class(found["classes"], there)
    judged["support_apart_from_query"] = is_rare(found["repeated"])
    if not {"test", "train"} <= {*contents}:
        judged["test_apart_from_train"] = not_checked(
            missing or "the data that the learner was trained on are not at hand"
        )
    else:
        judged["test_apart_from_train"] = classes_apart(contents["test"], contents["train"], contents.get("val", ()))
    return judged


def labels_by_position(support_y: np.ndarray, query_y: np.ndarray, way: int) -> Mapping[str, Any]:
    """Passes if the place of an example in the support or the query set says nothing about its label.

    Args:
      support_y, query_y: labels of each task, `[num_tasks, num_examples]`, of which each may come as often as it likes; -1 for
        padding, which comes last: as many places are judged as the smallest set has.
      way: number of labels.

    Returns:
      `support` and `query` are standard errors above chance, `value` the larger.
    """
    of_each = {"support": _unevenness(support_y, way), "query": _unevenness(query_y, way)}
    value = max(of_each.values())
    return {"passed": value <= SIGMAS, "value": value, **of_each}


def _unevenness(y: np.ndarray, way: int) -> float:
    """How uneven the labels at each position are over tasks, `[num_tasks, n]`, in standard errors above chance.

    By chance each task's labels are a random arrangement of those that it has, label l c_tl times. Let a_t[p, l] be 1 if
    position p has label l, else 0, less c_tl / n. The statistic is X = sum_pl (sum_t a_t[p, l])^2 / e_l, where e_l is
    what one expects of label l at a position, sum_t c_tl / n. A task alone contributes sum_l c_tl (1 - c_tl / n) / e_l
    to X, whatever its arrangement. A pair of tasks contributes 2 sum_pl a_s a_t / e_l, which over arrangements has the mean
    0 and, with the matrices G_t = a_t' a_t = diag(c_t) - c_t c_t' / n and E = diag(e), four times the variance
    tr(G_s/E G_t/E) / (n - 1) (Hoeffding 1951); pairs are uncorrelated. So X has the mean M = tr(G/E), G being the sum of
    all G_t, and the variance V = 2 (tr(G/E G/E) - sum_t tr(G_t/E G_t/E)) / (n - 1), whose last term is 1/T of it for T
    tasks that are alike, and is left out. X tends to a weighted sum of chi-squares, which is taken for M/h times one with
    h = 2 M^2 / V degrees of freedom: for labels that are equally often, (n - 1)(way - 1). Its cube root is nearly normal
    (Wilson and Hilferty 1931), so that four standard errors are as rare as in the other checks.

    Where nothing can be uneven, for there is one position or in each task one label, it is 0.
    """
    n = int((y >= 0).sum(1).min())
    if n < 2:
        return 0.0
    y = y[:, :n]
    at = (y[:, :, None] == np.arange(way)).astype(np.float64)
    counts = at.sum(1)
    expected = counts.sum(0) / n
    at, counts, expected = (each[..., expected > 0] for each in (at, counts, expected))
    scatter = (np.diag(counts.sum(0)) - counts.T @ counts / n) / expected
    mean = np.trace(scatter)
    if mean < 1e-9:
        return 0.0
    statistic = (np.square(at.sum(0) - expected) / expected).sum()
    freedom = mean**2 * (n - 1) / np.sum(scatter * scatter.T)
    spread = 2 / (9 * freedom)
    return float((np.cbrt(statistic / mean) - (1 - spread)) / np.sqrt(spread))


def labels_by_class(classes: np.ndarray, there: np.ndarray | None = None) -> Mapping[str, Any]:
    """Passes if the labels do not follow the order in which the data set has its classes.

    The statistic is the correlation of a class's rank among those of its task with its label. By chance labels are
    dealt at random, hence a task's sum of products of the two, both centred, has the mean 0 and the variance
    sum(rank^2) sum(label^2) / (way - 1) (Hoeffding 1951); tasks are independent. A label that follows from the class in
    a way that does not rise or fall with its place in the order goes unseen.

    Args:
      classes: the class with each label, `[num_tasks, way]`; -1 where the image is none of the data set's. If most are
        that, there is nothing to judge by, and the check fails.
      there: which labels a task has, `[num_tasks, way]`; None: all.

    Returns:
      `value` is the correlation over all tasks, `standard_error` what chance makes of it, `known` the fraction of the
      classes that could be told.
    """
    there = np.ones_like(classes, bool) if there is None else there
    way = there.sum(1)[:, None]
    below, same = (op(classes[:, None, :], classes[:, :, None]) & there[:, None, :] for op in (np.less, np.equal))
    rank = np.where(there, (below + same / 2).sum(2) - way / 2, 0)
    number = np.arange(classes.shape[1])
    label = np.where(there, number - (there * number).sum(1, keepdims=True) / way, 0)
    product = (rank * label).sum()
    squares = np.square(rank).sum(1) * np.square(label).sum(1)
    scale = max(np.sqrt(squares).sum(), 1e-9)  # 0 where every task has turns of a single class alone
    value, error = float(product / scale), float(np.sqrt((squares / (way[:, 0] - 1)).sum()) / scale)
    known = float(np.mean(classes[there] >= 0))
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
