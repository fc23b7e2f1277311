"""Tasks of one's own in arrays: rows that each belong to a task, with a number or a class to be predicted."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import random

from metarun.data import class_bank
from metarun.data.array_files import NAMES, NUMBERS, numbers, places_of, read, text_of
from metarun.data.arrays import Group, grouped, one_split, prepared, splits_of_rows
from metarun.data.class_bank import SplitBank
from metarun.data.class_split import SPLITS
from metarun.data.contents import content_hashes
from metarun.data.episodes import (
    as_inputs,
    distinct,
    distinct_or_fewer,
    drawn_examples,
    large_enough,
    masked_at,
    padded_examples,
    source_of,
)
from metarun.data.standardizing import KINDS, as_lists, standard_of
from metarun.data.task_sizes import TaskSizes, differing, sizes_by_split
from metarun.errors import ConfigError, DataError, one_of, some
from metarun.types import Array, DataSet, TaskSource

TARGETS = "targets.npy"
KINDS_OF_TARGETS = ("numbers", "classes")


class _Index(NamedTuple):
    """What draws of tasks depend on.

    Attributes:
      images: as in `ClassBank`; None where they stay on the host.
      first, count: rows of each unit, which is a task or a class of one, likewise.
      first_unit, num_units: units of each task, `[num_tasks]` int32.
      targets: `[num_rows, size]` float32 of a regression; None: classes.
    """

    images: Any
    first: Any
    count: Any
    first_unit: Any
    num_units: Any
    targets: Any


def tasks(
    *,
    way: int | Sequence[int],
    shot: int | Sequence[int],
    query_shot: int,
    eval_query_shot: int | None = None,
    train_way: int | Sequence[int] | None = None,
    train_shot: int | Sequence[int] | None = None,
    sampling: str = "equal",
    source: str | None = None,
    split: str | None = None,
    split_seed: int = 0,
    targets: str | None = None,
    standardize: str = "feature",
    standardize_y: str = "none",
    test_only: bool = False,
) -> DataSet:
    """Returns regression or classification tasks of one's own, each of as many rows as it has.

    A draw chooses a task, all being equally likely. In regression it takes `shot` rows of the task as the support set
    and `query_shot` others as the query set. In classification it takes `way` of the task's classes and so many rows of
    each, and labels fall on the classes at random, as in `episodes.episodes`; two tasks may have classes of one name.
    Tasks that are too small, and classes of a task, are left out and named. Where way or shot is a range, each draw has its
    own, up to what its task has, and the sets are padded to the largest, see `Split.mask`.

    Args:
      way: classes in a draw of a classification task; or the fewest and the most.
      shot: support rows, of a class where there are classes; or the fewest and the most.
      query_shot: query rows likewise.
      eval_query_shot: the same in meta-validation and meta-test; None: as in meta-training.
      train_way, train_shot: those of meta-training; None: as in test.
      sampling: how sizes are drawn, see `TaskSizes`; of a regression, "equal".
      source: as for `arrays.arrays`, with an array `task: [n]` of whole numbers or names besides. `y` is `[n]` or
        `[n, size]` numbers, or `[n]` classes. `split: [n]`, if it is there, is the same for all rows of a task.
      split, split_seed: as for `arrays.arrays`, of tasks instead of classes.
      targets: what `y` are, "numbers" (regression) or "classes"; None: numbers if they are floats.
      standardize: of `x`, as for `arrays.arrays`.
      standardize_y: of the targets of a regression likewise, by those of meta-training's tasks. The error is then in
        squares of their standard deviation.
      test_only: as for `episodes.few_shot_data_set`.

    Raises:
      ConfigError, DataError, MetarunError: as for `arrays.arrays`; or no task is large enough.
    """
    loaded, facts, y = _loaded(source, split, split_seed, targets, standardize, standardize_y)
    regression = y is not None
    sizes = sizes_by_split(
        way=1 if regression else way,
        train_way=None if regression else train_way,
        shot=shot,
        query_shot=query_shot,
        eval_query_shot=eval_query_shot,
        train_shot=train_shot,
        sampling=sampling,
        of_classes=not regression,
    )
    varies = differing(sizes.values())
    made: dict[str, TaskSource] = {}
    used: dict[str, list[int]] = {}
    for name, its in sizes.items():
        kept = large_enough(loaded, name, its)
        needed = name == "test" or not test_only
        if regression:
            made |= {name: _of_rows(_index(loaded, kept, [1] * len(kept), y), its)} if needed else {}
        else:
            kept, numbers = _with_classes(name, kept, facts["tasks"], its, needed)
            made |= {name: _of_classes(_index(loaded, kept, numbers, None), its)} if needed else {}
        used[name] = kept
    sources: dict[str, Any] = dict.fromkeys(SPLITS, made["test"]) | made
    of_task = facts["tasks"]
    number = {name: len({of_task[unit] for unit in units}) for name, units in used.items()}
    shape = list(loaded.bank.images.shape[1:])
    return DataSet(
        **sources,
        objective=facts["objective"],
        num_outputs=sizes["test"].way[1] if y is None else y.shape[1],
        protocol={
            **loaded.protocol,
            **({"sampling": sampling} if varies else {}),
            "tasks": number,
            "input_shape": shape,
        },
        train_way=None if regression else sizes["train"].way[1],
        contents={name: _contents(loaded, units, y) for name, units in used.items()},
        standardized=loaded.standardized,
        varies=varies,
    )


def load(
    *,
    source: str | None = None,
    split: str | None = None,
    split_seed: int = 0,
    targets: str | None = None,
    standardize: str = "feature",
    standardize_y: str = "none",
) -> SplitBank:
    """The tasks, or the classes of all tasks, as the classes of a bank; arguments as for `tasks`."""
    return _loaded(source, split, split_seed, targets, standardize, standardize_y)[0]


tasks.load = load  # type: ignore[attr-defined]


def _loaded(
    source: str | None,
    split: str | None,
    split_seed: int,
    targets: str | None,
    standardize: str,
    standardize_y: str,
) -> tuple[SplitBank, Mapping[str, Any], np.ndarray | None]:
    """The bank, whose classes are tasks or classes of tasks; the facts beside it; and the targets of a regression."""
    places = places_of("dataset.source", source)
    if targets is not None:
        one_of("dataset.targets", targets, KINDS_OF_TARGETS)
    one_of("dataset.standardize_y", standardize_y, KINDS)

    def groups(scratch: Path) -> list[Group]:
        found: list[Group] = []
        for part, place in places.items():
            its = read(place, {"task": NAMES, "x": NUMBERS, "y": NUMBERS + NAMES, "split": NAMES}, ["split"], scratch)
            x, task = numbers(place, "x", its["x"]), text_of(place, "task", its["task"])
            of_split, y = splits_of_rows(place, its, part), _targets(place, its["y"], targets)
            for name, rows in grouped(task):
                where = one_split(place, "task", name, of_split[rows])
                if y.ndim == 2:
                    found.append(Group(name, name, where, x, rows, y[rows]))
                else:
                    for label, among in grouped(y[rows]):
                        found.append(Group(f"{name}/{label}", name, where, x, rows[among]))
        if len({group.y is None for group in found}) > 1:
            raise DataError(f"y is of floats in one file of {source} and of classes in another: set dataset.targets.")
        return found

    def further(folder: Path, found: Sequence[Group], train: Sequence[Group]) -> Mapping[str, Any]:
        of_task = [group.whole for group in found]
        if found[0].y is None:
            if standardize_y != "none":
                raise ConfigError("dataset.standardize_y", standardize_y, "none: y are classes")
            return {"tasks": of_task, "objective": "classification"}
        standard = standard_of(standardize_y, lambda: (group.y for group in train if group.y is not None))
        y = np.concatenate([group.y for group in found if group.y is not None])
        np.save(folder / TARGETS, y.astype(np.float32) if standard is None else standard.applied(y))
        return {"tasks": of_task, "objective": "regression", "standardized_y": as_lists(standard)}

    folder, checksum, facts = prepared(
        "tasks",
        places,
        groups,
        split,
        split_seed,
        standardize,
        "task",
        further,
        {"targets": targets, "standardize_y": standardize_y},
    )
    bank, names, _, hashes = class_bank.load(folder)
    regression = facts["objective"] == "regression"
    stated = {"standardize": standardize} | ({"standardize_y": standardize_y} if regression else {})
    loaded = SplitBank(
        bank,
        names,
        facts["classes"],
        {"name": "tasks", **facts["split"], **stated, "sha256": checksum},
        hashes,
        uneven=True,
        standardized=facts["standardized"],
        nouns=("task", "tasks", "rows") if regression else ("class of a task", "classes of tasks", "rows"),
    )
    return loaded, facts, np.load(folder / TARGETS) if regression else None


def _targets(place: Path, y: np.ndarray, kind: str | None) -> np.ndarray:
    """Targets of a regression, `[n, size]`, or classes, `[n]`."""
    floats = y.dtype.kind == "f"
    if kind == "numbers" or (kind is None and floats):
        if y.dtype.kind not in NUMBERS:
            raise ConfigError("dataset.targets", kind, f"classes or null: y of {place} is text")
        y = numbers(place, "y", y)
        if y.ndim != 2:
            raise DataError(f"y of {place} has shape {list(y.shape)}: expected [n] or [n, size].")
        return y
    if floats:
        allowed = f"numbers or null: y of {place} has floats, which name no class; y.astype(int) would"
        raise ConfigError("dataset.targets", kind, allowed)
    return text_of(place, "y", y)


def _index(loaded: SplitBank, units: Sequence[int], sizes: Sequence[int], targets: np.ndarray | None) -> _Index:
    """That of the units given, which stand task by task, `sizes[t]` of task `t`."""
    num_units = np.array(sizes, np.int32)
    first_unit = (np.cumsum(num_units) - num_units).astype(np.int32)
    bank = loaded.bank
    return _Index(bank.images, bank.first[units], bank.count[units], first_unit, num_units, targets)


def _with_classes(
    split: str, units: Sequence[int], of_task: Sequence[str], sizes: TaskSizes, needed: bool
) -> tuple[list[int], list[int]]:
    """The classes of tasks that have as many as the smallest way, task by task, and how many each has; other tasks are named.

    Raises:
      ConfigError: a way of less than two; or no task has the largest, where tasks of this split are `needed`.
    """
    its: dict[str, list[int]] = {}
    for unit in units:
        its.setdefault(of_task[unit], []).append(unit)
    (least, largest), way_key = sizes.way, sizes.keys[0]
    if least < 2:
        raise ConfigError(way_key, least, "2 or more classes")
    kept = {task: classes for task, classes in its.items() if len(classes) >= least}
    if (most := max(map(len, its.values()))) < largest and needed:
        got = largest if least == largest else [least, largest]
        raise ConfigError(way_key, got, f"at most {most}, the classes of the task of {split} with most of them")
    if small := [task for task in its if task not in kept]:
        print(f"Left out of {split}, having less than {least} classes: {some(small)}.", file=sys.stderr)
    return [unit for classes in kept.values() for unit in classes], [len(classes) for classes in kept.values()]


def _contents(loaded: SplitBank, units: Sequence[int], targets: np.ndarray | None) -> list[np.ndarray]:
    """The hashes of each unit's rows; in regression, of rows with their targets: two tasks may ask at the same places."""
    first, count = loaded.bank.first, loaded.bank.count
    parts = [slice(first[unit], first[unit] + count[unit]) for unit in units]
    if targets is None:
        return [loaded.hashes[part] for part in parts]
    return [
        content_hashes(np.concatenate([loaded.bank.images[part].reshape(count, -1), targets[part]], 1))
        for part, count in zip(parts, count[units], strict=True)
    ]


def _of_rows(index: _Index, sizes: TaskSizes) -> TaskSource:
    """The source of regression tasks."""
    most = sizes.shot[1]

    def choose(index: _Index, key: Array) -> tuple[Array, Any]:
        first, count, targets = map(jnp.asarray, (index.first, index.count, index.targets))
        task_key, row_key, *size_key = random.split(key, 2 + sizes.vary)
        task = random.randint(task_key, (), 0, count.size)
        rows = first[task] + distinct(row_key, most + sizes.query_shot, count[task])
        masks = sizes.drawn_masks(size_key[0]) if sizes.vary else None
        return rows, (targets[rows], masks)

    return source_of(index, choose, lambda items, drawn: masked_at(most, as_inputs(items), *drawn))


def _of_classes(index: _Index, sizes: TaskSizes) -> TaskSource:
    """The source of classification tasks, each of classes of one of the tasks."""
    most_ways = sizes.way[1]

    def choose(index: _Index, key: Array) -> tuple[Array, Any]:
        first, count, first_unit, num_units = map(
            jnp.asarray, (index.first, index.count, index.first_unit, index.num_units)
        )
        task_key, class_key, *keys = random.split(key, 5 + sizes.vary)
        task = random.randint(task_key, (), 0, num_units.size)
        draw = distinct_or_fewer if sizes.vary else distinct
        classes = first_unit[task] + draw(class_key, most_ways, num_units[task])
        if not sizes.vary:
            rows, label = drawn_examples(first, count, classes, keys, shot=sizes.shot[1], query_shot=sizes.query_shot)
            return rows, (label, None)
        *keys, size_key = keys
        drawn = sizes.draw(size_key, count[classes], num_units[task])
        rows, label, masks = padded_examples(first, count, classes, keys, sizes, *drawn)
        return rows, (label, masks)

    return source_of(index, choose, lambda items, drawn: masked_at(sizes.most_support, as_inputs(items), *drawn))
