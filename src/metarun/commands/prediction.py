"""What `metarun-predict` does: a trained learner is shown a few pictures of each class and answers for others."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from metarun.assembly import saved_run
from metarun.assembly.few_shot_run import DataFacts, build_learner, recorded, recorded_range, shapes_of, takes_way
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
from metarun.errors import ConfigError, DataError, MetarunError, one_of
from metarun.few_shot.learner import STATISTICS
from metarun.report import predictions
from metarun.report.predictions import Predictions
from metarun.report.run_pictures import parameters_of
from metarun.training.ensemble import Ensemble, answered
from metarun.training.result import RESULT, read_result
from metarun.training.run_state import load_selected, selected_steps
from metarun.types import Method, Params, Split

FOLDER, CSV, PICTURE = "predictions", "probabilities.csv", "predictions.png"
INVERT = ("auto", "true", "false")
DARK = 0.1  # ground at which data are light on dark
BRIGHT = 0.5  # border above which pictures are dark on light
# Instead of the queries' own statistics, by which an answer depends on the others. MAML on glyphs, 300 steps, answers 49.8%
# of single queries rightly with their own, 63.1% with those of the support set, and 62.1% with "each".
APART = "support"
BLOCK = 100  # queries that are answered at once, where the answers do not depend on it


class Shown(NamedTuple):
    """The classes that a learner is shown.

    Attributes:
      root: where they are.
      names: of the classes.
      what: they are there, in words.
    """

    root: Path
    names: list[str]
    what: str


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
        where they are those of the queries, by which an answer would depend on the other pictures, `APART`.
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
    saved = saved_run.read(run, say, overrides=code)
    if saved.part != FEW_SHOT:
        raise ConfigError("run", run, f"a run on images in classes; it is one of {COMMANDS[saved.part]}")
    trained_on = recorded(saved.checkpoint.metadata["identity"])
    _check_images(trained_on, saved)
    span = recorded_range(saved.checkpoint.metadata["identity"]) if range is None else _range_of(range)
    height, width, channels = trained_on.input_shape
    shown = _read_support(folders["support"], (height, width, channels), span, say, links)
    asked = _read_query(folders["query"], (height, width, channels), span, say, links)
    trained_with = saved.config.method.get("query_statistics")
    method, params = learner_for(
        with_statistics(saved, query_statistics), trained_on, Shown(shown.root, shown.names, "folders with pictures")
    )

    method_name, data_name = saved.choices["method"], saved.choices["dataset"]
    say(f"{method_name} trained on {data_name}, {parameters_of(selected_steps(saved.checkpoint))}.")
    say(f"{len(shown.images)} pictures of {len(shown.names)} classes, {len(asked.images)} queries.")
    say(f"Pictures are brought to {'x'.join(map(str, trained_on.input_shape))}: {RESIZE}.")
    if span is not None:
        whose = "as in the run's data" if range is None else "as given"
        each = "the least and the greatest value of each" if span == OF_FILE else "{:g} and {:g}".format(*span)
        say(f"Of grey pictures of more than 8 bits, black and white are {each}, {whose}.")
    shown, asked = (_with_polarity(pictures, trained_on.ground, invert, say) for pictures in (shown, asked))
    statistics = method.protocol.get("query_statistics")
    transductive = statistics == "query"
    if trained_with == "query":
        say(f"The run was trained with query_statistics=query: the queries' own statistics.{_alone_in_test(saved)}")
    if transductive:
        say("The queries are answered together, and an answer may depend on the others (query_statistics=query).")
    elif trained_with == "query":
        of = {"support": "of the support set", "each": "of the support set and that picture"}[str(statistics)]
        say(f"Each picture is answered by itself, with the statistics {of} (query_statistics={statistics}).")

    support_x, query_x = (pictures.images.astype(np.float32) / 255 for pictures in (shown, asked))
    task = Split(support_x, shown.labels)
    outputs = answered(params, lambda each: answers(method, each, task, query_x, together=transductive))
    found = Predictions(shown.names, support_x, shown.labels, asked.names, query_x, softmax(outputs))
    console.print(predictions.table(found))
    folder = (
        Path(output).expanduser()
        if output
        else saved.directory / FOLDER / folders["query"].resolve().name / id_of(found)
    )
    predictions.write_csv(found, folder / CSV)
    predictions.picture(found, folder / PICTURE)
    say(f"{CSV} and {PICTURE} in {folder}")


def answers(method: Method, params: Params, support: Split, query_x: np.ndarray, *, together: bool) -> np.ndarray:
    """The outputs of a method that adapts to `support`, in random order as in its training: `[num_query, way]`.

    Args:
      support: a task's, as NumPy arrays.
      query_x: `[num_query, *feature]`.
      together: whether all queries have to be answered at once.

    Raises:
      MetarunError: an output is not finite.
    """
    order = np.random.default_rng(0).permutation(len(support.y))
    adapted = jax.jit(method.adapt)(params, Split(support.x[order], support.y[order]), jax.random.key(0))
    # Blocks of equal size but for one, so that two programs at most are compiled.
    blocks = [query_x] if together else np.array_split(query_x, -(-len(query_x) // BLOCK))
    answer = jax.jit(method.predict)
    outputs = np.concatenate([np.asarray(answer(adapted, block)) for block in blocks])
    if not np.isfinite(outputs).all():
        raise MetarunError("Adaptation to these pictures diverges: the outputs are not finite.")
    return outputs


def softmax(outputs: np.ndarray) -> np.ndarray:
    """Probabilities of `outputs: [n, way]`, in float64."""
    exponentials = np.exp(outputs.astype(np.float64) - outputs.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


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


def with_statistics(run: saved_run.SavedRun, asked: str) -> saved_run.SavedRun:
    """The run with the statistics that are asked for, of whatever method has them."""
    trained_with = run.config.method.get("query_statistics")
    if trained_with is None and asked != "auto":
        raise ConfigError("query_statistics", asked, f"auto: method={run.choices['method']} has no such setting")
    statistics = asked
    if asked == "auto":
        statistics = APART if trained_with == "query" else trained_with
    if statistics == trained_with:
        return run
    return run._replace(config=saved_run.with_keys(run, [f"method.query_statistics={statistics}"]))


def _alone_in_test(run: saved_run.SavedRun) -> str:
    """What the run's own test has found of queries that are asked one at a time, in words; "" where it does not say."""
    try:
        found = read_result(run.directory / RESULT)["checks"]["query_count"]
        alone, together = float(found["alone"]), float(found["together"])
    except (DataError, ValueError, KeyError, TypeError):
        return ""
    return f" So its test answered {together:.2%} of the queries rightly together, and {alone:.2%} one at a time."


def learner_for(run: saved_run.SavedRun, data: DataFacts, support: Shown) -> tuple[Method, Params | Ensemble]:
    """The method for the classes of `support`, and its selected parameters.

    Raises:
      DataError: it answers for another number of classes.
    """
    way = len(support.names)
    if not takes_way(run.config, run.choices, data, way):
        raise DataError(
            f"{support.root} has {way} {support.what}: expected {data.num_outputs}, for method="
            f"{run.choices['method']} was trained with an output for each class of a task."
        )
    data = data._replace(num_outputs=way)
    method = build_learner(run.config, run.choices, data)
    return method, load_selected(run.checkpoint, shapes_of(method, data))


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
