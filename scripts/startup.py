#!/usr/bin/env python
"""Where the first seconds of a command go, from Enter to the end of its first outer step.

    python scripts/startup.py                                  # of the default command
    python scripts/startup.py --rounds 5 method=protonet way=20

Each round runs the same settings in two new processes: with empty caches of data and of compiled programs, and then with
the caches that the first has left. The table has medians over rounds: seconds by the clock, and of processor time, which
other work on the machine does not lengthen as much.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from metarun.commands.console import told, whole

DEFAULT = ("method=maml", "way=5", "shot=1")
_CHILD, _SPAWNED = "--as-child", "METARUN_STARTUP_SPAWNED"
# What JAX calls the parts of making a program -> what the table calls them.
_OF_JAX = {
    "/jax/core/compile/jaxpr_trace_duration": "of that, tracing",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "of that, lowering",
    "/jax/core/compile/backend_compile_duration": "of that, compiling or loading",
}


def main() -> None:
    if _CHILD in sys.argv:
        sys.argv.remove(_CHILD)
        return print(json.dumps(_measured(sys.argv[1:])))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", default="3", help="how often each is measured; 3")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where every round is written")
    parser.add_argument("settings", nargs="*", default=DEFAULT, metavar="KEY=VALUE", help="of metarun")
    options = parser.parse_intermixed_args()
    sys.exit(told(lambda: _run(options)))


def _run(options: argparse.Namespace) -> None:
    """Measures as the options ask for, and prints the table."""
    rounds = whole("--rounds", options.rounds)
    found: dict[str, list[dict[str, list[float]]]] = {"cold": [], "warm": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            for kind in found:
                found[kind].append(_in_a_process(options.settings, Path(folder)))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    print(f"{'seconds, clock and processor':<34}" + "".join(f"{kind:>16}" for kind in found))
    for phase in found["cold"][0]:
        cells = [[median(each[phase][i] for each in found[kind]) for i in range(2)] for kind in found]
        print(f"{phase:<34}" + "".join(f"{clock:9.2f}{processor:7.2f}" for clock, processor in cells))


def _in_a_process(settings: Sequence[str], folder: Path) -> dict[str, list[float]]:
    """What a new process measures whose caches are in a folder."""
    own = {
        "METARUN_CACHE": str(folder / "data"),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
        _SPAWNED: str(time.time()),
    }
    done = subprocess.run(
        [sys.executable, __file__, _CHILD, *settings], env={**os.environ, **own}, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout)


def _measured(settings: Sequence[str]) -> dict[str, list[float]]:
    """Phase -> seconds by the clock and of processor time, of this process up to its first outer step.

    The phases are those of the command, which calls the same functions in this order.
    """
    phases: dict[str, list[float]] = {}
    last = [float(os.environ[_SPAWNED]), 0.0]

    def ends(phase: str) -> None:
        now = [time.time(), time.process_time()]
        phases[phase] = [now[i] - last[i] for i in range(2)]
        last[:] = now

    ends("Python and this script")
    import metarun.commands.train  # noqa: F401  # what a command imports before it composes

    ends("the command")
    from metarun.config.composing import composed

    config, choices = composed(settings)
    ends("composition")
    from metarun.api.jax_set_up import set_up

    set_up()
    import jax

    jax.devices()
    ends("JAX")
    from metarun.api.training import built, report_of
    from metarun.config.schema import FEW_SHOT

    report_of(FEW_SHOT)
    ends("Flax, Optax and what else computes")
    run = built(FEW_SHOT, config, choices, Path("no run"))
    ends("data, network and method")
    state = jax.block_until_ready(run.experiment.init())
    ends("initial parameters")
    of_jax = dict.fromkeys(_OF_JAX, 0.0)

    def told_of(event: str, seconds: float, **_: Any) -> None:
        if event in of_jax:
            of_jax[event] += seconds

    jax.monitoring.register_event_duration_secs_listener(told_of)
    run.experiment.prepare()
    ends("the program of an outer step")
    for event, phase in _OF_JAX.items():
        phases[phase] = [of_jax[event], float("nan")]
    jax.block_until_ready(run.experiment.step(state, 1))
    ends("the first outer step")
    phases["in all"] = [time.time() - float(os.environ[_SPAWNED]), time.process_time()]
    return phases


if __name__ == "__main__":
    main()
