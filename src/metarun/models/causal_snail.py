"""SNAIL as a recurrent network: what later rows need of earlier ones is kept and not computed again."""

from collections.abc import Iterator, Sequence
from math import sqrt
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from metarun.models.temporal import dilations, snail
from metarun.types import Array, Params, RecurrentModel


class Past(NamedTuple):
    """What a step needs of the steps before it.

    Attributes:
      time: steps taken, int32.
      taps: what the older half of each convolution's kernel made of its last rows, name -> `[dilation, 2 * filters]`; that
        of step t is in row t modulo the dilation.
      keys, values: of each attention block, name -> `[num_positions, size]`.
    """

    time: Array
    taps: dict[str, Array]
    keys: dict[str, Array]
    values: dict[str, Array]


def _linear(rows: Array, kernel: Array, bias: Array) -> Array:
    product = rows @ kernel
    return product + jnp.broadcast_to(bias, product.shape)


class _Attention(NamedTuple):
    """One attention block's layers: keys, queries (scaled) and values by one product."""

    kernel: Array
    bias: Array
    key_size: int

    def of(self, rows: Array) -> tuple[Array, Array, Array]:
        keys, queries, values = jnp.split(_linear(rows, self.kernel, self.bias), [self.key_size, 2 * self.key_size], -1)
        return keys, queries, values


def _attention(params: Params, key_size: int) -> _Attention:
    scales = {"keys": 1.0, "queries": 1 / sqrt(key_size), "values": 1.0}
    joined = lambda part: jnp.concatenate([params[name][part] * scale for name, scale in scales.items()], -1)
    return _Attention(joined("kernel"), joined("bias"), key_size)


def _tapped(params: Params, rows: Array) -> tuple[Array, Array]:
    """What the older and the newer half of a kernel make of rows: the delay comes after the product, of fewer columns."""
    taps, size = params["taps"], rows.shape[-1]
    kernel = jnp.concatenate([taps["kernel"][:size], taps["kernel"][size:]], 1)
    older, newer = jnp.split(_linear(rows, kernel, jnp.pad(taps["bias"], (taps["bias"].size, 0))), 2, -1)
    return older, newer


def _gated(rows: Array, taps: Array) -> Array:
    signal, gate = jnp.split(taps, 2, -1)
    return jnp.concatenate([rows, jnp.tanh(signal) * jax.nn.sigmoid(gate)], -1)


def _read(logits: Array, values: Array, seen: Array) -> Array:
    """softmax(logits) values over what is `seen`; divided last, where there is less to divide."""
    logits = jnp.where(seen, logits, -jnp.inf)
    weights = jnp.exp(logits - lax.stop_gradient(logits.max(-1, keepdims=True)))
    return weights @ values / weights.sum(-1, keepdims=True)


def causal_snail(
    *, num_outputs: int, num_positions: int, filters: int, attention: Sequence[tuple[int, int]]
) -> RecurrentModel:
    """`temporal.snail` one row after the other.

    Args:
      num_outputs, filters, attention: as for `snail`.
      num_positions: T, the length of the sequence, beyond which it cannot be fed.
    """
    model = snail(num_outputs=num_outputs, num_positions=num_positions, filters=filters, attention=attention)
    head = lambda params, rows: _linear(rows, params["head"]["kernel"], params["head"]["bias"])

    def blocks() -> Iterator[tuple[str, list[tuple[str, int]], int, int]]:
        for i, (key_size, value_size) in enumerate(attention):
            steps = dilations(num_positions) if i else []
            yield f"block{i}_attention", [(f"block{i}_dilation{d}", d) for d in steps], key_size, value_size

    def start(dtype: Any) -> Past:
        zeros = lambda *shape: jnp.zeros(shape, dtype)
        taps = {name: zeros(d, 2 * filters) for _, convolutions, *_ in blocks() for name, d in convolutions}
        keys = {name: zeros(num_positions, key_size) for name, _, key_size, _ in blocks()}
        values = {name: zeros(num_positions, value_size) for name, *_, value_size in blocks()}
        return Past(jnp.int32(0), taps, keys, values)

    def step(params: Params, past: Past, row: Array) -> tuple[Past, Array]:
        time, taps, keys, values = past.time, dict(past.taps), dict(past.keys), dict(past.values)
        seen = jnp.arange(num_positions, dtype=time.dtype) <= time
        put = lambda rows, row, place: lax.dynamic_update_index_in_dim(rows, row, place, 0)
        for block, convolutions, key_size, _ in blocks():
            for name, dilation in convolutions:
                place = time % dilation
                older, newer = _tapped(params[name], row)
                row = _gated(row, lax.dynamic_index_in_dim(taps[name], place, 0, keepdims=False) + newer)
                taps[name] = put(taps[name], older, place)
            key, query, value = _attention(params[block], key_size).of(row)
            keys[block], values[block] = put(keys[block], key, time), put(values[block], value, time)
            row = jnp.concatenate([row, _read(keys[block] @ query, values[block], seen)])
        return Past(time + 1, taps, keys, values), head(params, row)

    def unroll(params: Params, rows: Array) -> Array:
        length = rows.shape[0]
        seen = jnp.tri(length, dtype=bool)
        for block, convolutions, key_size, _ in blocks():
            for name, dilation in convolutions:
                older, newer = _tapped(params[name], rows)
                rows = _gated(rows, jnp.pad(older, ((dilation, 0), (0, 0)))[:length] + newer)
            keys, queries, values = _attention(params[block], key_size).of(rows)
            rows = jnp.concatenate([rows, _read(queries @ keys.T, values, seen)], 1)
        return head(params, rows)

    return RecurrentModel(
        init=lambda key, x: model.init(key, x[None], x[None][:0]), start=start, step=step, unroll=unroll
    )
