"""A small real experiment for the runner: linear regression by gradient descent with momentum, data drawn by step.

As a program it is a run that can be killed: `python toy_experiment.py DIRECTORY key=value ...`.
"""

import sys
import time
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from metarun.errors import MetarunError
from metarun.training.metrics import tensorboard
from metarun.training.runner import run
from metarun.training.settings import RunSettings
from metarun.types import Evaluation, Experiment, Inspection, Plan, TrainState

FACTS = {"method": "toy", "dataset": "lines", "way": 1, "shot": 1, "query_shot": 16, "split": "test", "seed": 0}
FACTS |= {"device": "cpu", "versions": {"jax": jax.__version__}}
PLAN = Plan(
    devices=1,
    tasks=1,
    chunk=1,
    together=False,
    variant="",
    streams=False,
    bytes_predicted=2000,
    bytes_available=None,
    compile_seconds=0.25,
)
TARGET = np.linspace(-1, 1, 5, dtype=np.float32)


@cache  # so that a process compiles it once, however many experiments it makes
def compiled(num_features):
    """Returns `(steps, mse_of_tasks)` of a model of `num_features` weights."""
    root = jax.random.key(0)
    target = jnp.array(TARGET[:num_features])

    def mse(params, key):
        x_key, noise_key = jax.random.split(key)
        x = jax.random.uniform(x_key, (16, num_features), minval=-1, maxval=1)
        y = x @ target + 0.2 * jax.random.uniform(noise_key, (16,), minval=-1, maxval=1)
        return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)

    @partial(jax.jit, donate_argnums=0)
    def steps(state, num_steps):
        def one(_, carry):
            state, losses = carry
            loss, gradient = jax.value_and_grad(mse)(state.params, jax.random.fold_in(root, state.step))
            momentum = jax.tree.map(lambda m, g: 0.9 * m + g, state.opt_state, gradient)
            params = jax.tree.map(lambda p, m: p - 0.05 * m, state.params, momentum)
            return TrainState(state.step + 1, params, momentum), losses + loss

        state, losses = jax.lax.fori_loop(0, num_steps, one, (state, jnp.zeros(())))
        loss = losses / num_steps.astype(jnp.float32)
        return state, {"loss": loss, "query/mse": loss}

    @jax.jit
    def mse_of_tasks(params, keys):
        return jax.lax.map(partial(mse, params), keys)

    return steps, mse_of_tasks


def toy_experiment(num_features=5, seconds_per_dispatch=0.0, evaluated=lambda split: None):
    """Returns the experiment; `evaluated(split)` is called before each evaluation."""
    steps, mse_of_tasks = compiled(num_features)

    def init():
        params = {"w": jnp.zeros(num_features), "b": jnp.zeros(())}
        return TrainState(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.zeros_like, params))

    def step(state, num_steps):
        time.sleep(seconds_per_dispatch)
        return steps(state, jnp.int32(num_steps))

    def evaluate(params, split, num_tasks, checks=False):
        evaluated(split)
        keys = jax.random.split(jax.random.key({"val": 1, "test": 2}[split]), num_tasks)
        per_task = np.asarray(mse_of_tasks(params, keys))
        value, ci95 = float(per_task.mean()), float(1.96 * per_task.std(ddof=1) / np.sqrt(num_tasks))
        verdicts = {"above_noise": {"passed": value > 0.005, "value": value}} if checks else {}
        return Evaluation("mse", value, ci95, num_tasks, per_task, verdicts)

    return Experiment(
        init=init,
        prepare=lambda: PLAN,
        step=step,
        inspect=lambda state: Inspection(np.array([[0, int(state.step)]], np.uint32), {}, np.ones(1), np.ones(1)),
        evaluate=evaluate,
        examples=lambda params, num_tasks: None,
        metric="mse",
        maximize=False,
        tasks_per_step=1,
        protocol={"split": "test", "features": num_features},
    )


def main(directory, *overrides):
    values = {key: float(value) if "." in value else int(value) for key, value in (o.split("=") for o in overrides)}
    delay = values.pop("seconds_per_dispatch", 0.0)
    experiment = toy_experiment(seconds_per_dispatch=delay)
    settings = RunSettings(**values)
    try:
        result = run(experiment, settings, Path(directory), facts=FACTS, identity={"seed": 0}, loggers=[tensorboard])
    except MetarunError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None
    print(result["value"])


if __name__ == "__main__":
    main(*sys.argv[1:])
