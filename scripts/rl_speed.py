#!/usr/bin/env python
"""Measures how fast trials are played: environment steps per second of `metarun-rl`'s environments.

    python scripts/rl_speed.py                                  # every environment, as a Markdown table
    python scripts/rl_speed.py --json speed.json                # and into a file
    python scripts/rl_speed.py --environments maze two_step --tasks 4000

A call is one compiled program: it draws tasks, and plays in each of them a trial of 20 episodes of 100 steps (of a bandit
and of the two-step task, as many steps in all), by an agent that acts at random and keeps the whole trajectory, or by the
network of RL2 with its first weights, which sees all of it. All steps of a trial are computed and counted, also those
after its last episode has ended; `live` is the share of those before, of the random agent.

`compile` is what the first call takes beyond a later one, with nothing in the cache of compiled programs. The rate is the
median over the calls that follow, beside the slowest and the fastest. `others` are cores that other work took meanwhile.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

from bench import meter
from metarun.assembly.keys import Keys
from metarun.compiled.task_map import Layout, default_layout, map_tasks
from metarun.config.composing import composed
from metarun.config.schema import RL
from metarun.data.cache import cache_dir
from metarun.errors import MetarunError
from metarun.rl.environment import Environment
from metarun.rl.methods.rl2 import rl2
from metarun.rl.trial import play
from metarun.system import backend
from metarun.system.files import write_json
from metarun.system.machine import device_name, versions


class Work(NamedTuple):
    """What a call plays: so many tasks, episodes of a trial and steps of an episode, by a network of so many cells."""

    tasks: int = 40
    episodes: int = 20
    steps: int = 100
    hidden: int = 64


# How each environment is told its size. Those whose library is not installed are left out, with a word.
SIZES = {
    "bernoulli_bandit": "env.episodes={length}",
    "tabular_mdp": "env.episodes={episodes} env.horizon={steps}",
    "maze": "env.episodes={episodes} env.horizon={steps}",
    "point_navigation": "env.episodes={episodes} env.horizon={steps}",
    "two_step": "env.rounds={rounds}",
    "gymnax": "env.name=CartPole-v1 env.episodes={episodes} env.horizon={steps}",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the table, writes the file, and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for size, default in Work._field_defaults.items():
        parser.add_argument(f"--{size}", type=_positive, default=default, help=f"{default} by default")
    parser.add_argument("--repetitions", type=_positive, default=7, help="calls that are timed; 7 by default")
    parser.add_argument(
        "--environments", nargs="+", choices=SIZES, default=list(SIZES), metavar="NAME", help=f"of {', '.join(SIZES)}"
    )
    parser.add_argument("--precision", choices=backend.PRECISIONS, default="float32", help="of products; float32")
    parser.add_argument("--json", type=Path, metavar="FILE", help="what is found is written there, too")
    options = parser.parse_args(arguments)
    backend.set_up(cache_dir() / "compiled")
    jax.config.update("jax_default_matmul_precision", backend.PRECISIONS[options.precision])
    work = Work(*(getattr(options, size) for size in Work._fields))
    # As in `metarun-rl`: all trials of a device go together.
    layout = default_layout()._replace(chunk=None)
    try:
        found = measure(options.environments, work, options.repetitions, layout)
        if options.json:
            write_json(options.json, found)
    except MetarunError as error:
        print(f"rl_speed: {error}", file=sys.stderr)
        return 2
    print(table(found))
    return 0


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number, 1 or more")
    return value


def environment_of(name: str, work: Work) -> Environment:
    """The environment of `metarun-rl env=NAME`, of the size of the work.

    Raises:
      MetarunError: it needs a library that is not installed.
    """
    length = work.episodes * work.steps
    sizes = SIZES[name].format(**work._asdict(), length=length, rounds=-(-length // 2))
    config, choices = composed([f"env={name}", *sizes.split()], RL)
    return Keys.of(config, choices, RL).call("env")


def players(environment: Environment, work: Work, layout: Layout) -> dict[str, tuple[Any, Any]]:
    """Agent -> its parameters, and `(params, (task, key)) -> ` what comes of its trial."""
    gru = rl2(
        environment=environment,
        optimizer=lambda steps: optax.identity(),
        layout=layout,
        meta_batch_size=work.tasks,
        steps=1,
        hidden=work.hidden,
        minibatches=1,
    )
    random = environment.yardsticks["random"]
    return {
        "random": ({}, lambda params, task_and_key: play(environment, random, *task_and_key)),
        "GRU": (gru.init(jax.random.key(0)), lambda params, task_and_key: gru.outcome(params, *task_and_key, False)),
    }


def measure(names: Sequence[str], work: Work, repetitions: int, layout: Layout) -> dict[str, Any]:
    """Times the calls of every environment and agent.

    Returns:
      {"device", "num_devices", "versions", "work", "repetitions", "rows"}; of a row, `steps` are those of a call,
      `steps_per_s` the median, and `slowest` and `fastest` the range of the timed calls.
    """
    rows = []
    for name in names:
        try:
            environment = environment_of(name, work)
        except MetarunError as error:
            print(f"rl_speed: {name} is left out: {error}", file=sys.stderr)
            continue
        live = None
        for agent, (params, player) in players(environment, work, layout).items():

            def rollout(params, key, environment=environment, player=player):
                task_key, play_key = jax.random.split(key)
                task_keys, keys = (jax.random.split(key, work.tasks) for key in (task_key, play_key))
                tasks = jax.vmap(lambda key: environment.sample(key, "train"))(task_keys)
                return map_tasks(player, layout, params, (tasks, keys))

            timing, first = _timed(jax.jit(rollout), params, repetitions)
            live = float(first.live.mean()) if agent == "random" else live
            steps = work.tasks * environment.length
            rates = sorted(steps / seconds for seconds in timing.pop("seconds"))
            row = {"environment": name, "agent": agent, "steps": steps, "live": live}
            row |= {"steps_per_s": statistics.median(rates), "slowest": rates[0], "fastest": rates[-1], **timing}
            print(f"{name}, {agent}: {row['steps_per_s']:.4g} steps/s", file=sys.stderr, flush=True)
            rows.append(row)
    return {
        "device": device_name(layout.mesh.devices.flat),
        "num_devices": layout.mesh.size,
        "versions": versions(),
        "work": work._asdict(),
        "repetitions": repetitions,
        "rows": rows,
    }


def _timed(rollout: Any, params: Any, repetitions: int) -> tuple[dict[str, Any], Any]:
    """Seconds of each timed call, of compiling, and the load meanwhile; and what the first call returned."""
    keys = jax.random.split(jax.random.key(1), repetitions + 1)
    first_s, first = meter.timed(lambda: rollout(params, keys[0]))
    began = meter.Clock.now()
    seconds = [meter.timed(lambda key=key: rollout(params, key))[0] for key in keys[1:]]
    load = meter.Clock.now().load(began)
    return {"seconds": seconds, "compile_s": first_s - statistics.median(seconds), **load}, first


def table(found: dict[str, Any]) -> str:
    """What was found, in Markdown."""
    work = Work(**found["work"])
    lines = [
        f"{work.tasks} tasks x {work.episodes} episodes x {work.steps} steps a call, {found['repetitions']} calls, on "
        f"{found['device']}, JAX {found['versions']['jax']}; the network has {work.hidden} cells.",
        "",
        "| environment | agent | steps/s | slowest to fastest | compile (s) | live | others (cores) |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    rate = lambda value: f"{float(f'{value:.3g}'):,.0f}"
    for row in found["rows"]:
        others = "–" if row["others_cores"] is None else f"{row['others_cores']:.1f}"
        lines.append(
            f"| {row['environment']} | {row['agent']} | {rate(row['steps_per_s'])} | {rate(row['slowest'])} to "
            f"{rate(row['fastest'])} | {row['compile_s']:.1f} | {row['live']:.0%} | {others} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)  # else compiling would be timed in the first run alone
    sys.exit(main())
