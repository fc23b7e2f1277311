"""A recurrent network that reads the support set.

Source: Hochreiter, Younger and Conwell 2001, Learning to Learn Using Gradient Descent.
"""

from metarun.config.flat_keys import with_settings
from metarun.errors import one_of, positive_int
from metarun.few_shot.in_context import Reading
from metarun.few_shot.sequence import beside, sequence_learner
from metarun.models.recurrent import gru, lstm, sequence_model
from metarun.types import Method, Model

CELLS = {"lstm": lstm, "gru": gru}


@with_settings(reading=Reading())
def rnn(
    *,
    encoder: Model,
    objective: str,
    num_outputs: int,
    reading: Reading,
    cell: str = "lstm",
    hidden: int = 256,
) -> Method:
    """h_t = f(h_{t-1}, (x_t, y_t)) over the support set; a query's outputs are linear in f(h_k, (x, ?)).

    Args:
      encoder: features of an input; a linear layer to `embedding` numbers follows.
      objective: "classification" or "regression".
      num_outputs: the way, or the size of a regression target.
      cell: "lstm" or "gru".
      hidden: cells.
      reading: how it is trained, see `in_context.Reading`.

    Raises:
      ConfigError: for a value that is not allowed.
    """
    network = CELLS[one_of("method.cell", cell, CELLS)]
    return sequence_learner(
        model=sequence_model(network(num_outputs=num_outputs, hidden=positive_int("method.hidden", hidden))),
        encoder=encoder,
        labels=beside,
        objective=objective,
        num_outputs=num_outputs,
        reading=reading,
    )
