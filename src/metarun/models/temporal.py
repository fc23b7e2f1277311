"""Causal dilated convolutions and causal attention over a sequence and alternatives for its last position.

Rows `[length + n, size]` hold a sequence of `length` positions and then `n` ends, each of them an alternative for the
position after it. Ends see the sequence and themselves, but not each other, so that `n` sequences which differ in their
last element alone cost little more than one.

With a mask, the sequence is of the marked rows alone, which stand last: what is before them is as what is before the start.
"""

from collections.abc import Sequence
from functools import partial
from math import ceil, log2, sqrt
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from metarun.errors import ConfigError, positive_int
from metarun.types import Array, SequenceModel


def delayed(rows: Array, length: int, dilation: int, mask: Array | None = None) -> Array:
    """What stood `dilation` positions before each row, zeros before the start: `[length + n, size]` likewise."""
    past = rows[:length] if mask is None else jnp.where(mask[:, None], rows[:length], 0)
    past = jnp.pad(past, ((dilation, 0), (0, 0)))
    at_the_end = jnp.broadcast_to(past[length], (rows.shape[0] - length, rows.shape[1]))
    return jnp.concatenate([past[:length], at_the_end])


def attended(length: int, num_ends: int, mask: Array | None = None) -> Array:
    """Which rows (second axis) a row (first axis) attends to: itself, and the sequence before it."""
    row = jnp.arange(length + num_ends)
    before = row[None, :] < jnp.minimum(row, length)[:, None]
    if mask is not None:
        before = before & jnp.pad(mask, (0, num_ends))[None]
    return before | jnp.eye(row.size, dtype=bool)


def dilations(num_positions: int) -> list[int]:
    """1, 2, 4, ..., so many that kernels of size 2 with these dilations in turn see `num_positions` positions back."""
    return [2**i for i in range(ceil(log2(num_positions)))]


class _GatedConvolution(nn.Module):
    """tanh(W_f * rows) sigmoid(W_g * rows), with causal kernels of size 2."""

    filters: int
    dilation: int

    @nn.compact
    def __call__(self, rows: Array, length: int, mask: Array | None = None) -> Array:
        taps = jnp.concatenate([delayed(rows, length, self.dilation, mask), rows], 1)
        signal, gate = jnp.split(nn.Dense(2 * self.filters, param_dtype=rows.dtype, name="taps")(taps), 2, 1)
        return jnp.tanh(signal) * jax.nn.sigmoid(gate)


class _Attention(nn.Module):
    """softmax(Q K^T / sqrt(key_size)) V beside the rows."""

    key_size: int
    value_size: int

    @nn.compact
    def __call__(self, rows: Array, length: int, mask: Array | None = None) -> Array:
        keys, queries, values = (
            nn.Dense(size, param_dtype=rows.dtype, name=name)(rows)
            for name, size in (("keys", self.key_size), ("queries", self.key_size), ("values", self.value_size))
        )
        logits = queries @ keys.T / sqrt(self.key_size)
        weights = jax.nn.softmax(logits, 1, where=attended(length, rows.shape[0] - length, mask))
        return jnp.concatenate([rows, weights @ values], 1)


class _Snail(nn.Module):
    num_outputs: int
    num_positions: int
    filters: int
    attention: tuple[tuple[int, int], ...]

    @nn.compact
    def __call__(self, rows: Array, length: int, mask: Array | None = None) -> Array:
        for i, sizes in enumerate(self.attention):
            for dilation in dilations(self.num_positions) if i else ():
                convolve = _GatedConvolution(self.filters, dilation, name=f"block{i}_dilation{dilation}")
                rows = jnp.concatenate([rows, convolve(rows, length, mask)], 1)
            rows = _Attention(*sizes, name=f"block{i}_attention")(rows, length, mask)
        return nn.Dense(self.num_outputs, param_dtype=rows.dtype, name="head")(rows)


class _WaveNet(nn.Module):
    num_outputs: int
    num_positions: int
    filters: int
    products: int

    @nn.compact
    def __call__(self, rows: Array, length: int, mask: Array | None = None) -> Array:
        dense = lambda size, name: nn.Dense(size, param_dtype=rows.dtype, name=name)
        given, rows = rows, dense(self.filters, "input")(rows)
        skips, steps = [], dilations(self.num_positions)
        for dilation in steps:
            gated = _GatedConvolution(self.filters, dilation, name=f"dilation{dilation}")(rows, length, mask)
            skips.append(dense(self.filters, f"skip{dilation}")(gated))
            if dilation < steps[-1]:
                rows = rows + dense(self.filters, f"residual{dilation}")(gated)
        seen: Any = sum(skips)
        hidden = nn.relu(dense(self.filters, "hidden")(nn.relu(seen)))
        if self.products:
            what = dense(self.products, "what")(delayed(seen, length, 1, mask))
            hidden = jnp.concatenate([hidden, what * dense(self.products, "where")(given)], 1)
        return dense(self.num_outputs, "head")(hidden)


def _sequence_model(module: nn.Module) -> SequenceModel:
    """`module`: `(rows: [length + n, size], length, mask) -> [length + n, num_outputs]`."""

    def read(params, rows, mask=None):
        if mask is None:
            return rows, None
        last = jnp.argsort(mask)  # stable: the rows in their order, behind what is none
        return rows[last], mask[last]

    def answer(params, read, ends):
        rows, mask = read
        length = rows.shape[0]
        return module.apply({"params": params}, jnp.concatenate([rows, ends]), length, mask)[length:]

    return SequenceModel(
        init=lambda key, rows, ends: module.init(key, jnp.concatenate([rows, ends]), rows.shape[0])["params"],
        read=read,
        answer=answer,
    )


def attention_sizes(attention: Any) -> list[tuple[int, int]]:
    """Returns `method.attention` as (key size, value size) of each block; raises `ConfigError` for anything else."""

    def is_list(value):
        return isinstance(value, Sequence) and not isinstance(value, (str, bytes))

    if not is_list(attention) or not attention or not all(is_list(pair) and len(pair) == 2 for pair in attention):
        allowed = "a list of key and value sizes such as [[64,32],[256,128]]"
        raise ConfigError("method.attention", attention, allowed)
    positive = partial(positive_int, "method.attention")
    return [(positive(key_size), positive(value_size)) for key_size, value_size in attention]


def snail(*, num_outputs: int, num_positions: int, filters: int, attention: Sequence[tuple[int, int]]) -> SequenceModel:
    """Attention blocks with a stack of densely connected convolutions between each two; then a linear layer.

    A convolution's output and what attention reads are put beside their input, so that rows grow as they go up. The
    dilations begin at 1: the paper's pseudocode, read with i = 1, 2, ..., would begin at 2 and not see position t - 1.

    Args:
      num_outputs: outputs of a position.
      num_positions: T, the length that a stack of convolutions has to see: ceil(log2 T) of them.
      filters: of a convolution.
      attention: (key size, value size) of each attention block.

    Source: Mishra et al. 2018, A Simple Neural Attentive Meta-Learner, section 3 and figure 2.
    """
    return _sequence_model(_Snail(num_outputs, num_positions, filters, tuple((key, value) for key, value in attention)))


def wavenet(*, num_outputs: int, num_positions: int, filters: int, products: int = 0) -> SequenceModel:
    """Gated causal convolutions of kernel size 2 with residual and skip connections; two layers on the skips' sum.

    Args:
      num_outputs: outputs of a position.
      num_positions: length that the stack has to see: ceil(log2 num_positions) convolutions, of dilations 1, 2, 4, ...
      filters: of every layer.
      products: of a linear layer over the skips' sum at the position before with one over the row itself, which the last
        layer is given too: so what was seen is compared with what is asked in one step. The paper has none.

    Source: van den Oord et al. 2016, WaveNet: A Generative Model for Raw Audio, sections 2.3 and 2.4, figure 4.
    """
    return _sequence_model(_WaveNet(num_outputs, num_positions, filters, products))
