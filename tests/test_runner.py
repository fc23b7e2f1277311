import contextlib
import io
import json
import math
import multiprocessing
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console
from small_disk import fill, needs_root, small_disk
from toy_experiment import FACTS, PLAN, toy_experiment

from metarun.errors import ConfigError, Diverged, MetarunError, Pruned
from metarun.report.curves import learning_curve
from metarun.system import files
from metarun.training import checkpoint, metrics, runner
from metarun.training.ensemble import members_of
from metarun.training.result import read_pruned
from metarun.training.run_state import RunState, load_selected
from metarun.training.settings import RunSettings
from metarun.training.stopping import REQUEUE, Interrupted
from metarun.trust.protocol import protocol_id

SETTINGS = RunSettings(
    steps=60, steps_per_dispatch=4, eval_every=10, val_tasks=20, eval_tasks=50, checkpoint_every=10, log_every=8
)
TIMES = {"seconds", "tasks_per_second", "compile_seconds"}


def run(
    directory,
    settings=SETTINGS,
    experiment=None,
    identity=None,
    said=None,
    pictures=None,
    loggers=(),
    judge=None,
    **changes,
):
    settings = RunSettings(**{**vars(settings), **changes})
    console = Console(file=said or io.StringIO(), width=200)
    return runner.run(
        experiment or toy_experiment(),
        settings,
        directory,
        facts=FACTS,
        identity=identity or {"seed": 0, "method.inner_lr": 0.4},
        pictures=pictures,
        loggers=loggers,
        console=console,
        judge=judge,
    )


def lines_of(directory):
    """Returns the lines of metrics.jsonl without what the clock decides."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def result_of(directory):
    """Returns what result.json holds, without what the clock decides."""
    result = json.loads((directory / "result.json").read_text())
    return {key: value for key, value in result.items() if key not in TIMES}


def newest(directory):
    """Returns the newest checkpoint of a run."""
    return checkpoint.newest(directory / "checkpoints", print)


def state_of(directory):
    """Returns the newest checkpoint: step, best validation, and the bytes of every array."""
    train = toy_experiment().init()
    saved = newest(directory)
    arrays = checkpoint.load(saved, RunState(train, train.params))
    as_bytes = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(arrays)]
    return saved.step, saved.metadata["ledger"]["best"], as_bytes


def assert_same_run(directory, expected):
    assert lines_of(directory) == lines_of(expected)
    assert state_of(directory) == state_of(expected)
    assert result_of(directory) == result_of(expected)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "uninterrupted"
    run(directory)
    return directory


def signals_during(step_of_signal, signum=signal.SIGTERM, times=1):
    """Returns the toy experiment, which sends this process a signal in the dispatch that reaches `step_of_signal`."""
    toy = toy_experiment()

    def step(state, num_steps):
        reaches = int(state.step) < step_of_signal <= int(state.step) + num_steps
        for _ in range(times * reaches):
            os.kill(os.getpid(), signum)
        return toy.step(state, num_steps)

    return toy._replace(step=step)


# ---- One run from beginning to end.


def test_result(uninterrupted):
    result = json.loads((uninterrupted / "result.json").read_text())
    validated = {line["step"]: line["val/mse"] for line in lines_of(uninterrupted) if "val/mse" in line}
    selected = min(validated, key=validated.get)
    params = load_selected(newest(uninterrupted), toy_experiment().init().params)
    tested = toy_experiment().evaluate(params, "test", 50)
    assert {key: result[key] for key in FACTS} == FACTS
    assert (result["metric"], result["num_tasks"], result["steps"]) == ("mse", 50, 60)
    assert (result["value"], result["ci95"]) == (tested.value, tested.ci95)
    assert (result["selected_steps"], result["val"]) == ([selected], validated[selected])
    assert result["protocol"] == toy_experiment().protocol
    assert result["protocol_id"] == protocol_id({"features": 5, "split": "test"})
    assert result["checks"] == {"above_noise": {"passed": True, "value": result["value"]}}
    assert result["seconds"] > 0 and result["compile_seconds"] > PLAN.compile_seconds
    assert result["plan"] == PLAN._asdict()
    # 60 steps of one task, of which the first 4 are in the dispatch that compiles.
    assert result["tasks_per_second"] == pytest.approx(56 / result["seconds"], rel=1e-3)
    assert result["value"] < 0.1


def test_the_protocol_id_is_of_the_protocol_alone():
    # printf '{"a":[2,3],"b":1}' | sha256sum
    assert protocol_id({"b": 1, "a": (2, 3)}) == protocol_id({"a": [2, 3], "b": 1}) == "2aae3bfa906be395"
    assert protocol_id({"a": [3, 2], "b": 1}) != "2aae3bfa906be395"


def test_metrics(uninterrupted):
    lines = lines_of(uninterrupted)
    assert [line["step"] for line in lines] == [8, 10, 16, 20, 24, 30, 32, 40, 48, 50, 56, 60]
    assert [line["step"] for line in lines if "val/mse" in line] == [10, 20, 30, 40, 50, 60]
    assert all({"train/loss", "train/query/mse"} < set(line) for line in lines)
    assert all("val/ci95" in line for line in lines if "val/mse" in line)
    first = json.loads((uninterrupted / "metrics.jsonl").read_text().splitlines()[0])
    assert list(first)[:3] == ["step", "seconds", "tasks_per_second"]


def test_the_last_two_checkpoints_are_kept(uninterrupted):
    assert sorted(path.name for path in (uninterrupted / "checkpoints").iterdir()) == ["50", "60"]


def test_steps_are_grouped_as_settings_say(tmp_path):
    toy, calls = toy_experiment(), []

    def step(state, num_steps):
        calls.append(num_steps)
        return toy.step(state, num_steps)

    run(tmp_path, experiment=toy._replace(step=step), steps=23, steps_per_dispatch=4, eval_every=10)
    assert calls == [4, 4, 2, 2, 4, 4, 3]


def test_without_validation_the_last_parameters_are_tested(tmp_path):
    splits = []
    result = run(tmp_path, experiment=toy_experiment(evaluated=splits.append), steps=12, eval_every=0)
    assert splits == ["test"]
    assert (result["selected_steps"], result["val"]) == ([12], None)
    params = load_selected(newest(tmp_path), toy_experiment().init().params)
    assert result["value"] == toy_experiment().evaluate(params, "test", 50).value


@pytest.mark.parametrize("maximize, selected", [(True, 20), (False, 40)])
def test_the_best_validation_is_selected_and_the_earlier_of_equals(tmp_path, maximize, selected):
    values = iter([math.nan, 0.9, 0.5, 0.1, 0.9, 0.1])
    toy, validated, tested = toy_experiment(), [], []

    def evaluate(params, split, num_tasks, checks=False):
        found = toy.evaluate(params, split, num_tasks, checks)
        if split == "test":
            tested.append(np.array(params["w"]))
            return found
        validated.append(np.array(params["w"]))
        return found._replace(value=next(values))

    result = run(tmp_path, experiment=toy._replace(evaluate=evaluate, maximize=maximize))
    assert (result["selected_steps"], result["val"]) == ([selected], 0.9 if maximize else 0.1)
    assert tested[0].tobytes() == validated[selected // 10 - 1].tobytes() != validated[5].tobytes()


def test_an_ensemble_is_of_the_best_validations_and_survives_interruptions(tmp_path):
    values = {10: 0.5, 20: math.nan, 30: 0.9, 40: 0.2, 50: 0.9, 60: 0.6}

    def run_to_its_end(directory, stops=()):
        validated, tested = {}, []
        for stop_at in (*stops, None):
            toy = signals_during(stop_at) if stop_at else toy_experiment()

            def evaluate(params, split, num_tasks, checks=False, toy=toy):
                if split == "test":
                    tested.extend(np.array(member["w"]).tobytes() for member in members_of(params))
                    return toy.evaluate(members_of(params)[0], split, num_tasks, checks)
                step = min(set(values) - set(validated))
                validated[step] = np.array(params["w"]).tobytes()
                return toy.evaluate(params, split, num_tasks)._replace(value=values[step])

            with pytest.raises(Interrupted) if stop_at else contextlib.nullcontext():
                run(directory, experiment=toy._replace(evaluate=evaluate, maximize=True), ensemble=3)
        return validated, tested

    validated, tested = run_to_its_end(tmp_path / "whole")
    result = result_of(tmp_path / "whole")
    assert (result["selected_steps"], result["val"]) == ([30, 50, 60], 0.9)
    assert tested == [validated[step] for step in (30, 50, 60)] and len(set(tested)) == 3
    saved = newest(tmp_path / "whole")
    kept = members_of(load_selected(saved, toy_experiment().init().params))
    assert [np.asarray(member["w"]).tobytes() for member in kept] == tested
    # Once with none validated, once with one, and once with two of them.
    assert run_to_its_end(tmp_path / "cut", [4, 18, 38]) == (validated, tested)
    assert result_of(tmp_path / "cut") == result


def test_a_judge_ends_a_run_after_a_validation_and_without_it_the_run_goes_on(uninterrupted, tmp_path):
    told = []

    def judge(step, value):
        told.append(step)
        return step == 30

    with pytest.raises(Pruned, match="Pruned at step 30: its validation, ") as pruned:
        run(tmp_path, judge=judge)
    assert told == [10, 20, 30] and not (tmp_path / "result.json").exists()
    assert read_pruned(tmp_path) == {"step": 30, "value": pruned.value.value}
    assert str(pickle.loads(pickle.dumps(pruned.value))) == str(pruned.value)
    assert run(tmp_path, judge=lambda step, value: step == 60)["steps"] == 60  # what is at its end is not ended
    assert not (tmp_path / "pruned.json").exists()
    assert_same_run(tmp_path, uninterrupted)


def test_an_ensemble_needs_as_many_validations():
    with pytest.raises(
        ConfigError, match="ensemble=4: expected 3 or less: with steps=25 and eval_every=10 there are no"
    ):
        RunSettings(steps=25, eval_every=10, ensemble=4)
    with pytest.raises(ConfigError, match="ensemble=2: expected 1 or less: with steps=25 and eval_every=0"):
        RunSettings(steps=25, eval_every=0, ensemble=2)
    RunSettings(steps=25, eval_every=10, ensemble=3)


def test_a_complete_run_is_not_run_again(uninterrupted):
    before = (uninterrupted / "result.json").read_bytes()
    toy = toy_experiment()._replace(step=None, evaluate=None)
    said = io.StringIO()
    assert run(uninterrupted, experiment=toy, said=said) == json.loads(before)
    assert "complete: 60 steps" in said.getvalue()
    assert (uninterrupted / "result.json").read_bytes() == before


def test_more_test_tasks_only_test_again(tmp_path):
    run(tmp_path, steps=8)
    before = (tmp_path / "checkpoints" / "8" / "manifest.json").read_bytes()
    result = run(tmp_path, steps=8, eval_tasks=70, experiment=toy_experiment()._replace(step=None))
    assert result["num_tasks"] == json.loads((tmp_path / "result.json").read_text())["num_tasks"] == 70
    assert (tmp_path / "checkpoints" / "8" / "manifest.json").read_bytes() == before


def test_steps_may_grow_but_not_shrink(uninterrupted, tmp_path):
    run(tmp_path, steps=40)
    run(tmp_path)
    assert_same_run(tmp_path, uninterrupted)
    with pytest.raises(ConfigError, match=r"steps=40: expected 60 or more"):
        run(tmp_path, steps=40)


@pytest.mark.parametrize("key", ["steps", "steps_per_dispatch", "val_tasks", "eval_tasks", "ensemble", "log_every"])
def test_settings_are_checked(key):
    with pytest.raises(ConfigError, match=f"{key}=0: expected a whole number, 1 or more"):
        RunSettings(**{"steps": 1, key: 0})


# ---- Interrupted and continued.

STOPS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]


@pytest.mark.parametrize("signum", STOPS)
def test_stopping_at_any_dispatch_changes_nothing(uninterrupted, tmp_path, signum):
    before = {number: signal.getsignal(number) for number in STOPS}
    steps = sorted(random.Random(signum).sample(range(4, 57, 4), 4))  # each in a dispatch of its own
    for step in steps:
        with pytest.raises(Interrupted):
            run(tmp_path, experiment=signals_during(step, signum))
        assert not (tmp_path / "result.json").exists()
    assert {number: signal.getsignal(number) for number in before} == before
    run(tmp_path)
    assert_same_run(tmp_path, uninterrupted)


def test_a_signal_stops_after_the_dispatch_at_hand(tmp_path):
    with pytest.raises(
        Interrupted, match=rf"Stopped by SIGTERM at step 24 of 60; the same command continues {tmp_path}"
    ) as error:
        run(tmp_path, experiment=signals_during(22))
    assert error.value.code == REQUEUE
    assert state_of(tmp_path)[0] == 24
    said = io.StringIO()
    run(tmp_path, said=said)
    assert "Resuming at step 24 of 60" in said.getvalue()


def test_a_second_interrupt_stops_at_once(tmp_path):
    with pytest.raises(Interrupted, match="Stopped by SIGINT at once") as error:
        run(tmp_path, experiment=signals_during(22, signal.SIGINT, times=2))
    assert error.value.code == 128 + signal.SIGINT
    assert state_of(tmp_path)[0] == 20


def test_a_signal_during_the_test_need_not_wait(uninterrupted, tmp_path):
    def evaluated(split):
        if split == "test":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    with pytest.raises(Interrupted):
        run(tmp_path, experiment=toy_experiment(evaluated=evaluated))
    assert not (tmp_path / "result.json").exists()
    run(tmp_path)
    assert_same_run(tmp_path, uninterrupted)


def test_who_handled_a_signal_before_is_called_when_all_is_saved(tmp_path):
    seen = []
    before = signal.signal(signal.SIGUSR2, lambda signum, frame: seen.append((signum, state_of(tmp_path)[0])))
    try:
        with pytest.raises(Interrupted):
            run(tmp_path, experiment=signals_during(22, signal.SIGUSR2))
        run(tmp_path)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert seen == [(signal.SIGUSR2, 24)]


def test_a_time_limit_stops_and_is_no_part_of_what_is_computed(uninterrupted, tmp_path):
    with pytest.raises(Interrupted, match="Stopped by its time_limit at step") as error:
        run(tmp_path, experiment=toy_experiment(seconds_per_dispatch=0.1), time_limit=0.3 / 60)
    assert error.value.code == REQUEUE and 0 < state_of(tmp_path)[0] < 60
    run(tmp_path, time_limit=10)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert_same_run(tmp_path, uninterrupted)


def test_outside_the_main_thread_it_runs_without_handlers(tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(run(tmp_path, steps=8)))
    thread.start()
    thread.join()
    assert results[0]["steps"] == 8


LONG = {"steps": 300}
SECONDS_PER_DISPATCH = 0.06  # ten processes, killed 0.3 s after their first validation at most, do not reach the end


def run_slowly(directory, began):
    """The body of a process to be killed; says when it has compiled all and will save."""
    jax.config.update("jax_compilation_cache_dir", str(directory.with_name("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    toy = toy_experiment(seconds_per_dispatch=SECONDS_PER_DISPATCH)

    def evaluate(*args, **options):
        found = toy.evaluate(*args, **options)
        began.send(True)
        return found

    run(directory, experiment=toy._replace(evaluate=evaluate), **LONG)


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_many_times(tmp_path, kills):
    # Processes of a server that has imported everything: real ones, really killed, but quick to start.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["metarun.training.runner"])
    directory, delays, steps = tmp_path / "run", random.Random(0), []
    while len(steps) < kills:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=run_slowly, args=(directory, sender))
        process.start()
        assert receiver.poll(60) and receiver.recv()
        time.sleep(delays.uniform(0.0, 0.3))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        saved = checkpoint.newest(directory / "checkpoints", pytest.fail)
        steps.append(saved.step if saved else 0)
    assert steps == sorted(steps) and len(set(steps)) >= min(3, kills - 1), steps
    run(directory, **LONG)
    run(tmp_path / "uninterrupted", **LONG)
    assert_same_run(directory, tmp_path / "uninterrupted")


@pytest.mark.parametrize("signum", STOPS)
def test_a_process_exits_with_the_code_of_its_signal(tmp_path, signum):
    toy = Path(__file__).with_name("toy_experiment.py")
    settings = ["steps=2000", "steps_per_dispatch=4", "log_every=4"]
    command = [sys.executable, "-W", "error", str(toy), str(tmp_path), *settings]
    with subprocess.Popen([*command, "seconds_per_dispatch=0.02"], stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("step "):
                process.send_signal(signum)
                break
        error = process.stderr.read()
    assert process.returncode == {signal.SIGINT: 130}.get(signum, REQUEUE), error
    assert f"Stopped by {signum.name} at step " in error and "Traceback" not in error
    step = int(error.split(" at step ")[1].split()[0])
    assert checkpoint.newest(tmp_path / "checkpoints", pytest.fail).step == step > 0


# ---- What goes wrong.


def test_a_damaged_checkpoint_costs_steps_and_not_the_run(uninterrupted, tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, experiment=signals_during(36))
    (tmp_path / "checkpoints" / "36" / "manifest.json").write_text("{")
    said = io.StringIO()
    run(tmp_path, said=said)
    assert "36 is damaged" in said.getvalue() and "Falling back to the one of step 30." in said.getvalue()
    assert "Resuming at step 30 of 60." in said.getvalue()
    assert_same_run(tmp_path, uninterrupted)


def test_another_architecture_is_an_error(tmp_path):
    run(tmp_path, steps=8)
    with pytest.raises(MetarunError, match=r"train/params/w is \[5\] float32 in the checkpoint and \[3\] float32 here"):
        run(tmp_path, experiment=toy_experiment(num_features=3))


def test_other_settings_are_an_error(tmp_path):
    run(tmp_path, steps=8, identity={"seed": 0, "method.inner_lr": 0.4, "old": 1})
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(MetarunError) as error:
        run(tmp_path, identity={"seed": 0, "method.inner_lr": 0.1, "new": None})
    for part in ("method.inner_lr (0.4 then, 0.1 now)", "old (1 then, absent now)", "new (absent then, None now)"):
        assert part in str(error.value)
    assert "seed" not in str(error.value)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_without_resume_a_run_is_replaced(uninterrupted, tmp_path):
    run(tmp_path, steps=100, identity={"seed": 1})
    run(tmp_path, resume=False)
    assert_same_run(tmp_path, uninterrupted)


def test_a_half_written_line_is_written_again(uninterrupted, tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, experiment=signals_during(36))
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 40, "train/l')
    run(tmp_path)
    assert_same_run(tmp_path, uninterrupted)


def directory_in_its_place(file):
    file.unlink()
    file.mkdir()


DAMAGED_LOGS = {
    "removed": lambda file: file.unlink(),
    "emptied": lambda file: file.write_bytes(b""),
    "zero byte": lambda file: file.write_bytes(file.read_bytes().replace(b"step", b"st\0p", 3)),
    "no UTF-8": lambda file: file.write_bytes(b"\xff" + file.read_bytes()),
    "no validation": lambda file: file.write_text(re.sub(r', "val/mse.*', "}", file.read_text())),
    "a list": lambda file: file.write_text("[1]\n" + file.read_text()),
    "a directory": directory_in_its_place,
    "a pipe": lambda file: (file.unlink(), os.mkfifo(file)),
}


@pytest.mark.parametrize("damage", DAMAGED_LOGS.values(), ids=DAMAGED_LOGS)
def test_a_damaged_log_costs_no_result(uninterrupted, tmp_path, damage):
    run_of = shutil.copytree(uninterrupted, tmp_path / "run")
    (run_of / "result.json").unlink()
    damage(run_of / "metrics.jsonl")
    said = io.StringIO()
    run(run_of, said=said, pictures=curve)
    assert result_of(run_of) == result_of(uninterrupted)
    drawn = (run_of / "plots" / "learning_curve.png").exists()
    assert drawn != ("metarun: plots/learning_curve.png could not be drawn. " in said.getvalue()), said.getvalue()


def curve(directory, params, selected_step, tested):
    files = directory / "metrics.jsonl", directory / "plots" / "learning_curve.png"
    return {"learning_curve.png": partial(learning_curve, *files, metric="mse", selected_step=selected_step)}


def test_what_cannot_be_drawn_or_logged_costs_no_result(uninterrupted, tmp_path):
    def fails(*_):
        raise RuntimeError("no font\nat all")

    def pictures(directory, *rest):
        return {"a.png": fails, **curve(directory, *rest)}

    said = io.StringIO()
    run(tmp_path / "a", said=said, pictures=pictures, loggers=[fails])
    assert said.getvalue().count("metarun: plots/a.png could not be drawn. RuntimeError: no font at all\n") == 1
    assert "without one of its logs. RuntimeError: no font at all" in said.getvalue()
    assert (tmp_path / "a" / "plots" / "learning_curve.png").exists()
    assert_same_run(tmp_path / "a", uninterrupted)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "plots").write_text("")  # and so no directory
    run(tmp_path / "b", said=said, pictures=curve)
    assert "learning_curve.png could not be drawn. Cannot write" in said.getvalue()
    run(tmp_path / "c", said=said, pictures=fails)
    assert "metarun: plots/ could not be drawn. RuntimeError" in said.getvalue()
    assert result_of(tmp_path / "c") == result_of(tmp_path / "b") == result_of(uninterrupted)


@needs_root
def test_a_disk_that_is_filled_by_pictures_has_room_for_the_result(uninterrupted, tmp_path):
    with small_disk(tmp_path / "disk", "600k") as disk:

        def too_large():
            files.write_bytes(disk / "run" / "plots" / "large.png", bytes(2_000_000))

        said = io.StringIO()
        run(disk / "run", said=said, pictures=lambda *_: {"large.png": too_large})
        assert "large.png could not be drawn. Cannot write" in said.getvalue() and "disk is full" in said.getvalue()
        assert_same_run(disk / "run", uninterrupted)
        assert not list((disk / "run" / "plots").iterdir())


@pytest.mark.parametrize(
    "facts",
    [{}, {"ledger": 1}, {"ledger": {"best": 3}}, {"ledger": {"best": [1]}}, {"ledger": {"x": 1}}, {"form": 1}]
    + [{"identity": [1]}, {"ledger": {"seconds": "1"}}, {"ledger": {"best": [{"step": "1", "value": 1, "ci95": 1}]}}],
)
def test_a_checkpoint_with_other_facts_is_one_message(tmp_path, facts):
    train = toy_experiment().init()
    facts = facts and {"ledger": {}, "form": "", "identity": {}, **facts}
    checkpoint.save(tmp_path / "checkpoints", 1, RunState(train, train.params), facts)
    with pytest.raises(MetarunError, match="is not one of a run"):
        run(tmp_path)


def test_parameters_that_do_not_fit_are_not_made(tmp_path):
    def init():
        raise AssertionError("of a thousand terabytes")

    large = toy_experiment()._replace(sizes=lambda: {"meta_params": 10**15 // 4}, init=init)
    with pytest.raises(MetarunError, match="The parameters alone take 1000 TB of a device"):
        run(tmp_path / "run", experiment=large)
    assert not (tmp_path / "run").exists()


def diverging(at_step, name):
    """Returns the toy experiment, whose loss or parameters (`name`) are NaN from `at_step` on."""
    toy = toy_experiment()

    def step(state, num_steps):
        state, found = toy.step(state, num_steps)
        if int(state.step) >= at_step and name == "loss":
            found = {**found, "loss": found["loss"] * np.nan}
        elif int(state.step) >= at_step:
            state = state._replace(params={**state.params, "b": state.params["b"] * np.nan})
        return state, found

    return toy._replace(step=step)


def listing(directory):
    """Every file below a directory, byte for byte."""
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_loss_that_is_nan_ends_the_run_which_is_not_trained_again_unless_asked(uninterrupted, tmp_path):
    with pytest.raises(Diverged, match=r"The loss is nan in step 43 .* checkpoint of step 40 is kept") as raised:
        run(tmp_path, experiment=diverging(43, "loss"))
    assert raised.value.step == 43 and state_of(tmp_path)[0] == 40
    left = listing(tmp_path)
    with pytest.raises(Diverged) as again:  # this experiment is sound: only what is written there says that it is not
        run(tmp_path)
    assert (again.value.step, str(again.value)) == (43, str(raised.value)) and "resume=false" in str(again.value)
    assert listing(tmp_path) == left
    assert run(tmp_path, steps=42)["steps"] == 42  # it does not come as far
    with pytest.raises(Diverged):
        run(tmp_path)
    run(tmp_path, resume=False)
    assert_same_run(tmp_path, uninterrupted)
    assert not (tmp_path / "diverged").exists()


def test_what_another_run_has_said_of_its_divergence_is_not_believed(uninterrupted, tmp_path):
    with pytest.raises(Diverged):
        run(tmp_path, experiment=diverging(3, "loss"), identity={"seed": 7})  # nothing was saved
    run(tmp_path)
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.parametrize("text", ["", "[]", '{"step": "3"}', '{"step": 3, "message": 5, "identity": {}}', "\udcff"])
def test_a_damaged_record_of_a_divergence_costs_a_run_nothing(tmp_path, text):
    (tmp_path / "diverged").mkdir()
    (tmp_path / "diverged" / "divergence.json").write_text(text, errors="surrogateescape")
    assert run(tmp_path, steps=4)["steps"] == 4


def test_a_result_that_does_not_fit_its_schema_is_found_again(tmp_path):
    result = run(tmp_path, steps=8)
    for damage in ({"value": "abc"}, {"checks": {"x": 5}}, {"selected_steps": 3}, {"protocol": [1]}):
        (tmp_path / "result.json").write_text(
            json.dumps({**json.loads((tmp_path / "result.json").read_text()), **damage})
        )
        assert run(tmp_path, steps=8)["value"] == result["value"]
        assert json.loads((tmp_path / "result.json").read_text())["value"] == result["value"]


def test_parameters_that_are_nan_are_never_saved(tmp_path):
    with pytest.raises(MetarunError, match=r"A parameter is not finite in step 40 .* step 30 is kept"):
        run(tmp_path, experiment=diverging(40, "parameter"))
    assert state_of(tmp_path)[0] == 30


@pytest.mark.parametrize("what", ["checkpoints", "."])
def test_a_directory_that_vanishes_is_made_again(uninterrupted, tmp_path, what):
    toy, directory = toy_experiment(), tmp_path / "run"

    def step(state, num_steps):
        if int(state.step) == 32:
            shutil.rmtree(directory / what)
        return toy.step(state, num_steps)

    run(directory, experiment=toy._replace(step=step))
    assert state_of(directory) == state_of(uninterrupted)
    assert result_of(directory) == result_of(uninterrupted)
    assert what == "." or lines_of(directory) == lines_of(uninterrupted)


@pytest.mark.parametrize("error", [jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), MemoryError()])
@pytest.mark.parametrize("where", ["step", "evaluate"])
def test_running_out_of_memory_says_what_was_planned(uninterrupted, tmp_path, where, error):
    toy = toy_experiment()

    def call(first, *args, **kwargs):
        if where == "evaluate" and kwargs.get("checks") or where == "step" and int(first.step) == 32:
            raise error
        return getattr(toy, where)(first, *args, **kwargs)

    starved = toy._replace(prepare=lambda: PLAN._replace(bytes_available=11_800_000_000), **{where: call})
    words = r"predicted to take 2 KB, and 11\.8 GB were available .* memory\.limit=SIZE.* memory\.chunk"
    with pytest.raises(MetarunError, match=words):
        run(tmp_path, experiment=starved)
    run(tmp_path)
    assert_same_run(tmp_path, uninterrupted)


def test_one_process_a_directory(tmp_path):
    with files.locked(tmp_path), pytest.raises(MetarunError, match=f"Another process is writing in {tmp_path}"):
        run(tmp_path)
    run(tmp_path, steps=4)


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MetarunError, match=r"Cannot write .*file: .*hydra\.run\.dir"):
        run(tmp_path / "file")
    with pytest.raises(MetarunError, match=r"Cannot write .*file/run: Not a directory"):
        run(tmp_path / "file" / "run")
    (tmp_path / "run" / "result.json").mkdir(parents=True)
    with pytest.raises(MetarunError, match=r"result\.json is no file: a run has a file there"):
        run(tmp_path / "run", steps=4)


@needs_root
def test_a_full_disk_loses_nothing(uninterrupted, tmp_path):
    with small_disk(tmp_path / "disk", "300k") as disk:
        toy = toy_experiment()

        def step(state, num_steps):
            if int(state.step) == 32:
                fill(disk / "filler")
            return toy.step(state, num_steps)

        with pytest.raises(MetarunError, match=r"Cannot write .*: the disk is full"):
            run(disk / "run", experiment=toy._replace(step=step))
        with pytest.raises(MetarunError, match=r"Cannot write .*: the disk is full"):
            run(disk / "run")
        assert state_of(disk / "run")[0] == 30
        (disk / "filler").unlink()
        run(disk / "run")
        assert_same_run(disk / "run", uninterrupted)


@needs_root
@pytest.mark.parametrize("write", ["result", "metrics", "tensorboard"])
def test_a_full_disk_is_named_with_the_file(tmp_path, write):
    with small_disk(tmp_path / "disk", "100k") as disk:
        loggers = {"metrics": metrics.jsonl(disk, 0), "tensorboard": metrics.tensorboard(disk, 0)}
        fill(disk / "filler")
        name = {"result": "result.json", "metrics": "metrics.jsonl", "tensorboard": "events.out.tfevents"}[write]
        with pytest.raises(MetarunError, match=rf"Cannot write .*{name}.*: the disk is full \(0\.00 MB free\)"):
            if write == "result":
                files.write_json(disk / "result.json", {"text": "x" * 10_000})
            else:
                for step in range(1000):
                    loggers[write].write(step, {"train/loss": 0.5})
        for logger in loggers.values():
            logger.close()
        assert not list(disk.glob("result.json*"))


@needs_root
def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    with small_disk(tmp_path / "disk", "100k") as disk:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(MetarunError, match=r"Cannot write .*run: Read-only file system"):
            run(disk / "run")


# ---- What is shown.


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, "1 device x 1 task, one at a time; 2 KB a device; compiled in 0.2 s"),
        (
            {"devices": 2, "tasks": 4, "variant": "inner steps kept", "bytes_available": 11_800_000_000},
            "2 devices x 4 tasks, one at a time; inner steps kept; 2 KB of 11.8 GB a device; compiled in 0.2 s",
        ),
        ({"tasks": 32, "chunk": 32}, "1 device x 32 tasks, all at once; 2 KB a device; compiled in 0.2 s"),
        ({"devices": 2, "together": True}, "1 task, each by 2 devices together; 2 KB a device; compiled in 0.2 s"),
        ({"tasks": 32, "chunk": 8}, "1 device x 32 tasks, 8 at once; 2 KB a device; compiled in 0.2 s"),
    ],
)
def test_the_plan_is_said_at_the_start(tmp_path, changes, words):
    said = io.StringIO()
    run(tmp_path, experiment=toy_experiment()._replace(prepare=lambda: PLAN._replace(**changes)), said=said, steps=4)
    assert said.getvalue().splitlines()[0] == words


def test_another_form_of_the_step_is_said_on_resuming(tmp_path):
    run(tmp_path, steps=4)
    said = io.StringIO()
    run(tmp_path, steps=8, said=said)
    assert "Until step" not in said.getvalue()
    other = toy_experiment()._replace(prepare=lambda: PLAN._replace(tasks=2, chunk=2))
    run(tmp_path, steps=12, experiment=other, said=said)
    assert "Until step 8 it was: 1 device x 1 task, one at a time. What follows is equal within" in said.getvalue()


def test_plain_lines_without_a_terminal(tmp_path):
    said = io.StringIO()
    run(tmp_path, said=said, steps=20)
    text = said.getvalue()
    assert "\x1b" not in text and "\r" not in text
    assert [line.split()[1] for line in text.splitlines()] == ["device", "8/20", "10/20", "16/20", "20/20", "on"]
    for part in ("tasks/s", "loss ", "query/mse ", "val ", "best val ", "elapsed", "left"):
        assert part in text.splitlines()[-2]


def test_a_bar_on_a_terminal(tmp_path):
    screen = io.StringIO()
    runner.run(
        toy_experiment(),
        RunSettings(steps=8, eval_every=4, steps_per_dispatch=2, val_tasks=5, eval_tasks=5),
        tmp_path,
        facts=FACTS,
        identity={},
        console=Console(file=screen, force_terminal=True, width=200, _environ={"TERM": "xterm"}),
    )
    assert "\x1b[" in screen.getvalue() and "━" in screen.getvalue()
    assert "8/8" in screen.getvalue() and "best val" in screen.getvalue()
