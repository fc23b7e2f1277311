"""The figures of a comparison: curves over seeds, results with intervals, and files that a journal takes."""

import base64
import io
import re
import xml.etree.ElementTree

import numpy as np
import pytest
import scipy.stats
from fontTools.ttLib import TTFont
from many_runs import write_run
from test_cli import metarun

from metarun.report.collection import collect
from metarun.report.comparison_figures import MOST_LINES, draw_curves, draw_results, figures
from metarun.report.figure import pdf, svg
from metarun.report.pivot import pivot
from metarun.report.seed_curves import over_seeds
from metarun.system.reading import LARGEST


def records_of(root):
    return collect([str(root)])[0]


def test_a_curve_over_seeds_is_the_mean_with_students_interval():
    values = np.random.default_rng(0).normal(size=(4, 3))
    steps = [10, 20, 40]
    band = over_seeds([list(zip(steps, row, strict=True)) for row in values])
    assert band.steps.tolist() == steps
    np.testing.assert_allclose(band.mean, values.mean(0))
    low, high = scipy.stats.t.interval(0.95, df=3, loc=values.mean(0), scale=scipy.stats.sem(values))
    np.testing.assert_allclose([band.mean - band.half, band.mean + band.half], [low, high])
    alone = over_seeds([[(1, 2.0), (3, 4.0)]])
    assert (alone.mean.tolist(), alone.half) == ([2.0, 4.0], None)


def test_curves_of_other_steps_are_taken_where_both_are_known():
    band = over_seeds([[(0, 0.0), (10, 10.0), (20, 30.0), (30, 0.0)], [(5, 1.0), (20, 1.0)]])
    assert band.steps.tolist() == [5, 20] and band.mean.tolist() == [3.0, 15.5]  # of 5 and 1, and of 30 and 1
    assert over_seeds([[(0, 0.0), (1, 1.0)], [(2, 0.0), (3, 1.0)]]) is None
    assert np.isfinite(over_seeds([[(0, 1e308), (1, 1e308)]] * 3).mean).all()


def write_grid(root):
    for method, value in (("maml", 0.9), ("protonet", 0.93)):
        for shot in (1, 5):
            for seed in range(3):
                where = root / f"{method} {shot} {seed}"
                write_run(where, method=method, shot=shot, seed=seed, value=value + 0.01 * seed + 0.005 * shot)


def test_curves_have_a_panel_for_each_setting_and_a_line_with_a_band_for_each_method(tmp_path):
    write_grid(tmp_path)
    records = records_of(tmp_path)
    figure = draw_curves(records, "val")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["omniglot, 5-way 1-shot", "omniglot, 5-way 5-shot"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["maml", "protonet"]
    for axes, shot in zip(figure.axes, (1, 5), strict=True):
        assert len(axes.lines) == len(axes.collections) == 2
        for line, band, method in zip(axes.lines, axes.collections, ("maml", "protonet"), strict=True):
            curves = np.array(
                [
                    [value for _, value in record.curve["val/accuracy"]]
                    for record in records
                    if (record.ended["method"], record.ended["shot"]) == (method, shot)
                ]
            )
            assert len(curves) == 3
            np.testing.assert_allclose(line.get_ydata(), 100 * curves.mean(0), rtol=1e-3)
            half = 100 * scipy.stats.t.ppf(0.975, 2) * scipy.stats.sem(curves)
            top = np.minimum(100 * curves.mean(0) + half, 100).max()  # no accuracy is above
            assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(top, rel=1e-3)


def test_of_many_lines_the_best_are_drawn_and_it_is_said(tmp_path):
    for k in range(MOST_LINES + 3):
        write_run(tmp_path / str(k), value=0.5 + 0.01 * k, settings={"outer_lr": k})
    (axes,) = draw_curves(records_of(tmp_path), "val").axes
    assert len(axes.lines) == MOST_LINES and axes.get_title(loc="left").endswith(
        f"best {MOST_LINES} of {MOST_LINES + 3}"
    )
    assert min(line.get_ydata()[-1] for line in axes.lines) > 100 * (0.5 + 0.01 * 2)


def test_runs_without_curves_have_no_figure_of_them(tmp_path):
    (write_run(tmp_path / "a") / "metrics.jsonl").unlink()
    records = records_of(tmp_path)
    assert list(figures(records, pivot(records))) == ["results"]


def test_results_stand_where_they_are_with_their_intervals_and_seeds(tmp_path):
    write_grid(tmp_path)
    write_run(tmp_path / "alone", method="anil", value=0.8)
    table = pivot(records_of(tmp_path))
    figure = draw_results(table)
    for column, axes in enumerate(figure.axes):
        assert axes.get_title(loc="left") == table.heading(column)
        drawn = {(tuple(line.get_xdata()), tuple(line.get_ydata())) for line in axes.lines}
        for row in range(len(table.rows)):
            if (row, column) in table.cells:
                group = table.cells[row, column].group
                value, half = 100 * group.value, 100 * group.ci95
                assert {((value,), (row,)), ((value - half, value + half), (row, row))} <= drawn
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["anil", "maml", "protonet"]
    assert figure.get_supxlabel() == "a: 1 seed"
    assert [text.get_text() for text in figure.axes[0].texts] == ["a"] and not figure.axes[1].texts


def test_numbers_of_any_size_are_drawn_and_written(tmp_path):
    values = ((LARGEST, -LARGEST), (1e-308, 0.0), (LARGEST, LARGEST))
    for k, its in enumerate(values):
        for seed, value in enumerate(its):
            write_run(
                tmp_path / f"{k}{seed}",
                method=f"m{k}",
                seed=seed,
                value=value,
                ci95=abs(value),
                metric="reward",
                env="x",
            )
    table = pivot(records_of(tmp_path))
    assert len(table.cells) == 3 and max(len(cell.mean) for cell in table.cells.values()) < 12
    assert pdf(draw_results(table)) and svg(draw_results(table))


@pytest.fixture
def table(tmp_path):
    write_run(tmp_path / "a", method="m_a$x^2$", value=0.9)
    write_run(tmp_path / "b", method="größer", value=0.8)
    return pivot(records_of(tmp_path))


def test_a_pdf_has_its_fonts_and_equal_figures_are_equal_files(table):
    data = pdf(draw_results(table))
    assert data.startswith(b"%PDF") and b"/FontFile2" in data and b"/ToUnicode" in data and b"/Type3" not in data
    assert b"CreationDate" not in data and data == pdf(draw_results(table))


def test_an_svg_has_text_as_text_and_every_character_of_it_in_its_font(table):
    data = svg(draw_results(table))
    assert data == svg(draw_results(table))
    space = "{http://www.w3.org/2000/svg}"
    root = xml.etree.ElementTree.fromstring(data)
    words = ["".join(node.itertext()) for node in root.iter(f"{space}text")]
    assert {"m_a$x^2$", "größer", "accuracy in %", "omniglot, 5-way 1-shot"} <= {*words}
    (style,) = [node.text for node in root.iter(f"{space}style") if "@font-face" in node.text]
    font = TTFont(io.BytesIO(base64.b64decode(re.search(r"base64,([A-Za-z0-9+/=]+)\)", style)[1])))
    assert {ord(character) for word in words for character in word} <= {*font.getBestCmap()}
    assert re.search(r"font-family: '([^']+)'", style)[1] == font["name"].getDebugName(1) and len(data) < 60_000


def test_the_command_writes_figures(tmp_path):
    write_grid(tmp_path / "runs")
    done = metarun("runs", "--figures", "paper/figures", cwd=tmp_path, command="metarun-report")
    assert done.returncode == 0, done.stderr
    names = ("results", "training_curves", "validation_curves")
    found = sorted(file.name for file in (tmp_path / "paper" / "figures").iterdir())
    assert found == [f"{name}.{end}" for name in names for end in ("pdf", "svg")]
