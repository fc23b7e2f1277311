"""`metarun-reproduce`: the run, its verdict by exit code, what differs from the paper's settings, and what is refused."""

import io
import json
import re

import pytest
from rich.console import Console
from small_run import call, refused
from test_cli import metarun

from metarun.commands import cli, reproduce
from metarun.commands.reproduce import Named, cells, differing, find, judged, said
from metarun.config.schema import FEW_SHOT
from metarun.errors import MetarunError
from metarun.trust.cell import Cell, Figure
from metarun.trust.equivalence import NOT_REPRODUCED, REPRODUCED, UNDECIDED

CELL, SHORT = "finn2017/maml_omniglot_5w1s", "finn2017/maml_omniglot_5w1s_quick"
# Of a run that takes seconds, without Omniglot.
SMALL = [
    "dataset=glyphs",
    "dataset.test_rotations=false",
    "steps=2",
    "eval_every=0",
    "eval_tasks=20",
    "model.filters=4",
]


def result(value, ci95=0.003, passed=True):
    checks = {"query_order": {"passed": True}, "relabelling": {"passed": passed}}
    return {"metric": "accuracy", "value": value, "ci95": ci95, "num_tasks": 600, "checks": checks, "steps": 100}


def named(name=CELL):
    return find(name)


def words_of(name, overrides, *values):
    """What is said of a run of a cell by some settings that has given such values."""
    stream, cell = io.StringIO(), named(name)
    own_keys = [each.key for each in differing(cell, overrides, whole=False)]
    outcome = judged(cell, [result(value) for value in values])
    said(cell, outcome, differing(cell, overrides), Console(file=stream, width=200), own_keys)
    return " ".join(stream.getvalue().split())


@pytest.mark.parametrize("values, expected", [([0.9865], REPRODUCED), ([0.965], NOT_REPRODUCED), ([0.978], UNDECIDED)])
def test_the_verdict_is_that_of_the_test_of_equivalence(values, expected):
    assert judged(named(), [result(value) for value in values]).verdict.verdict == expected


def test_nothing_is_reproduced_whose_checks_fail():
    outcome = judged(named(), [result(0.987), result(0.987, passed=False)])
    assert outcome.verdict.verdict == UNDECIDED and outcome.failed == ["relabelling"]
    assert judged(named(), [result(0.9, passed=False)]).verdict.verdict == NOT_REPRODUCED


def test_what_is_said_of_it():
    words = words_of(CELL, ["steps=16000"], 0.972, 0.974, 0.979)
    assert "98.70% ± 0.40% Finn et al. 2017, table 1" in words
    assert "600 tasks and 3 seeds (97.20%, 97.40%, 97.90%)" in words
    assert "No number of test tasks would decide" in words and "difference -1.2 ±" in words
    assert "steps: 16000, the paper's 60000" in words


def test_of_what_learns_nothing_no_further_seeds_are_asked_for():
    for sizes, asked in (({"meta_params": 9}, True), ({"meta_params": 0}, False)):
        stream, outcome = io.StringIO(), judged(named(), [{**result(0.9865), "sizes": sizes}])
        said(named(), outcome, [], Console(file=stream, width=200))
        assert ("seeds=5 covers how much seeds differ" in stream.getvalue()) == asked


def test_a_short_version_is_held_to_what_the_same_command_has_given():
    """Not to the published figure, which stands beside it."""
    ours = named(SHORT).measured.value
    for value, verdict in ((ours, "AS EXPECTED"), (ours + 0.03, "NOT AS EXPECTED"), (ours - 0.008, "UNDECIDED")):
        words = words_of(SHORT, ["dataset.source=x", "log_every=1"], value)
        assert f"verdict: {verdict}." in words and "REPRODUCED" not in words
    assert f"expected {100 * ours:.2f}% ±" in words and "published 98.70% ± 0.40%" in words and "margin ±1" in words
    assert "with 6.7% of the tasks of the paper's training: it checks an installation, and reproduces nothing." in words
    assert "2 of the paper's" not in words and "Without" not in words
    other = words_of(SHORT, ["steps=200", "outer_lr=0.5"], ours)
    assert f"Without steps, outer_lr, the cell has given {100 * ours:.2f}%" in other and "another command" in other


def test_a_short_version_of_what_learns_nothing_says_its_share_of_the_test():
    assert "100 of the paper's 1000 test tasks" in words_of("duan2016/random_mdp_50_quick", [], 500.0)


def test_a_short_version_that_was_not_measured_has_nothing_to_be_held_to(monkeypatch):
    monkeypatch.setattr(reproduce, "measured", lambda *_: None)
    with pytest.raises(MetarunError, match="no figure of ours"):
        reproduce.reproduce(SHORT, {}, Console(file=io.StringIO()))


@pytest.mark.parametrize("steps, advised", [(100, True), (0, False)])
def test_other_seeds_are_advised_where_something_is_learnt(steps, advised):
    stream = io.StringIO()
    outcome = judged(named(), [result(0.9865) | {"steps": steps}])
    said(named(), outcome, [], Console(file=stream, width=100))
    assert ("seeds=5" in stream.getvalue()) == advised


def test_what_differs_from_the_papers_settings_is_that_of_the_test_first():
    found = differing(named(), ["shot=5", "outer_lr=0.5", "memory.chunk=2", "log_every=1", "dataset.source=x"])
    keys = [difference.key for difference in found]
    assert keys[:1] == ["shot"] and "outer_lr" in keys[1:]
    short = [difference.key for difference in differing(named(SHORT), [])]
    assert short[0] == "eval_query_shot" and {"steps", "meta_batch_size"} <= {*short[1:]}
    assert not {"memory.chunk", "log_every", "dataset.source", "cell", "cell.quick_of", "experiment"} & {*keys}
    assert next(each for each in found if each.key == "outer_lr")[1:] == (0.001, 0.5)
    assert differing(named(), []) == []


def test_a_run_by_other_settings_is_not_said_to_be_the_one_that_was_measured():
    cell = "snell2017/protonet_omniglot_5w5s"
    measured = f"{100 * named(cell).measured.value:.2f}%"
    assert f"This command has given {measured}" in words_of(cell, ["dataset.source=x", "log_every=1"], 0.9865)
    other = words_of(cell, ["steps=200", "outer_lr=0.5"], 0.9865)
    assert "This command has given" not in other
    assert f"Without steps, outer_lr, the cell has given {measured}" in other


def test_a_result_of_another_seed_or_of_no_schema_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "_run", lambda *_: 0)
    of_seed = {**result(0.98), "method": "maml", "dataset": "omniglot", "protocol": {}, "protocol_id": "0", "seed": 0}
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "result.json").write_text(json.dumps(of_seed))

    def command(seeds):
        return reproduce.reproduce(CELL, {"output": str(tmp_path), "seeds": seeds}, Console(file=io.StringIO()))

    assert command("1") == reproduce.EXIT[UNDECIDED]  # what lies in 1/ is not asked for
    with pytest.raises(MetarunError, match="1/result.json is of seed 0, not 1"):
        command("2")
    (tmp_path / "0" / "result.json").write_text(json.dumps({**of_seed, "value": "abc"}))
    with pytest.raises(MetarunError, match="value is 'abc': expected a finite number or null"):
        command("1")


def test_every_cell_has_a_name_of_its_own():
    known = list(cells())
    by_name = {each.name: each for each in known}
    assert len(known) == len(by_name) > 1 and CELL in by_name
    for each in known:
        if each.cell.quick_of is not None:
            assert by_name[each.cell.quick_of].cell.quick_of is None


@pytest.mark.slow
def test_a_cell_runs_resumes_adds_seeds_and_exits_by_its_verdict(tmp_path):
    one = metarun(CELL, *SMALL, "output=cell", cwd=tmp_path, command="metarun-reproduce")
    assert one.returncode == 3, one.stderr
    assert "NOT REPRODUCED" in one.stdout and "dataset: glyphs, the paper's omniglot" in one.stdout
    value = json.loads((tmp_path / "cell" / "0" / "result.json").read_text())
    assert value["published"]["finn2017"]["value"] == 0.987 and value["seed"] == 0
    two = metarun(CELL, *SMALL, "output=cell", "seeds=2", cwd=tmp_path, command="metarun-reproduce")
    assert two.returncode == 3 and "is complete: 2 steps" in two.stderr and "and 2 seeds" in two.stdout
    assert json.loads((tmp_path / "cell" / "1" / "result.json").read_text())["seed"] == 1
    assert json.loads((tmp_path / "cell" / "0" / "result.json").read_text()) == value


def test_runs_that_a_former_version_has_begun_are_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        reproduce, "_run", lambda named, seeds, overrides, directory: directories.append(directory) or 1
    )
    directories = []
    reproduce.reproduce(CELL, {}, Console(file=io.StringIO()))
    (tmp_path / "outputs" / "reproduce" / CELL.partition("/")[2]).mkdir(parents=True)
    reproduce.reproduce(CELL, {}, Console(file=io.StringIO()))
    assert [str(each) for each in directories] == [
        f"outputs/reproduce/{name}" for name in (CELL, CELL.partition("/")[2])
    ]


def test_what_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        return call(cli.reproduce_main, capsys, monkeypatch, *arguments)

    refused(command("finn2017/maml_omniglot_5w2s"), "there is no such cell", "finn2017/maml_omniglot_5w1s", "--list")
    refused(command("maml_omniglot_5w1s"), "It is finn2017/maml_omniglot_5w1s.")
    refused(command("maml_omniglot_20w5s"), "It is finn2017/maml_omniglot_20w5s or raghu2020/maml_omniglot_20w5s.")
    refused(command("unpublished/omniglot_rnn_5w1s"), "there is no such cell")
    refused(command(), "Which cell", "--list")
    refused(command(CELL, "seeds=0"), "seeds=0", "1 or more")
    refused(command(CELL, "seeds=many"), "seeds=many")
    refused(command(CELL, "seed=3"), "seed=3", "seeds=N")
    refused(command(CELL, "no_such_key=1"), "no_such_key")
    refused(command("duan2016/random_mdp_10", "dataset.source=."), "dataset.source", "metarun-rl --help")
    assert not any(tmp_path.iterdir())


def test_what_the_run_refuses_is_said_once(tmp_path):
    wrong = metarun(CELL, *SMALL, "method.inner_lr=abc", "output=cell", cwd=tmp_path, command="metarun-reproduce")
    assert wrong.returncode == 2 and wrong.stderr.count("metarun: method.inner_lr=abc") == 1
    assert "Traceback" not in wrong.stderr


def test_the_list_names_cells_with_their_figures(tmp_path):
    done = metarun("--list", cwd=tmp_path, command="metarun-reproduce")
    line = next(line for line in done.stdout.splitlines() if line.startswith(f"{CELL} "))
    assert "98.70% ± 0.40%" in line and f"{100 * find(CELL).measured.value:.2f}% ±" in line and "table 1" in line
    run, short, unrun = done.stdout.strip().split("\n\n")
    assert run.startswith("Whole cells that have been run") and unrun.startswith("Whole cells that have not been run")
    verdicts = {words[0]: words[3] for row in run.splitlines() if len(words := re.split("  +", row)) == 6}
    assert verdicts["snell2017/protonet_omniglot_5w5s"] == REPRODUCED
    assert verdicts["duan2016/rl2_bandit_5_10"] == UNDECIDED
    assert verdicts["snell2017/protonet_omniglot_20w1s"] == NOT_REPRODUCED
    assert SHORT in short and CELL + " " not in short and "reproduced" not in short and "_quick" not in run + unrun


def test_a_test_that_is_not_finite_has_no_verdict():
    cell = Cell(published={"paper": Figure(0.5, None, "table 1")}, margin=0.1)
    with pytest.raises(Exception, match="paper/x: a seed's test is not finite"):
        judged(Named("paper/x", FEW_SHOT, cell), [result(None)])


def test_a_check_that_was_not_made_has_not_failed_and_one_task_has_no_verdict():
    unmade = {"relabelling": {"passed": None, "value": None, "reason": "targets are numbers"}}
    assert judged(named(), [result(0.9865) | {"checks": unmade}]).failed == []
    with pytest.raises(Exception, match="one task has no interval.*eval_tasks=2"):
        judged(named(), [result(0.9865) | {"ci95": None, "num_tasks": 1}])
