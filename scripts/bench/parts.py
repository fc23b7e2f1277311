"""The parts of a run by themselves: drawing episodes, evaluating, and the step of each method."""

from typing import Any

import jax
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from bench import meter, recipe
from metarun.build import build
from metarun.config import conf_dir, register
from metarun.data.glyphs import glyphs
from metarun.task_map import Layout, map_tasks
from metarun.types import DataSet

WORK = recipe.CONFIGS["A"]
_DRAWN = 128  # tasks of one dispatch of the sampler
_EVALUATED = 600


def sampler(layout: Layout, seconds: float) -> dict[str, Any]:
    """Times drawing tasks from glyphs, and a training step of configuration A to hold it against."""
    train = _glyphs().train
    data = jax.device_put(train.data, layout.replicated)
    draw = jax.jit(lambda data, keys: map_tasks(train.sample, layout, data, keys))
    keys = iter(jax.random.split(jax.random.key(0), 10_000))
    draw_seconds = meter.repeat(lambda: draw(data, jax.random.split(next(keys), _DRAWN)), seconds) / _DRAWN
    step = meter.time_steps(recipe.experiment(WORK, layout), seconds)
    return {
        "tasks_per_s": round(1 / draw_seconds, 1),
        "step_tasks_per_s": round(step.tasks_per_s, 2),
        "percent_of_step": round(100 * draw_seconds * step.tasks_per_s, 2),
    }


def evaluation(layout: Layout) -> dict[str, Any]:
    """Times evaluating MAML on Conv-4 on test tasks of glyphs, with compiling and without."""
    experiment = recipe.experiment(WORK, layout, _glyphs())
    params = experiment.init().params
    first, again = (meter.timed(lambda: experiment.evaluate(params, "test", _EVALUATED))[0] for _ in range(2))
    return {"tasks": _EVALUATED, "seconds": round(again, 2), "seconds_with_compiling": round(first, 2)}


def methods(seconds: float) -> dict[str, float]:
    """Returns the tasks/s of every method's training step at its defaults, with configuration A's sizes on glyphs."""
    register()
    sizes = [f"{key}={getattr(WORK, key)}" for key in ("way", "shot", "query_shot", "meta_batch_size")]
    rates = {}
    for file in sorted((conf_dir() / "method").glob("*.yaml")):
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            composed = compose("config", [f"method={file.stem}", *sizes], return_hydra_config=True)
        choices = dict(composed.hydra.runtime.choices)
        config = OmegaConf.masked_copy(composed, [key for key in composed if key != "hydra"])
        timing = meter.time_steps(build(config, choices).experiment, seconds)
        rates[file.stem] = round(timing.tasks_per_s, 2)
    return rates


def _glyphs() -> DataSet:
    return glyphs(way=WORK.way, shot=WORK.shot, query_shot=WORK.query_shot)
