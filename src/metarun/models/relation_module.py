"""How related two feature maps are, as a learnt function: the relation module of relation networks."""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import linen as nn

from metarun.errors import one_of, positive_int
from metarun.models.block import NORMS, Block
from metarun.types import Array, Params, Reference


class RelationModule(NamedTuple):
    """A network that scores pairs.

    Attributes:
      init: `(key, pairs) -> params`.
      apply: `(params, pairs: [n, height, width, channel], reference) -> logits: [n]`; `reference` as in `Model.apply`.
    """

    init: Callable[[Array, Array], Params]
    apply: Callable[[Params, Array, Reference], Array]


class _RelationModule(nn.Module):
    hidden: int
    norm: str

    @nn.compact
    def __call__(self, pairs: Array, reference: Reference) -> Array:
        x, filters = pairs, pairs.shape[-1] // 2
        for i in range(2):
            downsample = "max_pool" if min(x.shape[1:3]) > 1 else "none"
            x = Block(filters, downsample, self.norm, True, None, name=f"conv{i}")(x, reference)
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(self.hidden, param_dtype=x.dtype, name="dense")(x))
        return nn.Dense(1, param_dtype=x.dtype, name="head")(x)[:, 0]


def relation_module(*, hidden: int, norm: str) -> RelationModule:
    """Two convolutional blocks with as many filters as a feature map has channels, a hidden layer, and one output.

    The convolutions pad and a block pools only maps of 2x2 or more, so that maps of any size do.

    Args:
      hidden: units of the hidden layer (`method.hidden`).
      norm: of the blocks (`method.norm`): "batch", "layer" or "none".

    Raises:
      ConfigError: for a value that is not allowed.

    Source: Sung et al. 2018, Learning to Compare, section 3.4 and figure 2.
    """
    module: Any = _RelationModule(positive_int("method.hidden", hidden), one_of("method.norm", norm, NORMS))
    return RelationModule(
        init=lambda key, pairs: module.init(key, pairs, None)["params"],
        apply=lambda params, pairs, reference: module.apply({"params": params}, pairs, reference),
    )
