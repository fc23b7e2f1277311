"""A fully connected network."""

from collections.abc import Sequence
from typing import Any

from flax import linen as nn

from metarun.errors import positive_int, positive_ints
from metarun.types import Array, Model


class _MLP(nn.Module):
    num_outputs: int | None
    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x.reshape(x.shape[0], -1)
        for i, size in enumerate(self.hidden):
            x = nn.relu(
                nn.Dense(size, param_dtype=x.dtype, kernel_init=nn.initializers.he_normal(), name=f"dense{i}")(x)
            )
        if self.num_outputs is None:
            return x
        return nn.Dense(self.num_outputs, param_dtype=x.dtype, name="head")(x)


def mlp(*, num_outputs: int | None, hidden: Sequence[int] = (40, 40)) -> Model:
    """Dense layers with ReLU between them; inputs of any shape are flattened.

    Args:
      num_outputs: size of the last layer; None: there is none, the outputs are those of the last hidden layer.
      hidden: sizes of the layers before it (`model.hidden`); two of 40 for sinusoids in MAML.

    Returns:
      A `Model` for `[n, *feature]`. It has no normalisation, so each row's output depends on that row alone.

    Raises:
      ConfigError: for sizes that are not whole numbers of at least 1.

    Source: Finn et al. 2017, section 5.1.
    """
    module: Any = _MLP(
        None if num_outputs is None else positive_int("model.num_outputs", num_outputs),
        positive_ints("model.hidden", hidden, "[40,40]"),
    )
    return Model(
        init=lambda key, x: module.init(key, x).get("params", {}),  # nothing but inputs has none
        apply=lambda params, x, reference=None: module.apply({"params": params}, x),
    )
