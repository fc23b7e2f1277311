"""What `metarun-predict` does: a trained learner is shown a few pictures of each class and answers for others."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from metarun.api.run import Run
from metarun.assembly import saved_run
from metarun.assembly.few_shot_run import DataFacts, recorded_range
from metarun.config.schema import COMMANDS, FEW_SHOT
from metarun.data.class_split import by_name
from metarun.data.decoding import MODES, OF_FILE, RESIZE, Range, RangeError, checked_range
from metarun.data.pictures import (
    LINKS,
    border_level,
    checked_folder,
    in_folder,
    left_out_in_words,
    read_all,
    read_classes,
    refuse_one_folder_twice,
    told_in_words,
)
from metarun.errors import ConfigError, DataError, one_of
from metarun.few_shot.learner import STATISTICS
from metarun.report import predictions
from metarun.report.predictions import Predictions
from metarun.report.run_pictures import parameters_of
from metarun.training.result import RESULT, read_result
from metarun.training.run_state import selected_steps

FOLDER, CSV, PICTURE = "predictions", "probabilities.csv", "predictions.png"
INVERT = ("auto", "true", "false")
DARK = 0.1  # ground at which data are light on dark
BRIGHT = 0.5  # border above which pictures are dark on light


class Pictures(NamedTuple):
    """Pictures of a folder.

    Attributes:
      root: the folder.
      names: of the classes or, where there are none, of the files.
      images: `[n, height, width, channel]` uint8, a NumPy array.
      labels: `[n]` int32, whose name an image has; likewise.
    """

    root: Path
    names: list[str]
    images: Any
    labels: Any


def predict(
    console: Console,
    *,
    run: str | None = None,
    support: str | None = None,
    query: str | None = None,
    invert: str = "auto",
    range: str | None = None,
    links: str = "inside",
    query_statistics: str = "auto",
    output: str | None = None,
    code: Sequence[str] = (),
) -> None:
    """Adapts the learner of a run to the classes of `support`, and says which of them the pictures of `query` show.

    The run's own data are not needed. Prints a table; writes `probabilities.csv` and `predictions.png`.

    Args:
      console: where it is said what is done, and the table.
      run: directory of the run, finished or not.
      support: a folder with a folder of pictures for each class.
      query: a folder of pictures, in folders or not.
      invert: whether light and dark change places, for each of the two folders: "true", "false", or "auto", where the
        run's data are light on dark and the pictures are not.
      range: of grey pictures of more than 8 bits, what is black and what is white, "[BLACK,WHITE]" or "file"; None: as
        in the run's own data.
      links: which links to folders are followed in both, see `pictures.in_folder`.
      query_statistics: whose statistics normalise the queries, one of `learner.STATISTICS`; "auto": as in the run, but
        where they are those of the queries, by which an answer would depend on the other pictures, see `Run.adapt`.
      output: the folder to write in; None: predictions/NAME/ID in that of the run, NAME being that of `query`, and ID
        another for other pictures, classes or answers, so that no prediction replaces another.
      code: what the command line says of code of a user's own, see `saved_run.read`.

    Raises:
      ConfigError, DataError, MetarunError: a setting, the run or a folder cannot be used; its files that are no
        pictures are named and left out.
    """

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    one_of("invert", invert, INVERT)
    one_of("links", links, LINKS)
    one_of("query_statistics", query_statistics, ("auto", *STATISTICS))
    folders = {"support": _folder("support", support), "query": _folder("query", query)}
    trained = Run(saved_run.read(run, say, overrides=code))
    saved, identity = trained.saved, trained.saved.checkpoint.metadata["identity"]
    if saved.part != FEW_SHOT:
        raise ConfigError("run", run, f"a run on images in classes; it is one of {COMMANDS[saved.part]}")
    _check_images(trained.data, saved)
    span = recorded_range(identity) if range is None else _range_of(range)
    height, width, channels = trained.data.input_shape
    shown = _read_support(folders["support"], (height, width, channels), span, say, links)
    asked = _read_query(folders["query"], (height, width, channels), span, say, links)
    trained_with = saved.config.method.get("query_statistics")
    functions = trained.functions(len(shown.names), query_statistics)

    method_name, data_name = saved.choices["method"], saved.choices["dataset"]
    say(f"{method_name} trained on {data_name}, {parameters_of(selected_steps(saved.checkpoint))}.")
    say(f"{len(shown.images)} pictures of {len(shown.names)} classes, {len(asked.images)} queries.")
    say(f"Pictures are brought to {'x'.join(map(str, trained.data.input_shape))}: {RESIZE}.")
    if span is not None:
        whose = "as in the run's data" if range is None else "as given"
        each = "the least and the greatest value of each" if span == OF_FILE else "{:g} and {:g}".format(*span)
        say(f"Of grey pictures of more than 8 bits, black and white are {each}, {whose}.")
    shown, asked = (_with_polarity(pictures, trained.data.ground, invert, say) for pictures in (shown, asked))
    if trained_with == "query":
        say(f"The run was trained with query_statistics=query: the queries' own statistics.{_alone_in_test(saved)}")
    if functions.together:
        say("The queries are answered together, and an answer may depend on the others (query_statistics=query).")
    elif trained_with == "query":
        statistics = functions.method.protocol["query_statistics"]
        of = {"support": "of the support set", "each": "of the support set and that picture"}[statistics]
        say(f"Each picture is answered by itself, with the statistics {of} (query_statistics={statistics}).")

    learner = trained.adapt(shown.images, shown.labels, query_statistics=query_statistics)
    support_x, query_x = (functions.inputs("x", pictures.images) for pictures in (shown, asked))
    found = Predictions(shown.names, support_x, shown.labels, asked.names, query_x, learner.predict(query_x))
    console.print(predictions.table(found))
    folder = (
        Path(output).expanduser()
        if output
        else saved.directory / FOLDER / folders["query"].resolve().name / id_of(found)
    )
    predictions.write_csv(found, folder / CSV)
    predictions.picture(found, folder / PICTURE)
    say(f"{CSV} and {PICTURE} in {folder}")


def id_of(found: Predictions) -> str:
    """Returns eight hexadecimal digits that are equal for equal questions with equal answers."""
    content = hashlib.sha256()
    for part in found:
        content.update(part.tobytes() if isinstance(part, np.ndarray) else json.dumps(part).encode())
    return content.hexdigest()[:8]


def _folder(key: str, value: str | None) -> Path:
    wanted = {"support": "a folder with a folder of pictures for each class", "query": "a folder of pictures"}
    return checked_folder(key, value, wanted[key])


def _check_images(data: DataFacts, run: saved_run.SavedRun) -> None:
    if data.objective != "classification" or len(data.input_shape) != 3 or data.input_shape[2] not in MODES:
        allowed = f"a run on images in classes; it is on {run.choices['dataset']}"
        raise ConfigError("run", run.directory, f"{allowed}. One on arrays is asked by support=FILE.npz query=FILE.npz")


def _alone_in_test(run: saved_run.SavedRun) -> str:
    """What the run's own test has found of queries that are asked one at a time, in words; "" where it does not say."""
    try:
        found = read_result(run.directory / RESULT)["checks"]["query_count"]
        alone, together = float(found["alone"]), float(found["together"])
    except (DataError, ValueError, KeyError, TypeError):
        return ""
    return f" So its test answered {together:.2%} of the queries rightly together, and {alone:.2%} one at a time."


def _range_of(given: str) -> Range:
    """`range=` of the command line, a word or two numbers."""
    try:
        value = json.loads(given)
    except ValueError:
        value = given
    return checked_range("range", value, (OF_FILE,))


@contextlib.contextmanager
def _said(root: Path, say: Callable[[str], None]) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """Gives what is to be filled with the files under `root` that are left out, and those to tell of; then says them.

    Raises:
      DataError: nothing says what is black and what is white in a file.
    """
    left_out: dict[str, str] = {}
    told: dict[str, str] = {}
    try:
        yield left_out, told
    except RangeError as error:
        raise DataError(
            f"{root}/{error}. Say it by range, such as 'range={error.such_as}', or range=file, the least and the "
            "greatest value of each file."
        ) from error
    if left_out:
        say(f"{left_out_in_words(root, left_out)} They are left out.")
    for sentence in told_in_words(root, told):
        say(sentence)


def _read_support(
    root: Path, shape: tuple[int, int, int], span: Range, say: Callable[[str], None], links: str = "inside"
) -> Pictures:
    with _said(root, say) as (left_out, told):
        classes = dict(read_classes(list(in_folder(root, links=links, key="links")), shape, left_out, span, told))
    if len(classes) < 2:
        raise DataError(
            f"{root} has {len(classes)} folders with pictures: expected support=DIR with one for each class."
        )
    by_name(list(classes))
    refuse_one_folder_twice(root, classes)
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(images) for images in classes.values()])
    return Pictures(root, list(classes), np.concatenate(list(classes.values())), labels)


def _read_query(
    root: Path, shape: tuple[int, int, int], span: Range, say: Callable[[str], None], links: str = "inside"
) -> Pictures:
    with _said(root, say) as (left_out, told):
        entries = list(in_folder(root, links=links, key="links"))
        files = {str(path): image for path, image in read_all(entries, shape, left_out, span, told)}
    if not files:
        raise DataError(f"{root} has no pictures: expected query=DIR with the pictures to be classified.")
    return Pictures(root, list(files), np.stack(list(files.values())), np.arange(len(files), dtype=np.int32))


def _with_polarity(pictures: Pictures, ground: float | None, invert: str, say: Callable[[str], None]) -> Pictures:
    """The pictures, light and dark having changed places if they are to."""
    border = border_level(pictures.images)
    dark = ground is not None and ground < DARK
    inverted = invert == "true" or (invert == "auto" and dark and border > BRIGHT)
    theirs = "unknown" if ground is None else f"{ground:.2f}"
    level = f"the level at the border, 0 black and 1 white, is {border:.2f}, that of the run's data {theirs}"
    say(f"{pictures.root}: {'inverted' if inverted else 'not inverted'} (invert={invert}; {level}).")
    return pictures._replace(images=255 - pictures.images) if inverted else pictures
