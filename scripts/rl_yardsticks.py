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

from metarun.commands.reproduce import cells
from metarun.rl.bandit_agents import gittins
from metarun.rl.environments.bandits import bernoulli_bandit
from metarun.rl.environments.tabular_mdp import tabular_mdp
from metarun.rl.trial import outcome
from metarun.trust import checks

_BLOCK = 250


def published_figures() -> dict[str, dict[str, float]]:
    """Cell -> agent -> mean total reward of a trial: those of Duan et al. 2016 that nothing is learnt for.

    OPSRL is not ours: theirs is optimistic by an interval, ours by ten samples.
    """
    found: dict[str, dict[str, float]] = {}
    for named in cells():
        paper, _, name = named.name.partition("/")
        if paper == "duan2016" and not name.startswith("rl2") and named.cell.quick_of is None:
            agent, kind, *sizes = name.split("_")
            found.setdefault(f"{kind}:{','.join(reversed(sizes))}", {})[agent] = named.published.value
    agents = ("random", "gittins", "ucb1", "thompson", "psrl", "opsrl")
    return {cell: {agent: of_cell[agent] for agent in agents if agent in of_cell} for cell, of_cell in found.items()}


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
    figures = published_figures()
    parser.add_argument("--cells", nargs="*", default=list(figures), help="of " + " ".join(figures))
    parser.add_argument("--discount", type=float, help="of the Gittins index (default: 1 - 1/pulls), in (0, 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the tasks")
    arguments = parser.parse_args()
    if arguments.discount is not None and not 0 < arguments.discount < 1:
        parser.error(f"--discount {arguments.discount}: expected a number between 0 and 1")
    print("| cell | agent | published | ours | within |\n| --- | --- | --- | --- | --- |")
    for cell in arguments.cells:
        if cell not in figures:
            parser.error(f"--cells {cell}: expected some of {', '.join(figures)}")
        environment, agents = environment_and_agents(cell, arguments.discount)
        for name, published in figures[cell].items():
            found = totals(environment, agents[name], arguments.trials, arguments.seed)
            print(row(cell, name, published, found), flush=True)


if __name__ == "__main__":
    main()
