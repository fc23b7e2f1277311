"""The contract of a data set."""

from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metarun.assembly.returned import data_set_faults
from metarun.config.schema import FEW_SHOT
from metarun.data.contents import content_hashes
from metarun.errors import some
from metarun.testing.contract import compiled_quickly, hold, made, name_of, not_finite, retraced
from metarun.trust import leaks
from metarun.trust.checks import mask_of
from metarun.types import DataSet

_WAY, _SHOT, _QUERY_SHOT = 3, 1, 2
_SIGMAS = 4
_SHARED, _TWICE = 0.01, 0.05  # what chance may bring: of inputs in two splits, of tasks with a class twice
# What a broken check says is to be mended.
_MEND = {
    "labels_by_position": "The place of an example says what its label is: put support and query sets into random order.",
    "labels_by_class": "Some classes have some labels more often: number the classes of each task at random.",
    "support_apart_from_query": "Queries repeat support examples: draw both without replacement.",
    "test_apart_from_train": "Classes of the test are known from training: split by class before tasks are drawn.",
}


@compiled_quickly()
def check_dataset(
    factory: Callable[..., DataSet], settings: Mapping[str, Any] | None = None, *, num_tasks: int = 300
) -> None:
    """Holds a data set to what every data set of metarun promises.

    It is made for tasks of three ways, one shot and two queries of each class.

    - types and shapes: tasks of the three splits are what `types.Task` says;
    - drawn by the key: the same key gives the same task, another key another one;
    - finite: inputs are finite numbers;
    - labels: of each class there are `shot` in the support set, and its numbers are those of the task;
    - splits: of classes, the splits are not the same tasks and share no inputs;
    - leaks: neither place nor class nor input gives a label away, queries are not support examples, a class has one label in a
      task, splits share no class;
    - stream: where there is one, it gives the same tasks.

    Args:
      factory: what `dataset=NAME` would call.
      settings: its keys.
      num_tasks: drawn from each split. More find smaller leaks.

    Raises:
      ContractError: a promise is broken, with what was found and how to mend it.
    """
    given = {
        "way": _WAY,
        "shot": _SHOT,
        "query_shot": _QUERY_SHOT,
        "eval_query_shot": None,
        "train_way": None,
        "train_shot": None,
        "test_only": False,
        "seed": 0,
    }
    dataset = made(factory, "dataset", FEW_SHOT, given, settings or {})
    sources = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    way = dataset.num_outputs if dataset.objective == "classification" else None
    compiled: dict[str, Any] = {}
    kept: dict[tuple[str, int], Any] = {}
    # A class and its quarter turns, where they are classes of their own, are the same by their contents.
    turned = bool(isinstance(dataset.protocol, Mapping) and dataset.protocol.get("rotations"))

    def drawn(split: str, seed: int = 0) -> Any:
        if (split, seed) not in kept:
            keys, source = jax.random.split(jax.random.key(seed), num_tasks), sources[split]
            draw = compiled.setdefault(split, jax.jit(jax.vmap(source.sample, (None, 0))))
            kept[split, seed] = jax.device_get(draw(source.data, keys))
        return kept[split, seed]

    def by_key() -> Iterator[str]:
        for split, source in sources.items():
            yield from retraced(f"{split}.sample", source.sample, source.data, jax.random.key(0))
            first, other = drawn(split), drawn(split, 1)
            tasks = [first.support.x[number].tobytes() for number in range(num_tasks)]
            if _same(first, other) or len({*tasks}) == 1:
                yield f"{split}.sample gives the same task for every key."

    def finite() -> Iterator[str]:
        for split in sources:
            if where := not_finite(drawn(split)):
                yield f"{split} has inputs or targets that are not finite, at {', '.join(where)}."

    def labels() -> Iterator[str]:
        for split in sources:
            tasks = drawn(split)
            counts = [
                np.stack(
                    [np.bincount(row[its], minlength=way or 0) for row, its in zip(part.y, mask_of(part), strict=True)]
                )
                for part in tasks
                if part.y.min() >= 0
            ]
            if len(counts) < 2 or any(each.shape[1] != way for each in counts):
                yield f"{split} has labels outside of 0 to {(way or 0) - 1}."
            elif (lacking := np.flatnonzero((counts[0] == 0).all(0))).size:
                yield f"{split} never has the labels {some([*map(str, lacking)])}, and num_outputs is {way}."
            elif not dataset.varies and (counts[0] != counts[0][:, :1]).any():
                yield f"{split} has support sets with more examples of one class than of another."

    def apart() -> Iterator[str]:
        pairs = [*combinations(sources, 2)]
        if same := [f"{one} and {other}" for one, other in pairs if _same(drawn(one), drawn(other))]:
            yield f"{', '.join(same)} give the same tasks for the same keys: split by class before tasks are drawn."
            return
        for one, other in pairs:
            if dataset.contents and (one, other) == ("train", "test"):  # of which `leaks` tells
                continue
            if (share := _shared(inputs(one), inputs(other))) > _SHARED:
                yield f"{share:.0%} of the inputs of {other} are in {one} too: split by class before tasks are drawn."

    def inputs(split: str) -> np.ndarray:
        """The hashes of what a split shows: of all it has, where it says so, else of the tasks drawn."""
        if (its := (dataset.contents or {}).get(split)) is not None:
            return np.concatenate([np.empty(0, np.uint64), *its])
        return np.concatenate([content_hashes(part.x.reshape(-1, *part.x.shape[2:])) for part in drawn(split)])

    def found_leaks() -> Iterator[str]:
        tasks = drawn("test")
        contents = dataset.contents or {}
        for split in sources:
            if way is not None and not turned and contents.get(split):
                yield from _twice(split, leaks.traces(drawn(split), way, contents[split])["classes"])
        found = leaks.verdicts(
            leaks.traces(tasks, way, contents.get("test")), way, dataset.contents, "fitted" in dataset.protocol
        )
        for name, entry in found.items():
            if entry["passed"] is False:
                yield f"{_MEND[name]} ({name}: {entry['value']:.3g})"
        if way is not None and (right := _without_support(drawn("test", 1), tasks)) is not None:
            yield (
                f"A query's input alone says its label: a linear function, fitted to other tasks, is right in {right:.0%} of the "
                f"queries where chance is {1 / way:.0%}. Number the classes of each task at random, and leave labels out of x."
            )

    def stream() -> Iterator[str]:
        for split, source in sources.items():
            if source.stream is None:
                continue
            its = source.stream
            rows, rest = jax.jit(its.choose)(its.index, jax.random.key(0))
            streamed = jax.device_get(jax.jit(its.cut)(jnp.asarray(its.items[np.asarray(rows)]), rest))
            if not _same(streamed, jax.device_get(jax.jit(source.sample)(source.data, jax.random.key(0)))):
                yield f"{split}.stream gives another task than sample for the same key."

    promises: dict[str, Callable[[], Iterator[str]]] = {
        "types and shapes": lambda: data_set_faults(dataset),
        "drawn by the key": by_key,
        "finite": finite,
    }
    if way is not None:
        promises |= {"labels": labels, "splits": apart}
    hold(name_of(factory), {**promises, "leaks": found_leaks, "stream": stream})


def _shared(one: np.ndarray, other: np.ndarray) -> float:
    """The share of the different numbers of the other that are in the one."""
    found = np.unique(other)
    return float(np.isin(found, one).mean()) if found.size else 0.0


def _twice(split: str, classes: np.ndarray) -> Iterator[str]:
    """A fault where tasks have a class under two labels; `classes` as of `leaks.traces`."""
    ordered = np.sort(classes, 1)
    share = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(1).mean()
    if share > _TWICE:
        yield (
            f"In {share:.0%} of the tasks of {split}, a class has two labels: draw classes without replacement, from as many "
            f"as a task has ways, {classes.shape[1]}, or more."
        )


def _same(one: Any, other: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True))


def _without_support(known: Any, asked: Any) -> float | None:
    """The share of queries that a ridge regression from inputs to labels answers rightly, if it is above chance."""
    way = int(known.query.y.max()) + 1

    def rows(tasks: Any) -> tuple[np.ndarray, np.ndarray]:
        x = tasks.query.x.reshape(-1, int(np.prod(tasks.query.x.shape[2:])))
        return np.c_[x, np.ones(len(x))].astype(np.float64), tasks.query.y.ravel()

    (x, y), (new_x, new_y) = rows(known), rows(asked)
    # In the form whose size is that of the smaller side.
    ridge = 1e-3 * np.square(x).sum() / len(x) + 1e-12
    if x.shape[1] <= len(x):
        weights = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ np.eye(way)[y])
    else:
        weights = x.T @ np.linalg.solve(x @ x.T + ridge * np.eye(len(x)), np.eye(way)[y])
    right = float(np.mean((new_x @ weights).argmax(1) == new_y))
    # Queries of one class in a task go together: as many independent answers as there are classes in all tasks.
    error = np.sqrt((1 / way) * (1 - 1 / way) / (len(asked.query.y) * way))
    return right if right > 1 / way + _SIGMAS * error else None
