"""The directory of a run is data: whatever its files say, no command calls, imports or looks up what they name."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from small_run import begun, call, draw_classes, refused
from test_refusals import listing

from metarun.commands import cli
from metarun.report.collection import collect
from metarun.system.files import canonical_json, write_json

FEW_SHOT = ("dataset", "model", "method", "optimizer")
RL = ("env", "method", "optimizer")
SMALL = (
    "method=protonet",
    "model.filters=2",
    "way=2",
    "meta_batch_size=2",
    "eval_tasks=2",
    "val_tasks=2",
    "eval_query_shot=1",
)
SMALL_RL = ("method.hidden=2", "method.minibatches=1", "meta_batch_size=2", "eval_tasks=2", "env.episodes=2")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of a run of the installed program, which has saved its first parameters."""
    return begun(tmp_path_factory.mktemp("runs") / "run", *SMALL)


@pytest.fixture(scope="module")
def rl_run(tmp_path_factory):
    return begun(tmp_path_factory.mktemp("runs") / "rl", *SMALL_RL, part="rl")


def changed(run, to, change):
    """A copy of a run, its configuration changed."""
    shutil.copytree(run, to)
    if (to / "checkpoints").exists():  # also as one that has diverged
        shutil.copytree(to / "checkpoints", to / "diverged")
    file = to / ".hydra" / "config.yaml"
    config = yaml.safe_load(file.read_text())
    change(config)
    file.write_text(yaml.safe_dump(config))
    return to


def commands(run, copy, pictures):
    """Every command that reads runs, of the copy."""
    return {
        "eval": (cli.eval_main, [f"run={copy}"]),
        "eval-sweep": (cli.eval_main, [f"run={copy}", "protocol=sweep"]),
        "compare": (cli.compare_main, [f"run={copy}", f"with={run}"]),
        "compare-with": (cli.compare_main, [f"run={run}", f"with={copy}"]),
        "predict": (cli.predict_main, [f"run={copy}", f"support={pictures}", f"query={pictures}"]),
        "replay": (cli.replay_main, [f"run={copy}"]),
    }


@pytest.fixture
def called(monkeypatch):
    """What has been handed to the system."""
    found = []
    monkeypatch.setattr(os, "system", lambda command: found.append(command) or 0)
    return found


@pytest.mark.parametrize("command", ["eval", "eval-sweep", "compare", "compare-with", "predict", "replay"])
def test_no_command_calls_what_a_saved_few_shot_run_names(command, run, tmp_path, called, capsys, monkeypatch):
    draw_classes(tmp_path / "pictures", 2, 1)
    for group in FEW_SHOT:

        def plant(config, group=group):
            config[group] = {"_target_": "os.system", "command": "touch x"}

        copy = changed(run, tmp_path / f"{command}-{group}", plant)
        entry, arguments = commands(run, copy, tmp_path / "pictures")[command]
        refused(call(entry, capsys, monkeypatch, *arguments), "os.system", f"{group}._target_", str(copy))
        assert not called


@pytest.mark.parametrize("command", ["eval", "compare", "compare-with", "replay"])
def test_no_command_calls_what_a_saved_rl_run_names(command, rl_run, tmp_path, called, capsys, monkeypatch):
    for group in RL:

        def plant(config, group=group):
            config[group] = {"_target_": "os.system", "command": "touch x"}

        copy = changed(rl_run, tmp_path / f"{command}-{group}", plant)
        entry, arguments = commands(rl_run, copy, tmp_path)[command]
        refused(call(entry, capsys, monkeypatch, *arguments), "os.system", f"{group}._target_")
        assert not called


@pytest.mark.parametrize("node", [{"_target_": "os.system"}, {"a": {"_target_": "os.system", "command": "touch x"}}])
def test_the_loggers_that_a_saved_run_names_are_not_looked_at(node, run, rl_run, tmp_path, called, capsys, monkeypatch):
    for each in (run, rl_run):
        copy = changed(each, tmp_path / each.parent.name, lambda config: config.update(logger=node))
        code, out, err = call(cli.eval_main, capsys, monkeypatch, f"run={copy}")
        assert code == 0 and "Testing on 2 tasks" in out and not called, err


def test_the_report_calls_nothing_either(run, tmp_path, called, capsys, monkeypatch):
    def plant(config):
        config["dataset"] = {"_target_": "os.system", "command": "touch x"}

    changed(run, tmp_path / "copy", plant)
    code, out, _ = call(cli.report_main, capsys, monkeypatch, tmp_path, "--output", tmp_path / "page.html")
    assert code == 0 and "1 results" in out and not called


def test_a_command_is_reported_where_it_is_that_of_the_checkpoint_alone(run, tmp_path, capsys, monkeypatch):
    def reported():
        code, _, err = call(cli.report_main, capsys, monkeypatch, tmp_path, "--output", tmp_path / "page.html")
        assert code == 0, err
        records, faults = collect([str(tmp_path / "copy")])
        return records[0].command, " ".join(faults)

    copy = changed(run, tmp_path / "copy", lambda config: None)
    (copy / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(SMALL)))
    command, faults = reported()
    assert command == "metarun method=protonet " + " ".join(SMALL[1:]) and not faults
    file = copy / ".hydra" / "config.yaml"
    file.write_text(file.read_text().replace("outer_lr: 0.002", "outer_lr: 0.5"))
    command, faults = reported()
    assert command == "" and "outer_lr (0.002 then, 0.5 there)" in faults


def test_what_a_saved_run_refers_to_is_not_looked_up(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SECRET", "do not tell")
    for key, value in (("way", "${oc.env:SECRET}"), ("steps", "${way}"), ("seed", "${oc.decode:${oc.env:SECRET}}")):
        copy = changed(run, tmp_path / key, lambda config, key=key, value=value: config.update({key: value}))
        code, out, err = answer = call(cli.eval_main, capsys, monkeypatch, f"run={copy}")
        refused(answer, f"{key} is ${{", "not looked up", f"{key}=VALUE")
        assert "do not tell" not in out + err


def test_a_module_that_makes_an_environment_is_named_on_the_command_line(rl_run, tmp_path, capsys, monkeypatch):
    pytest.importorskip("gymnax")
    (tmp_path / "planted_environment.py").write_text("open('x', 'w').close()\ndef make(): ...\n")
    monkeypatch.chdir(tmp_path)

    def plant(config):
        config["env"] = {
            "_target_": "metarun.rl.environments.from_gymnax.from_gymnax",
            "name": "planted_environment:make",
        }

    copy = changed(rl_run, tmp_path / "copy", plant)
    file = copy / ".hydra" / "hydra.yaml"
    hydra = yaml.safe_load(file.read_text())
    hydra["hydra"]["runtime"]["choices"]["env"] = "gymnax"
    file.write_text(yaml.safe_dump(hydra))
    answer = call(cli.eval_main, capsys, monkeypatch, "run=copy")
    refused(answer, "env.name is planted_environment:make", "env.name=planted_environment:make")
    assert not Path("x").exists()


@pytest.mark.parametrize("option", ["../../../tmp/x", "/etc/x", "a/../b", "..", "a b", "", 5, ["glyphs"], "x\n"])
def test_choices_are_names_for_they_become_parts_of_file_names(option, run, tmp_path, capsys, monkeypatch):
    copy = changed(run, tmp_path / "copy", lambda config: None)
    file = copy / ".hydra" / "hydra.yaml"
    hydra = yaml.safe_load(file.read_text())
    hydra["hydra"]["runtime"]["choices"]["dataset"] = option
    file.write_text(yaml.safe_dump(hydra))
    refused(call(cli.eval_main, capsys, monkeypatch, f"run={copy}"), "is no name of a choice")


def test_a_configuration_that_multiplies_itself_or_is_huge_is_refused(run, tmp_path, capsys, monkeypatch):
    layers = "\n".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 12))
    for number, text in enumerate([f"a0: &a0 [x]\n{layers}\n", "x: " + "y" * 2_000_000, "[", "- 1", "5", "\0", ""]):
        copy = changed(run, tmp_path / str(number), lambda config: None)
        (copy / ".hydra" / "config.yaml").write_text(text)
        refused(call(cli.eval_main, capsys, monkeypatch, f"run={copy}"), "cannot be read")


METHOD = """\
from metarun.few_shot.methods.protonet import protonet

def mine(*, encoder, objective, num_outputs, distance="euclidean", query_statistics="support"):
    given = {{"distance": distance, "query_statistics": query_statistics}}
    return protonet(encoder=encoder, objective=objective, num_outputs=num_outputs, **given){more}
"""


def test_code_of_ones_own_is_named_again_and_known_by_its_source(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("own_method_1.py").write_text(METHOD.format(more=""))
    draw_classes(tmp_path / "pictures", 2, 1)
    target = "method._target_=own_method_1.mine"
    begun(tmp_path / "run", *SMALL, target)
    refused(call(cli.eval_main, capsys, monkeypatch, "run=run"), "own_method_1.mine", f"name it again: {target}")
    code, out, err = call(cli.eval_main, capsys, monkeypatch, "run=run", target)
    assert code == 0 and "test accuracy" in out, err
    refused(call(cli.eval_main, capsys, monkeypatch, "run=run", "method._target_=os.system"), "own_method_1.mine")

    Path("own_method_1.py").write_text(METHOD.format(more="  # the same, but who is to know"))
    for entry, arguments in commands("run", "run", "pictures").values():
        if entry is cli.replay_main:
            continue  # this one has not diverged
        refused(call(entry, capsys, monkeypatch, *arguments, target), "other source of method.code", "code=any")
    code, out, err = call(cli.eval_main, capsys, monkeypatch, "run=run", target, "code=any")
    assert code == 0 and "test accuracy" in out, err
    train = [*SMALL, target, "hydra.run.dir=run", "steps=1"]
    refused(call(cli.main, capsys, monkeypatch, *train), "other source of method.code", "code=any")
    code, out, err = call(cli.main, capsys, monkeypatch, *train, "code=any")
    assert code == 0 and "test accuracy" in out, err
    refused(call(cli.main, capsys, monkeypatch, *train, "code=none"), "code=none: expected one of same, any")


def test_the_source_is_that_of_what_a_module_imports_from_beside_it(tmp_path, monkeypatch):
    from metarun.config.named_code import code_of, imported

    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_part_2.py").write_text("RATE = 1\n")
    (tmp_path / "own_other_2.py").write_text("RATE = 1\n")
    (tmp_path / "own_method_2.py").write_text("import own_part_2\ndef mine(): ...\n")
    imported("method._target_", "own_method_2.mine")
    first = code_of("own_method_2")
    (tmp_path / "own_other_2.py").write_text("RATE = 2\n")
    assert code_of("own_method_2") == first
    (tmp_path / "own_part_2.py").write_text("RATE = 2\n")
    assert code_of("own_method_2") not in (first, None)
    assert code_of("metarun.few_shot.methods.maml") is None


LINKED = (".hydra", "checkpoints", "diverged", "plots", "evaluations", "predictions", ".lock", "result.json")


@pytest.mark.parametrize("name", LINKED)
def test_nothing_is_written_or_removed_through_a_link(name, run, tmp_path, capsys, monkeypatch):
    copy, outside = changed(run, tmp_path / "copy", lambda config: None), tmp_path / "outside"
    if (copy / name).is_dir():
        (copy / name).rename(outside)
    elif name in (".lock", "result.json"):
        outside.write_text("mine")
    else:
        outside.mkdir()
    (copy / name).unlink(missing_ok=True)
    (copy / name).symlink_to(outside)
    before = listing(tmp_path)
    draw_classes(tmp_path.with_name(f"{tmp_path.name}-pictures"), 2, 1)
    found = commands(copy, copy, tmp_path.with_name(f"{tmp_path.name}-pictures"))
    train = (cli.main, [*SMALL, f"hydra.run.dir={copy}", "steps=1"])
    found |= {"train": train, "again": (cli.main, [*train[1], "resume=false"])}
    for entry, arguments in found.values():
        refused(
            call(entry, capsys, monkeypatch, *arguments), f"{copy}/{name} is a link, and nothing is written through one"
        )
        assert listing(tmp_path) == before


def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(tmp_path):
    (tmp_path / "outside").write_text("mine")
    (tmp_path / "result.json.tmp").symlink_to("outside")
    write_json(tmp_path / "result.json", {"value": 1})
    assert (tmp_path / "outside").read_text() == "mine" and json.loads((tmp_path / "result.json").read_text())
    assert not os.path.lexists(tmp_path / "result.json.tmp")


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(run, tmp_path, capsys, monkeypatch):
    copy = changed(run, tmp_path / "copy", lambda config: None)
    for name in (".lock", "result.json"):
        (copy / name).unlink(missing_ok=True)
        os.mkfifo(copy / name)
        for entry, arguments in ((cli.eval_main, [f"run={copy}"]), (cli.main, [*SMALL, f"hydra.run.dir={copy}"])):
            refused(call(entry, capsys, monkeypatch, *arguments), f"{copy}/{name} is no file")
        (copy / name).unlink()


def forged(copy, change):
    """Has the manifest of a run's checkpoint say something else, with a checksum that fits."""
    (file,) = (copy / "checkpoints").glob("*/manifest.json")
    manifest = json.loads(file.read_text())
    del manifest["sha256"]
    change(manifest)
    digest = hashlib.sha256(canonical_json(manifest).encode()).hexdigest()
    file.write_text(json.dumps({"sha256": digest, **manifest}))


@pytest.mark.parametrize(
    "key, value",
    [
        ("identity", None),
        ("identity", [1]),
        ("ledger", {"seconds": 10**400}),
        ("form", 5),
        ("dataset.input_shape", None),
        ("dataset.input_shape", [0, 0, 0]),
        ("dataset.input_shape", [28, "a", 1]),
        ("dataset.input_shape", [2**70, 1, 1]),
        ("dataset.ground", "x"),
        ("dataset.ground", 10**400),
        ("dataset.objective", [1]),
        ("dataset.num_outputs", -1),
        ("way", "\x1b[31mred"),
    ],
)
def test_what_a_forged_checkpoint_says_is_one_message(key, value, run, tmp_path, capsys, monkeypatch):
    copy = changed(run, tmp_path / "copy", lambda config: None)
    draw_classes(tmp_path / "pictures", 2, 1)

    def change(manifest):
        facts = manifest["metadata"]
        if key in facts:
            facts[key] = {**facts[key], **value} if isinstance(value, dict) else value
        else:
            facts["identity"][key] = value

    forged(copy, change)
    for entry, arguments in commands(run, copy, tmp_path / "pictures").values():
        if entry is cli.replay_main:
            continue  # whose checkpoint is another
        code, out, err = answer = call(entry, capsys, monkeypatch, *arguments)
        refused(answer)
        assert "\x1b" not in out + err


@pytest.mark.parametrize("text", ["a: !!bool abc", "a: !!int _", "a: !!int ''", "a: !!float ''"])
def test_odd_tags_of_yaml_are_named_and_cost_no_report(text, run, tmp_path, capsys, monkeypatch):
    copy = changed(run, tmp_path / "copy", lambda config: None)
    (copy / ".hydra" / "overrides.yaml").write_text(text)
    code, _, err = call(cli.report_main, capsys, monkeypatch, tmp_path, "--output", tmp_path / "page.html")
    assert code == 0 and "overrides.yaml cannot be read" in err
