import json

import numpy as np
import pytest
from matplotlib.collections import PolyCollection

from metarun.errors import DataError, MetarunError
from metarun.report.curves import draw_learning_curve, learning_curve


def run_of(num_lines, metric="accuracy", every=10, validate_every=50):
    """Lines as a run writes them: some with a validation, some without."""
    noise = np.random.default_rng(0).normal(size=num_lines)
    for i in range(1, num_lines + 1):
        step, value = i * every, 0.2 + 0.6 * i / num_lines
        line = {"step": step, "seconds": i / 2, "tasks_per_second": 40.0}
        line |= {"train/loss": 2 - value + 0.05 * noise[i - 1], f"train/query/{metric}": value + 0.05 * noise[i - 1]}
        if step % validate_every == 0:
            line |= {f"val/{metric}": value - 0.01, "val/ci95": 0.02}
        yield line


def write(path, lines, end="\n"):
    path.write_text("\n".join(map(json.dumps, lines)) + end)
    return path


def records_of(lines):
    return {line["step"]: line for line in lines}


def legend_of(figure):
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_a_short_run_is_drawn_as_it_is():
    lines = list(run_of(20))
    figure = draw_learning_curve(records_of(lines), metric="accuracy", selected_step=150)
    loss_axes, metric_axes = figure.axes
    (loss,) = loss_axes.lines
    np.testing.assert_array_equal(loss.get_xydata(), [(line["step"], line["train/loss"]) for line in lines])
    training, validation, selected = metric_axes.lines
    np.testing.assert_array_equal(training.get_ydata(), [line["train/query/accuracy"] for line in lines])
    np.testing.assert_array_equal(validation.get_xdata(), [50, 100, 150, 200])
    np.testing.assert_array_equal(validation.get_ydata(), [lines[i - 1]["val/accuracy"] for i in (5, 10, 15, 20)])
    np.testing.assert_allclose(selected.get_xydata(), [(150, 0.64)])
    assert legend_of(figure) == [
        "training",
        "validation, 95% interval over tasks",
        "selected, step 150: 64.0% ± 2.0%",
    ]


def test_the_band_is_the_interval_around_each_validation():
    figure = draw_learning_curve(records_of(run_of(20)), metric="accuracy")
    (band,) = (item for item in figure.axes[1].collections if isinstance(item, PolyCollection))
    corners = band.get_paths()[0].vertices
    for step, value in ((50, 0.34), (100, 0.49), (150, 0.64), (200, 0.79)):
        heights = corners[corners[:, 0] == step, 1]
        np.testing.assert_allclose([heights.min(), heights.max()], [value - 0.02, value + 0.02])


def test_a_long_run_is_smoothed_over_the_raw_curve_and_says_so():
    lines = list(run_of(500))
    figure = draw_learning_curve(records_of(lines), metric="accuracy")
    raw, smooth = figure.axes[0].lines
    values = np.array([line["train/loss"] for line in lines])
    np.testing.assert_array_equal(raw.get_ydata(), values)
    assert raw.get_alpha() < 1 and raw.get_linewidth() < smooth.get_linewidth()
    # 5,000 steps: a mean over 200 of them reaches 10 lines to either side, fewer at the ends.
    means = [values[max(0, i - 10) : i + 11].mean() for i in range(500)]
    np.testing.assert_allclose(smooth.get_ydata(), means)
    assert legend_of(figure)[0] == "training, mean over 200 steps"


def test_smoothing_counts_steps_and_not_lines():
    steps = [*range(1, 100), *range(100, 10_001, 100)]
    records = {step: {"train/loss": float(step), "train/query/accuracy": 0.5} for step in steps}
    _, smooth = draw_learning_curve(records, metric="accuracy").axes[0].lines
    reached = [step for step in steps if abs(step - 200) <= 200]
    assert smooth.get_ydata()[steps.index(200)] == pytest.approx(np.mean(reached))


def test_an_accuracy_is_in_percent_and_an_error_on_a_logarithmic_scale():
    accuracy_axes = draw_learning_curve(records_of(run_of(20)), metric="accuracy").axes[1]
    assert accuracy_axes.yaxis.get_major_formatter()(0.5) == "50%"
    assert accuracy_axes.get_ylim()[1] <= 1.01
    figure = draw_learning_curve(records_of(run_of(20, metric="mse")), metric="mse", selected_step=50)
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "log"]
    assert legend_of(figure)[-1] == "selected, step 50: 0.34 ± 0.02"


def test_a_run_without_validation_has_no_validation_curve():
    figure = draw_learning_curve(records_of(run_of(4)), metric="accuracy")
    assert legend_of(figure) == ["training"]


def test_what_was_not_finite_is_left_out():
    records = records_of(run_of(20))
    records[50] |= {"train/loss": None, "val/accuracy": None}
    figure = draw_learning_curve(records, metric="accuracy")
    (loss,) = figure.axes[0].lines
    _, validation = figure.axes[1].lines
    assert 50 not in loss.get_xdata() and len(loss.get_xdata()) == 19
    np.testing.assert_array_equal(validation.get_xdata(), [100, 150, 200])


def test_a_validation_whose_interval_is_missing_is_drawn_without(tmp_path):
    lines = [*run_of(20)]
    for line in lines:
        line.pop("val/ci95", None)
    path = write(tmp_path / "metrics.jsonl", lines)
    learning_curve(path, tmp_path / "curve.png", metric="accuracy", selected_step=50)
    assert (tmp_path / "curve.png").stat().st_size > 5000
    assert "±" not in legend_of(draw_learning_curve(records_of(lines), metric="accuracy", selected_step=50))[-1]


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        learning_curve(tmp_path / "absent.jsonl", tmp_path / "curve.png", metric="accuracy")
    path = write(tmp_path / "metrics.jsonl", [{"step": 1}])
    with pytest.raises(DataError, match="no train/loss"):
        learning_curve(path, tmp_path / "curve.png", metric="accuracy")
    path = write(tmp_path / "metrics.jsonl", run_of(20))
    with pytest.raises(DataError, match="selected step 60"):
        learning_curve(path, tmp_path / "curve.png", metric="accuracy", selected_step=60)
    assert not (tmp_path / "curve.png").exists()


def test_the_png_is_whole_the_same_every_time_and_alone(tmp_path):
    path = write(tmp_path / "metrics.jsonl", run_of(20))
    plots = tmp_path / "plots"
    learning_curve(path, plots / "a.png", metric="accuracy")
    learning_curve(path, plots / "b.png", metric="accuracy")
    first = (plots / "a.png").read_bytes()
    assert first.startswith(b"\x89PNG") and first.endswith(b"IEND\xaeB`\x82")
    assert first == (plots / "b.png").read_bytes()
    assert sorted(file.name for file in plots.iterdir()) == ["a.png", "b.png"]


def test_a_failed_write_is_told_and_leaves_nothing(tmp_path):
    path = write(tmp_path / "metrics.jsonl", run_of(20))
    (tmp_path / "curve.png").mkdir()
    with pytest.raises(MetarunError, match=r"Cannot write .*curve\.png"):
        learning_curve(path, tmp_path / "curve.png", metric="accuracy")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["curve.png", "metrics.jsonl"]
