#!/usr/bin/env python
"""How a learner that was trained on drawn tables (`dataset=prior`) reads real ones, beside learners that are fitted to them.

    metarun experiment=unpublished/prior_transformer hydra.run.dir=DIR
    python scripts/tables.py DIR [--rows 100] [--splits 30] [--json FILE]

The tables are those that scikit-learn ships: iris, wine, breast cancer and digits. Each split draws so many training rows, the
classes in their proportions, and at most 500 others to be told; all learners are given the same. Of a table with more features than
the learner takes, the training rows' first principal components are taken, for all learners. Beside it stand
scikit-learn's logistic regression, 5 nearest neighbours and gradient-boosted trees (by histograms), on standardised features and with default
settings. Nothing is chosen on these tables. Prints accuracies in per cent with the 95% interval over splits.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn import datasets
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

import metarun
from metarun.commands.console import told, whole
from metarun.data.prior import as_features
from metarun.errors import ConfigError

TABLES = {
    "iris": datasets.load_iris,
    "wine": datasets.load_wine,
    "breast cancer": datasets.load_breast_cancer,
    "digits": datasets.load_digits,
}
FITTED: dict[str, Callable[[], Any]] = {
    "logistic regression": lambda: LogisticRegression(max_iter=2000),
    "nearest neighbours": lambda: KNeighborsClassifier(5),
    # The default of 20 rows a leaf would leave nothing to part in tables as small as these.
    "boosted trees": lambda: HistGradientBoostingClassifier(min_samples_leaf=5, random_state=0),
}
_MOST_QUERIES = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="the directory of a run on dataset=prior")
    parser.add_argument("--rows", default="100", help="training rows of a split; 100")
    parser.add_argument("--splits", default="30", help="of each table; 30")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the accuracies of every split are written")
    sys.exit(told(lambda: _run(parser.parse_args())))


def _run(options: argparse.Namespace) -> None:
    """Compares as the options ask for, and prints the table."""
    rows, splits = (whole(f"--{name}", getattr(options, name)) for name in ("rows", "splits"))
    run = metarun.load(options.run)
    if len(run.data.input_shape) != 1 or run.data.objective != "classification":
        raise ConfigError("run", options.run, "a run on dataset=prior")
    found = {name: {learner: [] for learner in ("metarun", *FITTED)} for name in TABLES}  # type: dict[str, dict[str, list[float]]]
    for name, load in TABLES.items():
        x, y = load(return_X_y=True)
        for split in range(splits):
            table = _parted(x, y, rows, split, run.data.input_shape[0])
            for learner, accuracy in _accuracies(run, *table).items():
                found[name][learner].append(accuracy)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    print(f"{'accuracy, %':<22}" + "".join(f"{name:>18}" for name in (*TABLES, "mean")))
    for learner in ("metarun", *FITTED):
        of_tables = [np.array(found[name][learner]) * 100 for name in TABLES]
        cells = [(its.mean(), its.var(ddof=1) / splits) for its in of_tables]
        cells.append(
            (np.mean([mean for mean, _ in cells]), np.sum([variance for _, variance in cells]) / len(cells) ** 2)
        )
        said = [f"{mean:.1f} ± {1.96 * np.sqrt(variance):.1f}" for mean, variance in cells]
        print(f"{learner:<22}" + "".join(f"{each:>18}" for each in said))


def _parted(x: Any, y: Any, rows: int, split: int, most: int) -> tuple[Any, Any, Any, Any]:
    """Training rows, their classes, rows to be told and theirs; features standardised, and `most` of them at most."""
    known, asked, labels, truth = train_test_split(x, y, train_size=rows, stratify=y, random_state=split)
    scale = StandardScaler().fit(known)
    known, asked = scale.transform(known), scale.transform(asked)
    if known.shape[1] > most:
        components = PCA(most, random_state=0).fit(known)
        known, asked = components.transform(known), components.transform(asked)
    return known, labels, asked[:_MOST_QUERIES], truth[:_MOST_QUERIES]


def _accuracies(run: Any, known: Any, labels: Any, asked: Any, truth: Any) -> dict[str, float]:
    """Of the trained learner and of those that are fitted."""
    most = run.data.input_shape[0]
    padded = [np.pad(part, ((0, 0), (0, most - part.shape[1]))).astype(np.float32) for part in (known, asked)]
    is_feature = np.arange(most) < known.shape[1]
    support, query = (np.asarray(as_features(part, padded[0], is_feature)) for part in padded)
    learner = run.adapt(support, labels)
    classes = np.array(learner.classes)
    found = {"metarun": float((classes[learner.predict(query).argmax(1)] == truth).mean())}
    for name, made in FITTED.items():
        found[name] = float(made().fit(known, labels).score(asked, truth))
    return found


if __name__ == "__main__":
    main()
