"""Methods, networks, data and environments from outside: by a folder of YAML, and by an installed package."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import warm_commands
from test_cli import metarun
from test_processes import await_checkpoint

import metarun as metarun_api
from metarun.assembly.few_shot_run import build
from metarun.assembly.keys import Keys
from metarun.assembly.rl_run import build as build_rl
from metarun.commands.console import told
from metarun.config import search_path
from metarun.config.composing import composed
from metarun.config.schema import FEW_SHOT, RL
from metarun.errors import MetarunError

PACKAGE = Path(__file__).parents[1] / "docs" / "example_package"
SOURCE = PACKAGE / "src" / "metarun_example"
TINY = "dataset=faults model=spectrum method=tempered dataset.length=32 model.hidden=4 meta_batch_size=2 steps=4 eval_every=2"
TINY = f"{TINY} steps_per_dispatch=2 checkpoint_every=2 eval_tasks=4 val_tasks=4 eval_query_shot=2 logger=jsonl".split()
TINY_RL = "env=corridor steps=2 meta_batch_size=8 method.hidden=4 eval_tasks=8 eval_every=0 logger=jsonl".split()
# Of both, what the Python files of the example are, as modules of a working directory.
MODULES = ("tempered", "spectrum", "faults", "corridor")


def install(site, name="metarun-example", entry="example = metarun_example", package=SOURCE):
    """Makes `site` what a folder of installed packages is, with a package that declares an entry point."""
    site.mkdir(exist_ok=True)
    if package is not None:
        (site / package.name).symlink_to(package)
    about = site / f"{name.replace('-', '_')}-0.1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    (about / "entry_points.txt").write_text(f"[metarun.plugins]\n{entry}\n")
    return {"PYTHONPATH": str(site)}


@pytest.fixture
def plugin(tmp_path):
    """The environment of commands beside which the example package is installed."""
    return install(tmp_path / "site")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with the same four as files of a user's own, and the YAML in `conf`."""
    for module in MODULES:
        shutil.copy(SOURCE / f"{module}.py", tmp_path / f"own_{module}.py")
    for file in SOURCE.glob("conf/*/*/*.yaml"):
        target = tmp_path / "conf" / file.parent.name / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(file.read_text().replace("metarun_example.", "own_"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def done(command, *arguments, cwd, env=None):
    found = metarun(*arguments, cwd=cwd, command=command, **(env or {}))
    assert found.returncode == 0, found.stderr
    return found.stdout + found.stderr


@pytest.mark.slow
def test_an_installed_package_is_known_to_every_command(tmp_path, plugin):
    def run(command, *arguments):
        return done(command, *arguments, cwd=tmp_path, env=plugin)

    assert "tempered" in run("metarun", "--help") and "corridor" in run("metarun-rl", "--help")
    assert "Signals of machines, each class another fault." in run("metarun-data", "list")
    for seed in ("0", "1"):
        run("metarun", *TINY, f"seed={seed}", f"hydra.run.dir=run{seed}")
    result = json.loads((tmp_path / "run0" / "result.json").read_text())
    assert result["protocol"]["dataset"]["name"] == "faults" and result["method"] == "tempered"
    # The function is the installation's: nothing has to be named again.
    assert "Trained on faults" in run("metarun-eval", "run=run0", "dataset.noise=1")
    assert "run1" in run("metarun-compare", "run=run0", "with=run1")
    run("metarun-report", "run0", "run1", "--markdown", "table.md")
    assert "tempered" in (tmp_path / "table.md").read_text()
    run("metarun-rl", *TINY_RL, "hydra.run.dir=rl")
    assert "corridor" in run("metarun-eval", "run=rl", "env.episodes=2")
    mistaken = metarun("dataset=faultz", cwd=tmp_path, **plugin)
    assert mistaken.returncode == 2 and "Did you mean faults?" in mistaken.stderr
    asked = metarun("run=run0", "support=.", "query=.", cwd=tmp_path, command="metarun-predict", **plugin)
    assert asked.returncode == 2 and "faults" in asked.stderr and "Traceback" not in asked.stderr


def test_a_folder_of_a_users_own_is_known_to_every_command(folder):
    with_folder = ("--config-dir", "conf")
    assert "tempered" in done("metarun", *with_folder, "--help", cwd=folder)
    assert "faults" in done("metarun-data", "list", *with_folder, cwd=folder)
    done(
        "metarun", *with_folder, *TINY, "-m", "seed=0,1", "hydra/launcher=together", "hydra.sweep.dir=sweep", cwd=folder
    )
    assert "Trained on faults" in done("metarun-eval", *with_folder, "run=sweep/0", cwd=folder)
    # Without the folder the directory of the run is data, and names what is not here.
    asked = metarun("run=sweep/0", cwd=folder, command="metarun-eval")
    assert asked.returncode == 2 and "--config-dir" in asked.stderr and "own_" in asked.stderr
    done("metarun-rl", *with_folder, *TINY_RL, "hydra.run.dir=rl", cwd=folder)

    with search_path.adding([]):  # and so taken away again
        with pytest.raises(MetarunError, match="own_tempered"):
            metarun_api.load("sweep/0")
        metarun_api.add_config_dir("conf")
        signals = np.random.default_rng(0).standard_normal((5, 32, 1)).astype(np.float32)
        learner = metarun_api.load("sweep/0").adapt(signals, [*"abcde"])
        assert learner.classes == [*"abcde"] and learner.predict(signals).argmax(1).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_a_run_with_additions_continues_after_a_kill(folder):
    arguments = ["--config-dir=conf", *TINY, "steps=400", "hydra.run.dir=killed"]
    begun = warm_commands.Started("metarun", arguments, cwd=folder)
    await_checkpoint(folder / "killed", begun)
    begun.send_signal(signal.SIGKILL)
    begun.communicate()
    assert not (folder / "killed" / "result.json").exists()
    assert "Resuming at step" in done("metarun", *arguments, cwd=folder)
    done("metarun", *arguments[:-1], "hydra.run.dir=whole", cwd=folder)
    killed, whole = (json.loads((folder / name / "result.json").read_text()) for name in ("killed", "whole"))
    assert killed["value"] == whole["value"] and killed["val"] == whole["val"]


def test_an_addition_with_the_name_of_a_built_in_is_refused(folder):
    shutil.copy("conf/method/tempered.yaml", "conf/method/maml.yaml")
    with search_path.adding(["conf"]), pytest.raises(MetarunError, match="method=maml: two have this name, .*own|conf"):
        composed(["method=maml"])
    for command, *arguments in (("metarun", "method=maml"), ("metarun-data", "show", "glyphs")):
        (folder / "conf" / "dataset" / "glyphs.yaml").write_text("_target_: own_faults.faults\n")
        found = metarun("--config-dir", "conf", *arguments, cwd=folder, command=command)
        assert found.returncode == 2 and "two have this name" in found.stderr
        assert found.stderr.count("\n") == 1 and not (folder / "outputs").exists()


@pytest.mark.parametrize(
    "entry, said",
    [
        ("example = nowhere_at_all", "names nowhere_at_all, which is not there"),
        ("example = json", "names json, which has no folder conf"),
        ("example = .package", "names .package, which is not there"),
        ("example = mixed_package", "mixed_package/conf has method/ beside rl/"),
        ("example", "its entry points cannot be read"),
    ],
)
def test_a_broken_plug_in_is_left_out_with_a_warning(tmp_path, entry, said):
    env = install(tmp_path / "site", "broken", entry, None)
    for folder in ("method", "rl/env"):
        (tmp_path / "site/mixed_package/conf" / folder).mkdir(parents=True)
        (tmp_path / "site/mixed_package/conf" / folder / "mine.yaml").write_text("_target_: own.mine\n")
    (tmp_path / "site/mixed_package/__init__.py").write_text("")
    for command, argument in (("metarun", "--help"), ("metarun-data", "list")):
        found = metarun(argument, cwd=tmp_path, command=command, **env)
        assert found.returncode == 0 and "omniglot" in found.stdout
        assert said in found.stderr and "pip uninstall broken" in found.stderr
        assert found.stderr.count("\n") == 1 and "warning" in found.stderr


def test_a_plug_in_is_found_without_an_import_and_counts_once(tmp_path):
    env = install(tmp_path / "site", "twice", "a = above.inner\nb = above.inner", None)
    (tmp_path / "site/above/inner/conf/few_shot/method").mkdir(parents=True)
    (tmp_path / "site/above/__init__.py").write_text("1 / 0\n")
    (tmp_path / "site/above/inner/conf/few_shot/method/mine.yaml").write_text("_target_: above.inner.mine\n")
    found = metarun("method=maml", "--cfg", "job", cwd=tmp_path, **env)
    assert found.returncode == 0 and not found.stderr
    found = metarun("method=mine", cwd=tmp_path, **env)
    assert found.returncode == 2 and "ZeroDivisionError" in found.stderr and found.stderr.count("\n") == 1


def test_a_mixture_of_layouts_is_refused_by_every_command(folder):
    (folder / "conf" / "rl").mkdir()
    for command, argument in (("metarun", "--help"), ("metarun-data", "list"), ("metarun-eval", "run=.")):
        found = metarun("--config-dir", "conf", argument, cwd=folder, command=command)
        assert found.returncode == 2 and found.stderr.count("\n") == 1
        assert "conf has dataset/, env/, method/ and 1 more beside rl/" in found.stderr


def test_several_folders_are_added_and_none_without_a_name(folder):
    Path("more").mkdir()
    shutil.move("conf/method", "more/method")
    both = ("--config-dir", "more", "--config-dir", "conf")
    assert "corridor" in done("metarun-rl", *both, "--help", cwd=folder)
    assert "tempered" in done("metarun", *both, "--help", cwd=folder)
    for command in ("metarun", "metarun-data"):
        found = metarun("list", "--config-dir", "", cwd=folder, command=command)
        assert found.returncode == 2 and "--config-dir=: expected a folder" in found.stderr


def test_who_reads_only_the_beginning_is_told_of_no_broken_pipe(tmp_path):
    command = [str(Path(sys.executable).with_name("metarun")), "--help"]
    reader, writer = os.pipe()
    os.close(reader)
    found = subprocess.run(command, cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert not found.stderr


BROKEN = {
    "raises": (
        "def mine(*, encoder):\n    return 1 / 0",
        "own_bad_raises.py, line 2, in mine: ZeroDivisionError: division by zero",
    ),
    "another_type": ("def mine(*, encoder):\n    return 5", "returns a int: expected a metarun.types.Method"),
    "lacks": ("def mine(*, thing):\n    return 5", "needs 'thing', which it is not given"),
    "no_syntax": ("def mine(:", "a function that can be imported (SyntaxError"),
    "exits": ("raise SystemExit(3)", "a function that can be imported (SystemExit: 3)"),
    "exits_as_it_is_made": (
        "def mine(*, encoder):\n    raise SystemExit(0)",
        "own_bad_exits_as_it_is_made.py, line 2, in mine: SystemExit: 0",
    ),
    "exits_in_its_loss": (
        "from own_tempered import tempered\n"
        "def mine(*, encoder, objective, num_outputs):\n"
        "    def loss(params, task, key):\n"
        "        raise SystemExit(0)\n"
        "    return tempered(encoder=encoder, objective=objective, num_outputs=num_outputs)._replace(loss=loss)",
        "own_bad_exits_in_its_loss.py, line 4, in loss: SystemExit: 0",
    ),
    "no_function": ("mine = 5", "it is no function but of type int"),
    "built_in": ("from builtins import print as mine", "returns a NoneType|is read by nothing|needs"),
    "misshapen": (
        "from own_tempered import tempered\n"
        "def mine(*, encoder, objective, num_outputs):\n"
        "    method = tempered(encoder=encoder, objective=objective, num_outputs=num_outputs)\n"
        "    return method._replace(predict=lambda adapted, x: method.predict(adapted, x)[0])",
        "predict, after adapt, returns [5] float32: expected [n, num_outputs], here [75, 5]",
    ),
    "undefined": (
        "from own_tempered import tempered\n"
        "def mine(*, encoder, objective, num_outputs):\n"
        "    method = tempered(encoder=encoder, objective=objective, num_outputs=num_outputs)\n"
        "    def loss(params, task, key):\n"
        "        return undefined\n"
        "    return method._replace(loss=loss)",
        "loss fails in own_bad_undefined.py, line 5, in loss: NameError: name 'undefined' is not defined",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_addition_ends_in_one_message(folder, capsys, name):
    text, said = BROKEN[name]
    Path(f"own_bad_{name}.py").write_text(text + "\n")
    Path("conf/method/bad.yaml").write_text(f"_target_: own_bad_{name}.mine\n")

    def run():
        with search_path.adding(["conf"]):
            build(*composed(["method=bad", "model=mlp", "model.hidden=[4]", "logger=jsonl"]))

    assert told(run) == 2
    message = capsys.readouterr().err
    assert any(words in message for words in (said.split("|") if name == "built_in" else [said]))
    assert message.count("metarun: ") == 1 and "Traceback" not in message


EXITS_LATE = """
import sys

from own_tempered import tempered

def mine(*, encoder, objective, num_outputs, late=True):
    if not late:
        sys.exit(0)
    method = tempered(encoder=encoder, objective=objective, num_outputs=num_outputs)
    def init(key, task, times=[]):
        times.append(1)
        if len(times) > 1:  # not as its shapes are asked for, but in the run
            sys.exit(0)
        return method.init(key, task)
    return method._replace(init=init)
"""


def test_an_addition_that_exits_ends_neither_a_sweep_nor_a_program(folder, capsys):
    Path("own_exits.py").write_text(EXITS_LATE)
    Path("conf/method/exits.yaml").write_text("_target_: own_exits.mine\nlate: true\n")
    with search_path.adding(["conf"]):
        with pytest.raises(MetarunError, match=r"own_exits.py, line 8, in mine: SystemExit: 0"):
            metarun_api.train("method=exits", "method.late=false", "model=mlp", "logger=jsonl", directory="made")
        with pytest.raises(MetarunError, match=r"own_exits.py, line 13, in init: SystemExit: 0"):
            metarun_api.train("method=exits", "model=mlp", "logger=jsonl", "steps=2", directory="late")
    arguments = ["--config-dir=conf", *TINY, "-m", "method=exits,tempered", "hydra.sweep.dir=sweep"]
    found = metarun(*arguments, cwd=folder)
    assert found.returncode == 1 and "SystemExit: 0" in found.stderr and (folder / "sweep/1/result.json").exists()

    def exits():
        raise SystemExit(75)  # of metarun's own, such as that of the time limit

    with pytest.raises(SystemExit, match="75"):
        told(exits)


BROKEN_YAML = {
    "syntax": (b"_target_: [own.f\n  x: : y\n", "line 2: "),
    "tab": (b"_target_: own.f\n\tx: 1\n", "line 2: "),
    "latin": (b"# one\n# gr\xfc\xdfe\n_target_: own.f\n", "line 2: expected UTF-8"),
    "tag": (b"_target_: own.f\nx: !!python/object/apply:os.system ['touch pwned']\n", "line 2: "),
    "documents": (b"_target_: own.f\n---\n_target_: own.f\n", "line 2: expected a single document"),
    "key": (b"_target_: own.f\n_target_: own.g\n", "line 2: found duplicate key _target_"),
    "nul": (b"_target_: own.f\n\x00", "line 2: "),
    "alias": (b"_target_: own.f\nx: &a [*a]\n", "an alias (*NAME) stands for what holds it"),
    "circle": (b"defaults:\n  - circle\n_target_: own.f\n", "the defaults lead back to where they began"),
    "list": (b"- a\n- b\n", "expected a mapping"),
    "text": (b"hello\n", "expected a mapping"),
    "number": (b"5\n", "expected a mapping"),
}


@pytest.mark.parametrize("name", BROKEN_YAML)
def test_a_broken_file_is_named(folder, capsys, name):
    text, said = BROKEN_YAML[name]
    file = folder / "conf" / "method" / f"{name}.yaml"
    file.write_bytes(text)
    with search_path.adding(["conf"]):
        assert told(lambda: composed([f"method={name}"])) == 2
        message = capsys.readouterr().err
        assert message.startswith(f"metarun: {file}") and said in message and message.count("\n") == 1
        assert composed(["method=tempered"])  # of the others nothing changes
        assert told(lambda: composed(["method=tempered", "method.odd=1"])) == 2
        assert "method.odd: there is no such key" in capsys.readouterr().err
    assert not (folder / "pwned").exists()


def test_a_broken_file_is_named_by_every_command(folder):
    (folder / "conf/method/bad.yaml").write_text("a: [\n")
    (folder / "conf/dataset/bad.yaml").write_bytes(b"")
    for arguments in (["method=bad"], ["-m", "method=bad,tempered"], ["method=bad", "--cfg", "job"]):
        found = metarun("--config-dir", "conf", *arguments, cwd=folder)
        assert (
            found.returncode == 2 and "conf/method/bad.yaml, line 2: " in found.stderr and found.stderr.count("\n") == 1
        )
    assert not (folder / "outputs").exists() and not (folder / "multirun").exists()
    assert "bad" in done("metarun", "--config-dir", "conf", "--help", cwd=folder)
    assert "bad" in done("metarun-data", "list", "--config-dir", "conf", cwd=folder)


def test_a_key_that_its_file_does_not_list_is_named_with_the_way_to_give_it(folder, capsys):
    Path("conf/method/bare.yaml").write_text("_target_: own_tempered.tempered\n")
    with search_path.adding(["conf"]):

        def said(*arguments):
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(sys, "argv", ["metarun", *arguments])
                assert told(lambda: composed(arguments)) == 2
            return capsys.readouterr().err

        assert "+method.temperature=2" in said("method=bare", "method.temperature=2")
        assert "method.temperatur: there is no such key" in said("method=bare", "method.temperatur=2")
        assert "method.encoder: there is no such key" in said("method=bare", "method.encoder=2")
        composed(["method=bare", "+method.temperature=2"])


WRAPPED = {
    "partial": "import functools\nmine = functools.partial(tempered, temperature=2.0)\n",
    "object": (
        "class Mine:\n"
        "    def __call__(self, *, encoder, objective, num_outputs):\n"
        "        return tempered(encoder=encoder, objective=objective, num_outputs=num_outputs)\n"
        "mine = Mine()\n"
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_the_source_behind_what_wraps_a_function_is_part_of_the_hash(folder, name):
    file = Path(f"own_wrapped_{name}.py")
    file.write_text("from own_tempered import tempered\n" + WRAPPED[name])
    Path("conf/method/wrapped.yaml").write_text(f"_target_: own_wrapped_{name}.mine\n")

    def code():
        with search_path.adding(["conf"]):
            return Keys.of(*composed(["method=wrapped"]), FEW_SHOT).code(["method"])["method.code"]

    first = code()
    assert code() == first
    file.write_text(file.read_text() + "# changed\n")
    second = code()
    Path("own_tempered.py").write_text(Path("own_tempered.py").read_text() + "# changed\n")
    assert len({first, second, code()}) == 3


def test_what_lacks_its_key_or_its_function_is_told(folder, capsys):
    Path("conf/method/bad.yaml").write_text("temperature: 1\n")

    def run(*overrides, part=FEW_SHOT):
        with search_path.adding(["conf"]):
            (build if part == FEW_SHOT else build_rl)(*composed(overrides, part))

    assert told(lambda: run("method=bad")) == 2
    assert "method=bad: this choice names no _target_" in capsys.readouterr().err
    Path("own_bad_env.py").write_text("def mine():\n    return 'environment'\n")
    Path("conf/env/bad.yaml").write_text("_target_: own_bad_env.mine\n")
    assert told(lambda: run("env=bad", part=RL)) == 2
    assert "returns a str: expected a metarun.rl.environment.Environment" in capsys.readouterr().err
    Path("conf/dataset/bad.yaml").write_text("_target_: own_faults.faults\nlength: long\n")
    assert told(lambda: run("dataset=bad")) == 2
    assert "dataset.length=long: expected" in capsys.readouterr().err


def test_an_error_in_an_addition_is_told_and_its_traceback_is_at_hand(folder, capsys, monkeypatch):
    from metarun.config.named_code import imported

    Path("own_late.py").write_text("def late():\n    raise RuntimeError('too late')\n")
    late = imported("method._target_", "own_late.late")
    assert told(late) == 1
    message = capsys.readouterr().err
    assert "own_late.py, line 2, in late: RuntimeError: too late" in message and "METARUN_TRACEBACK=1" in message
    monkeypatch.setenv("METARUN_TRACEBACK", "1")
    assert told(late) == 1 and "Traceback" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="ours"):  # an error of metarun's own is no user's mistake

        def ours():
            raise RuntimeError("ours")

        told(ours)


@pytest.mark.slow
def test_the_example_keeps_the_contract_where_it_is_installed(tmp_path, plugin):
    """Its own tests, by a process of their own that knows nothing of this project's."""
    shutil.copytree(PACKAGE / "tests", tmp_path / "tests")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "tests"]
    found = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **plugin}, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0 and "4 passed" in found.stdout, found.stdout + found.stderr
