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
        ("example = broken_package.inner", "which cannot be found (ZeroDivisionError: division by zero)"),
    ],
)
def test_a_broken_plug_in_is_named(tmp_path, entry, said):
    env = install(tmp_path / "site", "broken", entry, None)
    (tmp_path / "site" / "broken_package").mkdir()
    (tmp_path / "site" / "broken_package" / "__init__.py").write_text("1 / 0\n")
    for command in ("metarun", "metarun-data"):
        found = metarun("list", cwd=tmp_path, command=command, **env)
        assert found.returncode == 2 and said in found.stderr and "pip uninstall broken" in found.stderr
        assert found.stderr.count("\n") == 1


BROKEN = {
    "raises": (
        "def mine(*, encoder):\n    return 1 / 0",
        "own_bad_raises.py, line 2, in mine: ZeroDivisionError: division by zero",
    ),
    "another_type": ("def mine(*, encoder):\n    return 5", "returns a int: expected a metarun.types.Method"),
    "lacks": ("def mine(*, thing):\n    return 5", "needs 'thing', which it is not given"),
    "no_syntax": ("def mine(:", "a function that can be imported (SyntaxError"),
    "exits": ("raise SystemExit(3)", "a function that can be imported (SystemExit: 3)"),
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
