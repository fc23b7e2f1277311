"""A recurrent network that reads the support set.

Source: Hochreiter, Younger and Conwell 2001, Learning to Learn Using Gradient Descent.
"""

from metarun.errors import one_of, positive_int
from metarun.few_shot.sequence import beside, sequence_learner
from metarun.models.recurrent import gru, lstm, sequence_model
from metarun.types import Method, Model

CELLS = {"lstm": lstm, "gru": gru}


def rnn(
    *,
    encoder: Model,
    objective: str,
    num_outputs: int,
    cell: str = "lstm",
    hidden: int = 256,
    embedding: int = 64,
    query_statistics: str = "support",
    numberings: int = 1,
) -> Method:
    """h_t = f(h_{t-1}, (x_t, y_t)) over the support set; a query's outputs are linear in f(h_k, (x, ?)).

    Args:
      encoder: features of an input; a linear layer to `embedding` follows.
      objective: "classification" or "regression".
      num_outputs: the way, or the size of a regression target.
      cell: "lstm" or "gru".
      hidden: cells.
      embedding: size of an input's embedding.
      query_statistics: see `learner`.
      numberings: see `sequence.renumbered`.

    Raises:
      ConfigError: for a value that is not allowed.
    """
    network = CELLS[one_of("method.cell", cell, CELLS)]
    return sequence_learner(
        model=sequence_model(network(num_outputs=num_outputs, hidden=positive_int("method.hidden", hidden))),
        encoder=encoder,
        embedding=embedding,
        labels=beside,
        objective=objective,
        num_outputs=num_outputs,
        query_statistics=query_statistics,
        numberings=numberings,
    )
