"""A transformer that reads the support set in context.

Sources: Fifty et al. 2024, Context-Aware Meta-Learning (CAML); Nguyen and Grover 2022, Transformer Neural Processes; Müller et
al. 2022, Transformers Can Do Bayesian Inference (prior-data fitted networks); Vaswani et al. 2017, Attention Is All You Need.
"""

from metarun.config.flat_keys import with_settings
from metarun.errors import ConfigError, positive_int
from metarun.few_shot.in_context import Reading
from metarun.few_shot.sequence import beside, sequence_learner
from metarun.models.transformer import transformer as network_over_sets
from metarun.types import Method, Model


@with_settings(reading=Reading())
def transformer(
    *,
    encoder: Model,
    objective: str,
    num_outputs: int,
    reading: Reading,
    layers: int = 2,
    heads: int = 4,
    size: int = 128,
) -> Method:
    """Rows (x_i, y_i) attend to each other; a row (x, ?) attends to them, layer by layer, and becomes the answer.

    Rows have no positions: the order of the support set is no input. Queries attend to the support set alone, so that each
    is answered as if it were the only one.

    Args:
      encoder: features of an input; a linear layer to `embedding` numbers follows.
      objective: "classification" or "regression".
      num_outputs: the way, or the size of a regression target.
      reading: how it is trained, see `in_context.Reading`.
      layers: of attention and an MLP each.
      heads: of an attention; a divisor of `size`.
      size: of a row within the network.

    Raises:
      ConfigError: for a value that is not allowed.

    Source: the masks are those of transformer neural processes (Nguyen and Grover 2022, section 3.2, diagonal) and of
    prior-data fitted networks (Müller et al. 2022, section 3); embeddings beside labels are CAML's (section 3.2).
    """
    size, heads = positive_int("method.size", size), positive_int("method.heads", heads)
    if size % heads:
        raise ConfigError("method.heads", heads, f"a divisor of method.size={size}")
    return sequence_learner(
        model=network_over_sets(
            num_outputs=num_outputs, layers=positive_int("method.layers", layers), heads=heads, size=size
        ),
        encoder=encoder,
        labels=beside,
        objective=objective,
        num_outputs=num_outputs,
        reading=reading,
    )
