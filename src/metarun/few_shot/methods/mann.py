"""A recurrent network with an external memory.

Source: Santoro, Bartunov, Botvinick, Wierstra and Lillicrap 2016, Meta-Learning with Memory-Augmented Neural Networks.
"""

from metarun.config.flat_keys import with_settings
from metarun.errors import ConfigError, positive_float, positive_int, true_or_false
from metarun.few_shot.in_context import Reading
from metarun.few_shot.sequence import offset, sequence_learner
from metarun.models import recurrent
from metarun.types import Method, Model


@with_settings(reading=Reading())
def mann(
    *,
    encoder: Model,
    objective: str,
    num_outputs: int,
    reading: Reading,
    hidden: int = 200,
    slots: int = 128,
    width: int = 40,
    heads: int = 4,
    usage_decay: float = 0.99,
    strength: float = 1.0,
    support_loss: bool = True,
) -> Method:
    """Reads (x_1, 0), (x_2, y_1), ..., (x_k, y_{k-1}), then a query as (x, y_k): a label comes a step after its input.

    Args:
      encoder: features of an input; a linear layer to `embedding` numbers follows.
      objective: "classification" or "regression".
      num_outputs: the way, or the size of a regression target.
      hidden: cells of the controller.
      slots: rows of the memory.
      width: size of a row.
      heads: rows that are written and read at a step; at most `slots`.
      usage_decay: gamma, by which the usage of a row fades at each step; at most 1.
      strength: of the addressing by cosine; 1 in the paper.
      support_loss: whether the training loss is the mean over all positions, each answered before its label comes, as
        in the paper; false: over the queries alone.
      reading: how it is trained, see `in_context.Reading`.

    Raises:
      ConfigError: for a value that is not allowed.

    Source: sections 2 and 3.
    """
    if positive_float("method.usage_decay", usage_decay) > 1:
        raise ConfigError("method.usage_decay", usage_decay, "a number above 0, at most 1")
    heads, slots = positive_int("method.heads", heads), positive_int("method.slots", slots)
    if heads > slots:
        raise ConfigError("method.heads", heads, f"at most {slots}, the slots of the memory")
    network = recurrent.mann(
        num_outputs=num_outputs,
        hidden=positive_int("method.hidden", hidden),
        slots=slots,
        width=positive_int("method.width", width),
        heads=heads,
        decay=float(usage_decay),
        strength=positive_float("method.strength", strength),
    )
    return sequence_learner(
        model=recurrent.sequence_model(network),
        encoder=encoder,
        labels=offset,
        objective=objective,
        num_outputs=num_outputs,
        support_outputs=(lambda memory: memory.outputs) if true_or_false("method.support_loss", support_loss) else None,
        reading=reading,
    )
