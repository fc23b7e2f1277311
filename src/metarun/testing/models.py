"""The contract of a network."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metarun.assembly.returned import model_faults
from metarun.config.schema import FEW_SHOT
from metarun.testing.contract import compiled_quickly, differ, hold, made, name_of, not_finite, retraced
from metarun.types import Model

_ROWS, _REFERENCE, _OUTPUTS = 6, 3, 4
_ROUNDING = 1e-3


@compiled_quickly()
def check_model(
    factory: Callable[..., Model], settings: Mapping[str, Any] | None = None, *, shape: Sequence[int] = (8, 8, 1)
) -> None:
    """Holds a network to what every network of metarun promises.

    - types and shapes: `[n, *feature]` becomes `[n, num_outputs]`, and features where `num_outputs` is None;
    - no memory: a function called again computes the same, and parameters are drawn from the key;
    - finite: outputs and gradients are finite numbers, of blank inputs as well;
    - alone and together: under `jax.vmap` over parameters it computes what it computes alone;
    - rows: an output belongs to its row, and what comes after the first `reference` rows moves no other row's output.

    Args:
      factory: what `model=NAME` would call.
      settings: its keys.
      shape: of one input, `[*feature]`.

    Raises:
      ContractError: a promise is broken, with what was found and how to mend it.
    """
    model, encoder = (
        made(factory, "model", FEW_SHOT, {"num_outputs": number, "shot": 1}, settings or {})
        for number in (_OUTPUTS, None)
    )
    x = jax.random.uniform(jax.random.key(1), (_ROWS, *shape))
    apply = jax.jit(lambda params, x, reference: model.apply(params, x, reference), static_argnums=2)
    compiled: dict[str, Any] = {}

    def params(seed: int = 0) -> Any:
        init = compiled.setdefault("init", jax.jit(model.init))
        return init(jax.random.key(seed), x)

    def shapes() -> Iterator[str]:
        yield from (faults := [*model_faults(model, x, _OUTPUTS)])
        for fault in model_faults(encoder, x, None):
            if fault not in faults:
                yield f"With num_outputs=None: {fault}"

    def memory() -> Iterator[str]:
        yield from retraced("init", model.init, jax.random.key(0), x)
        yield from retraced("apply", model.apply, params(), x)
        if jax.tree.leaves(params()) and not differ(params(0), params(1), 0.0):
            yield "init returns the same parameters for another key: draw them from it."

    def finite() -> Iterator[str]:
        def total(params: Any, x: Any) -> Any:
            return jnp.square(model.apply(params, x)).sum()

        gradient = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
        for inputs, words in ((x, "ordinary inputs"), (jnp.zeros_like(x), "blank inputs, all of them 0")):
            if where := not_finite(gradient(params(), inputs)):
                yield f"Of {words}, outputs or gradients are not finite at {', '.join(where[:3])}: add a small number before a root or a quotient."
                return

    def together() -> Iterator[str]:
        several = [params(seed) for seed in range(2)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
        found = jax.jit(jax.vmap(lambda params: model.apply(params, x)))(stacked)
        if differ(found, np.stack([apply(each, x, None) for each in several]), _ROUNDING):
            yield "Under jax.vmap over parameters, as an inner loop has them, it computes something else."

    def rows() -> Iterator[str]:
        order = np.random.default_rng(0).permutation(_ROWS)
        found = apply(params(), x, None)
        if differ(apply(params(), x[order], None), np.asarray(found)[order], _ROUNDING):
            yield "Outputs do not follow their rows when these change places."
        others = x.at[_REFERENCE + 1 :].set(0.5)
        kept = [np.asarray(apply(params(), each, _REFERENCE))[: _REFERENCE + 1] for each in (x, others)]
        if differ(kept[0], kept[1], _ROUNDING):
            yield (
                f"With reference={_REFERENCE}, the output of row {_REFERENCE} depends on later ones: whatever is taken over a set "
                "has to be taken over its first `reference` rows."
            )

    hold(
        name_of(factory),
        {
            "types and shapes": shapes,
            "no memory": memory,
            "finite": finite,
            "alone and together": together,
            "rows": rows,
        },
    )
