"""What was found on tasks of each size, where they differ."""

from collections.abc import Collection, Mapping

import numpy as np


def by_size(
    values: np.ndarray, counts: np.ndarray, of_classes: np.ndarray | None, varies: Collection[str]
) -> Mapping[str, Mapping[str, np.ndarray]]:
    """Returns fields of a result: name -> size -> the quantity of each task of that size, where there are several.

    `by_way` and `by_shot` have the tasks of each way and each shot, the mean of a task's classes, rounded. `by_class_shot`, where
    classes of one task differ in shot, has the tasks with classes of each shot, and of each the mean over these classes.

    Args:
      values: the quantity of each task, `[n]`.
      counts: support examples of each of its classes, `[n, way]`, 0 of one that it has not; of a regression of all, `[n, 1]`.
      of_classes: the quantity of the queries of each class, `[n, way]`, NaN of one without queries; None of a regression.
      varies: "way", "shot" or both, in which tasks may differ.
    """
    there = counts > 0
    ways = there.sum(1)
    shots = np.rint(counts.sum(1) / ways).astype(int)
    sizes = {"way": ways, "shot": shots}
    found = {
        f"by_{what}": {str(size): values[its == size] for size in np.unique(its)}
        for what, its in sizes.items()
        if what in varies and (its != its[0]).any()
    }
    most = counts.max(1, keepdims=True)
    if of_classes is None or (counts == most)[there].all():
        return found
    by_shot = {}
    for shot in np.unique(counts[there]):
        its = (counts == shot) & ~np.isnan(of_classes)
        has = its.any(1)
        if has.any():
            by_shot[str(shot)] = np.where(its, of_classes, 0)[has].sum(1) / its[has].sum(1)
    return {**found, "by_class_shot": by_shot}
