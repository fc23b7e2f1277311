"""A report: what it collects, its tables, and its page in a real browser."""

import csv
import io
import itertools
import json
import math
import os
import pathlib
import re
import shutil
import struct
import time
import zlib

import numpy as np
import PIL.EpsImagePlugin
import pytest
import scipy.stats
from many_runs import METHODS, picture, write_run, write_runs
from PIL import Image
from test_cli import metarun, refused

from metarun.commands.sweep import PointOutcome, distribution_of, rows
from metarun.data.decoding import PictureError
from metarun.errors import ConfigError
from metarun.report import pivot_tables, tables
from metarun.report.collection import collect, differing_keys
from metarun.report.page import _encoded, page
from metarun.report.pivot import pivot
from metarun.report.replicates import replicates_of
from metarun.training.result import faults_of
from metarun.trust.measured import table

# The result of several seeds, as the page has it.
OF_SEEDS = r"([\d.]+)% ± ([\d.]+)%\n(\d+) seeds, from ([\d.]+)% to ([\d.]+)%"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def report(*arguments, cwd):
    return metarun(*map(str, arguments), cwd=cwd, command="metarun-report")


def test_runs_are_found_at_and_below_a_directory_with_their_evaluations(tmp_path):
    first = write_run(tmp_path / "a", overrides=["hydra.run.dir=a b"])
    write_run(tmp_path / "sweep" / "0", method="protonet", seed=3)
    result = json.loads((first / "result.json").read_text())
    (first / "evaluations").mkdir()
    (first / "evaluations" / "omniglot-5way-5shot-1.json").write_text(json.dumps({**result, "shot": 5}))
    rows = [{"key": "", "value": "", "result": result}, {"key": "eval_seed", "value": 1, "result": result}]
    (first / "evaluations" / "sweep-1.json").write_text(json.dumps(rows))
    (first / "evaluations" / "compared-with-b.json").write_text("{}")
    records, faults = collect([str(tmp_path)])
    assert faults == []
    assert [(record.name, record.evaluation) for record in records] == [
        ("a", False),
        ("a: omniglot-5way-5shot-1", True),
        ("a: eval_seed=1", True),
        ("sweep/0", False),
    ]
    assert records[0].command == "metarun method=maml way=5 shot=1 seed=0 'hydra.run.dir=a b'"
    assert len(records[0].curve["train/loss"]) == 300 and records[0].pictures
    assert collect([str(first)])[0][0].name == "a"
    again, _ = collect([str(tmp_path), str(tmp_path / "sweep")])  # below both
    assert [record.name for record in again] == [record.name for record in records]


def test_what_is_unfinished_or_damaged_is_said_and_costs_no_other(tmp_path):
    write_run(tmp_path / "whole")
    (write_run(tmp_path / "unfinished") / "result.json").unlink()
    (write_run(tmp_path / "damaged") / "result.json").write_text("{")
    (write_run(tmp_path / "foreign") / "result.json").write_text('{"value": 1}')
    (write_run(tmp_path / "broken") / "metrics.jsonl").write_text("nothing\n")
    done = report(tmp_path, cwd=tmp_path)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    for said in (
        "damaged/result.json cannot be read",
        "foreign/result.json is no result",
        "broken/metrics.jsonl, line 1",
    ):
        assert said in done.stderr
    text = (tmp_path / "report.html").read_text()
    assert text.count('class="warning"') == 3 and "Report of 5 runs" in text
    refused(report(tmp_path / "none", cwd=tmp_path), "DIR=", "a directory of runs")
    with pytest.raises(ConfigError, match="with runs of metarun"):
        collect([str(tmp_path / "whole" / "plots")])


def test_what_is_unfinished_says_what_it_is_and_how_far(tmp_path):
    def run(name, *, metrics=True, **settings):
        directory = write_run(tmp_path / name, **settings)
        (directory / "result.json").unlink()
        if not metrics:
            (directory / "metrics.jsonl").unlink()
        return directory

    run("a", method="protonet", way=20, settings={"steps": 6000})
    (run("b", metrics=False, settings={"steps": 6000}) / "checkpoints" / "40").mkdir(parents=True)
    (run("c") / "diverged").mkdir()
    divergence = {"step": 12, "message": "The loss is nan", "identity": {"seed": 0}}
    (tmp_path / "c" / "diverged" / "divergence.json").write_text(json.dumps(divergence))
    env = run("d", settings={"env": {"episodes": 2}, "steps": 10}, metrics=False)
    (env / ".hydra" / "hydra.yaml").write_text("hydra: {runtime: {choices: {method: rl2, env: maze}}}")
    (run("e", settings={"steps": "many", "way": []}) / ".hydra" / "hydra.yaml").write_text("hydra: [runtime]")
    (run("f") / "pruned.json").write_text('{"step": 500, "value": 0.5}')
    records, faults = collect([str(tmp_path)])
    assert faults == [] and [tuple(record.unfinished) for record in records] == [
        ("protonet", "omniglot, 20-way 1-shot", "not finished: step 3000 of 6000"),
        ("maml", "omniglot, 5-way 1-shot", "not finished: step 40 of 6000"),
        ("maml", "omniglot, 5-way 1-shot", "diverged at step 12"),
        ("rl2", "maze, 2 episodes", "not finished: step 0 of 10"),
        ("", "", "not finished: step 3000"),
        ("maml", "omniglot, 5-way 1-shot", "pruned at step 500"),
    ]
    text = tables.markdown(records)
    assert "| protonet | omniglot, 20-way 1-shot | not finished: step 3000 of 6000 |" in text
    assert "| maml | omniglot, 5-way 1-shot | diverged at step 12 |" in text
    assert '"state":"diverged at step 12","method":"maml"' in page(records, faults)


ODD = ("abc", "", 5, -1, 1.5, True, None, [1], [], {"x": 5}, {}, 10**400, "</script><b>", "\ud800", "\x1b[2J", [[[1]]])
NOT_JSON = ("NaN", "-Infinity", "1e999", '{"a":' * 30 + "1" + "}" * 30, "9" * 5000)


def damaged(value, path=()):
    """A value with each of its fields, however deep, replaced in turn by each odd one, as JSON."""
    if isinstance(value, dict):
        for key in value:
            rest = {name: entry for name, entry in value.items() if name != key}
            yield (*path, key), rest
            for field, other in damaged(value[key], (*path, key)):
                yield field, {**value, key: other}
    for odd in ODD:
        yield path, odd


def test_a_result_with_any_field_of_any_other_kind_costs_no_other_run(tmp_path):
    """Each odd result is a run of its own, all beside a whole one: the page has that, and names what does not fit."""
    write_run(tmp_path / "whole", value=0.8125)
    source = write_run(tmp_path / "source", curves={"over": "inner step", "learner": [0.5]}, selected_steps=[3000])
    result = json.loads((source / "result.json").read_text())
    shutil.rmtree(source)
    cases = [(field, json.dumps(value)) for field, value in damaged(result)]
    text = json.dumps({**result, "value": "VALUE"})
    cases += [(("value",), text.replace('"VALUE"', odd)) for odd in NOT_JSON]
    cases += [(("protocol",), json.dumps({**result, "protocol": "P"}).replace('"P"', odd)) for odd in NOT_JSON]
    bad = 0
    for number, (_, odd) in enumerate(cases):
        directory = tmp_path / f"{number:04}"
        (directory / ".hydra").mkdir(parents=True)
        (directory / ".hydra" / "config.yaml").write_text("way: 5\n")
        (directory / "result.json").write_text(odd)
        try:
            bad += bool(faults_of(json.loads(odd)))
        except ValueError:
            bad += 1
    assert len(cases) > 300 and bad > 200
    records, faults = collect([str(tmp_path)])
    assert len(records) == len(cases) + 1 and len(faults) == bad
    for (field, odd), record in zip(cases, records, strict=False):
        if record.result is None:
            (fault,) = [fault for fault in faults if f"/{record.name}/result.json " in fault]
            assert record.unfinished.state == "result.json cannot be used"
            assert not field or field[0] in fault or "it is no JSON" in fault, (odd, fault)
            assert fault.isprintable()
    text = page(records, faults)
    assert "0.8125" in text and "NaN" not in text.split("<script")[1] and text.encode() and "<b>" not in text
    for form in (tables.markdown, tables.comma_separated, tables.latex):
        assert form(records).encode() and "81.25" in form(records)


@pytest.mark.parametrize("name", ["config.yaml", "overrides.yaml", "hydra.yaml"])
@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "abc",
            "5",
            "[1, [2]]",
            "{1: 2}",
            "{a: 2020-01-01}",
            "a: !!python/name:os.system",
            "a: &x [*x]",
            "{" * 3000,
        ),
        *(
            "hydra: 5",
            "hydra: {runtime: {choices: {method: [1], dataset: {a: 1}}}}",
            "steps: {a: 1}",
            "dataset: 7\nway: x",
        ),
        *("\x00", "way: .nan", 'method: "\\ud800"', "way: 0x" + "f" * 5000, "env: 5", "a: |\n" + 600_000 * " "),
    ],
    ids=lambda text: ascii(text)[:20],
)
def test_a_configuration_of_any_other_kind_costs_no_other_run(tmp_path, name, text):
    write_run(tmp_path / "whole", value=0.8125)
    (write_run(tmp_path / "odd") / "result.json").unlink()
    (tmp_path / "odd" / ".hydra" / name).write_text(text)
    records, faults = collect([str(tmp_path)])
    assert [record.name for record in records] == ["odd", "whole"]
    assert all("odd" in fault for fault in faults)
    assert "0.8125" in page(records, faults) and "81.25" in tables.markdown(records)


@pytest.mark.parametrize("name", ["result.json", "metrics.jsonl", "evaluations/x.json", "evaluations/sweep-1.json"])
def test_what_is_no_file_of_text_is_named(tmp_path, name):
    write_run(tmp_path / "whole", value=0.8125)
    odd = write_run(tmp_path / "odd") / name
    for make in (
        lambda: odd.mkdir(parents=True),
        lambda: odd.write_bytes(b"\xff\x00"),
        lambda: odd.symlink_to("/dev/zero"),
    ):
        if odd.is_dir():
            odd.rmdir()
        odd.unlink(missing_ok=True)
        make()
        records, (fault,) = collect([str(tmp_path)])
        assert f"odd/{name} cannot be read" in fault and "0.8125" in page(records, [fault])


def test_what_a_sweep_says_is_another_commands_is_no_point_of_it(tmp_path):
    for seed in range(3):
        write_run(tmp_path / "sweep" / str(seed), seed=seed)
    (tmp_path / "sweep" / "others.json").write_text('["2", "gone", "../other"]')
    write_run(tmp_path / "other", seed=7)
    assert seeds_together(tmp_path) == [[0, 1, 7]]
    _, (said,) = collect([str(tmp_path)])
    assert "sweep: of another command than the sweep, and so left out: ../other, 2. " in said
    assert seeds_together(tmp_path / "sweep" / "2") == [[2]]  # which is asked for
    for odd in ("[", "5", "[5]", '[""]'):
        (tmp_path / "sweep" / "others.json").write_text(odd)
        records, (said,) = collect([str(tmp_path)])
        assert len(records) == 4 and "others.json" in said


def test_names_of_files_in_other_encodings_can_be_written(tmp_path):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/run-\xe9\x1b[2J")
    write_run(pathlib.Path(odd), value=0.8125)
    (pathlib.Path(odd) / "metrics.jsonl").write_text("{\n")
    records, faults = collect([str(tmp_path)])
    assert all(fault.isprintable() for fault in faults) and any("line 1" in fault for fault in faults)
    assert "0.8125" in page(records, faults).encode().decode()


def test_the_keys_in_which_protocols_differ_are_named(tmp_path):
    for k, steps in enumerate((3, 5, 3)):
        write_run(tmp_path / str(k), inner_steps=steps)
    write_run(tmp_path / "other", shot=5, inner_steps=7)  # another setting, which nobody compares with these
    records, _ = collect([str(tmp_path)])
    assert differing_keys(records) == {"method.eval_inner_steps": [3, 5]}
    assert "<code>method.eval_inner_steps</code></td><td>3, 5<" in page(records, [])


def test_a_page_shows_pictures_of_a_run_that_are_png_and_nothing_else(tmp_path, monkeypatch):
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\nshowpage\n%%EOF\n"
    called = []
    monkeypatch.setattr(PIL.EpsImagePlugin, "Ghostscript", lambda *arguments, **settings: called.append(arguments))
    whole = picture(0)
    damaged = bytearray(whole)
    damaged[len(damaged) // 2] ^= 255
    jpeg = io.BytesIO()
    Image.new("RGB", (9, 9)).save(jpeg, "JPEG")
    (tmp_path / "secret.png").write_bytes(whole)
    contents = {"eps": eps, "jpeg": jpeg.getvalue(), "damaged": bytes(damaged), "empty": b"", "cut": whole[:900]}
    for name, data in contents.items():
        (write_run(tmp_path / "runs" / name) / "plots" / "gallery.png").write_bytes(data)
    outside = write_run(tmp_path / "runs" / "outside") / "plots" / "gallery.png"
    outside.unlink()
    outside.symlink_to(tmp_path / "secret.png")
    write_run(tmp_path / "runs" / "whole")
    records, _ = collect([str(tmp_path / "runs")])
    text = page(records, [])
    assert called == [] and text.count('src="data:image/webp') == 1 and 'alt="whole, gallery"' in text
    (said,) = re.findall(r"Left out, as no PNG that can be shown: (.*?)</p>", text)
    assert said.startswith("cut, gallery (") and said.endswith(" and 3 more.")
    reasons = []
    for name in (*contents, "outside"):
        with pytest.raises(PictureError) as caught:
            _encoded(tmp_path / "runs" / name / "plots" / "gallery.png", tmp_path / "runs" / name, 320)
        reasons.append(str(caught.value))
    assert reasons[:2] == ["no picture of a known format"] * 2 and reasons[-1] == "a link that leads out of the run"
    huge = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 20_000, 20_000, 8, 2, 0, 0, 0)
    outside.unlink()
    outside.write_bytes(huge + struct.pack(">I", zlib.crc32(huge[12:])) + whole[33:])
    with pytest.raises(PictureError, match="more than 100,000,000 pixels"):
        _encoded(outside, outside.parent, 320)


def altered(directory, **changed):
    """Has the result of a run say something else."""
    file = directory / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))
    return directory


def seeds_together(root):
    """The seeds of each row, in order; of what has not ended none."""
    groups = replicates_of(collect([str(root)])[0])
    return sorted([record.result["seed"] for record in group.records if record.result] for group in groups)


def test_runs_that_differ_in_nothing_but_the_seed_are_taken_together(tmp_path):
    values = (0.9, 0.97, 0.92)
    for seed in (2, 0, 1):  # what moves no number may differ, as their dataset.source does
        own = {"resume": seed > 0, "log_every": 10 + seed, "memory": {"chunk": seed}, "logger": {"name": str(seed)}}
        write_run(tmp_path / str(seed), seed=seed, value=values[seed], settings=own, ci95=0.003 + 0.01 * (seed == 1))
    (group,) = replicates_of(collect([str(tmp_path)])[0])
    assert [record.result["seed"] for record in group.records] == [0, 1, 2]
    # The variance over tasks, which the seeds share, the widest; and of the mean of three seeds, with two degrees of freedom.
    tasks, seeds = (0.013 / 1.96) ** 2, np.var(values, ddof=1) / 3
    freedom = (tasks + seeds) ** 2 / (seeds**2 / 2)
    half = scipy.stats.t.ppf(0.975, freedom) * math.sqrt(tasks + seeds)
    assert (group.value, group.ci95, group.sd) == pytest.approx((0.93, half, np.std(values, ddof=1)))
    # And as the sweep that they are says it.
    outcomes = [PointOutcome(tmp_path / str(seed), [f"seed={seed}"], None) for seed in range(3)]
    said = distribution_of(tmp_path, rows(tmp_path, outcomes))
    assert (group.value, group.ci95, group.sd) == pytest.approx((said["value"], said["ci95"], said["sd"]))


def test_runs_that_are_no_replicates_are_apart(tmp_path):
    for seed in range(2):
        write_run(tmp_path / "same" / str(seed), seed=seed, versions={"metarun": "0.1.0", "jax": str(seed)})
    write_run(tmp_path / "again", seed=1, versions={"metarun": "0.1.0"})
    write_run(tmp_path / "other version", seed=2, versions={"metarun": "0.2.0"})
    write_run(tmp_path / "other settings", seed=3, versions={"metarun": "0.1.0"}, settings={"outer_lr": 0.1})
    write_run(tmp_path / "other method", seed=4, versions={"metarun": "0.1.0"}, method="protonet")
    write_run(tmp_path / "other shot", seed=5, versions={"metarun": "0.1.0"}, shot=5)
    # What a result says although the settings are as they were: of other data, of an earlier piece, of another test.
    write_run(tmp_path / "other protocol", seed=6, versions={"metarun": "0.1.0"}, protocol_id="0")
    write_run(tmp_path / "other steps", seed=7, versions={"metarun": "0.1.0"}, steps=1000)
    write_run(tmp_path / "other tasks", seed=8, versions={"metarun": "0.1.0"}, num_tasks=1000)
    altered(write_run(tmp_path / "not finite", seed=9, versions={"metarun": "0.1.0"}), value=None, ci95=None)
    altered(write_run(tmp_path / "no interval", seed=10, versions={"metarun": "0.1.0"}), ci95=None)
    (write_run(tmp_path / "unfinished", seed=11) / "result.json").unlink()
    (write_run(tmp_path / "unknown", seed=12) / ".hydra" / "config.yaml").write_text("[")
    assert seeds_together(tmp_path) == [[], [0, 1], *([seed] for seed in (1, *range(2, 11), 12))]
    page(*collect([str(tmp_path)]))


def test_evaluations_of_replicates_are_taken_together_where_the_same_was_asked(tmp_path):
    def evaluate(run, seed, *, last=False):
        result = json.loads((run / "result.json").read_text()) | {"protocol_id": "3", "seed": seed}
        (run / "evaluations").mkdir(exist_ok=True)
        # The last parameters are tested under the protocol of the best.
        rows = [{"key": "selection", "value": "last", "result": result}]
        name, text = ("sweep-3", rows) if last else ("omniglot-3", result)
        (run / "evaluations" / f"{name}.json").write_text(json.dumps(text))
        return run

    for seed in range(3):
        evaluate(write_run(tmp_path / str(seed), seed=seed), seed, last=seed == 2)
    evaluate(write_run(tmp_path / "other data", seed=3, protocol_id="0"), 3)
    (evaluate(write_run(tmp_path / "unfinished", seed=4), 4) / "result.json").unlink()
    groups = replicates_of(collect([str(tmp_path)])[0])
    found = sorted([record.name for record in group.records] for group in groups if group.records[0].evaluation)
    assert found == [
        ["0: omniglot-3", "1: omniglot-3"],
        ["2: selection=last"],
        ["other data: omniglot-3"],
        ["unfinished: omniglot-3"],
    ]


def test_the_tables_say_how_seeds_are_distributed(tmp_path):
    for seed, value in ((0, 0.9), (1, 0.97), (2, 0.92), (7, 0.93)):
        write_run(tmp_path / "a" / str(seed), seed=seed, value=value, checks={"query_order": {"passed": seed != 2}})
    for seed, value in ((0, -1.5), (1, 2.25)):
        write_run(tmp_path / "b" / str(seed), seed=seed, value=value, metric="reward", env="point", episodes=2)
    write_run(tmp_path / "c", method="protonet")
    records, _ = collect([str(tmp_path)])
    accuracy, reward, alone = (tables.row(group) for group in replicates_of(records))
    assert accuracy["result"].startswith("93.00% ± ") and accuracy["run"] == "a/0 and 3 more"
    assert accuracy["over seeds"] == "4 seeds, standard deviation 2.9%, from 90.00% to 97.00%"
    assert (accuracy["seed"], accuracy["checks"]) == ("0 to 2, 7", "FAILED: query order")
    assert (reward["over seeds"], reward["seed"]) == ("2 seeds, standard deviation 2.7, from -1.5 to 2.25", "0, 1")
    assert (alone["over seeds"], alone["seed"]) == ("", "0")
    assert tables.markdown(records).count("\n") == 2 + 3 and tables.latex(records).count(r"\\") == 1 + 3
    assert r"standard deviation 2.9\%, from 90.00\% to 97.00\%" in tables.latex(records)
    # Comma-separated every run is a line, which says what is of its row besides.
    rows = list(csv.DictReader(io.StringIO(tables.comma_separated(records))))
    assert [(row["row"], row["seed"]) for row in rows] == [*zip("1111223", "0127010", strict=True)]
    assert [float(row["value"]) for row in rows[:4]] == [0.9, 0.97, 0.92, 0.93]
    assert [row["result"] for row in rows[:2]] == ["90.00% ± 0.3%", "97.00% ± 0.3%"]
    group = replicates_of(records)[0]
    assert all((float(row["mean"]), float(row["mean_ci95"])) == (group.value, group.ci95) for row in rows[:4])


def test_a_result_is_held_against_what_the_same_cell_has_given_before(tmp_path):
    cell = "experiment=finn2017/maml_omniglot_5w1s_quick"
    write_run(tmp_path / "same", overrides=[cell], steps=16000)
    write_run(tmp_path / "shorter", overrides=[cell])
    write_run(tmp_path / "other", overrides=["experiment=mine/other"], steps=16000)
    records, _ = collect([tmp_path])
    said = {record.name: tables.row(group)["published"] for record in records for group in replicates_of([record])}
    before = table()[cell.partition("=")[2]]
    ours = f"; {100 * before.value:.2f}% ± {100 * before.ci95:.2g}% (ours of {before.date}, {before.device})"
    assert said == {
        "same": f"98.70% ± 0.4% (table 1){ours}",
        **dict.fromkeys(("shorter", "other"), "98.70% ± 0.4% (table 1)"),
    }


def test_the_table_in_other_forms(tmp_path):
    write_run(tmp_path / "a_b", value=0.98765)
    write_run(tmp_path / "c|d", checks={"query_order": {"passed": False}}, published={}, settings={"outer_lr": 1})
    names = {"markdown": "t.md", "csv": "t.csv", "latex": "t.tex"}
    done = report(tmp_path, *(f"--{form}={name}" for form, name in names.items()), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "t.md").read_text().splitlines()
    assert lines[2].startswith(
        "| maml | omniglot, 5-way 1-shot | 98.77% ± 0.3% |  | 98.70% ± 0.4% (table 1) | 0 | 600 | passed"
    )
    assert "c\\|d" in lines[3] and "FAILED: query order" in lines[3]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "t.csv").read_text())))
    assert [(row["run"], row["value"]) for row in rows] == [("a_b", "0.98765"), ("c|d", "0.9")]
    latex = (tmp_path / "t.tex").read_text()
    assert r"98.77\% $\pm$ 0.3\%" in latex and r"a\_b" in latex and latex.count(r"\\") == 3


def test_a_directory_in_bytes_that_are_no_unicode(tmp_path):
    write_run(tmp_path / "runs" / os.fsdecode(b"\xb9\xb7"))
    write_run(tmp_path / "runs" / "other", method="protonet", seed=1)
    done = report("runs", "--csv", "r.csv", "--markdown", "r.md", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("report.html", "r.csv", "r.md"):
        assert r"\xb9" in (tmp_path / name).read_text(encoding="utf-8")


def test_words_of_a_run_are_no_part_of_the_page(tmp_path):
    hostile = "</script><img src=x onerror=alert(1)>"
    write_run(tmp_path / "a", method=hostile, overrides=[hostile])
    text = page(*collect([str(tmp_path)]))
    assert "<img src=x" not in text and text.count("</script>") == 2
    assert "<script>alert" not in page(collect([str(tmp_path)])[0], ["<script>alert(1)</script>"])


# ---- In a browser.


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    path = next((found for found in map(shutil.which, BROWSERS) if found), None)
    if path is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Those of 200 runs."""
    return collect([str(write_runs(tmp_path_factory.mktemp("large"), 200))])[0]


@pytest.fixture(scope="module")
def large(tmp_path_factory, records):
    """The page over them."""
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(page(records, []), encoding="utf-8")
    return file


def opened(browser, file, width=1366, height=768, scheme="light"):
    """A page that has loaded, and what its console has said."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    tab, said = context.new_page(), []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on(
        "request",
        lambda request: said.append(request.url) if not request.url.startswith(("file:", "data:", "blob:")) else 0,
    )
    tab.goto(file.as_uri())
    tab.wait_for_selector("html[data-ready=yes]", state="attached")
    return tab, said


def each_run(tab):
    """Has the table show every run, and not seeds together."""
    tab.select_option("#rows", "each")
    return tab


def column(tab, name):
    place = tab.locator("thead th").all_inner_texts().index(name)
    return tab.locator(f"tbody#body tr td:nth-child({place + 1})").all_inner_texts()


@pytest.mark.slow
def test_two_hundred_runs_open_fast_and_say_nothing_on_the_console(browser, large):
    assert large.stat().st_size < 10e6
    opened(browser, large)[0].close()  # once, for the browser to start
    began = time.monotonic()
    tab, said = opened(browser, large)
    seconds = time.monotonic() - began
    assert said == [] and len(column(tab, "method")) == 60
    assert seconds < 2 * 3  # 2 s alone; here beside other tests
    print(f"{seconds:.2f} s, {large.stat().st_size / 1e6:.1f} MB")


@pytest.mark.slow
def test_it_sorts(browser, large):
    tab, said = opened(browser, large)
    each_run(tab)
    head = tab.locator("thead th", has_text="result")

    def values():
        return [float(re.match(r"[\d.]+", text)[0]) for text in column(tab, "result")]

    head.locator("button").click()
    assert values() == sorted(values(), reverse=True) and head.get_attribute("aria-sort") == "descending"
    head.locator("button").press("Enter")
    assert values() == sorted(values()) and head.get_attribute("aria-sort") == "ascending"
    tab.locator("thead th button", has_text="method").click()
    assert column(tab, "method") == sorted(column(tab, "method"))
    assert said == []


@pytest.mark.slow
def test_it_filters(browser, large):
    tab, said = opened(browser, large)
    tab.select_option("#method", "snail")
    assert column(tab, "method") == ["snail"] * (60 // len(METHODS))
    each_run(tab)
    assert {*column(tab, "method")} == {"snail"} and len(column(tab, "method")) == 200 / len(METHODS)
    tab.fill("#text", "20-way 5-shot")
    assert {*column(tab, "setting")} == {"omniglot, 20-way 5-shot"}
    assert tab.locator("#count").inner_text() == f"{len(column(tab, 'method'))} of 200"
    tab.click("button[type=reset]")
    tab.locator("#count", has_text="60 of 60").wait_for()
    tab.fill("#text", "no such words")
    assert column(tab, "method") == [] and said == []


@pytest.mark.slow
def test_seeds_are_together_or_apart(browser, large, records):
    groups = {group.records[0].name: group for group in replicates_of(records)}
    tab, said = opened(browser, large)
    assert tab.locator("#count").inner_text() == "60 of 60" and tab.is_visible("#rows")
    for name, seeds, result in zip(*(column(tab, name) for name in ("run", "seed", "result")), strict=True):
        group = groups[name.partition(" and ")[0]]
        values = [record.result["value"] for record in group.records]
        assert seeds == ", ".join(str(record.result["seed"]) for record in group.records)
        mean, ci95, number, low, high = map(float, re.fullmatch(OF_SEEDS, result).groups())
        assert number == len(values)
        for shown, value in ((mean, np.mean(values)), (low, min(values)), (high, max(values))):
            assert shown == pytest.approx(100 * value, abs=0.0051)
        assert ci95 == pytest.approx(100 * group.ci95, rel=0.06)
    tab.locator("thead th button", has_text="result").click()
    means = [float(text.partition("%")[0]) for text in column(tab, "result")]
    assert means == sorted(means, reverse=True)
    # Unfolded, every seed has its value.
    group = groups[column(tab, "run")[0].partition(" and ")[0]]
    tab.locator("#body summary").first.click()
    said_of_each = tab.locator("#body details").first.locator("li").all_inner_texts()
    assert said_of_each[1:] == [
        f"seed {record.result['seed']}: {100 * record.result['value']:.2f}% ± 0.3%" for record in group.records
    ]
    assert float(re.fullmatch(r"standard deviation ([\d.]+)%", said_of_each[0])[1]) == pytest.approx(
        100 * group.sd, rel=0.06
    )
    # A row is found by each of its seeds, and not by words of two of them.
    first, last = (group.records[place].result["seed"] for place in (0, -1))
    tab.fill("#text", f"seed={last} {group.records[0].result['method']}")
    assert any(str(last) in each.split(", ") for each in column(tab, "seed"))
    tab.fill("#text", f"multirun/{first} seed={last}")
    assert column(tab, "seed") == []
    tab.fill("#text", "")
    each_run(tab)
    assert tab.locator("#count").inner_text() == "200 of 200" and len(column(tab, "seed")) == 200
    values = [float(text.partition("%")[0]) for text in column(tab, "result")]
    assert values == sorted(values, reverse=True)  # sorted as before
    assert tab.locator("#body details").count() == 0
    tab.select_option("#rows", "together")
    assert [float(text.partition("%")[0]) for text in column(tab, "result")] == means and said == []


def test_without_replicates_there_is_nothing_to_take_together(browser, tmp_path):
    write_run(tmp_path / "a", method="maml")
    write_run(tmp_path / "b", method="protonet")
    (tmp_path / "report.html").write_text(page(*collect([str(tmp_path)])), encoding="utf-8")
    tab, said = opened(browser, tmp_path / "report.html")
    assert tab.is_hidden("#rows") and tab.locator("#count").inner_text() == "2 of 2"
    assert column(tab, "result") == ["90.00% ± 0.3%"] * 2 and said == []


@pytest.mark.slow
@pytest.mark.parametrize("width, height", [(1366, 768), (390, 844)])
@pytest.mark.parametrize("scheme", ("light", "dark"))
def test_it_fits_a_laptop_and_a_phone(browser, large, width, height, scheme):
    tab, said = opened(browser, large, width, height, scheme)
    overflow = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert overflow <= 0 and said == []
    titles = tab.locator("#charts h3").all_inner_texts()
    settings = {f"omniglot, {way}-way {shot}-shot" for way in (5, 20) for shot in (1, 5)}
    for part in ("Validation", "Training"):
        own = {title.partition(" (")[0] for title in titles if title.startswith(part)}
        assert own == {f"{part} accuracy, %: {setting}" for setting in settings}
    assert any("against inner steps" in title for title in titles) and tab.locator("#charts path").count() > 10
    assert tab.locator(".gallery img").count() > 10


def test_curves_are_of_one_setting_each_and_over_seeds(browser, tmp_path):
    for seed in range(3):
        for method, shot in (("maml", 1), ("maml", 5), ("protonet", 1)):
            write_run(tmp_path / f"{method}{shot}{seed}", method=method, shot=shot, seed=seed, value=0.8 + 0.01 * seed)
    (write_run(tmp_path / "unfinished", method="anil") / "result.json").unlink()
    records, _ = collect([str(tmp_path)])
    (tmp_path / "report.html").write_text(page(records, []), encoding="utf-8")
    tab, said = opened(browser, tmp_path / "report.html")

    def lines():
        """`{title: [[name, number of paths], ...]}` of the charts: a line and, over seeds, a band."""
        return tab.evaluate(
            "Object.fromEntries([...document.querySelectorAll('#charts figure')].map((each) => [each.querySelector('h3').textContent,"
            "[...each.querySelectorAll('svg g')].map((g) => [g.querySelector('title').textContent.split(':')[0],"
            "g.querySelectorAll('path').length])]))"
        )

    found = lines()
    assert found["Validation accuracy, %: omniglot, 5-way 1-shot"] == [
        ["maml", 2],
        ["protonet", 2],
        ["anil, not finished", 1],
    ]
    assert found["Training accuracy, %: omniglot, 5-way 5-shot"] == [["maml", 2]]
    each_run(tab)
    assert lines()["Validation accuracy, %: omniglot, 5-way 5-shot"] == [[f"maml, seed {seed}", 1] for seed in range(3)]
    assert said == []


def test_a_group_has_the_curve_over_its_seeds(tmp_path):
    for seed in range(3):
        write_run(tmp_path / str(seed), seed=seed, value=0.8 + 0.02 * seed)
    records, _ = collect([str(tmp_path)])
    text = re.search(r'id="data">(.*?)</script>', page(records, []))[1]
    (group,) = json.loads(text)["groups"]
    curves = np.array([[value for _, value in record.curve["val/accuracy"]] for record in records])
    steps, mean, half = np.array(group["curve"]["val"]).T
    assert steps.tolist() == [step for step, _ in records[0].curve["val/accuracy"]]
    np.testing.assert_allclose(mean, curves.mean(0), rtol=1e-3)
    np.testing.assert_allclose(half, scipy.stats.t.ppf(0.975, 2) * scipy.stats.sem(curves), rtol=1e-2)
    assert group["label"] == "maml"


def test_pictures_are_in_natural_order_and_those_of_further_seeds_folded_away(tmp_path):
    for number in (1, 2, 10):
        write_run(tmp_path / f"run{number}", method=f"m{number}")
    write_run(tmp_path / "run11", method="m10", seed=1)
    text = page(*collect([str(tmp_path)]))
    assert re.findall(r"<figcaption>(\w+), gallery|<summary>(.*?)</summary>", text) == [
        ("run1", ""),
        ("run2", ""),
        ("run10", ""),
        ("", "1 more of other seeds than that of run10"),
        ("run11", ""),
    ]


@pytest.mark.parametrize("width", [1280, 390])
def test_pictures_stand_below_each_other_in_the_page(browser, tmp_path, width):
    for number in (1, 2, 10):
        write_run(tmp_path / f"run{number}", method=f"m{number}")
    (tmp_path / "report.html").write_text(page(*collect([str(tmp_path)])), encoding="utf-8")
    tab, _ = opened(browser, tmp_path / "report.html", width)
    boxes = [figure.bounding_box() for figure in tab.locator(".gallery > figure").all()]
    assert len({box["x"] for box in boxes}) == 1 and len(boxes) == 3
    assert all(above["y"] + above["height"] <= below["y"] for above, below in itertools.pairwise(boxes))
    overflow = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert overflow <= 0


@pytest.mark.slow
def test_the_tables_are_downloaded(browser, large, records, tmp_path):
    tab, _ = opened(browser, large)
    compared = pivot(records)
    forms = {"#md": tables.markdown, "#csv": tables.comma_separated, "#tex": tables.latex}
    forms |= {"#pmd": lambda _: pivot_tables.markdown(compared), "#ptex": lambda _: pivot_tables.latex(compared)}
    for button, form in forms.items():
        with tab.expect_download() as download:
            tab.click(button)
        download.value.save_as(tmp_path / "table")
        text = (tmp_path / "table").read_bytes().decode()
        assert text == form(records)


def test_checks_that_were_not_made_are_counted_and_have_not_failed(tmp_path):
    unmade = {"passed": None, "value": None, "reason": "targets are numbers"}
    of = {"a": {"query_order": {"passed": True}, "relabelling": unmade}, "b": {"relabelling": unmade}}
    of["c"] = {"query_order": {"passed": False}, "relabelling": unmade}
    for name, checks in of.items():
        write_run(tmp_path / name, method=name, checks=checks)
    records, _ = collect([str(tmp_path)])
    said = [tables.row(group)["checks"] for group in replicates_of(records)]
    left_out = "; not checked: relabelling"
    assert said == [f"passed{left_out}", f"not run{left_out}", f"FAILED: query order{left_out}"]


def test_the_page_has_a_result_by_domain_and_size(tmp_path):
    directory = write_run(tmp_path / "run")
    of_part = lambda value: {"value": value, "ci95": 0.0125, "num_tasks": 150}
    result = json.loads((directory / "result.json").read_text())
    parts = {"domains": {"glyphs": of_part(0.75), "<b>": of_part(0.5)}, "by_way": {"5": of_part(0.625)}}
    (directory / "result.json").write_text(json.dumps({**result, **parts}))
    records, faults = collect([str(tmp_path)])
    html = page(records, faults)
    row = "<tr><td>{}</td><td>{} ± 1.2%</td><td>150</td></tr>"
    assert row.format("glyphs", "75.00%") in html and row.format("&lt;b&gt;", "50.00%") in html
    assert row.format("5", "62.50%") in html and "<th>way</th><th>accuracy</th><th>tasks</th>" in html
    assert "<b>" not in html
    write_run(tmp_path / "plain")
    assert "By domain" not in page(*collect([str(tmp_path / "plain")]))
