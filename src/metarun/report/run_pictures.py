"""What a person sees of one run: its heading, its result with the checks, its pictures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from metarun.training.result import METRICS, PARTS, size_in_words
from metarun.types import Evaluation, Experiment, Params

GALLERY_TASKS = 4
_VERDICTS = {True: ("passed", "green"), False: ("FAILED", "bold red"), None: ("not checked", "yellow")}
# How the value of a check of the data is said.
OF_DATA = {
    "labels_by_position": "{value:.1f} standard errors above chance",
    "labels_by_class": "correlation {value:.2f}, standard error {standard_error:.2f}",
    "support_apart_from_query": "{value:.2%} of queries are support inputs",
    "test_apart_from_train": "{value:.1%} of classes, {images:.1%} of inputs in training",
}


def heading(facts: Mapping[str, Any], directory: Path) -> str:
    """A line each on what runs, where, and of what size; and where its files go."""
    way, shot = (size_in_words(facts[size]) if facts[size] else "" for size in ("way", "shot"))
    setting = f"{way}-way {shot}-shot" if way else f"{shot}-shot"
    what = f"{facts['method']} on {facts['dataset']}, {setting}, seed {facts['seed']}, on {facts['device']}"
    sizes = ", ".join(f"{name} {count:,}" for name, count in facts["sizes"].items())
    return f"{what}\nSizes: {sizes}\n{directory}"


def pictures(
    experiment: Experiment,
) -> Callable[[Path, Params, int | None, Evaluation], Mapping[str, Callable[[], None]]]:
    """Returns `(directory, params, selected_step, test) -> {file: what draws it}`, a run's pictures in `directory/plots`.

    All processes of a run have to call it, for it computes what is to be drawn; one of them draws.

    `learning_curve.png` from `metrics.jsonl`; where tasks differ in size, `by_size.png`; and of images, signals, and numbers that depend on one number,
    `gallery.png`: a few test tasks as `params` answer them.
    """

    def pictures_of(
        directory: Path, params: Params, selected_step: int | None, tested: Evaluation
    ) -> Mapping[str, Callable[[], None]]:
        # Slow to import, which training does not wait for.
        from metarun.report.by_size import FIELDS, by_size
        from metarun.report.curves import learning_curve
        from metarun.report.gallery import image_gallery, regression_gallery

        examples: Any = experiment.examples
        tasks, before, after = examples(params, GALLERY_TASKS)
        plots = directory / "plots"
        curve = partial(
            learning_curve,
            directory / METRICS,
            plots / "learning_curve.png",
            metric=experiment.metric,
            selected_step=selected_step,
        )
        drawn: dict[str, Callable[[], None]] = {"learning_curve.png": curve}
        if any(field in tested.beside for field in FIELDS):
            drawn["by_size.png"] = partial(by_size, tested.beside, experiment.metric, plots / "by_size.png")
        shape = tasks.query.x.shape[2:]
        images = len(shape) == 3 and shape[2] in (1, 3)
        if tasks.query.y.ndim == 2 and (images or len(shape) == 2):
            gallery = partial(image_gallery, tasks, after.argmax(-1))
        elif shape == tasks.query.y.shape[2:] == (1,):
            gallery = partial(regression_gallery, tasks, before, after)
        else:
            return drawn
        drawn["gallery.png"] = partial(gallery, plots / "gallery.png", num_tasks=GALLERY_TASKS)
        return drawn

    return pictures_of


def fitted_in_words(fitted: Mapping[str, Any]) -> str:
    """What an entry "fitted" of a protocol says, see `fitting.fit_data_set`."""
    found, shape = ("x".join(map(str, fitted[key])) for key in ("from", "to"))
    return f"brought from {found} to {shape}, which the run was trained on: {fitted['how']}"


def summary(result: Mapping[str, Any]) -> Group:
    """The result with its interval, and the checks, to be printed."""

    def number(x: float | None) -> str:
        if x is None:
            return "not finite"
        return f"{100 * x:.2f}%" if result["metric"] == "accuracy" else f"{x:.4g}"

    table = check_table(result["checks"], number)
    value = f"test {result['metric']} {number(result['value'])}"
    if result["ci95"] is not None:
        value += f" ± {number(result['ci95'])}"

    def said(entry: Mapping[str, Any]) -> str:
        interval = "" if entry["ci95"] is None else f" ± {number(entry['ci95'])}"
        return f"{number(entry['value'])}{interval}"

    parts: list[Any] = [
        Text(value, "bold"),
        Text(tested_on(result)),
        *part_tables(result, result["metric"], said),
        table,
    ]
    if result["value"] is None:
        advice = (
            "Adaptation diverges on some test tasks: lower method.eval_inner_steps or, to train again, method.inner_lr."
        )
        parts.insert(1, Text(advice, "bold red"))
    return Group(*parts)


MOST_ROWS = 20  # of a table of sizes


def part_tables(result: Mapping[str, Any], column: str, said: Callable[[Mapping[str, Any]], str]) -> Iterator[Table]:
    """What was found on the tasks of each domain, way and shot, where there are several: a table each.

    Args:
      result: with fields of `PARTS`.
      column: what was found.
      said: an entry of a field as a cell of that column.
    """
    for field, part in PARTS.items():
        if field not in result or len(result[field]) > MOST_ROWS:  # the picture has all
            continue
        table = Table(box=None, pad_edge=False, show_header=True, header_style="bold")
        for name in (part, column, "tasks"):
            table.add_column(name)
        for name, its in result[field].items():
            table.add_row(Text(name), said(its), str(its["num_tasks"]))
        yield table


def check_table(checks: Mapping[str, Mapping[str, Any]], number: Callable[[Any], str]) -> Table:
    """The checks of a result, a row each; `number` says a value of its metric."""
    table = Table(box=None, pad_edge=False, show_header=True, header_style="bold")
    for column in ("check", "", "value"):
        table.add_column(column)
    for name, check in checks.items():
        verdict, value = _VERDICTS[check["passed"]], check.get("reason")
        if check["passed"] is not None:
            try:
                value = _check_value(name, check, number)
            except (LookupError, TypeError, ValueError):  # of another version, or not finite
                value = number(check.get("value"))
        table.add_row(name.replace("_", " "), Text(*verdict), Text(value or ""))
    return table


def tested_on(result: Mapping[str, Any]) -> str:
    """On how many tasks a result was found, with which parameters, and how fast they were trained."""
    over = f"95% interval over {result['num_tasks']} tasks"
    if result["num_tasks"] == 1:
        over = "over one task, which has no interval (eval_tasks)"
    how = f"{over}; {parameters_of(result['selected_steps'])}"
    return how + (f"; {result['tasks_per_second']:.0f} tasks/s" if result.get("tasks_per_second") else "")


def parameters_of(steps: Sequence[int]) -> str:
    """Which parameters are tested, by the steps that they are of."""
    if len(steps) == 1:
        return f"parameters of step {steps[0]}"
    return f"an ensemble of the parameters of steps {', '.join(map(str, steps))}"


def _check_value(name: str, check: Mapping[str, Any], number: Callable[[Any], str]) -> str:
    value = check["value"]
    if name in OF_DATA:
        return OF_DATA[name].format(**check)
    if "chance" in check:
        best = f" to {number(check['best'])}, the most frequent class" if "best" in check else ""
        return f"{number(value)}, chance is {number(check['chance'])}{best}"
    if name == "query_count":
        together = f", {number(check['together'])} together" if "together" in check else ""  # of the same queries
        return f"{number(check['alone'])} alone{together}" + ", transductive" * check["declared_transductive"]
    if "changed" in check:
        difference = None if value is None else abs(value)
        return f"{number(difference)} difference; {check['changed']:.1%} of answers change"
    return f"{value:.1%} of answers change"
