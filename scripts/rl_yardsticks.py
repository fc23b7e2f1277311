#!/usr/bin/env python
"""Plays the agents that are not learnt in the environments of RL2 (Duan et al. 2016), beside the published figures.

  python scripts/rl_yardsticks.py [--trials 1000] [--cells bandit:10,5 mdp:10] [--discount 0.998]

Prints a Markdown table: for each cell and agent the published figure, ours with its 95% interval over tasks, and whether
the published one lies within both intervals, its own being taken as wide as ours for a thousand trials. Where ours and the
published one are of the same tasks, one in twenty lies outside by chance.
"""

import argparse
from functools import partial

import jax
import numpy as np

from metarun.rl.bandit_agents import gittins
from metarun.rl.environments.bandits import bernoulli_bandit
from metarun.rl.environments.tabular_mdp import tabular_mdp
from metarun.rl.trial import outcome
from metarun.trust import checks

# Duan et al. 2016, tables 1 and 2: cell -> agent -> mean total reward of a trial. OPSRL is not ours: theirs is optimistic by
# an interval, ours by ten samples.
PUBLISHED = {
    "bandit:10,5": {"random": 5.0, "gittins": 6.6, "ucb1": 6.7, "thompson": 5.7},
    "bandit:10,10": {"random": 5.0, "gittins": 6.6, "ucb1": 6.7, "thompson": 5.5},
    "bandit:10,50": {"random": 5.1, "gittins": 6.5, "ucb1": 6.6, "thompson": 5.2},
    "bandit:100,5": {"random": 49.9, "gittins": 78.3, "ucb1": 78.0, "thompson": 74.7},
    "bandit:100,10": {"random": 49.9, "gittins": 82.8, "ucb1": 82.4, "thompson": 76.7},
    "bandit:100,50": {"random": 49.8, "gittins": 85.2, "ucb1": 84.3, "thompson": 64.5},
    "bandit:500,5": {"random": 249.8, "gittins": 405.8, "ucb1": 405.8, "thompson": 402.0},
    "mdp:10": {"random": 100.1, "psrl": 138.1, "opsrl": 144.1},
    "mdp:25": {"random": 250.2, "psrl": 408.8, "opsrl": 425.2},
    "mdp:50": {"random": 499.7, "psrl": 904.4, "opsrl": 930.7},
    "mdp:75": {"random": 749.9, "psrl": 1417.1, "opsrl": 1449.2},
    "mdp:100": {"random": 999.4, "psrl": 1939.5, "opsrl": 1973.9},
}
_BLOCK = 250


def environment_and_agents(cell: str, discount: float | None = None):
    """Environment and agents of a cell, `bandit:PULLS,ARMS` or `mdp:EPISODES`; `discount`: of the Gittins index."""
    kind, sizes = cell.split(":")
    if kind == "mdp":
        environment = tabular_mdp(episodes=int(sizes))
        return environment, environment.yardsticks
    pulls, arms = map(int, sizes.split(","))
    environment = bernoulli_bandit(arms=arms, episodes=pulls)
    index = {} if discount is None else {"gittins": gittins(arms, pulls, discount)}
    return environment, {**environment.yardsticks, **index}


def totals(environment, agent, trials: int, seed: int) -> np.ndarray:
    """Total rewards, `[trials]`, each of a task of its own."""

    @partial(jax.jit, static_argnums=1)
    def block(number, size):
        def one(key):
            task_key, key = jax.random.split(key)
            return outcome(environment, agent, environment.sample(task_key, "test"), key, False).value

        return jax.vmap(one)(jax.random.split(jax.random.fold_in(jax.random.key(seed), number), size))

    return np.concatenate([np.asarray(block(i, _BLOCK)) for i in range(-(-trials // _BLOCK))])[:trials]


def row(cell: str, name: str, published: float, found: np.ndarray) -> str:
    """A line of the table."""
    error = checks.standard_error(found)
    apart = abs(found.mean() - published)
    theirs = error * (len(found) / 1000) ** 0.5
    rounding = 0.05
    within = "yes" if apart <= 1.96 * (error**2 + theirs**2) ** 0.5 + rounding else f"{apart:+.2f}"
    return f"| {cell} | {name} | {published} | {found.mean():.2f} ± {1.96 * error:.2f} | {within} |"


def main() -> None:
    """Reads the arguments and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000, help="of each agent in each cell")
    parser.add_argument("--cells", nargs="*", default=list(PUBLISHED), help="of " + " ".join(PUBLISHED))
    parser.add_argument("--discount", type=float, help="of the Gittins index (default: 1 - 1/pulls), in (0, 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the tasks")
    arguments = parser.parse_args()
    if arguments.discount is not None and not 0 < arguments.discount < 1:
        parser.error(f"--discount {arguments.discount}: expected a number between 0 and 1")
    print("| cell | agent | published | ours | within |\n| --- | --- | --- | --- | --- |")
    for cell in arguments.cells:
        if cell not in PUBLISHED:
            parser.error(f"--cells {cell}: expected some of {', '.join(PUBLISHED)}")
        environment, agents = environment_and_agents(cell, arguments.discount)
        for name, published in PUBLISHED[cell].items():
            found = totals(environment, agents[name], arguments.trials, arguments.seed)
            print(row(cell, name, published, found), flush=True)


if __name__ == "__main__":
    main()
