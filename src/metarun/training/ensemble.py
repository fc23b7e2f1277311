"""Parameters of several checkpoints that answer together, as MAML++ is tested.

References:
  Antoniou et al., "How to train your MAML", 2019, section 5: the five checkpoints that validate best, whose outputs are
  averaged.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from metarun.types import Params


class Ensemble(NamedTuple):
    """Two or more parameters of one network.

    Attributes:
      members: the best in validation first.
    """

    members: tuple[Params, ...]


def ensemble_of(members: Sequence[Params]) -> Params | Ensemble:
    """The parameters that stand for `members`, one or more: of a single one, itself."""
    return members[0] if len(members) == 1 else Ensemble(tuple(members))


def members_of(params: Params | Ensemble) -> tuple[Params, ...]:
    """The parameters that `params` stands for, the best in validation first."""
    return params.members if isinstance(params, Ensemble) else (params,)


def answered(params: Params | Ensemble, answer: Callable[[Params], Any]) -> Any:
    """The mean of what the members answer, arrays of one structure, each by `answer`; of a single one, to the bit."""
    answers = [answer(member) for member in members_of(params)]
    return answers[0] if len(answers) == 1 else jax.tree.map(lambda *each: sum(each[1:], each[0]) / len(each), *answers)
