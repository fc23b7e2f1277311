"""A recurrent network with an external memory.

Source: Santoro, Bartunov, Botvinick, Wierstra and Lillicrap 2016, Meta-Learning with Memory-Augmented Neural Networks.
"""

from metarun.errors import ConfigError, positive_float, positive_int, true_or_false
from metarun.few_shot.losses import OBJECTIVES
from metarun.few_shot.sequence import offset, renumbered, sequence_learner
from metarun.models import recurrent
from metarun.types import Method, Model


def mann(
    *,
    encoder: Model,
    objective: str,
    num_outputs: int,
    hidden: int = 200,
    slots: int = 128,
    width: int = 40,
    heads: int = 4,
    usage_decay: float = 0.99,
    strength: float = 1.0,
    support_loss: bool = True,
    embedding: int = 64,
    query_statistics: str = "support",
    numberings: int = 1,
) -> Method:
    """Reads (x_1, 0), (x_2, y_1), ..., (x_k, y_{k-1}), then a query as (x, y_k): a label comes a step after its input.

    Args:
      encoder: features of an input; a linear layer to `embedding` follows.
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
      embedding: size of an input's embedding.
      query_statistics: see `learner`.
      numberings: see `sequence.renumbered`.

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
    method = sequence_learner(
        model=recurrent.sequence_model(network),
        encoder=encoder,
        embedding=embedding,
        labels=offset,
        objective=objective,
        num_outputs=num_outputs,
        query_statistics=query_statistics,
    )
    score = OBJECTIVES[objective]

    def loss_of_all_positions(meta_params, task, key):
        adapted = method.adapt(meta_params, task.support, key)
        outputs = method.predict(adapted, task.query.x)
        support_losses = score.loss(adapted.state.memory.outputs, task.support.y)
        query_loss = score.loss(outputs, task.query.y).mean()
        loss = (support_losses.sum() + query_loss) / (support_losses.size + 1)
        measured = score.measure(outputs, task.query.y).mean()
        return loss, {"loss": loss, f"query/{score.metric}": measured}

    if true_or_false("method.support_loss", support_loss):
        method = method._replace(loss=loss_of_all_positions)
    return renumbered(method, objective, num_outputs, numberings)
