"""How many classes a task has, and how many support examples each of them, where tasks differ."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import random

from metarun.data.class_split import SPLITS
from metarun.errors import ConfigError, one_of, positive_int, positive_range
from metarun.types import SIZES, Array

# The most support examples of a task, and what each of its classes may add to their number, of Meta-Dataset's rule.
_MOST, _MOST_OF_CLASS = 500, 100
SAMPLINGS = ("equal", "unequal", "meta_dataset")
_KEYS = ("way", "shot", "query_shot")


class TaskSizes(NamedTuple):
    """The sizes that tasks may have. In a regression all rows are as of one class.

    Attributes:
      way: the fewest and the most classes of a task.
      shot: the fewest and the most support examples of a class.
      query_shot: query examples of a class.
      sampling: how sizes are drawn, one of `SAMPLINGS`. The way is always uniform. "equal": so is the shot, the same for all
        classes of a task; "unequal": so is the shot of each class by itself, up to what it has besides queries;
        "meta_dataset": by Meta-Dataset's rule, see `shots`.
      keys: by which way, shot and query_shot are set, to be named in an error.
    """

    way: tuple[int, int]
    shot: tuple[int, int]
    query_shot: int
    sampling: str = "equal"
    keys: tuple[str, str, str] = _KEYS

    @property
    def vary(self) -> bool:
        """Whether tasks differ in size."""
        return self.way[0] < self.way[1] or self.shot[0] < self.shot[1]

    @property
    def most_support(self) -> int:
        """Support examples of the largest task."""
        most = self.way[1] * self.shot[1]
        return min(most, max(_MOST, self.way[1])) if self.sampling == "meta_dataset" else most

    @property
    def least_examples(self) -> int:
        """Examples that a class needs: those of the largest shot, unless a class may have a shot of its own."""
        return self.shot[self.sampling == "equal"] + self.query_shot

    def largest(self) -> "TaskSizes":
        """That of the largest task alone."""
        return self._replace(way=self.way[1:] * 2, shot=self.shot[1:] * 2, sampling="equal")

    def within(self, classes: int, examples: int) -> "TaskSizes":
        """The sizes up to so many classes, and examples of a class; a range that is above in whole stays as it is."""
        return self._replace(way=_up_to(classes, self.way), shot=_up_to(examples - self.query_shot, self.shot))

    def draw(self, key: Array, count: Array, classes: Array | int | None = None) -> tuple[Array, Array]:
        """Draws the way of a task, a scalar, and the support examples of each class, `[most ways]` int32, 0 beyond the way.

        Args:
          key: they are drawn by.
          count: images of each of the classes that the task may have, `[most ways]`.
          classes: of how many the task may choose, a scalar; None: as many as the largest way, or more.
        """
        way_key, shot_key = random.split(key)
        most = self.way[1] if classes is None else jnp.minimum(self.way[1], classes)
        way = random.randint(way_key, (), self.way[0], most + 1, jnp.int32)
        there = jnp.arange(self.way[1]) < way
        if self.sampling == "meta_dataset":
            drawn = jnp.minimum(shots(shot_key, count, there, self.query_shot), self.shot[1])
        elif self.sampling == "unequal":
            its_most = jnp.minimum(self.shot[1], count - self.query_shot)
            drawn = random.randint(shot_key, count.shape, self.shot[0], its_most + 1, jnp.int32)
        else:
            drawn = random.randint(shot_key, (1,), self.shot[0], self.shot[1] + 1, jnp.int32)
        return way, jnp.where(there, drawn, 0)

    def drawn_masks(self, key: Array) -> tuple[Array, Array] | None:
        """Masks of the sets of a regression task, whose support rows are uniform in their range; None if it is one number."""
        least, most = self.shot
        if least == most:
            return None
        known = jnp.arange(most) < random.randint(key, (), least, most + 1, jnp.int32)
        return known, jnp.ones(self.query_shot, bool)


def task_sizes(
    way: int | Sequence[int],
    shot: int | Sequence[int],
    query_shot: int,
    sampling: str = "equal",
    keys: tuple[str, str, str] = _KEYS,
) -> TaskSizes:
    """The sizes that numbers and ranges ask for, see `TaskSizes`; raises `ConfigError` for what is neither."""
    ways, its_shots = positive_range(keys[0], way), positive_range(keys[1], shot)
    return TaskSizes(ways, its_shots, positive_int(keys[2], query_shot), sampling, keys)


def sizes_by_split(
    *,
    way: int | Sequence[int] = 1,
    shot: int | Sequence[int],
    query_shot: int,
    eval_query_shot: int | None = None,
    train_way: int | Sequence[int] | None = None,
    train_shot: int | Sequence[int] | None = None,
    sampling: str = "equal",
    of_classes: bool = True,
) -> dict[str, TaskSizes]:
    """The sizes of each split's tasks, of what a data set is asked for.

    Args:
      way, shot, query_shot, sampling: see `TaskSizes`.
      eval_query_shot: query examples of a class in meta-validation and meta-test; None: as in meta-training.
      train_way, train_shot: those of meta-training; None: as in test.
      of_classes: whether there are classes, which may have shots of their own.

    Raises:
      ConfigError: for what is no size, or a sampling that cannot be with them.
    """
    of_test = way, shot, query_shot if eval_query_shot is None else eval_query_shot
    test_keys = (*_KEYS[:2], "query_shot" if eval_query_shot is None else "eval_query_shot")
    of_train = (way if train_way is None else train_way), (shot if train_shot is None else train_shot), query_shot
    train_keys = (
        "way" if train_way is None else "train_way",
        "shot" if train_shot is None else "train_shot",
        "query_shot",
    )
    in_train = task_sizes(*of_train, sampling, train_keys)
    in_test = task_sizes(*of_test, sampling, test_keys)
    _check_sampling(sampling, [in_train, in_test], of_classes)
    return {split: in_train if split == "train" else in_test for split in SPLITS}


def differing(sizes: Iterable[TaskSizes]) -> list[str]:
    """In what tasks of one of these sizes may differ, as `DataSet.varies` says it."""
    ends = [{"way": its.way, "shot": its.shot} for its in sizes]
    return [what for what in SIZES if any(its[what][0] < its[what][1] for its in ends)]


def shots(key: Array, count: Array, there: Array, query_shot: int) -> Array:
    """Support examples of each class of a task by Meta-Dataset's rule, `[most ways]` int32.

    Of a task with the classes C, of which each has I_c images besides q queries, the support set has in all
    |S| = min(500, sum_c ceil(beta min(100, I_c))), beta uniform in (0, 1]. A class has floor(R_c (|S| - |C|)) + 1 of them, at
    most I_c, with R_c in proportion to exp(alpha_c) times all its images, alpha_c uniform in [log 0.5, log 2).

    Args:
      key: they are drawn by.
      count: images of each class, `[most ways]`.
      there: which of them the task has, `[most ways]` bool.
      query_shot: q; a number of the run, where the paper has 10, or half of the smallest class if that is less.

    Source: Triantafillou et al. 2020, Meta-Dataset, section 3.1 and appendix A.2.
    """
    beta_key, alpha_key = random.split(key)
    left = count - query_shot
    beta = 1 - random.uniform(beta_key)
    of_class = jnp.ceil(beta * jnp.minimum(left, _MOST_OF_CLASS).astype(jnp.float32)).astype(jnp.int32)
    total = jnp.minimum(jnp.where(there, of_class, 0).sum(), _MOST)
    alpha = random.uniform(alpha_key, count.shape, minval=jnp.log(0.5), maxval=jnp.log(2.0))
    weight = jnp.where(there, jnp.exp(alpha) * count.astype(jnp.float32), 0)
    share = (weight / weight.sum()) * (total - there.sum()).astype(jnp.float32)
    return jnp.minimum(jnp.floor(share).astype(jnp.int32) + 1, left)


def _check_sampling(sampling: object, sizes: Sequence[TaskSizes], of_classes: bool) -> None:
    """Raises `ConfigError` for another value of `dataset.sampling`, or one that cannot be with these sizes."""
    sampling = one_of("dataset.sampling", sampling, SAMPLINGS)
    if sampling == "equal":
        return
    if not of_classes:
        raise ConfigError("dataset.sampling", sampling, "equal: in a regression there are no classes that could differ")
    if not differing(sizes):
        raise ConfigError("dataset.sampling", sampling, "equal; or give a range, such as shot=[1,10]")
    for its in sizes:
        if sampling == "meta_dataset" and its.shot[0] > 1:
            allowed = "a range that begins with 1, such as [1,20], for dataset.sampling=meta_dataset"
            raise ConfigError(its.keys[1], its.shot[0], allowed)


def _up_to(most: int, ends: tuple[int, int]) -> tuple[int, int]:
    low, high = ends
    return (low, min(high, most)) if low <= most else ends
