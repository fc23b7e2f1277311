import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metarun.data.augment import flipped, jittered, shifted

IMAGES = np.random.default_rng(0).random((200, 5, 7, 3), np.float32)


def test_half_of_the_images_are_mirrored():
    done = np.asarray(jax.jit(flipped)(jax.random.key(0), IMAGES))
    mirrored = (done == IMAGES[:, :, ::-1]).all((1, 2, 3))
    same = (done == IMAGES).all((1, 2, 3))
    assert (mirrored ^ same).all() and 70 < mirrored.sum() < 130


def test_shifts_are_all_those_that_are_allowed_over_a_mirrored_border():
    done = np.asarray(jax.jit(shifted, static_argnames="most")(jax.random.key(0), IMAGES, most=2))
    seen = set()
    for image, result in zip(IMAGES, done, strict=True):
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect")
        fits = [
            (down, across)
            for down in range(5)
            for across in range(5)
            if np.array_equal(padded[down : down + 5, across : across + 7], result)
        ]
        assert len(fits) == 1
        seen |= set(fits)
    assert len(seen) == 25


def test_brightness_and_contrast_of_a_grey_image_are_one_line():
    grey = 0.4 + 0.1 * IMAGES[..., :1]
    done = np.asarray(jax.jit(jittered, static_argnames="strength")(jax.random.key(0), grey, strength=0.3))
    for image, result in zip(grey, done, strict=True):
        slope, offset = np.polyfit(image.ravel(), result.ravel(), 1)
        np.testing.assert_allclose(result.ravel(), slope * image.ravel() + offset, atol=1e-5)
        # A grey has no saturation: its factor is of nothing. The mean is changed by the brightness alone.
        brightness = result.mean() / image.mean()
        assert 0.7 <= brightness <= 1.3 and 0.7 - 1e-3 <= slope / brightness <= 1.3 + 1e-3
    means = done.mean((1, 2, 3)) / grey.mean((1, 2, 3))
    assert means.min() < 0.75 and means.max() > 1.25


def test_hue_stays_where_nothing_is_clipped():
    colours = 0.4 + 0.1 * IMAGES
    done = np.asarray(jax.jit(jittered, static_argnames="strength")(jax.random.key(1), colours, strength=0.2))
    for before, after in zip(colours[:20].reshape(-1, 3), done[:20].reshape(-1, 3), strict=True):
        turn = abs(colorsys.rgb_to_hsv(*before)[0] - colorsys.rgb_to_hsv(*after)[0])
        assert min(turn, 1 - turn) < 1e-3


def test_results_stay_between_black_and_white():
    done = jax.jit(jittered, static_argnames="strength")(jax.random.key(2), IMAGES, strength=1.0)
    assert 0 <= done.min() and done.max() <= 1


@pytest.mark.parametrize("change", [flipped, lambda key, x: shifted(key, x, 2), lambda key, x: jittered(key, x, 0.5)])
def test_the_same_key_makes_the_same_change_and_another_another(change):
    one, same, other = (jax.jit(change)(jax.random.key(seed), IMAGES) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other) and one.dtype == jnp.float32 and one.shape == IMAGES.shape
