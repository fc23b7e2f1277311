"""A report: what it collects, its tables, and its page in a real browser."""

import csv
import io
import json
import math
import re
import shutil
import time

import numpy as np
import pytest
from many_runs import METHODS, write_run, write_runs
from test_cli import metarun, refused

from metarun.equivalence import Ours, over_seeds
from metarun.errors import ConfigError
from metarun.report import tables
from metarun.report.collection import collect, differing_keys
from metarun.report.page import page
from metarun.report.replicates import together

# The result of several seeds, as the page has it.
OF_SEEDS = r"([\d.]+)% ± ([\d.]+)%\n(\d+) seeds, ([\d.]+) to ([\d.]+)"
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
    assert len(collect([str(tmp_path), str(tmp_path)])[0]) == 4


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


def test_the_keys_in_which_protocols_differ_are_named(tmp_path):
    for k, steps in enumerate((3, 5, 3)):
        write_run(tmp_path / str(k), inner_steps=steps)
    write_run(tmp_path / "other", shot=5, inner_steps=7)  # another setting, which nobody compares with these
    records, _ = collect([str(tmp_path)])
    assert differing_keys(records) == {"method.eval_inner_steps": [3, 5]}
    assert "<code>method.eval_inner_steps</code></td><td>3, 5<" in page(records, [])


def test_only_runs_that_differ_in_nothing_but_the_seed_are_taken_together(tmp_path):
    for seed, value in ((2, 0.92), (0, 0.9), (1, 0.97)):
        write_run(tmp_path / "same" / str(seed), seed=seed, value=value, settings={"resume": seed > 0})
    write_run(tmp_path / "same" / "again", seed=1, value=0.97)
    write_run(tmp_path / "other settings", seed=3, settings={"outer_lr": 0.1})
    write_run(tmp_path / "other protocol", seed=4, inner_steps=5)
    write_run(tmp_path / "other tasks", seed=5, num_tasks=1000)
    diverged = write_run(tmp_path / "not finite", seed=6) / "result.json"
    diverged.write_text(json.dumps({**json.loads(diverged.read_text()), "value": None}))
    (write_run(tmp_path / "unfinished", seed=7) / "result.json").unlink()
    groups = together(collect([str(tmp_path)])[0])
    seeds = [[record.result["seed"] for record in group.records if record.result] for group in groups]
    assert sorted(seeds) == [[], [0, 1, 2], [1], [3], [4], [5], [6]]
    (group,) = [group for group in groups if len(group.records) == 3]
    assert group.value == pytest.approx(0.93)
    # The tasks' variance, which the seeds share, and that of the mean of three seeds; their degrees of freedom apart.
    assert (group.value, group.ci95) == over_seeds(Ours([0.9, 0.97, 0.92], 0.003, 600))
    assert group.ci95 > 1.96 * math.hypot(0.003 / 1.96, np.std([0.9, 0.97, 0.92], ddof=1) / 3**0.5)
    cells = dict(zip(tables.COLUMNS, tables.row(group), strict=True))
    assert (cells["seed"], cells["run"]) == ("0, 1, 2", "same/0 and 2 more") and cells["result"].startswith("93.00% ±")


def test_the_table_in_other_forms(tmp_path):
    write_run(tmp_path / "a_b", value=0.98765)
    write_run(tmp_path / "c|d", checks={"query_order": {"passed": False}}, published={}, settings={"outer_lr": 1})
    names = {"markdown": "t.md", "csv": "t.csv", "latex": "t.tex"}
    done = report(tmp_path, *(f"--{form}={name}" for form, name in names.items()), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "t.md").read_text().splitlines()
    assert lines[2].startswith(
        "| maml | omniglot, 5-way 1-shot | 98.77% ± 0.3% | 98.70% ± 0.4% (table 1) | 0 | 600 | passed"
    )
    assert "c\\|d" in lines[3] and "FAILED: query order" in lines[3]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "t.csv").read_text())))
    assert [(row["run"], row["value"]) for row in rows] == [("a_b", "0.98765"), ("c|d", "0.9")]
    latex = (tmp_path / "t.tex").read_text()
    assert r"98.77\% $\pm$ 0.3\%" in latex and r"a\_b" in latex and latex.count(r"\\") == 3


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
def large(tmp_path_factory):
    """The page over 200 runs."""
    root = tmp_path_factory.mktemp("large")
    write_runs(root, 200)
    file = root / "report.html"
    file.write_text(page(*collect([str(root)])), encoding="utf-8")
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
    tab.uncheck("#together")
    return tab


def column(tab, name):
    place = tab.locator("thead th").all_inner_texts().index(name)
    return tab.locator(f"tbody#rows tr td:nth-child({place + 1})").all_inner_texts()


def test_two_hundred_runs_open_fast_and_say_nothing_on_the_console(browser, large):
    assert large.stat().st_size < 10e6
    opened(browser, large)[0].close()  # once, for the browser to start
    began = time.monotonic()
    tab, said = opened(browser, large)
    seconds = time.monotonic() - began
    assert said == [] and len(column(tab, "method")) == 60
    assert seconds < 2 * 3  # 2 s alone; here beside other tests
    print(f"{seconds:.2f} s, {large.stat().st_size / 1e6:.1f} MB")


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


def test_it_filters(browser, large):
    tab, said = opened(browser, large)
    each_run(tab)
    tab.select_option("#method", "snail")
    assert {*column(tab, "method")} == {"snail"} and len(column(tab, "method")) == 200 / len(METHODS)
    tab.fill("#text", "20-way 5-shot")
    assert {*column(tab, "setting")} == {"omniglot, 20-way 5-shot"}
    assert tab.locator("#count").inner_text() == f"{len(column(tab, 'method'))} of 200"
    tab.click("button[type=reset]")
    tab.locator("#count", has_text="60 of 60").wait_for()
    tab.fill("#text", "no such words")
    assert column(tab, "method") == [] and said == []


def test_seeds_are_together_or_apart(browser, large):
    groups = {group.records[0].name: group for group in together(collect([str(large.parent)])[0])}
    tab, said = opened(browser, large)
    assert tab.locator("#count").inner_text() == "60 of 60" and tab.is_visible("#together")
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
    seed = column(tab, "seed")[0].split(", ")[-1]
    tab.fill("#text", f"seed={seed}")  # finds the row that it is in
    assert any(seed in each.split(", ") for each in column(tab, "seed"))
    tab.fill("#text", "")
    each_run(tab)
    assert tab.locator("#count").inner_text() == "200 of 200" and len(column(tab, "seed")) == 200
    assert said == []


@pytest.mark.parametrize("width, height", [(1366, 768), (390, 844)])
@pytest.mark.parametrize("scheme", ("light", "dark"))
def test_it_fits_a_laptop_and_a_phone(browser, large, width, height, scheme):
    tab, said = opened(browser, large, width, height, scheme)
    overflow = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert overflow <= 0 and said == []
    titles = tab.locator("#charts h3").all_inner_texts()
    assert {"Validation accuracy, %", "Training accuracy, %"} <= {*titles}
    assert any("against inner steps" in title for title in titles) and tab.locator("#charts path").count() > 10
    assert tab.locator(".gallery img").count() > 10


def test_the_tables_are_downloaded(browser, large, tmp_path):
    tab, _ = opened(browser, large)
    for button, form in (("#md", tables.markdown), ("#csv", tables.comma_separated), ("#tex", tables.latex)):
        with tab.expect_download() as download:
            tab.click(button)
        download.value.save_as(tmp_path / "table")
        text = (tmp_path / "table").read_bytes().decode()
        assert text == form(collect([str(large.parent)])[0])
