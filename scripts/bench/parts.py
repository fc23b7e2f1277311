"""The parts of a run by themselves: drawing episodes, streaming images, evaluating, and the step of each method."""

import statistics
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bench import meter, recipe
from metarun.assembly.few_shot_run import build
from metarun.compiled.task_map import Layout, map_tasks
from metarun.config.composing import composed
from metarun.config.search_path import conf_dir
from metarun.data import class_bank
from metarun.data.class_bank import NamedClass, SplitBank
from metarun.data.episodes import few_shot_data_set
from metarun.data.glyphs import glyphs
from metarun.types import DataSet

WORK = recipe.CONFIGS["A"]
_DRAWN = 128  # tasks of one dispatch of the sampler
_EVALUATED = 600
_CLASSES, _IMAGES = 64, 200  # of the bank that is streamed


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


def streaming(work: recipe.Work, layout: Layout, rounds: int, seconds: float) -> dict[str, Any]:
    """Times training steps on images that stay in a file, and in turn with it on the same images on the device.

    Returns:
      Tasks/s of both, medians over rounds, and the median, least and largest ratio of a round.
    """
    random = np.random.default_rng(0)
    draw = lambda: random.integers(0, 256, (_IMAGES, *work.image), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        class_bank.save(Path(folder), (NamedClass(f"{c}", "", draw()) for c in range(_CLASSES)))
        named = class_bank.load(Path(folder))
        splits = dict.fromkeys(("train", "val", "test"), range(_CLASSES))
        bank = SplitBank(named.bank, named.names, splits, {}, named.hashes)
        tasks = few_shot_data_set(bank, way=work.way, shot=work.shot, query_shot=work.query_shot)
        resident, streamed = (recipe.experiment(work, layout, tasks, stream=stream) for stream in (False, True))
        rates = [[meter.time_steps(each, seconds).tasks_per_s for each in (resident, streamed)] for _ in range(rounds)]
    ratios = [streamed / resident for resident, streamed in rates]
    return {
        "bank_mb": round(named.bank.images.nbytes / 1e6),
        "resident_tasks_per_s": round(statistics.median(rate for rate, _ in rates), 2),
        "streamed_tasks_per_s": round(statistics.median(rate for _, rate in rates), 2),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_by_round": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def evaluation(layout: Layout) -> dict[str, Any]:
    """Times evaluating MAML on Conv-4 on test tasks of glyphs, with compiling and without."""
    experiment = recipe.experiment(WORK, layout, _glyphs())
    params = experiment.init().params
    first, again = (meter.timed(lambda: experiment.evaluate(params, "test", _EVALUATED))[0] for _ in range(2))
    return {"tasks": _EVALUATED, "seconds": round(again, 2), "seconds_with_compiling": round(first, 2)}


def methods(seconds: float) -> dict[str, float]:
    """Returns the tasks/s of every method's training step at its defaults, with configuration A's sizes on glyphs."""
    sizes = [f"{key}={getattr(WORK, key)}" for key in ("way", "shot", "query_shot", "meta_batch_size")]
    rates = {}
    for file in sorted((conf_dir() / "method").glob("*.yaml")):
        config, choices = composed([f"method={file.stem}", *sizes])
        timing = meter.time_steps(build(config, choices).experiment, seconds)
        rates[file.stem] = round(timing.tasks_per_s, 2)
    return rates


def _glyphs() -> DataSet:
    return glyphs(way=WORK.way, shot=WORK.shot, query_shot=WORK.query_shot)
