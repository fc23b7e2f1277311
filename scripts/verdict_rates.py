"""How often the verdict of `metarun-reproduce` is wrong, by simulation.

    python scripts/verdict_rates.py [--trials 4000]

Accuracies of tasks are drawn as of a real test: a task has a difficulty (a beta distribution), its queries are right or wrong
by it. A seed adds a normal difference to all tasks. The paper's figure is of one seed and of tasks of its own. The true
difference of the two methods is set beside the margin: at it or beyond, "reproduced" is false; at it or within, "not
reproduced" is. Prints the rates for each setting, and of undecided ones.
"""

import argparse
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from metarun.trust.equivalence import NOT_REPRODUCED, REPRODUCED, UNDECIDED, Ours, verdict

LIMIT = 0.05


class Setting(NamedTuple):
    """A pair of results to be simulated.

    Attributes:
      mean: true accuracy of the paper's method.
      times: true difference, in margins; ours is lower.
      margin: of the verdict.
      seeds: of ours.
      of_seed: standard deviation of a seed.
      num_tasks: of each test.
      stated: whether the paper gives an interval.
    """

    mean: float
    times: float
    margin: float
    seeds: int
    of_seed: float
    num_tasks: int = 600
    stated: bool = True


def settings() -> Iterator[Setting]:
    """Omniglot's and miniImageNet's accuracies, around the margins that the experiments state."""
    for times in (0.0, 0.5, 1.0, 1.5, 2.0):
        for mean, margin, of_seed in ((0.96, 0.01, 0.002), (0.65, 0.015, 0.004)):
            for seeds, spread in ((1, 0.0), (3, of_seed), (5, of_seed), (5, 2 * of_seed)):
                yield Setting(mean, times, margin, seeds, spread)
            yield Setting(mean, times, margin, 1, 0.0, num_tasks=5000)
            yield Setting(mean, times, margin, 5, of_seed, num_tasks=5000, stated=False)


def rates(setting: Setting, trials: int, seed: int = 0) -> dict[str, float]:
    """The fraction of trials that end in each verdict."""
    draw = np.random.default_rng(seed)

    def tests(mean: float, seeds: int) -> np.ndarray:
        """Accuracy of each seed on each of the same tasks, `[trials, seeds, num_tasks]`, 75 queries a task."""
        concentration = 12.0
        difficulty = draw.beta(mean * concentration, (1 - mean) * concentration, (trials, 1, setting.num_tasks))
        shifted = difficulty + draw.normal(0, setting.of_seed, (trials, seeds, 1)) * (setting.of_seed > 0)
        return draw.binomial(75, np.clip(shifted, 0, 1)) / 75

    ours = tests(setting.mean - setting.times * setting.margin, setting.seeds)
    theirs = tests(setting.mean, 1)[:, 0]

    def ci95(per_task: np.ndarray) -> np.ndarray:
        return 1.96 * per_task.std(-1, ddof=1) / setting.num_tasks**0.5

    counts = dict.fromkeys((REPRODUCED, NOT_REPRODUCED, UNDECIDED), 0)
    for values, half, published, their_half in zip(
        ours.mean(-1), ci95(ours).max(-1), theirs.mean(-1), ci95(theirs), strict=True
    ):
        found = verdict(
            Ours(values, half, setting.num_tasks),
            published,
            their_half if setting.stated else None,
            setting.margin,
            forecast=False,
        )
        counts[found.verdict] += 1
    return {name: count / trials for name, count in counts.items()}


def false_rate(setting: Setting, found: dict[str, float]) -> float:
    """The rate of verdicts that are wrong: at the margin, either of the two that decide, whichever comes more often."""
    wrong = [found[REPRODUCED]] * (setting.times >= 1) + [found[NOT_REPRODUCED]] * (setting.times <= 1)
    return max(wrong)


def main() -> None:
    parser = argparse.ArgumentParser(description="How often the verdict of metarun-reproduce is wrong.")
    parser.add_argument("--trials", type=int, default=4000, help="of each setting (default: 4000)")
    trials = parser.parse_args().trials
    print("| accuracy | margin | difference, margins | seeds (sd) | tasks | interval | reproduced | not | undecided |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    worst = 0.0
    for setting in settings():
        # In pieces, of which each fits in memory.
        pieces = [rates(setting, min(500, trials), seed) for seed in range(max(1, trials // 500))]
        found = {name: float(np.mean([piece[name] for piece in pieces])) for name in pieces[0]}
        worst = max(worst, false_rate(setting, found))
        print(
            f"| {setting.mean:.0%} | {setting.margin:.1%} | {setting.times:g} | {setting.seeds} ({setting.of_seed:.1%}) "
            f"| {setting.num_tasks} | {'given' if setting.stated else 'none'} | {found[REPRODUCED]:.1%} "
            f"| {found[NOT_REPRODUCED]:.1%} | {found[UNDECIDED]:.1%} |",
            flush=True,
        )
    print(f"\nThe highest rate of a wrong verdict: {worst:.1%}, to be below {LIMIT:.0%}.")
    raise SystemExit(worst >= LIMIT)


if __name__ == "__main__":
    main()
