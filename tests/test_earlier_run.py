"""Directories of runs that version 0.1.0 left, from before the package was a dozen rooms: every command still reads them.

They were made with these commands, and hold no picture:

  metarun method=protonet model=mlp model.hidden=[8] steps=2 eval_every=0 eval_tasks=20 meta_batch_size=2 logger=jsonl
  metarun experiment=maml_sinusoid_quick model.hidden=[8] steps=4 eval_every=0 eval_tasks=20 meta_batch_size=2 logger=jsonl
  metarun-rl experiment=rl2_bandit_5_10 steps=2 method.hidden=4 meta_batch_size=8 eval_tasks=20 logger=jsonl
"""

import json
import shutil
from pathlib import Path

import pytest
from small_run import call, draw_classes

from metarun.commands import cli

EARLIER = Path(__file__).parent / "earlier_run"


@pytest.fixture
def runs(tmp_path):
    """A copy of them all."""
    return shutil.copytree(EARLIER, tmp_path / "runs")


@pytest.mark.parametrize(
    "name, pattern", [("glyphs", "glyphs-*"), ("sinusoid", "sinusoid-*"), ("bandit", "bernoulli_*")]
)
def test_its_test_gives_the_number_that_it_gave(name, pattern, runs, capsys, monkeypatch):
    before = json.loads((runs / name / "result.json").read_text())
    code, _, err = call(cli.eval_main, capsys, monkeypatch, f"run={runs / name}")
    assert code == 0, err
    (found,) = (runs / name / "evaluations").glob(f"{pattern}.json")
    now = json.loads(found.read_text())
    assert now["value"] == pytest.approx(
        before["value"], abs=0.02 * abs(before["value"])
    )  # another processor rounds otherwise
    assert now["protocol_id"] == before["protocol_id"] and now["num_tasks"] == 20


def test_the_same_command_continues_it(runs, capsys, monkeypatch):
    settings = [
        "method=protonet",
        "model=mlp",
        "model.hidden=[8]",
        "eval_every=0",
        "eval_tasks=20",
        "meta_batch_size=2",
    ]
    directory = f"hydra.run.dir={runs / 'glyphs'}"
    code, _, err = call(cli.main, capsys, monkeypatch, *settings, "steps=4", "logger=jsonl", directory)
    assert code == 0 and "Resuming at step 2 of 4." in err, err
    assert json.loads((runs / "glyphs" / "result.json").read_text())["steps"] == 4


def test_the_same_command_by_its_cells_name_of_now_finds_it_complete(runs, capsys, monkeypatch):
    settings = ["model.hidden=[8]", "steps=4", "eval_every=0", "eval_tasks=20", "meta_batch_size=2", "logger=jsonl"]
    cell, directory = "experiment=finn2017/maml_sinusoid_quick", f"hydra.run.dir={runs / 'sinusoid'}"
    code, _, err = call(cli.main, capsys, monkeypatch, cell, *settings, directory)
    assert code == 0 and "is complete: 4 steps. Nothing to do." in err, err


def test_it_answers_for_pictures(runs, tmp_path, capsys, monkeypatch):
    draw_classes(tmp_path / "support", num_classes=2, count=2)
    draw_classes(tmp_path / "query", num_classes=2, count=1)
    asked = (f"run={runs / 'glyphs'}", f"support={tmp_path / 'support'}", f"query={tmp_path / 'query'}")
    code, out, err = call(cli.predict_main, capsys, monkeypatch, *asked)
    assert code == 0 and "probabilities.csv" in out, err


def test_it_is_compared_and_reported(runs, tmp_path, capsys, monkeypatch):
    other = shutil.copytree(runs / "glyphs", runs / "other")
    code, out, err = call(cli.compare_main, capsys, monkeypatch, f"run={runs / 'glyphs'}", f"with={other}")
    assert code == 0 and "second less first" in out, err
    page = tmp_path / "report.html"
    code, out, err = call(cli.report_main, capsys, monkeypatch, str(runs), "--output", str(page))
    assert code == 0 and "4 results in" in out, err
    assert all(word in page.read_text() for word in ("protonet", "rl2", "sinusoid"))
