"""The table for a paper: what stands where, what is bold, what is marked, and its forms."""

import itertools
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import scipy.stats
from many_runs import write_run
from test_cli import metarun, refused

from metarun.errors import ConfigError
from metarun.report import pivot_tables
from metarun.report.collection import collect
from metarun.report.natural import natural
from metarun.report.pivot import pivot
from metarun.report.replicates import replicates_of


def records_of(root):
    return collect([str(root)])[0]


def write_grid(root):
    """Two methods by two ways and shots, of three seeds each: `{(method, way, shot): values}`."""
    draw, found = np.random.default_rng(0), {}
    for number, (method, way, shot) in enumerate(itertools.product(("maml", "anil"), (20, 5), (5, 1))):
        values = 0.8 + 0.03 * draw.random(3)
        for seed, value in enumerate(values):
            where = root / f"run{3 * number + seed}"
            write_run(where, method=method, way=way, shot=shot, seed=seed, value=float(value))
        found[method, way, shot] = values
    return found


def cells_of(table):
    """`{(row, heading): cell}`."""
    return {(table.rows[row], table.heading(column)): cell for (row, column), cell in table.cells.items()}


def test_methods_are_down_and_settings_across_with_means_over_seeds(tmp_path):
    values = write_grid(tmp_path)
    table = pivot(records_of(tmp_path))
    assert table.rows == ["anil", "maml"]
    headings = [f"omniglot, {way}-way {shot}-shot" for way in (5, 20) for shot in (1, 5)]
    assert [table.heading(column) for column in range(4)] == headings and table.notes == {}
    for (method, way, shot), of_seeds in values.items():
        cell = cells_of(table)[method, f"omniglot, {way}-way {shot}-shot"]
        tasks, seeds = (0.003 / 1.96) ** 2, np.var(of_seeds, ddof=1) / 3
        half = scipy.stats.t.ppf(0.975, (tasks + seeds) ** 2 / (seeds**2 / 2)) * np.sqrt(tasks + seeds)
        assert float(cell.mean) == pytest.approx(100 * np.mean(of_seeds), abs=0.051)
        assert float(cell.half) == pytest.approx(100 * half, abs=0.051)
    assert "mean over 3 seeds" in table.caption
    assert "dataset.split=maml" in table.caption and "eval_tasks=600" in table.caption


def test_accuracies_of_all_columns_have_equally_many_decimals(tmp_path):
    for k, ci95 in enumerate((0.03, 0.002)):
        write_run(tmp_path / str(k), shot=k + 1, ci95=ci95)
    assert [cell.half for cell in pivot(records_of(tmp_path)).cells.values()] == ["3.00", "0.20"]


def test_the_numbers_of_a_column_have_equally_many_decimals(tmp_path):
    for k, (value, ci95) in enumerate([(0.9, 0.0312), (0.95123, 0.0041), (0.8, 0.2)]):
        write_run(tmp_path / str(k), method=f"m{k}", value=value, ci95=ci95)
        write_run(tmp_path / f"r{k}", method=f"m{k}", value=-1e4 * value, ci95=1e4 * ci95, metric="reward", env="point")
        write_run(tmp_path / f"e{k}", method=f"m{k}", value=value / 1e4, ci95=ci95 / 1e5, metric="mse", dataset="sine")
    table = pivot(records_of(tmp_path))
    written = {}
    for (_, heading), cell in cells_of(table).items():
        written.setdefault(heading, []).append((cell.mean, cell.half))
    assert written == {
        "omniglot, 5-way 1-shot": [("90.00", "3.12"), ("95.12", "0.41"), ("80.00", "20.00")],
        "point, 5-way 1-shot": [("-9000", "312"), ("-9512", "41"), ("-8000", "2000")],
        "sine, 5-way 1-shot": [("9.000e-05", "3.120e-07"), ("9.512e-05", "4.100e-08"), ("8.000e-05", "2.000e-06")],
    }


def test_an_interval_is_never_written_as_none(tmp_path):
    for k, ci95 in enumerate((0.00004, 0.01)):
        write_run(tmp_path / str(k), method=f"m{k}", value=0.99999, ci95=ci95)
    assert [cell.half for cell in pivot(records_of(tmp_path)).cells.values()] == ["0.004", "1.000"]


@pytest.mark.parametrize("metric, best", [("accuracy", {"c", "d"}), ("reward", {"c", "d"}), ("mse", {"a"})])
def test_bold_is_the_best_and_what_overlaps_with_it(tmp_path, metric, best):
    for name, value, ci95 in (("a", 0.5, 0.01), ("b", 0.6, 0.05), ("c", 0.7, 0.03), ("d", 0.72, 0.01)):
        write_run(tmp_path / name, method=name, value=value, ci95=ci95, metric=metric)
    table = pivot(records_of(tmp_path))
    assert {row for (row, _), cell in cells_of(table).items() if cell.best} == best


def test_what_stands_alone_is_not_best(tmp_path):
    write_run(tmp_path / "a")
    assert not any(cell.best for cell in pivot(records_of(tmp_path)).cells.values())


def test_another_protocol_in_a_column_is_marked_and_takes_no_part(tmp_path):
    protocol = json.loads((write_run(tmp_path / "a", method="a", value=0.7) / "result.json").read_text())["protocol"]
    write_run(tmp_path / "b", method="b", value=0.6)
    write_run(tmp_path / "c", method="c", value=0.9, protocol={**protocol, "eval_seed": 3}, protocol_id="3")
    write_run(tmp_path / "d", method="d", value=0.9, protocol={**protocol, "way": 5}, way=5, shot=5)
    failed = {"query_order": {"passed": False}}
    write_run(tmp_path / "e", method="e", value=0.95, checks=failed)
    # What one method alone knows is no difference.
    own = {**protocol, "method": {**protocol["method"], "temperature": 2}}
    write_run(tmp_path / "f", method="f", value=0.5, protocol=own, protocol_id="f")
    table = pivot(records_of(tmp_path))
    found = {row: ([table.notes[mark] for mark in cell.marks], cell.best) for (row, _), cell in cells_of(table).items()}
    assert found == {
        "a": ([], True),
        "b": ([], False),
        "c": (["another protocol than the rest of the column: eval_seed=3, not 0"], False),
        "d": ([], False),  # of another column
        "e": (["checks FAILED: query order"], False),
        "f": ([], False),
    }
    assert "eval_seed" in table.caption.partition("differs between results in")[2]


def test_other_numbers_of_seeds_are_marked(tmp_path):
    for seed in range(3):
        write_run(tmp_path / "a" / str(seed), method="a", seed=seed, value=0.9 + 0.01 * seed)
        write_run(tmp_path / "b" / str(seed), method="b", seed=seed, value=0.9 + 0.02 * seed)
    write_run(tmp_path / "c", method="c")
    table = pivot(records_of(tmp_path))
    marks = {row: [table.notes[mark] for mark in cell.marks] for (row, _), cell in cells_of(table).items()}
    assert marks == {"a": [], "b": [], "c": ["1 seed"]}


def test_no_result_shares_its_place_or_is_lost_whatever_is_asked(tmp_path):
    write_grid(tmp_path)
    for k, settings in enumerate(
        ({"outer_lr": 0.1}, {"outer_lr": 0.2}, {"outer_lr": 0.2, "deep": {"x": list(range(99))}})
    ):
        write_run(tmp_path / f"more{k}", method="maml", seed=7, settings=settings)
    write_run(tmp_path / "again" / "run0", method="maml", seed=7, settings={"outer_lr": 0.1})
    run = write_run(tmp_path / "evaluated", method="protonet")
    result = json.loads((run / "result.json").read_text())
    (run / "evaluations").mkdir()
    rows = [{"key": "eval_seed", "value": 1, "result": result}]
    for name in ("sweep-1.json", "sweep-2.json"):  # of one name in a report
        (run / "evaluations" / name).write_text(json.dumps(rows))
    (write_run(tmp_path / "unfinished", method="none") / "result.json").unlink()
    records = records_of(tmp_path)
    groups = [group for group in replicates_of(records) if group.records[0].result]
    values = sorted(group.value for group in groups)
    asked = (
        None,
        "method",
        "dataset",
        "way,shot",
        "outer_lr,method",
        "method.eval_inner_steps",
        "metric",
        "kind,steps",
    )
    tables = 0
    for rows, columns in itertools.product(asked, asked):
        try:
            table = pivot(records, rows, columns)
        except ConfigError as error:
            assert "is in both" in str(error)
            continue
        tables += 1
        assert sorted(cell.group.value for cell in table.cells.values()) == values, (rows, columns)
        assert table.left_out == ["unfinished"]
    assert tables > 40
    numbers = [place + 1 for place, group in enumerate(groups) if group.records[0].evaluation]
    assert pivot(records).rows == [
        "anil",
        "maml",
        "maml (outer_lr=0.1)",
        "maml (outer_lr=0.1, run=more0)",
        "maml (outer_lr=0.2)",
        f"maml (outer_lr=0.2, deep.x={str([*range(99)])[:39]}…)",
        "protonet",
        "protonet (evaluation)",
        f"protonet (evaluation, result={numbers[1]})",
    ]


def test_rows_are_divided_by_as_little_as_tells_them_apart(tmp_path):
    for k, rate in enumerate((0.1, 0.4)):
        for seed in range(2):
            own = {"outer_lr": rate, "method": {"name": "maml", "inner_lr": rate, "eval_inner_steps": 3}}
            write_run(tmp_path / f"{k}{seed}", seed=seed, settings=own)
    write_run(tmp_path / "other", method="protonet", settings={"outer_lr": 0.1})
    assert pivot(records_of(tmp_path)).rows == ["maml (method.inner_lr=0.1)", "maml (method.inner_lr=0.4)", "protonet"]


def test_numbers_of_different_quantities_are_in_no_column_together(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", method="b", metric="mse")
    table = pivot(records_of(tmp_path))
    assert table.metrics == ["accuracy", "mse"] and table.column_keys[-1] == "metric"
    assert "less is better" in table.caption


def test_rows_and_columns_are_as_asked(tmp_path):
    write_grid(tmp_path)
    records = records_of(tmp_path)
    table = pivot(records, "shot, way", "method")
    assert table.rows == ["1-shot 5-way", "1-shot 20-way", "5-shot 5-way", "5-shot 20-way"]
    assert [table.heading(column) for column in range(2)] == ["anil", "maml"]
    for rows, columns, said in (
        ("meth", None, "--rows=meth: expected names out of method, dataset, way, shot"),
        (None, "way,way", "--columns=way,way: expected"),
        ("", None, "--rows=: expected"),
        ("method", "way,method", "method is in both"),
    ):
        with pytest.raises(ConfigError, match=re.escape(said)):
            pivot(records, rows, columns)
    (write_run(tmp_path / "alone" / "x") / "result.json").unlink()
    with pytest.raises(ConfigError, match="one that has ended at least"):
        pivot(records_of(tmp_path / "alone"))


def test_what_is_not_finite_is_said_and_never_best(tmp_path):
    write_run(tmp_path / "a", method="a", value=0.5)
    write_run(tmp_path / "b", method="b", value=0.6)
    file = write_run(tmp_path / "c", method="c") / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"value": None, "ci95": None}))
    table = pivot(records_of(tmp_path))
    cells = {row: cell for (row, _), cell in cells_of(table).items()}
    assert (cells["c"].mean, cells["c"].half, cells["c"].best) == ("not finite", "", False) and cells["b"].best
    assert "& not finite" in pivot_tables.latex(table) and "| not finite |" in pivot_tables.markdown(table)


def test_markdown_has_what_the_table_has(tmp_path):
    write_grid(tmp_path)
    write_run(tmp_path / "x", method="p|<q>", value=0.99)
    table = pivot(records_of(tmp_path))
    caption, body, note = pivot_tables.markdown(table).strip().split("\n\n")
    lines = [re.split(r"(?<!\\)\|", line.strip("|")) for line in body.splitlines()]
    assert {len(line) for line in lines} == {5} and len(lines) == 2 + 3
    assert [line[0].strip() for line in lines[2:]] == ["anil", "maml", "p\\|&lt;q>"]
    assert lines[4][1].strip() == "**99.00** ± 0.30 <sup>a</sup>" and lines[4][2].strip() == "–"
    assert note == "a: 1 seed." and caption.startswith("Accuracy in %: mean over 3 seeds")


# ---- LaTeX.

HOSTILE = r"[3] \input{/etc/passwd} \end{table} 100% $x$ ^^5c #1 ~ & _ {"


def table_of(text):
    """The lines of a `tabular`, each as many cells as it covers columns, from LaTeX whose braces and environments match."""
    bare = re.sub(r"\\[\\{}%&$#_]", "", re.sub(r"(?m)^%.*\n", "", text))
    depth = 0
    for character in bare:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0 and bare.count("$") % 2 == 0 and "%" not in bare and "#" not in bare
    opened = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", bare):
        assert kind == "begin" or opened.pop() == name
        opened += [name] if kind == "begin" else []
    assert opened == []
    body = text.partition(r"\toprule")[2].partition(r"\bottomrule")[0]
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    widths = []
    for line in lines:
        cells = re.split(r"(?<!\\)&", line)
        widths.append(
            sum(int(span[1]) if (span := re.search(r"\\multicolumn\{(\d+)\}", cell)) else 1 for cell in cells)
        )
    return lines, widths


def test_latex_is_whole_and_its_headings_span_their_columns(tmp_path):
    write_grid(tmp_path)
    write_run(tmp_path / "x", method=HOSTILE, value=0.99, ci95=0.12)
    (write_run(tmp_path / "un\nfinished") / "result.json").unlink()
    text = pivot_tables.latex(pivot(records_of(tmp_path)))
    lines, widths = table_of(text)
    assert widths == [5] * 6 and r"\begin{tabular}{lrrrr}" in text
    assert r"\multicolumn{4}{c}{omniglot}" in lines[0] and lines[1].count(r"\multicolumn{2}{c}") == 2
    assert r"\cmidrule(lr){2-3}\cmidrule(lr){4-5}" in text and lines[2].startswith("method & ")
    # A shorter interval takes as much room, so that the points of the means stand below each other.
    assert re.search(r"\$\\mathbf\{99\.00?\} \\pm 12\.00?\$\\rlap\{\\textsuperscript\{a\}\}", text)
    assert r" \pm \phantom{0}" in lines[4] and r" \pm \phantom{0}" not in lines[3]
    assert r"\input" not in text.replace(r"\textbackslash{}input", "") and "\n[" not in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX on this machine")
def test_latex_compiles(tmp_path):
    write_grid(tmp_path / "runs")
    write_run(tmp_path / "runs" / "x", method=HOSTILE, value=0.99)
    write_run(tmp_path / "runs" / "y", method="*", checks={"query_order": {"passed": False}})
    table = pivot_tables.latex(pivot(records_of(tmp_path / "runs")))
    text = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n" + table + "\\end{document}\n"
    (tmp_path / "paper.tex").write_text(text)
    command = ["pdflatex", "-no-shell-escape", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Warning: " not in done.stdout and (tmp_path / "paper.pdf").read_bytes().startswith(b"%PDF")


# ---- The command.


def test_the_command_writes_both_forms(tmp_path):
    write_grid(tmp_path / "runs")
    forms = ("--pivot-markdown", "p.md", "--pivot-latex", "p.tex", "--rows", "method,shot", "--columns", "way")
    done = metarun("runs", *forms, cwd=tmp_path, command="metarun-report")
    assert done.returncode == 0, done.stderr
    table = pivot(records_of(tmp_path / "runs"), "method,shot", "way")
    assert (tmp_path / "p.md").read_text() == pivot_tables.markdown(table)
    assert (tmp_path / "p.tex").read_text() == pivot_tables.latex(table)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("--rows", "way"), "--rows=way: expected --pivot-markdown, --pivot-latex or --figures besides"),
        (("--pivot-latex", "p.tex", "--columns", "ways"), "--columns=ways: expected names out of method"),
        (("--pivot-latex", "."), "--pivot-latex=.: expected the name of a file"),
        (("--figures", "a.txt"), "--figures=a.txt: expected a directory"),
    ],
)
def test_what_is_refused_leaves_nothing(tmp_path, arguments, said):
    write_run(tmp_path / "runs")
    (tmp_path / "a.txt").write_text("")
    refused(metarun("runs", *arguments, cwd=tmp_path, command="metarun-report"), said)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.txt", "runs"]


def test_numbers_in_names_are_in_their_order(tmp_path):
    names = ["10", "2", "a", "a10b", "a2b", "a02b", "run10", "run2", "9" * 5000]
    assert sorted(names, key=natural)[:3] == ["2", "10", "9" * 5000]
    assert sorted(names[2:8], key=natural) == ["a", "a02b", "a2b", "a10b", "run2", "run10"]
    for name in ("run10", "run2", "run1"):
        write_run(tmp_path / "sweep 10" / name)
        write_run(tmp_path / "sweep 9" / name)
    names = [record.name for record in records_of(tmp_path)]
    assert names == [f"sweep {sweep}/run{run}" for sweep in (9, 10) for run in (1, 2, 10)]
