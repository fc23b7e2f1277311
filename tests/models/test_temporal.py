"""Causal convolutions and attention against loops over positions, and who may see whom."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metarun.models import temporal
from metarun.models.causal_snail import causal_snail
from metarun.models.temporal import attended, delayed, dilations


def modules(num_positions=6):
    return {
        "snail": temporal._Snail(2, num_positions, 3, ((4, 3), (5, 4))),
        "wavenet": temporal._WaveNet(2, num_positions, 16, 5),
    }


def rows_of(length, size=3, seed=0):
    return jax.random.normal(jax.random.key(seed), (length, size))


def test_attention_mask_by_hand():
    """Three positions of a sequence, then two alternatives for the fourth."""
    expected = [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 0, 1],
    ]
    np.testing.assert_array_equal(attended(3, 2), np.array(expected, bool))


def test_delay_by_hand():
    rows = jnp.array([[1.0], [2.0], [3.0], [8.0], [9.0]])
    for dilation, expected in ((1, [0, 1, 2, 3, 3]), (2, [0, 0, 1, 2, 2]), (3, [0, 0, 0, 1, 1]), (4, [0] * 5)):
        np.testing.assert_array_equal(delayed(rows, 3, dilation)[:, 0], expected)


def test_dilation_pattern_by_hand():
    expected = {2: [1], 3: [1, 2], 4: [1, 2], 5: [1, 2, 4], 6: [1, 2, 4], 8: [1, 2, 4], 9: [1, 2, 4, 8]}
    assert {length: dilations(length) for length in expected} == expected
    assert dilations(26) == [1, 2, 4, 8, 16]  # 5-way 5-shot


@pytest.mark.parametrize("length", [2, 6, 26, 101])
def test_every_position_of_the_sequence_is_reached_by_one_choice_of_taps(length):
    reach = [sum(taps) for taps in itertools.product(*((0, dilation) for dilation in dilations(length)))]
    assert len(set(reach)) == len(reach) and set(range(length)) <= set(reach)
    assert max(reach) < 2 * (length - 1)


@pytest.mark.parametrize("dilation", [1, 2, 4])
def test_gated_convolution_is_that_of_a_loop(dilation):
    with jax.enable_x64(True):
        rows = rows_of(6)
        module = temporal._GatedConvolution(2, dilation)
        params = jax.jit(module.init, static_argnums=2)(jax.random.key(1), rows, 5)["params"]
        found = jax.jit(module.apply, static_argnums=2)({"params": params}, rows, 5)
    kernel, bias, rows = (np.asarray(a) for a in (params["taps"]["kernel"], params["taps"]["bias"], rows))
    for t in range(6):
        before = rows[t - dilation] if t >= dilation else np.zeros(3)
        sums = before @ kernel[:3] + rows[t] @ kernel[3:] + bias
        np.testing.assert_allclose(found[t], np.tanh(sums[:2]) / (1 + np.exp(-sums[2:])), rtol=1e-12)


def test_attention_is_that_of_a_loop():
    with jax.enable_x64(True):
        rows = rows_of(5)
        module = temporal._Attention(4, 2)
        params = jax.jit(module.init, static_argnums=2)(jax.random.key(1), rows, 4)["params"]
        found = jax.jit(module.apply, static_argnums=2)({"params": params}, rows, 4)
    rows = np.asarray(rows)
    keys, queries, values = (
        rows @ np.asarray(params[name]["kernel"]) + np.asarray(params[name]["bias"])
        for name in ("keys", "queries", "values")
    )
    for t in range(5):
        weights = np.exp([queries[t] @ keys[s] / 2 for s in range(t + 1)])  # 2 is the root of the key size
        read = sum(w * v for w, v in zip(weights / weights.sum(), values, strict=False))
        np.testing.assert_allclose(found[t], np.concatenate([rows[t], read]), rtol=1e-12)


@pytest.mark.parametrize("name", ["snail", "wavenet"])
def test_jacobian_is_causal_and_reaches_the_whole_past(name):
    """d outputs_t / d rows_s is zero for s > t, exactly, and nowhere else."""
    with jax.enable_x64(True):
        module, rows = modules()[name], rows_of(6)
        params = jax.jit(module.init, static_argnums=2)(jax.random.key(1), rows, 5)
        jacobian = jax.jit(jax.jacobian(lambda rows: module.apply(params, rows, 5)[:, 0]))(rows)
    np.testing.assert_array_equal(np.abs(jacobian).max(2) > 0, np.tril(np.ones((6, 6), bool)))


@pytest.mark.parametrize("name", ["snail", "wavenet"])
def test_a_change_at_one_position_changes_nothing_before_it(name):
    module, rows = modules()[name], rows_of(6)
    params = jax.jit(module.init, static_argnums=2)(jax.random.key(1), rows, 5)
    run = jax.jit(lambda rows: module.apply(params, rows, 5))
    for t in range(6):
        changed = np.any(run(rows) != run(rows.at[t].add(1.0)), 1)
        np.testing.assert_array_equal(changed, np.arange(6) >= t)


@pytest.mark.parametrize("name", ["snail", "wavenet"])
def test_ends_are_alternatives_for_the_next_position(name):
    """Several ends at once answer as each alone, and as the same element does inside a longer sequence."""
    with jax.enable_x64(True):
        module, rows, ends = modules()[name], rows_of(6), rows_of(3, seed=2)
        model = temporal._sequence_model(module)
        params = jax.jit(model.init)(jax.random.key(1), rows[:5], ends)
        answer = jax.jit(lambda rows, ends: model.answer(params, model.read(params, rows), ends))
        together = answer(rows[:5], ends)
        for i in range(3):
            np.testing.assert_allclose(together[i], answer(rows[:5], ends[i : i + 1])[0], rtol=1e-12)
        whole = jax.jit(lambda rows: module.apply({"params": params}, rows, 5))(rows)
        for t in (2, 5):
            np.testing.assert_allclose(answer(rows[:t], rows[t : t + 1])[0], whole[t], rtol=1e-12)


def test_blocks_of_snail_are_those_of_the_paper():
    """5-way 1-shot on Omniglot: T = 6; an input is 64 features, 5 targets and a flag. Widths by hand."""
    model = temporal.snail(num_outputs=5, num_positions=6, filters=128, attention=[(64, 32), (256, 128), (512, 256)])
    rows = jnp.zeros((5, 70))
    shapes = jax.eval_shape(model.init, jax.random.key(0), rows, rows)
    convolutions = {name: leaf["taps"]["kernel"].shape for name, leaf in shapes.items() if "dilation" in name}
    assert convolutions == {
        "block1_dilation1": (2 * 102, 256),
        "block1_dilation2": (2 * 230, 256),
        "block1_dilation4": (2 * 358, 256),
        "block2_dilation1": (2 * 614, 256),
        "block2_dilation2": (2 * 742, 256),
        "block2_dilation4": (2 * 870, 256),
    }
    keys = [shapes[f"block{i}_attention"]["keys"]["kernel"].shape for i in range(3)]
    assert keys == [(70, 64), (486, 256), (998, 512)]
    assert shapes["head"]["kernel"].shape == (998 + 256, 5)


@pytest.mark.parametrize("length", [1, 2, 7, 8])
def test_snail_row_by_row_is_snail_over_all_rows(length):
    sizes = {"num_outputs": 3, "num_positions": 8, "filters": 4, "attention": [(2, 3), (4, 2), (3, 3)]}
    with jax.enable_x64(True):
        rows, ends = jax.random.normal(jax.random.key(0), (length, 5)), jax.random.normal(jax.random.key(1), (2, 5))
        network, model = causal_snail(**sizes), temporal.snail(**sizes)
        params = jax.jit(model.init)(jax.random.key(2), rows, ends)
        alone = jax.jit(network.init)(jax.random.key(2), rows[0])
        jax.tree.map(np.testing.assert_array_equal, alone, params)
        step = jax.jit(network.step)
        past, outputs = network.start(rows.dtype), []
        for row in rows:
            past, output = step(params, past, row)
            outputs.append(output)
        np.testing.assert_allclose(np.stack(outputs), network.unroll(params, rows), rtol=1e-10, atol=1e-12)
        if length < 8:  # a further row is what an end is to the learner of tasks
            answers = model.answer(params, model.read(params, rows), ends)
            for end, answer in zip(ends, answers, strict=True):
                np.testing.assert_allclose(step(params, past, end)[1], answer, rtol=1e-10, atol=1e-12)


def test_the_gradient_of_snail_for_trials_is_that_of_snail():
    sizes = {"num_outputs": 3, "num_positions": 8, "filters": 4, "attention": [(2, 3), (4, 2), (3, 3)]}
    with jax.enable_x64(True):
        rows, network = rows_of(7, 5), causal_snail(**sizes)
        params = jax.jit(network.init)(jax.random.key(2), rows[0])
        module = temporal._Snail(3, 8, 4, ((2, 3), (4, 2), (3, 3)))
        score = lambda outputs: (outputs * jnp.arange(21.0).reshape(7, 3)).sum()
        whole = lambda params, rows: score(module.apply({"params": params}, rows, 7))
        found = jax.jit(jax.grad(lambda *args: score(network.unroll(*args)), (0, 1)))(params, rows)
        expected = jax.jit(jax.grad(whole, (0, 1)))(params, rows)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), found, expected)
