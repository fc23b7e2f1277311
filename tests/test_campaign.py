"""`scripts/campaign.py`: which cells have their turn, what a run's first steps tell, and what becomes a row."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import date
from pathlib import Path

import numpy as np
import pytest

import campaign
from metarun.commands.reproduce import find
from metarun.errors import MetarunError
from metarun.trust import measured
from metarun.trust.equivalence import verdict

CELL = "finn2017/maml_sinusoid_1_step"
RUN = {
    "metric": "mse",
    "value": 0.58449,
    "ci95": 0.0541,
    "num_tasks": 600,
    "method": "maml",
    "dataset": "sinusoid",
    "protocol": {},
    "protocol_id": "0",
    "seed": 0,
    "steps": 70000,
    "seconds": 100.0,
    "compile_seconds": 20.0,
    "device": "1 x a card",
    "versions": {"jax": "0.10.2", "metarun": "1"},
}


@pytest.fixture
def asked(tmp_path):
    return campaign.Asked(tmp_path / "runs", tmp_path / "table" / "table.csv", {}, at_once=2)


def put(asked, name, text, seed=0):
    directory = asked.directories(find(CELL))[seed]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text(text)


def test_cells_come_in_the_order_of_the_patterns_and_those_with_a_row_do_not():
    names = [
        named.name for named in campaign.chosen(["snell2017/*_same_way", "finn2017/*", "snell2017/*"], measured.table())
    ]
    assert names and not set(names) & set(measured.table()) and not any(name.endswith("_quick") for name in names)
    assert names[0].endswith("_same_way") and names[-1].startswith("snell2017/") and "_same_way" not in names[-1]


def test_a_pattern_of_no_cell_is_refused():
    with pytest.raises(MetarunError, match=r"--cells=nobody/\*: expected a pattern of whole cells"):
        campaign.chosen(["finn2017/*", "nobody/*"], {})


def test_a_row_with_a_hash_stands_on_the_file_that_is_kept():
    folder = measured.table_file().parent
    assert any(row.result for row in measured.table().values())
    for cell, row in measured.table().items():
        if row.result:
            kept = [(folder / measured.kept_as(cell, seed)).read_bytes() for seed in range(row.seeds)]
            results = [json.loads(content) for content in kept]
            assert " ".join(map(measured.hash_of, kept)) == row.result, cell
            assert [result["seed"] for result in results] == [*range(row.seeds)], cell
            assert row.ours.values == pytest.approx([result["value"] for result in results], rel=5e-3), cell
            assert np.mean(row.ours.values) == pytest.approx(row.value, rel=1e-3), cell
            assert max(result["ci95"] for result in results) == pytest.approx(row.ci95, rel=5e-3), cell


def test_a_setting_that_makes_it_another_run_is_refused():
    omniglot = find("snell2017/protonet_omniglot_5w1s_same_way")
    assert campaign.settings(omniglot, {"omniglot": "x"}, ["log_every=10"]) == ["log_every=10", "dataset.source=x"]
    with pytest.raises(MetarunError, match="steps"):
        campaign.settings(find(CELL), {}, ["steps=10"])


def test_the_pace_is_that_of_the_steps_since_the_run_went_on(asked):
    cell = find(CELL)
    assert campaign.pace(cell, asked.directories(cell)) is None
    lines = [{"step": 100, "seconds": 0.0}, {"step": 200, "seconds": 50.0}, {"step": 300, "seconds": 51.0}]
    put(asked, "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    found = campaign.pace(cell, asked.directories(cell), begun_at=100)
    assert found.step == 300 and found.seconds == pytest.approx(0.01) and found.left == pytest.approx(697)


def test_a_row_of_several_seeds_is_their_mean_and_its_verdict_is_over_them(asked):
    values = [0.584491, 0.612341, 0.571111]
    asked = asked._replace(seeds=3)
    [alone] = [campaign.row([{**RUN, "checks": {}}], [b""], "a card", date.today())]
    asked.table.parent.mkdir()
    measured.write(asked.table, {CELL: alone._replace(note="a note")})
    assert [named.name for named in campaign.chosen([CELL], measured.read(asked.table), 3)] == [CELL]
    for seed, value in enumerate(values[:2]):
        put(asked, "result.json", json.dumps({**RUN, "value": value, "seed": seed, "checks": {}}), seed)
    assert list(campaign.collect(asked, [find(CELL)])) == []
    put(asked, "result.json", json.dumps({**RUN, "value": values[2], "seed": 2, "checks": {}}), 2)
    [_] = campaign.collect(asked, [find(CELL)])
    row = measured.read(asked.table)[CELL]
    assert (row.value, row.seeds, row.minutes, row.note) == (0.5893, 3, 2, "a note")
    assert row.ours.values == pytest.approx(values, rel=1e-3)
    figure = find(CELL).published
    found = verdict(row.ours, figure.value, figure.ci95, find(CELL).cell.margin)
    assert find(CELL).verdict_on(row) == found.verdict and row.interval == found.ci95 > row.ci95
    files = [asked.table.parent / measured.kept_as(CELL, seed) for seed in range(3)]
    assert row.result.split() == [measured.hash_of(file.read_bytes()) for file in files] and len({*files}) == 3
    assert campaign.chosen([CELL], {CELL: row}, 3) == []
    for wrong in ("0.5 0.6", "0.5 0.6 much"):
        measured.write(asked.table, {CELL: row._replace(by_seed=wrong)})
        with pytest.raises(MetarunError, match="line 2 is no row of a table of results"):
            measured.read(asked.table)


def test_a_result_becomes_a_row_once_and_its_file_is_kept(asked):
    put(asked, "result.json", json.dumps({**RUN, "checks": {"query_order": {"passed": True, "value": 0.0}}}))
    [(named, words)] = campaign.collect(asked, [find(CELL)])
    assert named.name == CELL and words == "undecided: 0.5845 ± 0.054, in 2 min"
    row = measured.read(asked.table)[CELL]
    assert (row.value, row.ci95, row.minutes, row.device) == (0.5845, 0.0541, 2, "1 x a card, beside 1 more")
    kept = asked.table.parent / "runs" / f"{CELL}.json"
    assert row.result == measured.hash_of(kept.read_bytes()) and date.fromisoformat(row.date)
    before = asked.table.read_bytes()
    list(campaign.collect(asked, [find(CELL)]))
    assert asked.table.read_bytes() == before


def test_a_result_whose_checks_fail_becomes_no_row(asked):
    put(asked, "result.json", json.dumps({**RUN, "checks": {"query_order": {"passed": False, "value": 1.0}}}))
    [(_, words)] = campaign.collect(asked, [find(CELL)])
    assert "checks failed, query_order" in words and not asked.table.exists()


# Three cells of some seconds each, which save often.
FAMILY = """# @package _global_
defaults: [{override /dataset: sinusoid}, {override /model: mlp}, _self_]
cell: {published: {value: 2.0, source: nowhere}, margin: 1}
steps: 6000
steps_per_dispatch: 100
checkpoint_every: 1000
log_every: 100
eval_every: 3000
eval_tasks: 100
method: {inner_steps: 1}
model: {hidden: [8]}
cells: {small_a: {}, small_b: {shot: 5}, small_c: {method: {inner_lr: 0.02}}}
"""


def of_own_cells(folder):
    """The options of a campaign over three cells of a user's own, all of whose files are in a folder."""
    (folder / "conf" / "few_shot" / "experiment" / "mine").mkdir(parents=True, exist_ok=True)
    (folder / "conf" / "few_shot" / "experiment" / "mine" / "small.yaml").write_text(FAMILY)
    places = [f"--config-dir={folder / 'conf'}", f"--output={folder / 'runs'}", f"--table={folder / 'table.csv'}"]
    return [*places, "--cells=mine/*", "--device=here"]


def command(folder):
    return [sys.executable, campaign.__file__, *of_own_cells(folder), "--hours=1", "--at-once=2", "--seeds=2"]


def kill_all(folder):
    """Kills, without a word, whatever was given a folder as an argument."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if str(folder).encode() in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)


@pytest.mark.slow
def test_a_campaign_that_is_killed_ends_with_the_table_of_one_that_is_not(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    began = time.monotonic()
    subprocess.run(command(whole), check=True, cwd=whole)
    took = time.monotonic() - began
    delays, lost = [random.uniform(0.2, 0.6) * took for _ in range(3)], []
    for delay in delays:
        process = subprocess.Popen(command(cut), cwd=cut)
        with suppress(subprocess.TimeoutExpired):
            process.wait(delay)
        lost.append(process.poll() is None)
        kill_all(cut)
        process.wait()
    assert any(lost), "none was killed while it ran"
    subprocess.run(command(cut), check=True, cwd=cut)

    def rows(folder):
        return {
            cell: row._replace(minutes=0, date="", result="")
            for cell, row in measured.read(folder / "table.csv").items()
        }

    assert [*rows(whole)] == ["mine/small_a", "mine/small_b", "mine/small_c"]
    assert rows(whole) == rows(cut), f"killed after {delays} seconds"
    for folder in (whole, cut):
        for cell, row in measured.read(folder / "table.csv").items():
            kept = [(folder / measured.kept_as(cell, seed)).read_bytes() for seed in range(2)]
            assert row.result.split() == [measured.hash_of(content) for content in kept] and len({*kept}) == 2
