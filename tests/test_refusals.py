"""A refused command changes nothing on disk: no byte of the directory that it names, and none of its own is left."""

import fcntl
import hashlib
import json
import shlex
import shutil
from pathlib import Path

import pytest
from small_run import call, refused

from metarun.commands import cli
from metarun.config import directories
from metarun.system import files

SMALL = ("method=protonet", "model.filters=2", "way=2", "meta_batch_size=2", "eval_query_shot=1")
SMALL += ("steps=2", "steps_per_dispatch=1", "checkpoint_every=1", "eval_every=0", "eval_tasks=2", "logger=jsonl")
# A kind of refusal, and what its message has to name.
KINDS = {
    "other settings": (["outer_lr=0.5"], "outer_lr (0.002 then, 0.5 now)"),
    "fewer steps": (["steps=1"], "steps=1"),
    "another architecture": (["model.filters=3"], "model.filters (2 then, 3 now)"),
    "another method": (["method=maml"], "method (protonet then, maml now)"),
    "too little memory": (["memory.limit=12KB", "resume=false"], "memory.limit"),
    "a factory's check": (["way=5000"], "way=5000"),
    "data that are absent": (["dataset=omniglot", "dataset.source=nowhere"], "dataset.source"),
    "no such key": (["wya=2"], "Did you mean way"),
    "a key that nothing reads": (["+colour=red"], "colour=red is read by nothing"),
    "no such choice": (["method=mmal"], "method=mmal: there is no such method. Did you mean maml"),
    "a wrong type": (["way=five"], "way=five: expected a whole number"),
    "null": (["way=null"], "way=null: expected a whole number"),
    "a list": (["steps=[5,20]"], "steps=[5,20]: expected a whole number"),
    "a range of three": (["way=[5,10,20]"], "way=[5, 10, 20]: expected a range of two numbers"),
    "nothing": (["~method"], "method"),
    "several values": (["way=5,20"], "add -m"),
    "a variable that is not set": (["dataset.rotations=${oc.env:NOPE_NOT_SET}"], "NOPE_NOT_SET"),
    "a module that is not there": (["method._target_=nowhere_at_all.mine"], "No module named 'nowhere_at_all'"),
    "a function that is not there": (["method._target_=metarun.few_shot.methods.maml.mmal"], "has no attribute 'mmal'"),
    "no function": (["method._target_=metarun.few_shot.methods.maml"], "is no function"),
    "an argument that is not given": (
        ["method=nearest_neighbor", "~method.distance", "method._target_=small_run.begun"],
        "needs 'directory'",
    ),
    "hydra's own directory": (["hydra.output_subdir=null"], "leave it out"),
    "no directory": (["hydra.run.dir=null"], "hydra.run.dir=null: expected a value other than null"),
    "a setting of Hydra's": (["hydra.job.chdir=perhaps"], "hydra.job.chdir=perhaps: expected true or false"),
    "an option that is not there": (["--foo"], "unrecognized arguments: --foo"),
    "a number of seeds": (["seeds=0"], "seeds=0"),
    "accents, not quoted": (["dataset.name=ünï cöde"], """'dataset.name="ünï cöde"'"""),
}


def listing(root):
    """Every path below `root`, with what the files hold."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "directory"
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The directory above that of a finished run."""
    from metarun.system.backend import set_up  # noqa: F401  # the console command sets JAX up by itself

    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("sys.argv", ["metarun", *SMALL, "hydra.run.dir=run"])
        for module in ("hydra.core.utils", "hydra._internal.hydra"):
            patch.setattr(f"{module}.configure_log", lambda *_, **__: None)
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    assert not stopped.value.code and (root / "run" / "result.json").exists()
    return root


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_run_stays_as_it_is_to_the_byte(kind, finished, capsys, monkeypatch):
    monkeypatch.chdir(finished)
    before = listing(finished)
    settings, words = KINDS[kind]
    refused(call(cli.main, capsys, monkeypatch, *SMALL, "hydra.run.dir=run", *settings), words)
    assert listing(finished) == before


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in list(KINDS)[:4]])
def test_no_directory_is_left_of_a_command_that_did_no_work(kind, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for directory in ([], ["hydra.run.dir=new/run"], ["hydra.run.dir=empty"]):
        refused(call(cli.main, capsys, monkeypatch, *SMALL, *directory, *KINDS[kind][0]))
        assert listing(tmp_path) == {"empty": "directory"}


def test_a_run_that_another_process_writes_stays_as_it_is(finished, tmp_path, capsys, monkeypatch):
    shutil.copytree(finished / "run", tmp_path / "run")
    before = listing(tmp_path)
    with (tmp_path / "run" / ".lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        answer = call(cli.main, capsys, monkeypatch, *SMALL, f"hydra.run.dir={tmp_path}/run")
    refused(answer, "Another process is writing")
    assert listing(tmp_path) == before


def test_a_directory_that_two_commands_begin_at_once_is_left_to_the_one_that_holds_it(tmp_path):
    directory = tmp_path / "new" / "run"
    directories.note(directory)
    with files.locked(directory):
        directories.remove_unused(refused=True)
        assert (directory / ".lock").exists()
    directories.note(tmp_path / "other" / "run")
    (tmp_path / "other" / "run").mkdir(parents=True)
    (tmp_path / "other" / "run" / ".lock").touch()
    directories.remove_unused(refused=True)
    assert not (tmp_path / "other").exists()


def test_a_run_whose_checkpoints_are_all_damaged_stays_as_it_is(finished, tmp_path, capsys, monkeypatch):
    shutil.copytree(finished / "run", tmp_path / "run")
    for manifest in (tmp_path / "run").glob("checkpoints/*/manifest.json"):
        manifest.write_text("{")
    before = listing(tmp_path)
    refused(call(cli.main, capsys, monkeypatch, *SMALL, f"hydra.run.dir={tmp_path}/run"), "No checkpoint in")
    assert listing(tmp_path) == before


def test_after_a_refusal_the_run_is_tested_as_ever(finished, capsys, monkeypatch):
    monkeypatch.chdir(finished)
    refused(call(cli.main, capsys, monkeypatch, *SMALL, "hydra.run.dir=run", "outer_lr=0.5"))
    result = json.loads(Path("run/result.json").read_text())
    code, out, err = call(cli.eval_main, capsys, monkeypatch, "run=run")
    assert code == 0 and f"test accuracy {100 * result['value']:.2f}%" in out, err
    code, out, err = call(cli.main, capsys, monkeypatch, *SMALL, "hydra.run.dir=run")
    assert code == 0 and "is complete: 2 steps. Nothing to do." in err


@pytest.mark.parametrize(
    "entry, arguments",
    [
        (cli.eval_main, ["run=run", "outer_lr=0.5"]),
        (cli.eval_main, ["run=run", "shot=5000"]),
        (cli.eval_main, ["run=run", "dataset=omniglot", "dataset.source=nowhere"]),
        (cli.eval_main, ["run=nowhere"]),
        (cli.compare_main, ["run=run", "with=nowhere"]),
        (cli.predict_main, ["run=run", "support=nowhere", "query=nowhere"]),
        (cli.predict_main, ["run=run", "colour=red"]),
        (cli.replay_main, ["run=run"]),
        (cli.reproduce_main, ["finn2017/nothing"]),
        (cli.reproduce_main, ["finn2017/maml_sinusoid_quick", "wya=2"]),
        (cli.data_main, ["prepare", "nothing"]),
        (cli.data_main, ["show", "glyphs", "dataset.split_sed=3"]),
        (cli.rl_main, ["method=rl3"]),
        (cli.rl_main, ["env.arms=-1", "hydra.run.dir=new"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value.__name__,
)
def test_the_other_commands_leave_nothing_either(entry, arguments, finished, capsys, monkeypatch):
    monkeypatch.chdir(finished)
    before = listing(finished)
    refused(call(entry, capsys, monkeypatch, *arguments))
    assert listing(finished) == before


def test_a_missing_file_is_named_and_nothing_is_said_of_where_runs_go(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli.train, "train_few_shot", lambda config: open(tmp_path / "nope.npz"))
    monkeypatch.chdir(tmp_path)
    code, _, err = call(cli.main, capsys, monkeypatch, *SMALL)
    assert code == 1 and err == f"metarun: {tmp_path}/nope.npz: No such file or directory.\n"


@pytest.mark.parametrize(
    "settings, words",
    [
        (["way=5000,6000", "-m"], "way=5000"),
        (["-m", "wya=2,3"], "Did you mean way"),
        (["way=2,3", "hydra/launcher=nope", "-m"], "hydra/launcher=nope: there is no such launcher"),
        (["-m", "way=2,3", "logger=[[[1]]]"], "logger=[[[1]]]: expected the name of an option"),
        (["-m", "way=0,1", "hydra/launcher=together"], "way=0"),
        (["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=abc", "outer_lr=1,2"], "expected a whole number"),
    ],
)
def test_a_refused_sweep_leaves_nothing(settings, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "multirun.yaml").write_text("of another command")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "note").write_text("mine")
    before = listing(tmp_path)
    for directory in ([], ["hydra.sweep.dir=sweep"], ["hydra.sweep.dir=there"]):
        code, out, err = call(cli.main, capsys, monkeypatch, *SMALL, *settings, *directory)
        assert code != 0 and words in err and "Traceback" not in err, err
        assert listing(tmp_path) == before


def test_the_version_is_metaruns(capsys, monkeypatch):
    for entry in (cli.main, cli.rl_main, cli.eval_main, cli.data_main, cli.report_main, cli.reproduce_main):
        code, out, _ = call(entry, capsys, monkeypatch, "--version")
        assert code == 0 and out.startswith("metarun 0.") and "jax 0." in out


@pytest.mark.parametrize(
    "value", ["ünï cöde", "lr[1]", "a=b", "a#b", "漢字", "x(1)", "a,b", 'say "a', "tab\t", "{a", "it's", "end\\"]
)
def test_a_path_is_quoted_as_the_message_says(value, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = answer = call(cli.main, capsys, monkeypatch, *SMALL, f"hydra.run.dir={value}", "way=5000")
    if "ive '" not in err:  # it could be read as it was
        return refused(answer, "way=5000")
    refused(answer, "hydra.run.dir=")
    (quoted,) = shlex.split(err[err.index("ive '") + 4 :])
    refused(call(cli.main, capsys, monkeypatch, *SMALL, quoted, "way=5000"), "way=5000")
    monkeypatch.setattr(
        cli.train, "train_few_shot", lambda config: print(cli.train.HydraConfig.get().runtime.output_dir)
    )
    assert call(cli.main, capsys, monkeypatch, *SMALL, quoted)[1] == f"{tmp_path}/{value}\n"
