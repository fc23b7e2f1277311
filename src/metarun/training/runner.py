"""The host loop of a run: step, evaluate, log, checkpoint; and in the end the test. It reads from top to bottom.

A run is a directory. Whatever ends it early, the same call continues it from its newest checkpoint, and then computes
what it would have computed: dispatches begin and end at the same steps wherever a run is cut.
"""

import contextlib
import dataclasses
import hashlib
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from metarun.compiled.memory import available, in_words
from metarun.config.directories import refuse_odd
from metarun.config.factories import ANY, CODE, SAME, refuse_other_code
from metarun.errors import (
    ConfigError,
    DataError,
    Diverged,
    MetarunError,
    in_a_line,
    non_negative_int,
    one_of,
    positive_float,
    positive_int,
    shown,
    some,
    true_or_false,
)
from metarun.system import processes
from metarun.system.files import canonical_json, locked, plain, remove, write_json, writing
from metarun.system.progress import RunProgress
from metarun.system.reading import is_number
from metarun.training import checkpoint, metrics
from metarun.training.ensemble import Ensemble, ensemble_of, members_of
from metarun.training.result import DIVERGED, DIVERGENCE, RESULT, read_divergence, read_result
from metarun.trust.equivalence import interval_said
from metarun.types import Evaluation, Experiment, Inspection, Metrics, Params, Plan, TrainState

# Exit code of a run that was told to stop and can be continued: EX_TEMPFAIL of sysexits.h, "try again". A scheduler that
# starts the command again on it needs to know nothing else.
REQUEUE = 75
_MOST_BEST = 1000  # validations that a checkpoint may list: as many as are tested together
# What asks a run to stop, in words: Ctrl-C; schedulers before they kill a job; its own time limit.
_STOPS = {signal.SIGINT: "SIGINT", signal.SIGTERM: "SIGTERM", signal.SIGUSR1: "SIGUSR1", signal.SIGUSR2: "SIGUSR2"}
_STOPS[signal.SIGALRM] = "its time_limit"


# Draws the pictures of a run, see `run`.
Draw = Callable[[Path, Params, int | None, Evaluation], Mapping[str, Callable[[], None]]]


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """How long and how often.

    Attributes:
      steps: outer steps in all.
      steps_per_dispatch: outer steps of one call of `Experiment.step`; a call ends earlier where a validation is due.
      eval_every: outer steps from one validation to the next; the last step is validated too. 0 for none, and then
        the last parameters are tested.
      val_tasks: tasks of a validation.
      eval_tasks: tasks of the final test.
      ensemble: how many parameters are tested together, those that validated best.
      checkpoint_every: outer steps from one checkpoint to the next, at the end of a dispatch; 0 for one at the end.
      log_every: outer steps from one line of metrics to the next, at the end of a dispatch.
      time_limit: minutes after which this process saves and ends, to be continued; None for no limit.
      resume: whether to continue what the directory holds, or to replace it.
      code: "same" or "any": by which source, of what is not metarun's own, a run may be continued.
    """

    steps: int
    steps_per_dispatch: int = 10
    eval_every: int = 0
    val_tasks: int = 100
    eval_tasks: int = 600
    ensemble: int = 1
    checkpoint_every: int = 100
    log_every: int = 10
    time_limit: float | None = None
    resume: bool = True
    code: str = SAME

    def __post_init__(self):
        for key in ("steps", "steps_per_dispatch", "val_tasks", "eval_tasks", "ensemble", "log_every"):
            positive_int(key, getattr(self, key))
        for key in ("eval_every", "checkpoint_every"):
            non_negative_int(key, getattr(self, key))
        if self.time_limit is not None:
            positive_float("time_limit", self.time_limit)
        true_or_false("resume", self.resume)
        one_of(CODE, self.code, (SAME, ANY))
        validations = -(-self.steps // self.eval_every) if self.eval_every else 1
        if self.ensemble > validations:
            allowed = (
                f"{validations} or less: with steps={self.steps} and eval_every={self.eval_every} there are no more"
            )
            raise ConfigError("ensemble", self.ensemble, f"{allowed} validations to choose from")


class RunState(NamedTuple):
    """The arrays of a checkpoint.

    Attributes:
      train: what `Experiment.step` takes and returns.
      selected: the parameters that validated best so far, an `Ensemble` if there are several; or the latest where none
        have been validated.
    """

    train: TrainState
    selected: Params | Ensemble


@dataclasses.dataclass
class Ledger:
    """The numbers of a run that survive its interruption.

    Attributes:
      seconds: spent in dispatches, less the first of each process, which compiles.
      timed_steps: outer steps of those dispatches.
      compile_seconds: spent in preparing and in the first dispatch of each process, with its steps.
      best: {step, value, ci95} of the best validations, as many as are tested together; the earlier of equals first.
    """

    seconds: float = 0.0
    timed_steps: int = 0
    compile_seconds: float = 0.0
    best: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, saved: checkpoint.Saved) -> "Ledger":
        """That of a checkpoint; raises `MetarunError` where what is saved there is not of a run."""
        facts = saved.metadata
        try:
            ledger = cls(**facts["ledger"])
            numbers = [ledger.seconds, ledger.timed_steps, ledger.compile_seconds]
            numbers += [each[key] for each in ledger.best for key in ("step", "value", "ci95")]
            good = all(map(is_number, numbers)) and len(ledger.best) < _MOST_BEST and isinstance(facts["form"], str)
            good = good and isinstance(facts["identity"], dict)
        except (KeyError, TypeError):
            good = False
        if not good:
            raise MetarunError(f"Checkpoint {saved.path} is not one of a run: its facts in manifest.json are others.")
        return ledger

    def selected_steps(self, step: int) -> list[int]:
        """The steps whose parameters are selected at `step`: those of the best validations, or the last."""
        return [each["step"] for each in self.best] or [step]


class Interrupted(SystemExit):
    """A signal ended the run; the same command continues it. It ends a sweep as well, whose next point must not begin.

    Attributes:
      code: of the process: `REQUEUE`; after Ctrl-C 130, as a shell reports it.
    """

    def __init__(self, signum: int, where: str):
        super().__init__(128 + signum if signum == signal.SIGINT else REQUEUE)
        self._message = f"Stopped by {_STOPS[signum]} {where}"

    def __str__(self) -> str:
        return self._message


def run(
    experiment: Experiment,
    settings: RunSettings,
    directory: Path,
    *,
    facts: Mapping[str, Any],
    identity: Mapping[str, Any],
    logger: Callable[[Path, int], metrics.Logger] = metrics.no_logger,
    draw: Draw | None = None,
    console: Console | None = None,
    record: Callable[[], None] | None = None,
    stop: "Stop | None" = None,
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
      logger: factory of a logger beside `metrics.jsonl`, such as `metrics.tensorboard`. Where one of the two fails, that
        is said, and the run goes on.
      draw: `(directory, selected_params, selected_step, test) -> {file in plots/: what draws it}`; called in every
        process, and what it returns in the one that writes, before `result.json`. What fails of it is said.
      console: where progress and messages go; standard error by default. Of several processes, one is enough.
      record: writes into the directory how the run was made; called once nothing can refuse it any more.
      stop: what asks it to end, where somebody else sees to the signals and the time limit.

    Returns:
      What `result.json` holds: that of the earlier run if the directory's is complete already.

    Raises:
      Interrupted: a signal came, or time is up; the user has been told.
      Diverged: the loss or a parameter is not finite; or was not when this run was here before, and is not trained again.
      MetarunError: the parameters do not fit; the directory is in use or cannot be written; its checkpoints are damaged, of
        another architecture or of other settings.
    """
    directory = Path(directory)
    _check_fits(experiment)
    refuse_odd(directory)
    first = processes.is_first()
    console = console or Console(stderr=True)
    watched = stop_on_signals(settings.time_limit) if stop is None else contextlib.nullcontext(stop)
    with locked(directory) if first else contextlib.nullcontext(), watched as stop:
        try:
            return _run(experiment, settings, directory, facts, plain(identity), logger, draw, console, record, stop)
        except KeyboardInterrupt:
            where = f"at once; the same command continues {directory} from its newest checkpoint."
            stopped = Interrupted(stop.signum or signal.SIGINT, where)
        except Interrupted as error:
            stopped = error
        except Exception as error:
            if processes.is_loss_of_another(error):
                _leave(directory)
            raise
        console.print(f"metarun: {stopped}", markup=False, highlight=False, soft_wrap=True)
        raise stopped


def load_selected(saved: checkpoint.Saved, template: Params) -> Params | Ensemble:
    """Returns the parameters that a run had selected when it saved: at its end, the tested ones, which may be several.

    Args:
      saved: a checkpoint of a run.
      template: parameters of the same model, or their shapes.

    Raises:
      MetarunError: the checkpoint is of another architecture.
    """
    selected = ensemble_of([template] * len(selected_steps(saved)))
    return checkpoint.load(saved, RunState(train=None, selected=selected), partial=True).selected


def selected_steps(saved: checkpoint.Saved) -> list[int]:
    """Returns the steps whose parameters `load_selected` returns, the best first."""
    return Ledger.of(saved).selected_steps(saved.step)


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


def protocol_id(protocol: Mapping[str, Any]) -> str:
    """Returns 16 hexadecimal digits that are equal for equal protocols, whatever the order of their keys."""
    return hashlib.sha256(canonical_json(protocol).encode()).hexdigest()[:16]


def _run(
    experiment: Experiment,
    settings: RunSettings,
    directory: Path,
    facts: Mapping[str, Any],
    identity: Mapping[str, Any],
    logger: Callable[[Path, int], metrics.Logger],
    draw: Draw | None,
    console: Console,
    record: Callable[[], None] | None,
    stop: "Stop",
) -> dict[str, Any]:
    checkpoints, result_path = directory / "checkpoints", directory / RESULT
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    first, saved, begun, diverged = processes.is_first(), None, None, None

    # ---- Resume, or begin. Until the command is known to be acceptable, nothing in the directory changes.
    if first and settings.resume:
        saved = checkpoint.newest(checkpoints, say)
        if saved is not None:
            ledger = Ledger.of(saved)
            _check_continues(saved, identity, settings, directory)
            begun = saved.step, dataclasses.asdict(ledger), _finished(result_path, experiment, settings)
        diverged = _diverged_before(directory, identity, settings)
    begun, diverged = processes.from_first((begun, diverged))
    if diverged is not None:
        raise Diverged(*diverged)
    step, ledger = 0, Ledger()
    if begun is not None:
        step, ledger, result = begun[0], Ledger(**begun[1]), begun[2]
        if result is not None:
            say(f"The run in {directory} is complete: {step} steps. Nothing to do.")
            return result
        say(f"Resuming at step {step} of {settings.steps}.")
    train, selected = _restored(experiment, saved, 0 if begun is None else len(ledger.selected_steps(step)))

    # ---- Compile the step in the form that fits the memory.
    plan = experiment.prepare()
    ledger.compile_seconds += plan.compile_seconds
    say(f"{_form(plan)}; {_needs(plan)}")
    if saved is not None and saved.metadata["form"] != _form(plan):
        say(
            f"Until step {step} it was: {shown(saved.metadata['form'])}. What follows is equal within rounding, not to the bit."
        )
    if first:
        if not settings.resume:
            _remove_run(directory)
        _remove_divergence_of_another(directory, identity)
        checkpoint.remove_leftovers(checkpoints)
        if record is not None:
            record()

    with contextlib.ExitStack() as opened, _memory_named(plan):
        made = (metrics.jsonl, logger) if first else ()
        loggers = [metrics.unfailing(each, directory, step, say) for each in made]
        for each in loggers:
            opened.callback(each.close)
        progress = opened.enter_context(RunProgress(console, step, settings.steps))
        warm, line_start = False, dataclasses.replace(ledger)

        while step < settings.steps:
            # ---- One dispatch.
            previous, step = step, _next_boundary(step, settings)
            began = time.perf_counter()
            train, train_metrics = experiment.step(train, step - previous)
            train_metrics = {name: float(value) for name, value in jax.device_get(dict(train_metrics)).items()}
            elapsed = time.perf_counter() - began
            if warm:
                ledger.seconds += elapsed
                ledger.timed_steps += step - previous
            else:
                warm = True
                ledger.compile_seconds += elapsed
            if not math.isfinite(train_metrics["loss"]):
                raise _diverged(experiment, f"The loss is {train_metrics['loss']}", step, directory, identity)
            stopping = processes.largest(stop.signum or 0)
            last = step == settings.steps

            # ---- Validate; the best parameters are tested in the end.
            val = {}
            if settings.eval_every and (last or step % settings.eval_every == 0):
                found = experiment.evaluate(train.params, "val", settings.val_tasks)
                val = {f"val/{found.metric}": found.value, "val/ci95": found.ci95}
                place = _place(found.value, ledger.best, experiment.maximize)
                if place < settings.ensemble:
                    kept = list(members_of(selected))[: len(ledger.best)]  # none before the first validation
                    ledger.best.insert(place, {"step": step, "value": found.value, "ci95": found.ci95})
                    kept.insert(place, _copy(train.params))
                    del ledger.best[settings.ensemble :], kept[settings.ensemble :]
                    selected = ensemble_of(kept)

            # ---- Log.
            rate = _tasks_per_second(experiment, ledger, line_start)
            line = bool(val) or last or _crosses(settings.log_every, previous, step)
            progress.show(step, _summary(experiment, rate, train_metrics, val, ledger.best), line=line)
            if line:
                values = {"seconds": round(ledger.seconds, 3), "tasks_per_second": rate}
                values |= {f"train/{name}": value for name, value in train_metrics.items()} | val
                for each in loggers:
                    each.write(step, values)
                line_start = dataclasses.replace(ledger)

            # ---- Save.
            if stopping or last or _crosses(settings.checkpoint_every, previous, step):
                if not _are_finite(train.params):
                    raise _diverged(experiment, "A parameter is not finite", step, directory, identity)
                if not ledger.best:
                    selected = train.params
                metadata = {"identity": identity, "ledger": dataclasses.asdict(ledger), "form": _form(plan)}
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
    with _memory_named(plan):
        tested = experiment.evaluate(selected, "test", settings.eval_tasks, checks=True)
    if draw is not None:
        _draw(partial(draw, directory, selected, ledger.best[0]["step"] if ledger.best else None, tested), say)
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
    if first:
        write_json(result_path, result)
    return plain(result)


def _check_fits(experiment: Experiment) -> None:
    """Raises `MetarunError` where not even the parameters have room; to find out by making them can end the process."""
    needed, free = 4 * experiment.sizes().get("meta_params", 0), available(jax.local_devices())
    if free is not None and needed > free:
        raise MetarunError(
            f"The parameters alone take {in_words(needed)} of a device, and {in_words(free)} are available: lower the size "
            "of the model, such as model.hidden, model.filters or method.hidden."
        )


def _draw(pictures: Callable[[], Mapping[str, Callable[[], None]]], say: Callable[[str], object]) -> None:
    """Draws what can be drawn, and says what cannot: a result does not wait for its pictures."""
    failed = {}
    try:
        made = pictures()
    except Exception as error:
        if processes.is_loss_of_another(error):
            raise
        made, failed[""] = {}, error
    for name, picture in made.items() if processes.is_first() else ():
        try:
            picture()
        except Exception as error:  # of whatever kind: matplotlib's, of fonts, of the disk
            failed[name] = error
    for name, error in failed.items():
        say(f"metarun: plots/{name} could not be drawn. {in_a_line(error)}")


def _restored(experiment: Experiment, saved: checkpoint.Saved | None, selected: int) -> RunState:
    """The state of a checkpoint, which the first process alone can read, and which has selected so many parameters; or
    where nothing was begun, and so none are selected, the initial one."""
    train = experiment.init()
    state = RunState(train, ensemble_of([_copy(train.params) for _ in range(max(1, selected))]))
    if not selected:
        return state
    return processes.arrays_from_first(checkpoint.load(saved, state) if saved is not None else state)


def _remove_run(directory: Path) -> None:
    with writing(directory):
        for name in (RESULT, "metrics.jsonl", "checkpoints", DIVERGED):
            remove(directory / name)


def _check_continues(
    saved: checkpoint.Saved, identity: Mapping[str, Any], settings: RunSettings, directory: Path
) -> None:
    """Raises `MetarunError` unless `saved` was made with the settings of `identity` and within `settings.steps`."""
    then = saved.metadata["identity"]
    codes = [{key: code for key, code in each.items() if key.endswith(f".{CODE}")} for each in (then, identity)]
    if settings.code == SAME:
        refuse_other_code(*codes, directory)
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


def _diverged_before(directory: Path, identity: Mapping[str, Any], settings: RunSettings) -> tuple[int, str] | None:
    """Where the same run has diverged and what was said of it, if it would again within its steps."""
    found = _divergence(directory)
    if found is None or found["identity"] != identity or found["step"] > settings.steps:
        return None
    return found["step"], found["message"]


def _remove_divergence_of_another(directory: Path, identity: Mapping[str, Any]) -> None:
    """Removes what a run of other settings has left as it diverged; nothing that could be continued is there."""
    found = _divergence(directory)
    if found is not None and found["identity"] != identity:
        with writing(directory):
            shutil.rmtree(directory / DIVERGED)


def _divergence(directory: Path) -> Mapping[str, Any] | None:
    try:
        return read_divergence(directory)
    except DataError:  # the run is trained again, and writes it anew
        return None


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


@jax.jit
def _copy(params: Params) -> Params:
    """Returns parameters that outlive the donation of `params` to the next step."""
    return jax.tree.map(jnp.copy, params)


def _next_boundary(step: int, settings: RunSettings) -> int:
    periods = [settings.steps_per_dispatch] + [settings.eval_every] * bool(settings.eval_every)
    return min(settings.steps, *(step - step % period + period for period in periods))


def _crosses(period: int, previous: int, step: int) -> bool:
    """Whether a multiple of `period` lies in (previous, step]; never for period 0."""
    return period > 0 and step // period > previous // period


def _place(value: float, best: Sequence[Mapping[str, Any]], maximize: bool) -> float:
    """Where a validation stands among the best, which are sorted, after its equals; one that is not finite, nowhere."""
    if not math.isfinite(value):
        return math.inf
    return sum(each["value"] >= value if maximize else each["value"] <= value for each in best)


def _tasks_per_second(experiment: Experiment, now: Ledger, since: Ledger) -> float | None:
    """Returns the rate of dispatches between two states of the ledger, or None if there was none but to compile."""
    seconds = now.seconds - since.seconds
    return round((now.timed_steps - since.timed_steps) * experiment.tasks_per_step / seconds, 3) if seconds else None


def _summary(
    experiment: Experiment,
    rate: float | None,
    train: Metrics,
    val: Mapping[str, float],
    best: Sequence[Mapping[str, Any]],
) -> str:
    """Returns the numbers of a step in one line."""
    parts = [] if rate is None else [f"{rate:.0f} tasks/s"]
    parts += [
        f"{name} {train[name]:.4g}"
        for name in ("loss", f"query/{experiment.metric}", experiment.metric)
        if name in train
    ]
    if val:
        parts.append(f"val {val[f'val/{experiment.metric}']:.4g}{interval_said(val['val/ci95'], '.2g')}")
    if best:
        parts.append(f"best val {best[0]['value']:.4g} at {best[0]['step']}")
    return "  ".join(parts)


def _form(plan: Plan) -> str:
    """Returns how a plan computes, which decides a run's numbers to the last bit."""
    if plan.chunk == 1:
        how = "one at a time"
    else:
        how = "all at once" if plan.chunk >= plan.tasks else f"{plan.chunk} at once"
    devices = f"{plan.devices} device{'s' * (plan.devices > 1)}"
    tasks = f"{plan.tasks} task{'s' * (plan.tasks > 1)}"
    streams = "images streamed from the host" * plan.streams
    return "; ".join(filter(None, [f"{devices} x {tasks}, {how}", plan.variant, streams]))


def _needs(plan: Plan) -> str:
    """Returns what a plan takes of memory and of time."""
    of = "" if plan.bytes_available is None else f" of {in_words(plan.bytes_available)}"
    return f"{in_words(plan.bytes_predicted)}{of} a device; compiled in {plan.compile_seconds:.1f} s"


def _leave(directory: Path) -> None:
    """Ends this process, whose run has lost another: at once, since an orderly end would wait for that one."""
    console = Console(stderr=True)
    console.print(
        f"metarun: Another process of this run has ended, or does not answer. The same command, in all processes, "
        f"continues {directory} from its newest checkpoint.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    console.file.flush()
    os._exit(REQUEUE)


def _diverged(
    experiment: Experiment, what: str, last: int, directory: Path, identity: Mapping[str, Any]
) -> MetarunError:
    """The error of a run in which `what` was found after step `last`; has saved the state before the step that did it.

    That step is found by computing again, one at a time, those since the newest checkpoint: they give the same numbers.
    """
    say, checkpoints, first = (lambda text: None), directory / "checkpoints", processes.is_first()
    saved = checkpoint.newest(checkpoints, say) if first else None
    step, selected = processes.from_first([saved.step, len(selected_steps(saved))] if saved else [0, 0])
    state = _restored(experiment, saved, selected).train
    since = f"{what} between steps {step + 1} and {last} of the run in {directory}"
    kept = f"the checkpoint of step {step} is kept" if selected else "nothing was saved"
    advice = "Lower outer_lr or method.inner_lr, or clip gradients, in a new directory (hydra.run.dir=DIR)."
    finite = True
    while finite and step < last:
        before = _copy(state)
        state, found = experiment.step(state, 1)
        finite, step = math.isfinite(float(found["loss"])) and _are_finite(state.params), step + 1
    if finite:
        return MetarunError(
            f"{since}; {kept}. Computed again, these steps give finite numbers: the machine may be at fault. The same "
            "command continues the run."
        )
    inspection = experiment.inspect(before)
    tasks, number = offending(inspection), len(inspection.keys)
    if first:
        seeds = {str(task): inspection.keys[task].tolist() for task in tasks or range(number)}
        metadata = {"identity": identity, "ledger": dataclasses.asdict(Ledger()), "form": "", "seeds": seeds}
        try:
            checkpoint.save(directory / DIVERGED, step - 1, RunState(before, before.params), metadata)
        except MetarunError as error:
            kept += f" ({error})"
    if tasks:
        whose = f"the seeds of the tasks that did it (of {number}: {some([str(task) for task in tasks])})"
    else:
        alone = ", each of which by itself gives a finite loss and gradient," * (inspection.loss is not None)
        whose = f"the seeds of its {number} tasks{alone}"
    message = (
        f"{what} in step {step} of the run in {directory}; {kept}. The state before that step and {whose} are in "
        f"{directory / DIVERGED}: `metarun-replay run={directory}` computes it again. {advice} The same command does "
        "not train it again; with resume=false it does."
    )
    if first:
        with contextlib.suppress(MetarunError):  # then it is found again
            write_json(directory / DIVERGED / DIVERGENCE, {"step": step, "message": message, "identity": identity})
    return Diverged(step, message)


def offending(inspection: Inspection) -> list[int]:
    """Numbers of the tasks whose loss or gradient is not finite by itself."""
    finite = [np.isfinite(x) for x in (inspection.loss, inspection.gradient_norm) if x is not None]
    return np.flatnonzero(~np.all(finite, axis=0)).tolist() if finite else []


def _are_finite(params: Params) -> bool:
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(params)))


@contextlib.contextmanager
def _memory_named(plan: Plan) -> Iterator[None]:
    """Has running out of memory say what was planned, and what to lower."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        had = "an unknown number" if plan.bytes_available is None else in_words(plan.bytes_available)
        raise MetarunError(
            f"A device ran out of memory. A training step was predicted to take {in_words(plan.bytes_predicted)}, and "
            f"{had} were available at the start; something else may have taken them since. Give memory.limit=SIZE, lower "
            f"than that, so that fewer tasks are computed at once; or lower memory.chunk ({plan.chunk} now), "
            f"meta_batch_size or the size of the model. The same command continues from the newest checkpoint."
        ) from error


@dataclasses.dataclass
class Stop:
    """What signals asked for.

    Attributes:
      signum: the first signal that came.
      at_once: whether a signal need not wait for the end of a dispatch.
      followers: of other runs in this process, which see the same signals.
    """

    signum: int | None = None
    at_once: bool = False
    followers: list["Stop"] = dataclasses.field(default_factory=list)


@contextlib.contextmanager
def stop_on_signals(time_limit: float | None) -> Iterator[Stop]:
    """Has the body see which signal came, that of the time limit (minutes) included."""
    stop = Stop()

    def handle(signum: int, frame: object) -> None:
        again = stop.signum is not None and signum == signal.SIGINT
        for each in (stop, *stop.followers):
            each.signum = each.signum or signum
        if again or stop.at_once:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield stop
        return
    before = {signum: signal.signal(signum, handle) for signum in _STOPS}
    signal.setitimer(signal.ITIMER_REAL, 60 * (time_limit or 0))
    try:
        yield stop
    except Interrupted:
        asked = before[stop.signum or signal.SIGINT]
        if callable(asked) and asked is not signal.default_int_handler:
            asked(stop.signum, None)
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for signum, handler in before.items():
            signal.signal(signum, handler)
