"""What a person sees of one run of meta-reinforcement learning: its heading, its result, its pictures."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from metarun.report.run_pictures import check_table, tested_on
from metarun.training.result import METRICS
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

    def pictures_of(
        directory: Path, params: Params, selected_step: int | None, tested: Evaluation
    ) -> Mapping[str, Callable[[], None]]:
        # Slow to import, which training does not wait for.
        from metarun.report.curves import learning_curve
        from metarun.report.paths import paths
        from metarun.report.rewards import reward_curves
        from metarun.report.strip import strip

        shown = experiment.examples(params, SHOWN_TASKS) if experiment.examples else None
        plots = directory / "plots"
        curve = partial(
            learning_curve,
            directory / METRICS,
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

    return pictures_of


def summary(result: Mapping[str, Any]) -> Group:
    """The result with its interval, the agents that were not learnt, and the checks, to be printed."""

    parts: list[Any] = [Text(f"test {result['metric']} {_interval(result)}", "bold"), Text(tested_on(result))]
    curves = result.get("curves", {})  # a result of another version may have none
    if curves.get("over") == "inner step":
        points = zip(curves.get("learner", []), result.get("learner_curve_ci95", []), strict=False)
        returns = [_interval({"value": value, "ci95": ci95}) for value, ci95 in points]
        parts.append(Text(f"after 0 to {len(returns) - 1} inner steps: {', '.join(returns)}"))
    table = Table(box=None, pad_edge=False, show_header=True, header_style="bold")
    table.add_column("on the same tasks")
    table.add_column(result["metric"])
    ranked = sorted(result.get("yardsticks", {}).items(), key=lambda item: -_or(item[1]["value"], -math.inf))
    for name, entry in ranked:
        table.add_row(name.replace("_", " "), _interval(entry))
    parts.append(table)
    if "regret" in result:
        parts.append(Text(regret_in_words(result["regret"])))
    return Group(*parts, check_table(result["checks"], lambda x: f"{x:.4g}")) if result["checks"] else Group(*parts)


def regret_in_words(regret: Mapping[str, Any]) -> str:
    """A regret, the best other agent's value less the learner's, and which of the two it says is better."""
    value, ci95, against = regret["value"], regret["ci95"], regret["against"].replace("_", " ")
    said = f"regret {_interval(regret)} against {against}"
    if value is None:
        return said
    if abs(value) <= _or(ci95, 0):
        return f"{said}: the learner and {against} cannot be told apart"
    return f"{said}: the learner is {'worse' if value > 0 else 'better'} than {against}"


def _interval(entry: Mapping[str, float | None]) -> str:
    value, ci95 = entry["value"], entry["ci95"]
    if value is None:
        return "not finite"
    return f"{value:.4g}" + ("" if ci95 is None else f" ± {ci95:.2g}")


def _or(value: float | None, other: float) -> float:
    return other if value is None else value
