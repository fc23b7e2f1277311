import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metarun.data.class_bank import SplitBank, stack
from metarun.data.contents import content_hashes
from metarun.data.episodes import few_shot_data_set
from metarun.data.fitting import fit_data_set, fit_images, input_shape
from metarun.data.sinusoid import sinusoid
from metarun.errors import ConfigError


def data_set(*shape):
    """Nine classes of three images, each of one level for every channel."""
    levels = np.random.default_rng(0).integers(0, 256, (9, 3, 1, 1, shape[2]))
    bank = stack(np.broadcast_to(levels, (9, 3, *shape)).astype(np.uint8))
    classes = {split: range(start, start + 3) for split, start in (("train", 0), ("val", 3), ("test", 6))}
    loaded = SplitBank(bank, [f"{c}" for c in range(9)], classes, {"name": "levels"}, content_hashes(bank.images))
    return few_shot_data_set(loaded, way=2, shot=1, query_shot=2)


def test_data_of_the_shape_are_left_alone():
    data = data_set(6, 6, 3)
    assert input_shape(data) == (6, 6, 3)
    assert fit_data_set(data, [6, 6, 3]) is data


@pytest.mark.parametrize("shape", [(9, 9, 3), (4, 5, 3), (6, 6, 1), (3, 3, 1)])
def test_every_source_has_the_shape_and_the_same_tasks(shape):
    data = data_set(6, 6, 3)
    ours = fit_data_set(data, shape)
    for name in ("train", "val", "test", "train_classes"):
        before, after = (
            jax.jit(source.sample)(source.data, jax.random.key(3))
            for source in (getattr(d, name) for d in (data, ours))
        )
        for one, other in zip(before, after, strict=True):
            np.testing.assert_array_equal(one.y, other.y)
            assert other.x.shape == (one.x.shape[0], *shape) and other.x.dtype == jnp.float32
            colours = np.asarray(one.x)[:, 0, 0]
            if shape[2] == 1:
                colours = colours @ np.array([[0.299], [0.587], [0.114]], np.float32)
            np.testing.assert_allclose(other.x, np.broadcast_to(colours[:, None, None], other.x.shape), atol=1e-6)


def test_the_protocol_says_what_was_done():
    of = lambda found, shape: fit_data_set(data_set(*found), shape).protocol["fitted"]
    resized = "linear, antialiased, proportions not kept"
    assert of((6, 6, 3), (4, 4, 3)) == {"from": [6, 6, 3], "to": [4, 4, 3], "how": resized}
    assert of((6, 6, 3), (4, 4, 1))["how"] == f"{resized}, greys by BT.601"
    assert of((6, 6, 1), (6, 6, 3))["how"] == "greys as colours"
    assert "fitted" not in data_set(6, 6, 3).protocol


def test_resizing_to_half_takes_the_triangle_over_the_pixels():
    x = np.random.default_rng(1).random((2, 8, 8, 1), np.float32)
    done = np.asarray(fit_images(jnp.asarray(x), (4, 4, 1)))
    # Away from the border: weights 1, 3, 3, 1 of 8 along an axis.
    weights = np.array([1, 3, 3, 1], np.float32) / 8
    expected = np.einsum("i,j,nij->n", weights, weights, x[:, 1:5, 1:5, 0])
    np.testing.assert_allclose(done[:, 1, 1, 0], expected, rtol=1e-5)


def test_a_grey_becomes_the_same_in_every_channel():
    x = jnp.asarray(np.random.default_rng(1).random((2, 4, 4, 1), np.float32))
    np.testing.assert_array_equal(fit_images(x, (4, 4, 3)), np.repeat(np.asarray(x), 3, 3))


@pytest.mark.parametrize("found, shape", [((6, 6, 2), (6, 6, 1)), ((6, 6, 3), (6, 6, 4)), ((6, 6, 1), (36,))])
def test_what_cannot_be_made_to_fit_is_refused(found, shape):
    with pytest.raises(ConfigError, match="dataset=levels: expected inputs that can be brought to"):
        fit_data_set(data_set(*found), shape)
    with pytest.raises(ConfigError, match="dataset=sinusoid"):
        fit_data_set(sinusoid(shot=1, query_shot=1), (6, 6, 1))
