"""The measurement of rollouts: what a call is, how many there are, and what is made of their times."""

import json

import jax
import pytest

import rl_speed
from bench import meter
from metarun.compiled.task_map import default_layout
from metarun.errors import MetarunError

SMALL = rl_speed.Work(tasks=4, episodes=2, steps=4, hidden=2)
ARGUMENTS = [f"--{size}={value}" for size, value in SMALL._asdict().items()]
OWN = sorted({*rl_speed.SIZES} - {"gymnax"})  # which strict types do not let through


@pytest.mark.parametrize("name", OWN)
def test_a_trial_has_the_steps_of_the_work(name):
    environment = rl_speed.environment_of(name, SMALL)
    assert environment.length == 2 * 4
    layout = default_layout()._replace(chunk=None)
    (_, random), (params, gru) = rl_speed.players(environment, SMALL, layout).values()
    given = jax.eval_shape(lambda key: (environment.sample(key, "train"), key), jax.random.key(0))
    # All that the random agent went through is kept, and the network acts.
    assert jax.eval_shape(random, {}, given).seen.observation.shape == (8, environment.observation_size)
    assert jax.eval_shape(gru, params, given).value.shape == ()


def test_a_call_is_compiled_once_and_timed_so_often(monkeypatch):
    traced, calls = [], []
    seconds = iter([9.0, 2.0, 4.0, 1.0] * 2)
    play, timed = rl_speed.play, meter.timed

    def counted(*arguments):
        traced.append(arguments)
        return play(*arguments)

    def at_fixed_seconds(call):
        calls.append(call)
        return next(seconds), timed(call)[1]

    monkeypatch.setattr(rl_speed, "play", counted)
    monkeypatch.setattr(meter, "timed", at_fixed_seconds)
    layout = default_layout()._replace(chunk=None)
    found = rl_speed.measure(["maze"], SMALL, 3, layout)
    random, gru = found["rows"]
    assert len(calls) == 2 * (1 + 3) and len(traced) == 1
    assert random["steps"] == gru["steps"] == 4 * 2 * 4
    assert (random["slowest"], random["steps_per_s"], random["fastest"]) == (8.0, 16.0, 32.0)
    assert random["compile_s"] == 9.0 - 2.0 and 0 < random["live"] <= 1
    assert (random["agent"], gru["agent"]) == ("random", "GRU")


def test_table_and_file(tmp_path, capsys):
    arguments = [*ARGUMENTS, "--repetitions", "2", "--environments", "two_step", "--json", f"{tmp_path / 'speed.json'}"]
    assert rl_speed.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads((tmp_path / "speed.json").read_text())
    assert found["work"] == SMALL._asdict() and found["num_devices"] == 2
    assert found["device"] in lines[0] and jax.__version__ in lines[0]
    assert [line.split(" | ")[:2] for line in lines[4:]] == [["| two_step", "random"], ["| two_step", "GRU"]]
    assert all(row["slowest"] <= row["steps_per_s"] <= row["fastest"] for row in found["rows"])


def test_an_environment_whose_library_is_missing_is_left_out(monkeypatch, capsys):
    def missing(name, work):
        raise MetarunError("it needs a library")

    monkeypatch.setattr(rl_speed, "environment_of", missing)
    assert rl_speed.measure(["gymnax"], SMALL, 1, default_layout())["rows"] == []
    assert "gymnax is left out: it needs a library" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--tasks", "0"], ["--environments", "chess"], ["--repetitions", "-1"]])
def test_arguments_are_checked(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        rl_speed.main(arguments)
    assert ended.value.code == 2 and arguments[0] in capsys.readouterr().err
