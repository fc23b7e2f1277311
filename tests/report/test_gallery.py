import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from metarun.report.figure import BLUE, VERMILION
from metarun.report.gallery import draw_image_gallery, draw_regression_gallery, image_gallery, regression_gallery
from metarun.types import Split, Task


def image_tasks(num_tasks, way, shot, query_shot, channels=1, size=6):
    """Tasks in shuffled order; every image is of one brightness, that no other image has."""
    generator = np.random.default_rng(0)
    brightness = iter(np.linspace(0, 1, num_tasks * way * (shot + query_shot), dtype=np.float32))

    def split(per_class):
        labels = np.repeat(np.arange(way, dtype=np.int32), per_class)
        y = np.stack([generator.permutation(labels) for _ in range(num_tasks)])
        x = np.stack([[np.full((size, size, channels), next(brightness)) for _ in labels] for labels in y])
        return Split(x, y)

    return Task(split(shot), split(query_shot))


def drawn_images(axes):
    """`{(left, top): image}` of what stands in `axes`."""
    return {(image.get_extent()[0], image.get_extent()[3]): np.asarray(image.get_array()) for image in axes.images}


def marks(axes):
    return [text for text in axes.texts if text.get_text()[0] in "✓✗"]


def note(figure):
    return figure.get_supxlabel()


@pytest.mark.parametrize("way, shot, channels", [(5, 1, 1), (5, 5, 3), (20, 5, 1), (2, 1, 3)])
def test_every_image_stands_in_the_row_of_its_class(way, shot, channels):
    tasks = image_tasks(2, way, shot, query_shot=2, channels=channels)
    figure = draw_image_gallery(tasks, tasks.query.y, num_tasks=2)
    assert len(figure.axes) == 2
    for index, axes in enumerate(figure.axes):
        images = drawn_images(axes)
        assert len(images) == way * (shot + 2)
        # Class labels stand left of the rows; each row reads support, then query.
        labels = {text.get_position(): text.get_text() for text in axes.texts if text.get_text().isdigit()}
        assert sorted(map(int, labels.values())) == list(range(way))
        for (label_x, label_y), label in labels.items():
            places = sorted((left, top) for left, top in images if top < label_y < top + 1 and left > label_x)
            row = np.stack([images[place] for place in places[: shot + 2]])
            splits = (tasks.support, tasks.query)
            expected = np.concatenate([split.x[index][split.y[index] == int(label)] for split in splits])
            np.testing.assert_array_equal(row.reshape(expected.shape), expected)


def test_images_do_not_overlap_and_stay_inside_the_axes():
    tasks = image_tasks(1, way=20, shot=5, query_shot=7)
    (axes,) = draw_image_gallery(tasks, tasks.query.y, num_tasks=1).axes
    corners = np.array(list(drawn_images(axes)))
    apart = np.abs(corners[:, None] - corners[None]).max(axis=-1)
    assert apart[~np.eye(len(corners), dtype=bool)].min() > 1
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert (corners >= [left, top]).all() and (corners + 1 <= [right, bottom]).all()


def test_right_and_wrong_differ_in_sign_weight_and_frame():
    tasks = image_tasks(1, way=5, shot=1, query_shot=1)
    predictions = tasks.query.y.copy()
    is_wrong = predictions == 3
    predictions[is_wrong] = 4
    (axes,) = draw_image_gallery(tasks, predictions, num_tasks=1).axes
    assert axes.get_title(loc="left") == "Task 1: accuracy 80.0% (4 of 5)"
    assert [mark.get_text() for mark in marks(axes)] == ["✓ 0", "✓ 1", "✓ 2", "✗ 4", "✓ 4"]
    assert [mark.get_weight() for mark in marks(axes)] == ["normal"] * 3 + ["bold", "normal"]
    frames = {(frame.get_x(), frame.get_y()): frame for frame in axes.patches}
    (wrong,) = (place for place, image in drawn_images(axes).items() if (image == tasks.query.x[is_wrong][0]).all())
    assert len(frames) == 5
    for place, frame in frames.items():
        assert frame.get_edgecolor() == to_rgba(VERMILION if place == wrong else BLUE)
        assert frame.get_linewidth() == (3 if place == wrong else 1)


def test_of_many_queries_the_first_are_shown_and_all_are_counted():
    tasks = image_tasks(1, way=5, shot=1, query_shot=15)
    predictions = np.zeros_like(tasks.query.y)
    figure = draw_image_gallery(tasks, predictions, num_tasks=1)
    assert figure.axes[0].get_title(loc="left") == "Task 1: accuracy 20.0% (15 of 75)"
    assert len(marks(figure.axes[0])) == 25
    assert "of 15 queries a class, the first 5 shown" in note(figure)
    few = draw_image_gallery(image_tasks(1, 5, 1, 5), np.zeros((1, 25), int), num_tasks=1)
    assert "shown" not in note(few)


@pytest.mark.parametrize("asked, drawn", [(1, 1), (3, 3), (9, 5)])
def test_as_many_tasks_as_asked_and_there_are(asked, drawn):
    tasks = image_tasks(5, way=2, shot=1, query_shot=1)
    figure = draw_image_gallery(tasks, tasks.query.y, num_tasks=asked)
    titles = [axes.get_title(loc="left").split(":")[0] for axes in figure.axes]
    assert titles == [f"Task {i}" for i in range(1, drawn + 1)]


def sinusoids(num_tasks=3, num_query=10):
    """Tasks, and answers before (zero) and after (half too high) adaptation."""
    generator = np.random.default_rng(0)
    amplitude = generator.uniform(0.1, 5, (num_tasks, 1, 1))

    def split(n):
        x = generator.uniform(-5, 5, (num_tasks, n, 1))
        return Split(x, amplitude * np.sin(x))

    tasks = Task(split(5), split(num_query))
    return tasks, np.zeros_like(tasks.query.y), tasks.query.y + 0.5


def test_a_regression_shows_points_and_both_answers():
    tasks, before, after = sinusoids()
    figure = draw_regression_gallery(tasks, before, after, num_tasks=2)
    assert len(figure.axes) == 2
    for index, axes in enumerate(figure.axes):
        assert axes.get_title(loc="left") == f"Task {index + 1}: mse 0.25 at 10 queries"
        lines = {line.get_label(): line for line in axes.lines}
        order = np.argsort(tasks.query.x[index, :, 0])
        for label, (x, y) in {
            "before adaptation": (tasks.query.x[index][order], before[index][order]),
            "after adaptation": (tasks.query.x[index][order], after[index][order]),
            "query, true": (tasks.query.x[index][order], tasks.query.y[index][order]),
            "support": (tasks.support.x[index], tasks.support.y[index]),
        }.items():
            np.testing.assert_array_equal(lines[label].get_xydata(), np.hstack([x, y]))
        styles = [(line.get_linestyle(), line.get_marker()) for line in axes.lines]
        assert len(set(styles)) == 4, "told apart without colour"
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    assert {text.get_text() for text in figure.legends[0].get_texts()} == set(lines)


def test_galleries_are_saved_without_warnings(tmp_path):
    tasks = image_tasks(2, way=5, shot=1, query_shot=3)
    image_gallery(tasks, tasks.query.y, tmp_path / "plots" / "images.png", num_tasks=2)
    tasks, before, after = sinusoids()
    regression_gallery(tasks, before, after, tmp_path / "plots" / "curves.png", num_tasks=2)
    for name in ("images.png", "curves.png"):
        assert (tmp_path / "plots" / name).read_bytes().startswith(b"\x89PNG")


def test_pictures_need_neither_jax_nor_global_state():
    code = (
        "import sys, metarun.report.curves, metarun.report.gallery;"
        "print(*{'jax', 'matplotlib.pyplot'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_signals_are_drawn_as_lines_in_the_rows_of_their_classes():
    generator = np.random.default_rng(0)
    y = np.array([[2, 0, 1]], np.int32)
    support = Split(generator.normal(size=(1, 3, 16, 2)), y)
    query = Split(generator.normal(size=(1, 3, 16, 2)), y)
    (axes,) = draw_image_gallery(Task(support, query), y, num_tasks=1).axes
    assert not axes.images and len(axes.lines) == 2 * 3 * 2  # a line for each channel
    low, high = (getattr(np.concatenate([support.x, query.x]), name)() for name in ("min", "max"))
    lines = sorted((line.get_xydata() for line in axes.lines), key=lambda line: (line[0, 0] > 2, line[:, 1].mean()))
    labels = sorted((text.get_position()[1], int(text.get_text())) for text in axes.texts if text.get_text().isdigit())
    for row, (middle, label) in enumerate(labels):
        (signal,) = support.x[0][y[0] == label]
        for line in lines[2 * row : 2 * row + 2]:
            # Upwards is more, and every cell has the same scale.
            value = (middle + 0.45 - line[:, 1]) / 0.9 * (high - low) + low
            assert min(np.abs(value - channel).max() for channel in signal.T) < 1e-6


def test_what_is_beyond_the_unit_range_is_drawn_by_its_own():
    tasks = image_tasks(1, way=2, shot=1, query_shot=1)
    wide = type(tasks)(*(split._replace(x=20 * split.x - 5) for split in tasks))
    found, wanted = (
        drawn_images(draw_image_gallery(given, given.query.y, num_tasks=1).axes[0]) for given in (wide, tasks)
    )
    low, high = min(split.x.min() for split in wide), max(split.x.max() for split in wide)
    for place, image in wanted.items():
        np.testing.assert_allclose(found[place], (20 * image - 5 - low) / (high - low), atol=1e-6)
