"""The script that runs every method: its table, from the files of finished runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from methods_table import COLUMNS, METHODS, idea, table

SCRIPT = Path(__file__).parents[1] / "scripts" / "methods_table.py"
RESULT = {"metric": "accuracy", "ci95": 0.01, "num_tasks": 600, "dataset": "glyphs", "way": 5, "shot": 1}
RESULT |= {"device": "2 x cpu", "seconds": 90.0, "compile_seconds": 30.0, "tasks_per_second": 100.4}


def finished(directory, method, **entries):
    (directory / method).mkdir()
    (directory / method / "result.json").write_text(json.dumps(RESULT | {"method": method} | entries))


def test_a_row_says_what_a_run_reached_and_which_check_failed(tmp_path):
    passed = {"query_order": {"passed": True}, "chance_before_adaptation": {"passed": True}}
    passed |= {"labels_by_class": {"passed": None}}  # which was not made
    finished(tmp_path, "maml", value=0.875, checks=passed | {"chance_before_adaptation": {"passed": False}})
    finished(tmp_path, "nearest_neighbor", value=0.5, checks=passed)
    lines = table(
        tmp_path, ["maml", "anil"], lambda method: [f"method={method}", "steps=9", "dataset.source=a b"]
    ).splitlines()
    assert lines[0].startswith("glyphs, 5-way 1-shot, 600 test tasks") and "2 x cpu" in lines[0]
    assert lines[2] == "Raw-pixel baseline, `nearest_neighbor`: 50.00 ± 1.00%."
    maml, anil = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[-2:])
    assert len(maml) == len(anil) == len(COLUMNS)
    assert maml[:2] == ["`maml`", idea("maml")] and "Finn et al. 2017" in maml[1]
    assert maml[2:6] == ["87.50 ± 1.00%", "+37.50", "100", "2.0"]
    assert maml[6] == "1 of 2 passed; failed: chance before adaptation"
    assert maml[7] == "`metarun method=maml steps=9 'dataset.source=a b'`"
    assert anil[:3] == ["`anil`", "", "did not finish"]


def test_every_method_says_its_idea_and_its_paper_in_its_first_line():
    for file in METHODS.glob("*.yaml"):
        said = idea(file.stem)
        assert said.endswith(".") and ":" in said and "@" not in said, file


@pytest.mark.parametrize("options", [[], ["--experiments", "unpublished/sinusoid_"]])
def test_an_unknown_method_is_named(tmp_path, options):
    command = [sys.executable, SCRIPT, tmp_path, "--methods", "maml,mamml", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "mamml" in done.stderr and "reptile" in done.stderr
    assert ("protonet" in done.stderr) == (not options)  # needs classes, and has no experiment with sinusoids


@pytest.mark.slow
def test_methods_are_trained_for_the_same_time(tmp_path):
    """As many steps as take two seconds at the pace of the short run, by the experiment of that name."""
    command = [sys.executable, SCRIPT, tmp_path, "--methods", "neural_process", "--seconds", "2"]
    command += ["--experiments", "unpublished/sinusoid_", "eval_tasks=8", "val_tasks=8"]
    subprocess.run(command, check=True)
    result, pace = (json.loads((tmp_path / at / "neural_process/result.json").read_text()) for at in ("", "pace"))
    assert result["steps"] == round(2 * pace["tasks_per_second"] / 25)
    line = (tmp_path / "methods.md").read_text().splitlines()[-1]
    command = f"metarun experiment=unpublished/sinusoid_neural_process eval_tasks=8 val_tasks=8 steps={result['steps']}"
    assert idea("conditional") in line and command in line and "mse" in line
