#!/usr/bin/env python
"""How far a learner of functions of a Gaussian process is from the exact posterior, which no predictor can beat.

    metarun experiment=unpublished/gaussian_process_transformer hydra.run.dir=DIR
    python scripts/gaussian_process.py DIR [--tasks 2000] [--seed 1]

Both answer the same queries of new tasks, from the same support sets. The posterior mean knows the covariance and the noise
that tasks are drawn by. Prints mean squared errors with the 95% interval over tasks, and how much larger the
learner's is, with that of the paired difference; by the number of support points in four parts.
"""

import argparse
import sys

import jax
import jax.numpy as jnp
import numpy as np

import metarun
from metarun.commands.console import told, whole
from metarun.data.gaussian_process import gaussian_process, posterior_mean
from metarun.errors import ConfigError

BLOCK = 100  # tasks that are answered at once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="the directory of a run on dataset=gaussian_process")
    parser.add_argument("--tasks", default="2000", help="how many; 2000")
    parser.add_argument("--seed", default="1", help="that they are drawn by; 1")
    sys.exit(told(lambda: _run(parser.parse_args())))


def _run(options: argparse.Namespace) -> None:
    """Compares as the options ask for, and prints the table."""
    number, seed = (whole(f"--{name}", getattr(options, name)) for name in ("tasks", "seed"))
    run = metarun.load(options.run)
    config = run.config
    if "length_scale" not in config["dataset"]:
        raise ConfigError("run", options.run, "a run on dataset=gaussian_process")
    own = {key: value for key, value in config["dataset"].items() if key != "_target_"}
    sizes = {key: config[key] for key in ("shot", "query_shot", "eval_query_shot")}
    source = gaussian_process(**sizes, **own).test
    method, params = run.method, run.params

    @jax.jit
    def errors(key):
        task = source.sample(source.data, key)
        adapted = method.adapt(params, task.support, jax.random.key(0))
        exact = posterior_mean(task.support, task.query.x, own["length_scale"], own["noise"])
        count = len(task.support.x) if task.support.mask is None else task.support.mask.sum()
        of = lambda answers: jnp.square(answers - task.query.y).mean()
        return of(method.predict(adapted, task.query.x)), of(exact), count

    keys = jax.random.split(jax.random.key(seed), number)
    blocks = [jax.device_get(jax.lax.map(errors, keys[start : start + BLOCK])) for start in range(0, number, BLOCK)]
    ours, exact, points = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    print(f"{'points':<10}{'tasks':>7}{'learner':>20}{'exact posterior':>20}{'larger by':>18}")
    parts = [points > 0, *(np.isin(points, its) for its in np.array_split(np.unique(points), 4) if len(its))]
    for its in parts:
        said = [f"{each.mean():.4f} ± {_ci95(each):.4f}" for each in (ours[its], exact[its])]
        share, width = (
            100 * value / exact[its].mean() for value in ((ours - exact)[its].mean(), _ci95((ours - exact)[its]))
        )
        name = f"{points[its].min()}–{points[its].max()}"
        print(f"{name:<10}{its.sum():>7}{said[0]:>20}{said[1]:>20}{f'{share:.1f}% ± {width:.1f}%':>18}")


def _ci95(values: np.ndarray) -> float:
    return 1.96 * float(values.std(ddof=1)) / np.sqrt(len(values))


if __name__ == "__main__":
    main()
