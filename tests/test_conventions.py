"""`scripts/pixel_baseline.py` and `scripts/training_statistics.py`: what conventions of a test are worth."""

import jax
import numpy as np
import pytest
from PIL import Image

import pixel_baseline
import training_statistics
from metarun.models.conv4 import conv4


def test_a_query_has_the_class_of_the_most_similar_image():
    x = np.repeat(np.eye(6)[:, None], 8, axis=1)
    for measure in ("cosine", "euclidean"):
        assert pixel_baseline.accuracies(x, measure, way=3, shot=2, num_tasks=20) == pytest.approx(np.ones(20))


def test_cosine_does_not_see_how_bright_an_image_is():
    x = np.random.default_rng(0).random((3, 8, 9)) * np.array([1, 2, 4])[:, None, None]
    bright = pixel_baseline.accuracies(x, "euclidean", way=3, shot=2, num_tasks=200).mean()
    blind = pixel_baseline.accuracies(x, "cosine", way=3, shot=2, num_tasks=200).mean()
    assert bright > 0.6 and abs(blind - 1 / 3) < 0.1


def test_ink_is_1_and_each_turn_is_a_class():
    paper = np.full((28, 28), 255, np.uint8)
    paper[0, 0] = 0
    x = pixel_baseline.pixels([[Image.fromarray(paper)]], Image.Resampling.BOX, turned=True).reshape(4, 28, 28)
    assert [tuple(np.argwhere(image)[0]) for image in x] == [(0, 0), (27, 0), (27, 27), (0, 27)]
    assert x.sum() == 4
    assert pixel_baseline.pixels([[Image.fromarray(paper)]], Image.Resampling.BOX, turned=False).shape == (1, 1, 784)


def test_the_statistics_are_those_of_the_images_and_of_nothing_else():
    images, x = np.random.default_rng(0).random((2, 5, 28, 28, 1), np.float32)
    encoder = conv4(num_outputs=None, filters=4)
    params = encoder.init(jax.random.key(0), images)
    normalised = training_statistics.by_images(encoder, images)
    np.testing.assert_allclose(normalised.apply(params, images), encoder.apply(params, images), atol=1e-5)
    alone = normalised.apply(params, x[:1])
    np.testing.assert_allclose(normalised.apply(params, x)[:1], alone, atol=1e-5)
    assert np.abs(encoder.apply(params, x)[:1] - alone).max() > 0.01
