"""What `metarun-predict` does with arrays: a trained learner is shown rows of each class and answers for others."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from metarun.api.run import Run
from metarun.assembly import saved_run
from metarun.assembly.few_shot_run import DataFacts
from metarun.commands.prediction import CSV, FOLDER, id_of
from metarun.config.schema import COMMANDS, FEW_SHOT
from metarun.data.array_files import NAMES, NUMBERS, holds_arrays, numbers, read, text_of
from metarun.data.arrays import grouped
from metarun.errors import ConfigError, DataError, one_of
from metarun.few_shot.learner import STATISTICS
from metarun.report import predictions
from metarun.report.predictions import Predictions
from metarun.report.run_pictures import parameters_of
from metarun.training.run_state import selected_steps

FORM = "a file FILE.npz or a folder of .npy files with x"


def of_arrays(given: Mapping[str, str]) -> bool:
    """Whether the keys of a command line name arrays.

    Raises:
      ConfigError: some do and others are of pictures.
    """
    named = [key for key in ("support", "query") if holds_arrays(Path(os.path.expanduser(given.get(key, ""))))]
    if not named:
        return False
    for key in ("support", "query"):
        if key not in named:
            raise ConfigError(key, given.get(key), f"{FORM}, as {named[0]} is")
    for key in ("invert", "links", "range"):
        if key in given:
            raise ConfigError(key, given[key], "nothing: it is for pictures, and these are arrays")
    return True


def predict(
    console: Console,
    *,
    support: str,
    query: str,
    run: str | None = None,
    query_statistics: str = "auto",
    output: str | None = None,
    code: Sequence[str] = (),
) -> None:
    """Adapts the learner of a run to the classes of `support`, and says of which of them the rows of `query` are.

    The run's own data are not needed: the rows are standardised by the mean and variance that the run has recorded.
    Prints a table; writes `probabilities.csv`, whose rows are called by their numbers, from 0.

    Args:
      console, run, query_statistics, output, code: as for `prediction.predict`.
      support: path of a .npz file or a folder of .npy files with `x: [n, *feature]` and `y: [n]`, whole numbers or names.
      query: such a file or folder with `x`.

    Raises:
      ConfigError, DataError, MetarunError: a setting, the run or an array cannot be used.
    """

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    one_of("query_statistics", query_statistics, ("auto", *STATISTICS))
    trained = Run(saved_run.read(run, say, overrides=code))
    saved = trained.saved
    if saved.part != FEW_SHOT:
        raise ConfigError("run", run, f"a run on classes; it is one of {COMMANDS[saved.part]}")
    if trained.data.objective != "classification":
        raise ConfigError("run", saved.directory, f"a run on classes; it is on {saved.choices['dataset']}, of numbers")
    of_support, of_query = (Path(os.path.expanduser(path)) for path in (support, query))
    given, asked = read(of_support, {"x": NUMBERS, "y": NAMES}), read(of_query, {"x": NUMBERS})
    shown_x, query_x = (_rows(place, its["x"], trained.data) for place, its in ((of_support, given), (of_query, asked)))
    classes = list(grouped(text_of(of_support, "y", given["y"])))
    if len(classes) < 2:
        raise DataError(f"{support} has one class only, {classes[0][0]}: expected two or more.")
    labels: Any = np.zeros(len(shown_x), np.int32)
    for label, (_, rows) in enumerate(classes):
        labels[rows] = label
    names = [name for name, _ in classes]
    functions = trained.functions(len(names), query_statistics)
    say(
        f"{saved.choices['method']} trained on {saved.choices['dataset']}, {parameters_of(selected_steps(saved.checkpoint))}."
    )
    say(f"{len(shown_x)} rows of {len(names)} classes, {len(query_x)} queries.")
    if functions.standard is not None:
        say("Rows are standardised by the mean and variance of the run's training data.")
    if functions.together:
        say("The queries are answered together, and an answer may depend on the others (query_statistics=query).")
    learner = trained.adapt(shown_x, labels, query_statistics=query_statistics)
    support_rows, query_rows = (functions.inputs("x", rows) for rows in (shown_x, query_x))
    numbered = [str(row) for row in range(len(query_x))]
    found = Predictions(names, support_rows, labels, numbered, query_rows, learner.predict(query_x))
    console.print(predictions.table(found))
    folder = Path(output).expanduser() if output else saved.directory / FOLDER / of_query.resolve().stem / id_of(found)
    predictions.write_csv(found, folder / CSV)
    say(f"{CSV} in {folder}")


def _rows(place: Path, x: np.ndarray, data: DataFacts) -> np.ndarray:
    """The rows of a file, of the shape of the run's own."""
    x = numbers(place, "x", x)
    if x.shape[1:] != data.input_shape:
        raise DataError(
            f"x of {place} has rows of shape {list(x.shape[1:])}: expected {list(data.input_shape)}, as in the run."
        )
    return x
