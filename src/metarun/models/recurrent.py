"""Recurrent networks over a sequence: LSTM, GRU, and an LSTM with an external memory."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from metarun.models.gated_states import gated_states
from metarun.types import Array, Params, RecurrentModel, SequenceModel


class Memory(NamedTuple):
    """What a recurrent network has after a sequence.

    Attributes:
      state: its state.
      outputs: `[length, num_outputs]`, its outputs on the way.
    """

    state: Any
    outputs: Array


class AddressedMemory(NamedTuple):
    """State of a network with an external memory.

    Attributes:
      controller: state of the LSTM.
      slots: M, `[slots, width]`.
      usage: w^u, `[slots]`.
      read_weights: w^r, `[heads, slots]`.
      read: r, `[heads * width]`, what was last read.
    """

    controller: tuple[Array, Array]
    slots: Array
    usage: Array
    read_weights: Array
    read: Array


def sequence_model(network: RecurrentModel) -> SequenceModel:
    """The network fed a sequence row by row; each end is one further step from where that left it."""

    def read(params, rows, mask=None):
        def step(state, row_and_mask):
            x, is_row = row_and_mask
            after, outputs = network.step(params, state, x)
            if is_row is not None:
                after = jax.tree.map(lambda new, old: jnp.where(is_row, new, old), after, state)
            return after, outputs

        return Memory(*lax.scan(step, network.start(rows.dtype), (rows, mask)))

    return SequenceModel(
        init=lambda key, rows, ends: network.init(key, rows[0]),
        read=read,
        answer=lambda params, memory, ends: jax.vmap(lambda x: network.step(params, memory.state, x)[1])(ends),
    )


def _forgetting_little(params: Params) -> Params:
    """The LSTM's parameters with its forget gates' bias set to 1, so that it begins by keeping what it read.

    Source: Jozefowicz et al. 2015, An Empirical Exploration of Recurrent Network Architectures, section 5.
    """
    forget = params["cell"]["hf"]
    cell = {**params["cell"], "hf": {**forget, "bias": jnp.ones_like(forget["bias"])}}
    return {**params, "cell": cell}


class _Layer(nn.Module):
    cell: Callable[..., nn.RNNCellBase]
    num_outputs: int
    hidden: int
    products: int = 0

    @nn.compact
    def __call__(self, state: Any, x: Array) -> tuple[Any, Array]:
        dense = lambda size, name: nn.Dense(size, param_dtype=x.dtype, name=name)
        state, h = self.cell(self.hidden, param_dtype=x.dtype, name="cell")(state, x)
        if self.products:
            h = jnp.concatenate([h, dense(self.products, "what")(h) * dense(self.products, "where")(x)])
        return state, dense(self.num_outputs, "head")(h)


def _recurrent(module: nn.Module, start: Callable[[Any], Any], of_init: Callable[[Params], Params]) -> RecurrentModel:
    """`module`: `(state, x) -> (state, outputs)`."""

    def step(params, state, x):
        return module.apply({"params": params}, state, x)

    return RecurrentModel(
        init=lambda key, x: of_init(module.init(key, start(x.dtype), x)["params"]),
        start=start,
        step=step,
        unroll=lambda params, rows: lax.scan(partial(step, params), start(rows.dtype), rows)[1],
    )


def lstm(*, num_outputs: int, hidden: int, products: int = 0) -> RecurrentModel:
    """One layer of LSTM cells and a linear layer; the forget gates' bias begins at 1, all others at 0.

    Args:
      num_outputs: outputs of a step.
      hidden: cells.
      products: of a linear layer over the cells with one over the input, which the last layer is given beside the cells.

    Source: Hochreiter and Schmidhuber 1997; with forget gates, Gers, Schmidhuber and Cummins 2000.
    """
    start = lambda dtype: (jnp.zeros(hidden, dtype), jnp.zeros(hidden, dtype))
    return _recurrent(_Layer(nn.OptimizedLSTMCell, num_outputs, hidden, products), start, _forgetting_little)


def gru(*, num_outputs: int, hidden: int, products: int = 0) -> RecurrentModel:
    """One layer of gated recurrent units and a linear layer.

    Args:
      num_outputs: outputs of a step.
      hidden: units.
      products: as for `lstm`.

    Source: Cho et al. 2014, Learning Phrase Representations using RNN Encoder-Decoder, section 2.3.
    """
    module = _Layer(nn.GRUCell, num_outputs, hidden, products)
    network = _recurrent(module, lambda dtype: jnp.zeros(hidden, dtype), lambda params: params)

    def unroll(params: Params, rows: Array) -> Array:
        # What does not wait for the last state is computed for all rows at once.
        cell, dense = params["cell"], lambda name, x: x @ params[name]["kernel"] + params[name]["bias"][None]
        joined = lambda names, part: jnp.concatenate([cell[name][part] for name in names], -1)
        inputs, states = ("ir", "iz", "in"), ("hr", "hz", "hn")
        from_inputs = rows @ joined(inputs, "kernel") + joined(inputs, "bias")[None]
        h = gated_states(from_inputs, joined(states, "kernel"), cell["hn"]["bias"])
        if products:
            h = jnp.concatenate([h, dense("what", h) * dense("where", rows)], 1)
        return dense("head", h)

    return network._replace(unroll=unroll)


def cosine(keys: Array, slots: Array) -> Array:
    """Cosine of each of `keys: [heads, width]` and each of `slots: [slots, width]`: `[heads, slots]`."""
    # A slot that was never written to has no direction: its cosine is 0, and so is the gradient.
    lengths = [jnp.sqrt((vectors**2).sum(1) + 1e-6) for vectors in (keys, slots)]
    return keys @ slots.T / (lengths[0][:, None] * lengths[1][None, :])


def least_used(usage: Array, heads: int) -> Array:
    """w^lu: one-hot for each head, `[heads, slots]`, of the `heads` least used slots; of equals, the first."""
    # What the heads write in one step is equally used but for rounding, which must not decide what is forgotten.
    first = 1e-3 / usage.size * jnp.arange(usage.size, dtype=usage.dtype)
    return jax.nn.one_hot(jnp.argsort(usage + first)[:heads], usage.size, dtype=usage.dtype)


def access(
    memory: AddressedMemory, keys: Array, gate: Array, *, decay: float, strength: float
) -> tuple[Array, Array, Array, Array]:
    """Reads by `keys`, and writes them to where was last read or to what is least used.

    With w^r, w^u and w^lu of the last step, of which the slots of w^lu, one for each head, are emptied before the write,
      w^r_t = softmax of strength * cosine(k_t, M_{t-1}),  r_t = w^r_t M_{t-1},
      w^w_t = gate w^r_{t-1} + (1 - gate) w^lu_{t-1},      M_t = M_{t-1} + sum over heads of w^w_t k_t,
      w^u_t = decay w^u_{t-1} + sum over heads of (w^r_t + w^w_t).
    The paper has M_t in the first line. Read after the write, a key would find itself, at a cosine of 1, before all that
    the memory has been told; whichever order the authors had, with this one learning takes a third of the steps.

    Args:
      memory: before the step.
      keys: k_t, `[heads, width]`.
      gate: sigmoid(alpha), scalar.
      decay: gamma of the usage.
      strength: of the addressing; 1 in the paper.

    Returns:
      slots `[slots, width]`, usage `[slots]`, read weights `[heads, slots]` and what was read, `[heads, width]`.

    Source: Santoro et al. 2016, section 3.2, equations 2 to 8.
    """
    lru = least_used(memory.usage, keys.shape[0])
    write_weights = gate * memory.read_weights + (1 - gate) * lru
    slots = memory.slots * (1 - lru.sum(0))[:, None] + write_weights.T @ keys
    read_weights = jax.nn.softmax(strength * cosine(keys, memory.slots), 1)
    usage = decay * memory.usage + (read_weights + write_weights).sum(0)
    return slots, usage, read_weights, read_weights @ memory.slots


class _MANN(nn.Module):
    num_outputs: int
    hidden: int
    heads: int
    width: int
    decay: float
    strength: float

    @nn.compact
    def __call__(self, memory: AddressedMemory, x: Array) -> tuple[AddressedMemory, Array]:
        cell = nn.OptimizedLSTMCell(self.hidden, param_dtype=x.dtype, name="cell")
        controller, h = cell(memory.controller, jnp.concatenate([x, memory.read]))
        keys = jnp.tanh(nn.Dense(self.heads * self.width, param_dtype=x.dtype, name="keys")(h))
        # It begins by writing to what is least used: what is blended with other keys cannot be found again.
        gate = jax.nn.sigmoid(self.param("write_gate", nn.initializers.constant(-3.0), (), x.dtype))
        slots, usage, read_weights, read = access(
            memory, keys.reshape(self.heads, self.width), gate, decay=self.decay, strength=self.strength
        )
        read = read.reshape(-1)
        outputs = nn.Dense(self.num_outputs, param_dtype=x.dtype, name="head")(jnp.concatenate([h, read]))
        return AddressedMemory(controller, slots, usage, read_weights, read), outputs


def mann(
    *, num_outputs: int, hidden: int, slots: int, width: int, heads: int, decay: float, strength: float
) -> RecurrentModel:
    """An LSTM that writes to an external memory and reads from it by content.

    The controller sees the input and what was last read; keys are tanh of a linear layer of its output; a linear layer
    answers from its output and what it reads. The memory is empty at first, the forget gates' bias begins at 1,
    and the write gate nearly closed: what is read is not written over.

    Args:
      num_outputs: outputs of a step.
      hidden: cells of the controller.
      slots: rows of the memory.
      width: size of a row.
      heads: keys that are written and read at each step; at most `slots`.
      decay: gamma, by which usage fades.
      strength: of the addressing, see `access`.

    Source: Santoro et al. 2016, Meta-Learning with Memory-Augmented Neural Networks, section 3.
    """

    def start(dtype):
        zeros = lambda *shape: jnp.zeros(shape, dtype)
        controller = zeros(hidden), zeros(hidden)
        return AddressedMemory(controller, zeros(slots, width), zeros(slots), zeros(heads, slots), zeros(heads * width))

    module = _MANN(num_outputs, hidden, heads, width, decay, strength)
    return _recurrent(module, start, _forgetting_little)
