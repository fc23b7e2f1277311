"""What a person sees of one run of meta-reinforcement learning: its heading, its result, its pictures."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from metarun.report.curves import learning_curve
from metarun.report.outcome import check_table, tested_on
from metarun.report.paths import paths
from metarun.report.rewards import reward_curves
from metarun.report.strip import strip
from metarun.types import Evaluation, Experiment, Params

SHOWN_TASKS = 6


def heading(facts: Mapping[str, Any], directory: Path) -> str:
    """A line each on what runs, where, and of what size; and where its files go."""
    trial = f"{facts['episodes']} episode{'s' * (facts['episodes'] > 1)} of {facts['horizon']} steps"
    if facts["horizon"] == 1:
        trial = f"{facts['episodes']} pulls"
    what = f"{facts['method']} on {facts['env']}, {trial}, seed {facts['seed']}, on {facts['device']}"
    sizes = ", ".join(f"{name} {count:,}" for name, count in facts["sizes"].items())
    return f"{what}\nSizes: {sizes}\n{directory}"


def pictures(
    experiment: Experiment,
) -> Callable[[Path, Params, int | None, Evaluation], Mapping[str, Callable[[], None]]]:
    """Returns `(directory, params, selected_step, test) -> {file: what draws it}`, a run's pictures in `directory/plots`.

    All processes of a run have to call it, for it computes what is to be drawn; one of them draws.

    `learning_curve.png` from `metrics.jsonl`, and `rewards.png`: how the rewards of a trial came about, beside those of
    the agents that were not learnt; in the plane also `paths.png`, and of a body `strip.png`: what the learner does in a
    few test tasks.
    """

    def draw(
        directory: Path, params: Params, selected_step: int | None, tested: Evaluation
    ) -> Mapping[str, Callable[[], None]]:
        shown = experiment.examples(params, SHOWN_TASKS) if experiment.examples else None
        plots = directory / "plots"
        curve = partial(
            learning_curve,
            directory / "metrics.jsonl",
            plots / "learning_curve.png",
            metric=experiment.metric,
            selected_step=selected_step,
        )
        made = {
            "learning_curve.png": curve,
            "rewards.png": partial(reward_curves, tested.beside["curves"], plots / "rewards.png"),
        }
        if shown is None:
            return made
        of = tested.beside["curves"]["over"]
        watched = shown.watched
        if shown.goals is not None:
            seen = shown.goals, watched.observation, watched.live, watched.ended
            made["paths.png"] = partial(paths, *seen, plots / "paths.png", of=of)
        if shown.limbs is not None:
            made["strip.png"] = partial(
                strip,
                shown.captions,
                shown.limbs,
                watched.live,
                watched.ended,
                plots / "strip.png",
                radii=shown.radii,
                seconds=shown.seconds,
                of=of,
            )
        return made

    return draw


def summary(result: Mapping[str, Any]) -> Group:
    """The result with its interval, the agents that were not learnt, and the checks, to be printed."""

    def interval(entry: Mapping[str, float]) -> str:
        return f"{entry['value']:.4g} ± {entry['ci95']:.2g}"

    parts = [Text(f"test {result['metric']} {interval(result)}", "bold"), Text(tested_on(result))]
    if result["curves"]["over"] == "inner step":
        points = zip(result["curves"]["learner"], result["learner_curve_ci95"], strict=True)
        returns = [interval({"value": value, "ci95": ci95}) for value, ci95 in points]
        parts.append(Text(f"after 0 to {len(returns) - 1} inner steps: {', '.join(returns)}"))
    table = Table(box=None, pad_edge=False, show_header=True, header_style="bold")
    table.add_column("on the same tasks")
    table.add_column(result["metric"])
    ranked = sorted(result["yardsticks"].items(), key=lambda item: -item[1]["value"])
    for name, entry in ranked:
        table.add_row(name.replace("_", " "), interval(entry))
    parts.append(table)
    if "regret" in result:
        parts.append(Text(f"regret {interval(result['regret'])} against {result['regret']['against']}"))
    return Group(*parts, check_table(result["checks"], lambda x: f"{x:.4g}")) if result["checks"] else Group(*parts)
