"""What loggers are told and when; how they are chosen, one or several."""

import json

import documented
import pytest
from small_run import call, refused
from test_build import built
from test_cli import metarun
from test_runner import SETTINGS, result_of, run, signals_during, uninterrupted  # noqa: F401  # a fixture
from toy_experiment import toy_experiment

from metarun.commands import cli
from metarun.errors import Diverged, MetarunError
from metarun.training import metrics, trackers
from metarun.training.stopping import Interrupted

SMALL = ("method=protonet", "model=mlp", "model.hidden=[8]", "steps=2", "steps_per_dispatch=1", "log_every=1")
SMALL += ("eval_every=0", "eval_tasks=2", "meta_batch_size=2")


class Recorder:
    """A logger that keeps what it is told, and whether it was on disk by then."""

    def __init__(self, fails_at=None):
        self.told, self.fails_at = [], fails_at

    def __call__(self, directory, resume_step):
        def keeps(name):
            def call(*given):
                if name == self.fails_at:
                    raise RuntimeError(f"no {name}")
                on_disk = (directory / "result.json").exists()
                self.told.append((name, on_disk, *given))
                return name  # which nobody reads

            return call

        return metrics.Logger(*map(keeps, metrics.Logger._fields))

    @property
    def names(self):
        return [name for name, *_ in self.told]


def plots(directory, params, step, tested):
    def draw():
        (directory / "plots").mkdir()
        (directory / "plots" / "a.png").write_bytes(b"a")

    def fails():
        raise RuntimeError("no font")

    return {"a.png": draw, "b.png": fails}


def test_a_logger_is_open_until_result_and_pictures_are_in(uninterrupted, tmp_path):  # noqa: F811
    kept = Recorder()
    run(tmp_path, loggers=[kept], pictures=plots)
    lines = len((tmp_path / "metrics.jsonl").read_text().splitlines())
    assert kept.names == ["write"] * lines + ["pictures", "result", "end", "close"]
    told = {name: (on_disk, *given) for name, on_disk, *given in kept.told}
    assert told["pictures"] == (True, [tmp_path / "plots" / "a.png"])  # and not the one that could not be drawn
    assert told["result"] == (True, json.loads((tmp_path / "result.json").read_text()))
    assert told["end"] == (True, "finished", "")
    assert result_of(tmp_path) == result_of(uninterrupted)


def test_a_logger_is_told_how_a_run_has_ended(tmp_path):
    toy = toy_experiment()

    def nan(state, num_steps):
        state, means = toy.step(state, num_steps)
        return state, {**means, "loss": float("nan") if int(state.step) >= 20 else means["loss"]}

    def broken(*given, **more):
        raise OSError("no memory")

    cases = {
        "interrupted": (signals_during(24), Interrupted, "Stopped by SIGTERM at step 24 of 60"),
        "diverged": (toy._replace(step=nan), Diverged, "The loss is nan in step 20"),
        "failed": (toy._replace(evaluate=broken), OSError, "OSError: no memory"),
    }
    for outcome, (experiment, error, reason) in cases.items():
        kept = Recorder()
        with pytest.raises(error):
            run(tmp_path / outcome, loggers=[kept], experiment=experiment)
        *_, end, close = kept.told
        assert end[:3] == ("end", False, outcome) and reason in end[3] and close[0] == "close"
        assert "result" not in kept.names


@pytest.mark.parametrize("call_of", metrics.Logger._fields)
def test_whichever_call_fails_costs_neither_the_run_nor_the_other_loggers(uninterrupted, tmp_path, call_of):  # noqa: F811
    broken, whole = Recorder(fails_at=call_of), Recorder()
    run(tmp_path, loggers=[broken, whole], pictures=plots)
    assert result_of(tmp_path) == result_of(uninterrupted)
    assert whole.names[-4:] == ["pictures", "result", "end", "close"]
    assert call_of not in broken.names


def test_a_logger_that_writes_and_closes_is_enough(uninterrupted, tmp_path):  # noqa: F811
    steps = []
    closed = []
    made = metrics.Logger(lambda step, values: steps.append(step), lambda: closed.append(True))
    run(tmp_path, loggers=[lambda directory, resume_step: made])
    assert steps[-1] == SETTINGS.steps and closed == [True] and result_of(tmp_path) == result_of(uninterrupted)


def test_a_logger_is_given_the_settings_of_the_run(tmp_path, monkeypatch):
    (tmp_path / "own_logger.py").write_text(
        "told = {}\n"
        "def mine(directory, resume_step, settings, seed, colour='red'):\n"
        "    told.update(settings=settings, seed=seed, colour=colour, where=(directory, resume_step))\n"
        "def old(directory, resume_step): told.update(old=directory)\n"
    )
    monkeypatch.chdir(tmp_path)
    own = ("+logger._target_=own_logger.mine", "+logger.colour=blue", "seed=4", "method.inner_lr=0.25")
    made = built("method=maml", "logger=jsonl", *own, "+logger.another._target_=own_logger.old").loggers
    assert len(made) == 3
    for factory in made:
        factory(tmp_path, 7)
    import own_logger

    told = own_logger.told
    assert (told["seed"], told["colour"], told["where"], told["old"]) == (4, "blue", (tmp_path, 7), tmp_path)
    said = {"method": "maml", "method.inner_lr": 0.25, "way": 5, "dataset": "glyphs", "seed": 4, "memory.limit": None}
    assert said.items() <= told["settings"].items()
    assert not [key for key in told["settings"] if key.startswith(("logger", "cell", "distributed"))]


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["logger=jsonl", "+logger.colour=1"], ["logger.colour", "read by nothing", "logger=[jsonl]"]),
        (
            ["logger=[jsonl,tensorboard]", "+logger.jsonl.colour=1"],
            ["logger.jsonl.colour", "logger=jsonl knows no key"],
        ),
        (["+logger.a._target_=metarun.training.metrics.Logger"], ["logger=a", "needs 'write'", "settings"]),
        (["logger.tensorboard._target_=null"], ["logger.tensorboard is read by nothing"]),
    ],
)
def test_a_logger_that_cannot_be_made_is_refused_before_the_run(overrides, words):
    if overrides[-1].endswith("=null"):
        overrides = ["~logger.tensorboard._target_"]
    with pytest.raises(MetarunError) as error:
        built(*overrides)
    assert all(word in str(error.value) for word in words), error.value


def test_the_logger_of_the_guide_is_one(tmp_path):
    page = documented.DOCS / "guides" / "tracking.md"
    (python,), (yaml,) = (documented.blocks(page, language) for language in ("python", "yaml"))
    (tmp_path / "conf" / "logger").mkdir(parents=True)
    (tmp_path / "conf" / "logger" / "printing.yaml").write_text(yaml)
    (tmp_path / "own_logger.py").write_text(python)
    options = ("--config-dir", "conf", "logger=[tensorboard,printing]", "hydra.run.dir=run", *SMALL, "steps=4")
    done = metarun(*options, cwd=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    printed = [f"protonet {line['step']} {line['train/loss']}" for line in lines[1::2]]
    assert done.returncode == 0 and len(printed) == 2 and list((tmp_path / "run").glob("events.*")), done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("protonet ")][1:] == printed


def test_a_logger_among_several_that_there_is_not_is_refused_with_those_that_there_are(tmp_path):
    done = metarun("logger=[jsonl,tensorbord]", cwd=tmp_path)
    words = "logger=tensorbord: there is no such logger. Did you mean tensorboard? There are jsonl, mlflow, tensorboard, wandb."
    assert done.returncode == 2 and words in done.stderr and not list(tmp_path.iterdir()), done.stderr


@pytest.mark.slow
def test_of_several_each_has_its_keys_under_its_own_name(tmp_path):
    for name, head in (("a", ""), ("b", "# @package logger.b\n")):
        file = tmp_path / "conf" / "logger" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{head}_target_: metarun.training.metrics.tensorboard\n")
    options = ("--config-dir", "conf", *SMALL)
    done = metarun(*options, "logger=[jsonl,a]", "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 2 and not (tmp_path / "run").exists(), done.stderr
    assert "logger._target_=metarun.training.metrics.tensorboard: expected logger.NAME._target_" in done.stderr
    assert "Begin the file of that choice with # @package logger.NAME" in done.stderr
    for place, (choice, files) in {"one": ("a", 1), "two": ("[tensorboard,b]", 2)}.items():
        done = metarun(*options, f"logger={choice}", f"hydra.run.dir={place}", cwd=tmp_path)
        assert done.returncode == 0 and len(list((tmp_path / place).glob("events.*"))) == files, done.stderr


@pytest.mark.parametrize("package", ["mlflow", "wandb"])
def test_a_tracker_that_is_not_installed_is_refused_with_its_extra(package, tmp_path, capsys, monkeypatch):
    (tmp_path / package).mkdir()  # as W&B leaves one
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    answer = call(cli.main, capsys, monkeypatch, f"logger={package}", *SMALL, "hydra.run.dir=run")
    refused(answer, f"logger={package} needs {package}: pip install '.[{package}]'")
    assert not (tmp_path / "run").exists()


def test_a_folder_of_the_name_of_a_package_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "no_such_tracker").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MetarunError, match="needs no_such_tracker"):
        trackers.needed("no_such_tracker")


def test_an_id_is_continued_where_the_run_is_the_same(tmp_path):
    assert trackers.id_of(tmp_path, "mlflow", {"seed": 0}, 0) is None
    trackers.keep_id(tmp_path, "mlflow", {"seed": 0}, "a1")
    trackers.keep_id(tmp_path, "wandb", {"seed": 0}, "b2")
    assert trackers.id_of(tmp_path, "mlflow", {"seed": 0}, 0) == "a1"  # killed before its first checkpoint
    assert trackers.id_of(tmp_path, "mlflow", {"seed": 1}, 0) is None  # another, begun in its place
    assert trackers.id_of(tmp_path, "mlflow", {"seed": 0, "steps": 9}, 5) == "a1"  # a checkpoint says which it is
    assert trackers.id_of(tmp_path, "wandb", {"seed": 0}, 5) == "b2"


@pytest.mark.parametrize("text", ["", "[1]", '{"mlflow": 1}', '{"mlflow": {"id": 1}}', '{"mlflow": {"id": "../x"}}'])
def test_a_file_of_ids_that_is_damaged_or_a_strangers_begins_a_new_one(tmp_path, text):
    (tmp_path / trackers.IDS).write_text(text)
    assert trackers.id_of(tmp_path, "mlflow", {}, 5) is None
    trackers.keep_id(tmp_path, "mlflow", {}, "a1")
    assert trackers.id_of(tmp_path, "mlflow", {}, 5) == "a1"


def test_a_run_that_is_replaced_gets_a_new_id(tmp_path):
    run(tmp_path)
    trackers.keep_id(tmp_path, "mlflow", {}, "a1")
    run(tmp_path, steps=70)
    assert trackers.id_of(tmp_path, "mlflow", {}, 60) == "a1"
    run(tmp_path, resume=False)
    assert trackers.id_of(tmp_path, "mlflow", {}, 60) is None
