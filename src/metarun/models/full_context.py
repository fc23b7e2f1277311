"""Embeddings that depend on the whole support set: the full context embeddings of matching networks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from metarun.types import Array, Params


class FullContext(NamedTuple):
    """Two embeddings that share a set of parameters.

    Attributes:
      init: `(key, features: [n, size]) -> params`.
      embed_support: `(params, features: [n, size]) -> [n, size]`, g(x_i, S) from g'(x_i).
      embed_query: `(params, features: [m, size], support: [n, size]) -> [m, size]`, f(x, S) from f'(x) and g(., S).
        Each row's depends on that row and the support alone.
    """

    init: Callable[[Array, Array], Params]
    embed_support: Callable[[Params, Array], Array]
    embed_query: Callable[[Params, Array, Array], Array]


class _FullContext(nn.Module):
    steps: int
    size: int
    dtype: jnp.dtype

    def setup(self):
        forward, backward, attention = (nn.LSTMCell(self.size, param_dtype=self.dtype, parent=None) for _ in range(3))
        self.forward: Any = nn.RNN(forward)
        self.backward: Any = nn.RNN(backward, reverse=True, keep_order=True)
        self.attention = attention

    def __call__(self, features: Array) -> Array:
        return self.embed_query(features, self.embed_support(features))

    def embed_support(self, features: Array) -> Array:
        start = (jnp.zeros((self.size,), self.dtype),) * 2
        return self.forward(features, initial_carry=start) + self.backward(features, initial_carry=start) + features

    def embed_query(self, features: Array, support: Array) -> Array:
        c, h = (jnp.zeros_like(features),) * 2
        for _ in range(self.steps):
            r = nn.softmax(h @ support.T) @ support
            (c, out), _ = self.attention((c, h), jnp.concatenate([features, r], 1))
            h = out + features
        return h


def full_context(steps: int) -> FullContext:
    """g(x_i, S) = forward_i + backward_i + g'(x_i), with the outputs of a bidirectional LSTM over g'(x_1), g'(x_2), ...

    f(x, S) is the state of an LSTM after `steps` steps, each of which reads f'(x) and what attention over the support
    set returns, and adds f'(x) to its output: h_k = LSTM(f'(x), [h_{k-1}, r_{k-1}], c_{k-1}) + f'(x), with
    r_{k-1} = sum_i softmax_i(h_{k-1} . g(x_i)) g(x_i).

    Args:
      steps: K, 1 or more.

    Source: Vinyals et al. 2016, Matching Networks, equations 3 to 6 and appendix A.
    """

    def apply(params, features, *rest, method):
        return _FullContext(steps, features.shape[1], features.dtype).apply(
            {"params": params}, features, *rest, method=method
        )

    return FullContext(
        init=lambda key, features: _FullContext(steps, features.shape[1], features.dtype).init(key, features)["params"],
        embed_support=lambda params, features: apply(params, features, method="embed_support"),
        embed_query=lambda params, features, support: apply(params, features, support, method="embed_query"),
    )
