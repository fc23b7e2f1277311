"""Recurrent networks against steps written in NumPy, and the memory's addressing against numbers worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metarun.models.recurrent import AddressedMemory, access, cosine, gru, least_used, lstm, mann, sequence_model


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_lstm(cell, state, x):
    """f, i, o = sigmoid(W x + U h + b), c' = f c + i tanh(...), h' = o tanh(c')."""
    c, h = state
    i, f, g, o = (
        x @ np.asarray(cell[f"i{gate}"]["kernel"])
        + h @ np.asarray(cell[f"h{gate}"]["kernel"])
        + cell[f"h{gate}"]["bias"]
        for gate in "ifgo"
    )
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return c, sigmoid(o) * np.tanh(c)


def numpy_gru(cell, h, x):
    """r, z gates; n = tanh(W x + b + r (U h + d)); h' = (1 - z) n + z h."""

    def dense(name, v):
        return v @ cell[name]["kernel"] + cell[name].get("bias", 0.0)

    r, z = (sigmoid(dense(f"i{gate}", x) + dense(f"h{gate}", h)) for gate in "rz")
    n = np.tanh(dense("in", x) + r * dense("hn", h))
    return (1 - z) * n + z * h


def head(params, h):
    return h @ params["head"]["kernel"] + params["head"]["bias"]


def trained(network, rows):
    """Parameters away from their initial values, so that no bias is zero."""
    params = jax.jit(network.init)(jax.random.key(1), rows[0])
    noise = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: leaf + 0.3 * noise.normal(size=leaf.shape), params)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_cells_are_those_of_numpy(name):
    factory, step, state = {
        "lstm": (lstm, numpy_lstm, (np.zeros(3), np.zeros(3))),
        "gru": (gru, numpy_gru, np.zeros(3)),
    }[name]
    with jax.enable_x64(True):
        rows, ends = (jax.random.normal(jax.random.key(seed), (4, 2)) for seed in (0, 3))
        network = factory(num_outputs=2, hidden=3)
        model, params = sequence_model(network), trained(network, rows)
        memory = jax.jit(model.read)(params, rows)
        answers = jax.jit(model.answer)(params, memory, ends)
        params, rows, ends, answers, outputs = jax.tree.map(np.asarray, (params, rows, ends, answers, memory.outputs))
    hidden = lambda state: state[1] if name == "lstm" else state
    for t in range(4):
        state = step(params["cell"], state, rows[t])
        np.testing.assert_allclose(outputs[t], head(params, hidden(state)), rtol=1e-10)
    for end, answer in zip(ends, answers, strict=True):  # each from the same state: ends do not see each other
        np.testing.assert_allclose(answer, head(params, hidden(step(params["cell"], state, end))), rtol=1e-10)


def test_products_of_cells_and_input_go_to_the_head_beside_the_cells():
    with jax.enable_x64(True):
        rows = jax.random.normal(jax.random.key(0), (4, 2))
        network = gru(num_outputs=2, hidden=3, products=5)
        params = trained(network, rows)
        outputs = jax.jit(network.unroll)(params, rows)
        params, rows, outputs = jax.tree.map(np.asarray, (params, rows, outputs))
    dense = lambda name, x: x @ params[name]["kernel"] + params[name]["bias"]
    h = np.zeros(3)
    for x, output in zip(rows, outputs, strict=True):
        h = numpy_gru(params["cell"], h, x)
        products = dense("what", h) * dense("where", x)
        np.testing.assert_allclose(output, head(params, np.concatenate([h, products])), rtol=1e-10)


@pytest.mark.parametrize(
    "network",
    [lstm(num_outputs=2, hidden=3), mann(num_outputs=2, hidden=3, slots=4, width=2, heads=1, decay=1, strength=1)],
)
def test_only_the_forget_gates_begin_open(network):
    cell = jax.jit(network.init)(jax.random.key(0), jnp.zeros(2))["cell"]
    for gate, bias in (("i", 0), ("f", 1), ("g", 0), ("o", 0)):
        np.testing.assert_array_equal(cell[f"h{gate}"]["bias"], np.full(3, bias))


def test_cosine_by_hand():
    found = cosine(jnp.array([[3.0, 4.0]]), jnp.array([[4.0, 3.0], [-3.0, -4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(found, [[24 / 25, -1, 0]], atol=1e-6)
    slope = jax.grad(lambda slots: cosine(jnp.ones((1, 2)), slots).sum())(jnp.zeros((3, 2)))
    assert np.all(np.isfinite(slope))


def test_least_used_by_hand():
    usage = jnp.array([0.5, 0.0, 0.3, 0.0, 0.2])
    np.testing.assert_array_equal(least_used(usage, 3), [[0, 1, 0, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]])


def test_access_by_hand():
    """One head, three slots: the second is the least used, the first was read."""
    memory = AddressedMemory(
        controller=(),
        slots=jnp.array([[2.0, 0.0], [5.0, 5.0], [0.0, 1.0]]),
        usage=jnp.array([1.0, 0.1, 0.5]),
        read_weights=jnp.array([[1.0, 0.0, 0.0]]),
        read=(),
    )
    slots, usage, read_weights, read = access(
        memory, jnp.array([[0.0, 4.0]]), jnp.float32(0.25), decay=0.5, strength=2.0
    )
    # w^w = 0.25 (1, 0, 0) + 0.75 (0, 1, 0); the second slot is emptied before it is written to.
    np.testing.assert_allclose(slots, [[2, 1], [0, 3], [0, 1]], rtol=1e-6)
    # It reads what stood there before: cosines with (0, 4) of 0, 1 / sqrt 2 and 1.
    weights = np.exp([0, np.sqrt(2), 2])
    weights /= weights.sum()
    np.testing.assert_allclose(read_weights, [weights], rtol=1e-5)
    np.testing.assert_allclose(usage, 0.5 * np.array([1, 0.1, 0.5]) + weights + [0.25, 0.75, 0], rtol=1e-5)
    np.testing.assert_allclose(read, [[2 * weights[0] + 5 * weights[1], 5 * weights[1] + weights[2]]], rtol=1e-5)


def test_network_with_memory_is_that_of_numpy():
    slots, width, heads, hidden = 5, 2, 2, 3
    network = mann(num_outputs=2, hidden=hidden, slots=slots, width=width, heads=heads, decay=0.9, strength=1.0)
    with jax.enable_x64(True):
        rows = jax.random.normal(jax.random.key(0), (6, 4))
        params = trained(network, rows)
        outputs = jax.jit(sequence_model(network).read)(params, rows).outputs
        params, rows, outputs = jax.tree.map(np.asarray, (params, rows, outputs))
    controller, read = (np.zeros(hidden), np.zeros(hidden)), np.zeros(heads * width)
    memory, usage, read_weights = np.zeros((slots, width)), np.zeros(slots), np.zeros((heads, slots))
    gate = sigmoid(params["write_gate"])
    for t in range(6):
        controller = numpy_lstm(params["cell"], controller, np.concatenate([rows[t], read]))
        h = controller[1]
        keys = np.tanh(h @ params["keys"]["kernel"] + params["keys"]["bias"])
        keys = keys.reshape(heads, width)
        oldest = np.argsort(usage + 1e-3 / slots * np.arange(slots))[:heads]
        before = memory.copy()
        memory[oldest] = 0
        usage = 0.9 * usage
        for j in range(heads):
            write = gate * read_weights[j]
            write[oldest[j]] += 1 - gate
            memory += np.outer(write, keys[j])
            usage = usage + write
        read = []
        for j in range(heads):
            lengths = np.sqrt((before**2).sum(1) + 1e-6) * np.sqrt((keys[j] ** 2).sum() + 1e-6)
            weights = np.exp(before @ keys[j] / lengths)
            read_weights[j] = weights / weights.sum()
            usage = usage + read_weights[j]
            read.append(read_weights[j] @ before)
        read = np.concatenate(read)
        np.testing.assert_allclose(outputs[t], head(params, np.concatenate([h, read])), rtol=1e-9)


@pytest.mark.parametrize("name", ["lstm", "gru", "mann"])
def test_a_network_unrolled_is_the_network_fed_row_by_row(name):
    of_mann = {"slots": 4, "width": 2, "heads": 1, "decay": 0.9, "strength": 1}
    make = {"lstm": lstm, "gru": gru, "mann": lambda **sizes: mann(**sizes, **of_mann)}[name]
    with jax.enable_x64(True):
        rows = jax.random.normal(jax.random.key(0), (5, 2))
        network = make(num_outputs=2, hidden=3)
        params = trained(network, rows)
        step, state, outputs = jax.jit(network.step), network.start(rows.dtype), []
        for row in rows:
            state, output = step(params, state, row)
            outputs.append(output)
        np.testing.assert_allclose(jax.jit(network.unroll)(params, rows), np.stack(outputs), rtol=1e-10)


@pytest.mark.parametrize("products", [0, 4])
def test_the_gradient_of_an_unrolled_gru_is_that_of_its_steps(products):
    with jax.enable_x64(True):
        rows = jax.random.normal(jax.random.key(0), (6, 2))
        network = gru(num_outputs=2, hidden=3, products=products)
        params = trained(network, rows)
        by_steps = lambda params, rows: jax.lax.scan(
            lambda state, x: network.step(params, state, x), network.start(rows.dtype), rows
        )[1]
        score = lambda unroll: lambda params, rows: (unroll(params, rows) * jnp.arange(12.0).reshape(6, 2)).sum()
        found, expected = (
            jax.jit(jax.grad(score(unroll), (0, 1)))(params, rows) for unroll in (network.unroll, by_steps)
        )
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), found, expected)
