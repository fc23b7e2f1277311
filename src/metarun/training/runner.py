"""The host loop of a run: step, evaluate, log, checkpoint; and in the end the test. It reads from top to bottom.

A run is a directory. Whatever ends it early, the same call continues it from its newest checkpoint, and then computes
what it would have computed: dispatches begin and end at the same steps wherever a run is cut.
"""

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from metarun.compiled.memory import available, in_words
from metarun.config.directories import refuse_odd
from metarun.config.named_code import CODE, SAME, refuse_other_code
from metarun.errors import ConfigError, DataError, Diverged, MetarunError, Pruned, in_a_line, shown
from metarun.system import several_processes
from metarun.system.files import locked, plain, remove, write_json, writing
from metarun.system.progress import RunProgress
from metarun.training import checkpoint, metrics, wording
from metarun.training.divergence import diverged_before, divergence_of, remove_divergence_of_another
from metarun.training.result import DIVERGED, METRICS, PRUNED, RESULT, read_result
from metarun.training.run_state import Ledger, RunState, are_finite, restored, with_validation
from metarun.training.settings import RunSettings
from metarun.training.stopping import Interrupted, Stop, leave, stop_on_signals
from metarun.training.trackers import IDS
from metarun.trust.protocol import protocol_id
from metarun.types import Evaluation, Experiment, Params

PLOTS = "plots"  # the folder of a run's pictures
# Draws the pictures of a run, see `run`.
Pictures = Callable[[Path, Params, int | None, Evaluation], Mapping[str, Callable[[], None]]]
# Of a trial of a search: told of a step and of what validation has found there, it says whether the trial is to end.
Judge = Callable[[int, float], bool]


def run(
    experiment: Experiment,
    settings: RunSettings,
    directory: Path,
    *,
    facts: Mapping[str, Any],
    identity: Mapping[str, Any],
    loggers: Sequence[metrics.LoggerFactory] = (),
    pictures: Pictures | None = None,
    console: Console | None = None,
    record: Callable[[], None] | None = None,
    stop: Stop | None = None,
    judge: Judge | None = None,
) -> dict[str, Any]:
    """Trains, selects by validation, tests, and writes `result.json`; or continues to do so.

    SIGINT, SIGTERM, SIGUSR1, SIGUSR2 and the time limit end it at the next dispatch with a checkpoint, a second SIGINT at
    once (main thread only). Who had set a handler before, such as submitit, which requeues the job, is called when all is
    saved.

    Where several processes compute a run, each of them calls this, and the first alone reads and writes the directory. One
    that loses another ends itself, with exit code `REQUEUE`.

    Args:
      experiment: what to train; among the metrics of its `step` is "loss".
      settings: how long and how often; only `steps` (upwards) and how often things are done may change on resuming.
      directory: of the run; gets `metrics.jsonl`, `checkpoints/STEP/` and `result.json`, and is locked meanwhile.
      facts: entries of `result.json` that are known beforehand: method, dataset, way, shot, seed, device, ...
      identity: flat key -> value, the settings that a checkpoint must have been made with to be continued.
      loggers: factories of loggers beside `metrics.jsonl`, such as `metrics.tensorboard`. Where one fails, that is said, and
        the run goes on. They stay open until the result and the pictures are in.
      pictures: `(directory, selected_params, selected_step, test) -> {file in plots/: what draws it}`; called in every
        process, and what it returns in the one that writes, before `result.json`. What fails of it is said.
      console: where progress and messages go; standard error by default. Of several processes, one is enough.
      record: writes into the directory how the run was made; called once nothing can refuse it any more.
      stop: what asks it to end, where somebody else sees to the signals and the time limit.
      judge: of a trial of a search, what each validation is told to and says whether the trial is pruned.

    Returns:
      What `result.json` holds: that of the earlier run if the directory's is complete already.

    Raises:
      Interrupted: a signal came, or time is up; the user has been told.
      Diverged: the loss or a parameter is not finite; or was not when this run was here before, and is not trained again.
      Pruned: `judge` has ended it; `pruned.json` says so.
      MetarunError: the parameters do not fit; the directory is in use or cannot be written; its checkpoints are damaged, of
        another architecture or of other settings.
    """
    directory = Path(directory)
    _check_fits(experiment)
    refuse_odd(directory)
    first = several_processes.is_first()
    console = console or Console(stderr=True)
    watched = stop_on_signals(settings.time_limit) if stop is None else contextlib.nullcontext(stop)
    with locked(directory) if first else contextlib.nullcontext(), watched as stop:
        try:
            with contextlib.ExitStack() as opened:
                return _run(
                    experiment,
                    settings,
                    directory,
                    facts,
                    plain(identity),
                    loggers,
                    pictures,
                    console,
                    record,
                    stop,
                    opened,
                    judge,
                )
        except KeyboardInterrupt:
            where = f"at once; the same command continues {directory} from its newest checkpoint."
            stopped = Interrupted(stop.signum or signal.SIGINT, where)
        except Interrupted as error:
            stopped = error
        except Exception as error:
            if several_processes.is_loss_of_another(error):
                leave(directory)
            raise
        console.print(f"metarun: {stopped}", markup=False, highlight=False, soft_wrap=True)
        raise stopped


def reported(tested: Evaluation, facts: Mapping[str, Any], protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a result says of a test: what was found, `facts`, the protocol with its hash, and the checks."""
    return {
        "metric": tested.metric,
        "value": tested.value,
        "ci95": tested.ci95,
        "num_tasks": tested.num_tasks,
        **facts,
        "protocol": protocol,
        "protocol_id": protocol_id(protocol),
        "checks": tested.checks,
        **tested.beside,
    }


def _run(
    experiment: Experiment,
    settings: RunSettings,
    directory: Path,
    facts: Mapping[str, Any],
    identity: Mapping[str, Any],
    loggers: Sequence[metrics.LoggerFactory],
    pictures: Pictures | None,
    console: Console,
    record: Callable[[], None] | None,
    stop: Stop,
    opened: contextlib.ExitStack,
    judge: Judge | None,
) -> dict[str, Any]:
    checkpoints, result_path = directory / "checkpoints", directory / RESULT
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    first, saved, begun, diverged = several_processes.is_first(), None, None, None

    # ---- Resume, or begin. Until the command is known to be acceptable, nothing in the directory changes.
    if first and settings.resume:
        saved = checkpoint.newest(checkpoints, say)
        if saved is not None:
            ledger = Ledger.of(saved)
            _check_continues(saved, identity, settings, directory)
            begun = saved.step, dataclasses.asdict(ledger), _finished(result_path, experiment, settings)
        diverged = diverged_before(directory, identity, settings.steps)
    begun, diverged = several_processes.from_first((begun, diverged))
    if diverged is not None:
        raise Diverged(*diverged)
    step, ledger = 0, Ledger()
    if begun is not None:
        step, ledger, result = begun[0], Ledger(**begun[1]), begun[2]
        if result is not None:
            say(f"The run in {directory} is complete: {step} steps. Nothing to do.")
            return result
        say(f"Resuming at step {step} of {settings.steps}.")
    train, selected = restored(experiment, saved, 0 if begun is None else len(ledger.selected_steps(step)))

    # ---- Compile the step in the form that fits the memory.
    plan = experiment.prepare()
    ledger.compile_seconds += plan.compile_seconds
    say(f"{wording.form(plan)}; {wording.needs(plan)}")
    if saved is not None and saved.metadata["form"] != wording.form(plan):
        say(
            f"Until step {step} it was: {shown(saved.metadata['form'])}. What follows is equal within rounding, not to the bit."
        )
    if first:
        if not settings.resume:
            _remove_run(directory)
        remove_divergence_of_another(directory, identity)
        with writing(directory):
            remove(directory / PRUNED)  # it goes on
        checkpoint.remove_leftovers(checkpoints)
        if record is not None:
            record()

    # They are closed where this call ends, and told how.
    log = opened.enter_context(metrics.opened((metrics.jsonl, *loggers) if first else (), directory, step, say))

    with wording.memory_named(plan), RunProgress(console, step, settings.steps) as progress:
        warm, line_start = False, dataclasses.replace(ledger)

        while step < settings.steps:
            # ---- One dispatch.
            previous, step = step, _next_boundary(step, settings)
            began = time.perf_counter()
            train, means = experiment.step(train, step - previous)
            train_metrics = {name: float(value) for name, value in jax.device_get(dict(means)).items()}
            elapsed = time.perf_counter() - began
            if warm:
                ledger.seconds += elapsed
                ledger.timed_steps += step - previous
            else:
                warm = True
                ledger.compile_seconds += elapsed
            if not math.isfinite(train_metrics["loss"]):
                raise divergence_of(experiment, f"The loss is {train_metrics['loss']}", step, directory, identity)
            stopping = several_processes.largest(stop.signum or 0)
            last = step == settings.steps

            # ---- Validate; the best parameters are tested in the end.
            val = {}
            if settings.eval_every and (last or step % settings.eval_every == 0):
                found = experiment.evaluate(train.params, "val", settings.val_tasks)
                val = {f"val/{found.metric}": found.value, "val/ci95": found.ci95}
                selected = with_validation(selected, ledger, step, found, train, settings.ensemble, experiment.maximize)

            # ---- Log.
            rate = _tasks_per_second(experiment, ledger, line_start)
            line = bool(val) or last or _crosses(settings.log_every, previous, step)
            progress.show(step, wording.summary(experiment, rate, train_metrics, val, ledger.best), line=line)
            if line:
                values: dict[str, Any] = {"seconds": round(ledger.seconds, 3), "tasks_per_second": rate}
                values |= {f"train/{name}": value for name, value in train_metrics.items()} | val
                log.write(step, values)
                line_start = dataclasses.replace(ledger)

            # ---- Of a search: end here, where others did better.
            if judge is not None and val:
                ends = several_processes.from_first(first and judge(step, found.value))
                if ends and not (last or stopping):
                    if first:
                        write_json(directory / PRUNED, {"step": step, "value": found.value})
                    raise Pruned(step, found.value)

            # ---- Save.
            if stopping or last or _crosses(settings.checkpoint_every, previous, step):
                if not are_finite(train.params):
                    raise divergence_of(experiment, "A parameter is not finite", step, directory, identity)
                if not ledger.best:
                    selected = train.params
                metadata = {"identity": identity, "ledger": dataclasses.asdict(ledger), "form": wording.form(plan)}
                if first:
                    checkpoint.save(checkpoints, step, RunState(train, selected), metadata)
            if stopping:
                raise Interrupted(
                    stopping,
                    f"at step {step} of {settings.steps}; the same command continues {directory} from there.",
                )

    # ---- Test. All is saved: from here on a signal need not wait.
    stop.at_once = True
    if stop.signum:
        raise KeyboardInterrupt
    say(f"Testing on {settings.eval_tasks} tasks, with checks.")
    with wording.memory_named(plan):
        tested = experiment.evaluate(selected, "test", settings.eval_tasks, checks=True)
    drawn = []
    if pictures is not None:
        step_of_selected = ledger.best[0]["step"] if ledger.best else None
        drawn = _draw(partial(pictures, directory, selected, step_of_selected, tested), say)
    result = {
        **reported(tested, facts, experiment.protocol),
        "steps": step,
        "selected_steps": ledger.selected_steps(step),
        "val": ledger.best[0]["value"] if ledger.best else None,
        "seconds": ledger.seconds,
        "compile_seconds": ledger.compile_seconds,
        "plan": plan._asdict(),
        "tasks_per_second": _tasks_per_second(experiment, ledger, Ledger())
        or round(step * experiment.tasks_per_step / ledger.compile_seconds, 3),  # if all ran in first dispatches
    }
    result = plain(result)
    if first:
        write_json(result_path, result)
        log.pictures([directory / PLOTS / name for name in drawn])
        log.result(result)
    return result


def _check_fits(experiment: Experiment) -> None:
    """Raises `MetarunError` where not even the parameters have room; to find out by making them can end the process."""
    needed, free = 4 * experiment.sizes().get("meta_params", 0), available(jax.local_devices())
    if free is not None and needed > free:
        raise MetarunError(
            f"The parameters alone take {in_words(needed)} of a device, and {in_words(free)} are available: lower the size "
            "of the model, such as model.hidden, model.filters or method.hidden."
        )


def _draw(pictures: Callable[[], Mapping[str, Callable[[], None]]], say: Callable[[str], object]) -> list[str]:
    """Draws what can be drawn, and says what cannot: a result does not wait for its pictures. Returns what was drawn."""
    failed: dict[str, Exception] = {}
    try:
        made = pictures()
    except Exception as error:
        if several_processes.is_loss_of_another(error):
            raise
        made, failed[""] = {}, error
    for name, picture in made.items() if several_processes.is_first() else ():
        try:
            picture()
        except Exception as error:  # of whatever kind: matplotlib's, of fonts, of the disk
            failed[name] = error
    for name, failure in failed.items():
        say(f"metarun: {PLOTS}/{name} could not be drawn. {in_a_line(failure)}")
    return [name for name in made if name not in failed]


def _remove_run(directory: Path) -> None:
    with writing(directory):
        for name in (RESULT, METRICS, "checkpoints", DIVERGED, PRUNED, IDS):
            remove(directory / name)


def _check_continues(
    saved: checkpoint.Saved, identity: Mapping[str, Any], settings: RunSettings, directory: Path
) -> None:
    """Raises `MetarunError` unless `saved` was made with the settings of `identity` and within `settings.steps`."""
    then = saved.metadata["identity"]
    codes = [{key: code for key, code in each.items() if key.endswith(f".{CODE}")} for each in (then, identity)]
    if settings.code == SAME:
        refuse_other_code(codes[0], codes[1], directory)
    then, identity = (
        {key: value for key, value in each.items() if key not in {**codes[0], **codes[1]}} for each in (then, identity)
    )
    absent = "absent"
    differing = [key for key in {**then, **identity} if then.get(key, absent) != identity.get(key, absent)]
    if differing:
        shown = ", ".join(f"{key} ({then.get(key, absent)} then, {identity.get(key, absent)} now)" for key in differing)
        raise MetarunError(
            f"The run in {directory} was begun with other settings: {shown}. To continue it, give it its own; or name "
            f"a new directory with hydra.run.dir=DIR, or give resume=false to replace this run."
        )
    if saved.step > settings.steps:
        raise ConfigError("steps", settings.steps, f"{saved.step} or more: the run in {directory} is that far")


def _finished(path: Path, experiment: Experiment, settings: RunSettings) -> dict[str, Any] | None:
    """Returns the result in `path` if it is of as many steps and as many test tasks under the same protocol."""
    try:
        result = read_result(path)
    except DataError:
        return None
    asked = (settings.steps, settings.eval_tasks, protocol_id(experiment.protocol))
    whole = {"val", "selected_steps"} <= result.keys()
    return (
        result if whole and tuple(result.get(key) for key in ("steps", "num_tasks", "protocol_id")) == asked else None
    )


def _next_boundary(step: int, settings: RunSettings) -> int:
    periods = [settings.steps_per_dispatch] + [settings.eval_every] * bool(settings.eval_every)
    return min(settings.steps, *(step - step % period + period for period in periods))


def _crosses(period: int, previous: int, step: int) -> bool:
    """Whether a multiple of `period` lies in (previous, step]; never for period 0."""
    return period > 0 and step // period > previous // period


def _tasks_per_second(experiment: Experiment, now: Ledger, since: Ledger) -> float | None:
    """Returns the rate of dispatches between two states of the ledger, or None if there was none but to compile."""
    seconds = now.seconds - since.seconds
    return round((now.timed_steps - since.timed_steps) * experiment.tasks_per_step / seconds, 3) if seconds else None
