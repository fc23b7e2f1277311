"""The strip of a body that moves: what is drawn, where, and of when."""

import numpy as np
import pytest
from matplotlib.collections import PolyCollection

from metarun.report.strip import draw_strip, outline, strip

LENGTH, SPEED, SECONDS = 11, 0.5, 0.1


def test_an_outline_is_a_radius_away_from_its_limb():
    ends, radius = np.array([[0.0, 1.0], [3.0, 5.0]]), 0.25
    along = (ends[1] - ends[0]) / 5
    for point in outline(ends, radius):
        nearest = ends[0] + along * np.clip((point - ends[0]) @ along, 0, 5)
        assert np.linalg.norm(point - nearest) == pytest.approx(radius)
    circle = outline(np.array([[1.0, 2.0]] * 2), radius)
    np.testing.assert_allclose(np.linalg.norm(circle - [1, 2], axis=1), radius)


def filmed(tasks, stages, length=LENGTH):
    """A rod of two limbs, upright, that slides along at 0.5 m/s in the first stage and stands in others."""
    limbs = np.zeros((tasks, stages, length, 2, 2, 3))
    limbs[..., 0, 1, 2], limbs[..., 1, 0, 2], limbs[..., 1, 1, 2] = 0.5, 0.5, 1.0
    limbs[:, 0, ..., 0] += SPEED * SECONDS * np.arange(length)[:, None, None]
    shape = tasks, stages, length
    return limbs, np.ones(shape, bool), np.zeros(shape, bool)


def words(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def poses(axes):
    return sum(isinstance(artist, PolyCollection) for artist in axes.collections)


def test_a_row_is_an_inner_step_and_says_how_fast_it_was(tmp_path):
    limbs, live, ended = filmed(3, 2)
    live[:, 1, 5:] = False
    how = {"radii": np.array([0.1, 0.1]), "seconds": SECONDS, "of": "inner step"}
    figure = draw_strip(["the same", "the same", "another"], limbs, live, ended, **how)
    assert [part.get_suptitle() for part in figure.subfigs] == ["the same", "another"]
    said = words(figure)
    assert said.count("inner step 0: +0.50 m/s") == 2 and said.count("inner step 1: +0.00 m/s") == 2
    assert said.count("ended after 0.5 s") == 2 and said[-1] == "1.0 s"
    # Two tasks of two rows of six moments; what ended is drawn once more, as it ended.
    assert [poses(axes) for axes in figure.axes] == [1] * 6 + [1, 1, 1, 0, 0, 0] + [1] * 6 + [1, 1, 1, 0, 0, 0]
    strip(["a", "b", "c"], limbs, live, ended, tmp_path / "strip.png", **how)
    assert (tmp_path / "strip.png").read_bytes().startswith(b"\x89PNG")


def test_of_many_episodes_the_first_and_the_last_are_rows():
    limbs, live, ended = filmed(1, 1, 60)
    ended[0, 0, 9::10] = True
    figure = draw_strip(["one"], limbs, live, ended, radii=np.array([0.1, 0.1]), seconds=SECONDS, of="episode")
    assert [text[:9] for text in words(figure) if text.startswith("episode")] == [f"episode {k}" for k in (1, 2, 5, 6)]
