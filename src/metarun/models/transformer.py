"""A transformer that reads a set: no row has a position, so the order in which they come changes nothing."""

from math import sqrt
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from metarun.models.set_model import set_model
from metarun.types import Array, SequenceModel


class _Layer(nn.Module):
    """x + attention(norm(x), norm(context)), then x + MLP(norm(x))."""

    heads: int
    size: int

    @nn.compact
    def __call__(self, rows: Array, context: Array, mask: Array | None) -> Array:
        norm = lambda name: nn.LayerNorm(param_dtype=rows.dtype, force_float32_reductions=False, name=name)
        dense = lambda size, name: nn.Dense(size, param_dtype=rows.dtype, name=name)
        attention_norm = norm("attention_norm")
        asking, seen = attention_norm(rows), attention_norm(context)
        split = lambda x: x.reshape(x.shape[0], self.heads, -1)
        queries = split(dense(self.size, "queries")(asking))
        keys, values = split(dense(self.size, "keys")(seen)), split(dense(self.size, "values")(seen))
        logits = jnp.einsum("ihd,jhd->hij", queries, keys) / sqrt(self.size // self.heads)
        weights = jax.nn.softmax(logits, where=None if mask is None else mask[None, None])
        found = jnp.einsum("hij,jhd->ihd", weights, values).reshape(rows.shape)
        rows = rows + dense(self.size, "found")(found)
        hidden = nn.gelu(dense(2 * self.size, "hidden")(norm("hidden_norm")(rows)))
        return rows + dense(self.size, "output")(hidden)


class _Transformer(nn.Module):
    num_outputs: int
    layers: int
    heads: int
    size: int
    dtype: Any

    def setup(self) -> None:
        self.input: Any = nn.Dense(self.size, param_dtype=self.dtype)
        self.layer: Any = [_Layer(self.heads, self.size) for _ in range(self.layers)]
        self.norm: Any = nn.LayerNorm(param_dtype=self.dtype, force_float32_reductions=False)
        self.head: Any = nn.Dense(self.num_outputs, param_dtype=self.dtype)

    def __call__(self, rows: Array, ends: Array) -> Array:
        return self.answer(self.read(rows, None), ends)

    def read(self, rows: Array, mask: Array | None) -> tuple[list[Array], Array | None]:
        rows = self.input(rows)
        seen = []
        for layer in self.layer:
            seen.append(rows)
            rows = layer(rows, rows, mask)
        return seen, mask

    def answer(self, read: tuple[list[Array], Array | None], ends: Array) -> Array:
        (seen, mask), ends = read, self.input(ends)
        for layer, rows in zip(self.layer, seen, strict=True):
            ends = layer(ends, rows, mask)
        return self.head(self.norm(ends))


def transformer(*, num_outputs: int, layers: int, heads: int, size: int) -> SequenceModel:
    """Layers of attention and an MLP over rows that have no positions; the ends attend to the rows, and to nothing else.

    Norms stand before each part of a layer, and there is one at the end. Queries of attention begin by the parameters of
    the keys, so that rows begin by attending to those that are like them: what a learner in context has to find first.

    Args:
      num_outputs: outputs of an end.
      layers: how many.
      heads: of an attention; a divisor of `size`.
      size: of a row; the hidden layer of an MLP has twice as many units.

    Sources: Vaswani et al. 2017, Attention Is All You Need, section 3; norms as in Xiong et al. 2020, On Layer Normalization
    in the Transformer Architecture.
    """
    model = set_model(lambda dtype: _Transformer(num_outputs, layers, heads, size, dtype))

    def init(key, rows, ends):
        return {
            name: {**part, "queries": jax.tree.map(jnp.copy, part["keys"])} if name.startswith("layer") else part
            for name, part in model.init(key, rows, ends).items()
        }

    return model._replace(init=init)
