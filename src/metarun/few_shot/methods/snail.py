"""The simple neural attentive learner.

Source: Mishra, Rohaninejad, Chen and Abbeel 2018, A Simple Neural Attentive Meta-Learner.
"""

from collections.abc import Sequence

from metarun.config.flat_keys import with_settings
from metarun.errors import positive_int
from metarun.few_shot.in_context import Reading
from metarun.few_shot.sequence import Shot, beside, longest, sequence_learner
from metarun.models import temporal
from metarun.types import Method, Model


@with_settings(reading=Reading())
def snail(
    *,
    encoder: Model,
    objective: str,
    num_outputs: int,
    reading: Reading,
    shot: Shot,
    train_shot: Shot | None = None,
    filters: int = 128,
    attention: Sequence[Sequence[int]] = ((64, 32), (256, 128), (512, 256)),
) -> Method:
    """Temporal convolutions and causal attention in turn, over (x_1, y_1), ..., (x_k, y_k), (x, ?).

    Args:
      encoder: features of an input; a linear layer to `embedding` numbers follows. For Omniglot the paper has the Conv-4 with
        max-pooling.
      objective: "classification" or "regression".
      num_outputs: the way, or the size of a regression target.
      shot: support examples of each class, at most; k + 1 is the T of the paper.
      train_shot: the same in training; None: as in test. T is the larger.
      filters: of a temporal convolution.
      attention: [key size, value size] of each attention block; between each two stand ceil(log2 T) convolutions.
      reading: how it is trained, see `in_context.Reading`.

    Raises:
      ConfigError: for a value that is not allowed.

    Source: section 3 and, for Omniglot, appendix A.
    """
    network = temporal.snail(
        num_outputs=num_outputs,
        num_positions=longest(objective, num_outputs, shot, train_shot),
        filters=positive_int("method.filters", filters),
        attention=temporal.attention_sizes(attention),
    )
    return sequence_learner(
        model=network,
        encoder=encoder,
        labels=beside,
        objective=objective,
        num_outputs=num_outputs,
        reading=reading,
    )
