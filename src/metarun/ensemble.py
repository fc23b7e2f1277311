"""Parameters of several checkpoints that answer together, as MAML++ is tested.

References:
  Antoniou et al., "How to train your MAML", 2019, section 5: the five checkpoints that validate best, whose outputs are
  averaged.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from metarun.types import Array, Params


class Ensemble(NamedTuple):
    """Two or more parameters of one network.

    Attributes:
      members: the best in validation first.
    """

    members: tuple[Params, ...]


def together(members: Sequence[Params]) -> Params | Ensemble:
    """The parameters that stand for `members`, one or more: of a single one, itself."""
    return members[0] if len(members) == 1 else Ensemble(tuple(members))


def members_of(params: Params | Ensemble) -> tuple[Params, ...]:
    """The parameters that `params` stands for, the best in validation first."""
    return params.members if isinstance(params, Ensemble) else (params,)


def answered(params: Params | Ensemble, answer: Callable[[Params], Array]) -> Array:
    """The mean of what the members answer, each by `answer`; of a single one, its answer to the bit."""
    answers = [answer(member) for member in members_of(params)]
    return answers[0] if len(answers) == 1 else sum(answers[1:], answers[0]) / len(answers)
