"""What an outer step improves and what takes it: the interface between MAML and its outer optimisers."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from metarun.types import Array, Metrics, Params


class Objective(Protocol):
    """The loss of policies in one task, and how far they are from those that acted there.

    `experience` is what was gathered in the task.
    """

    def loss(self, params: Params, experience: Any) -> Array:
        """What is to be made small, a scalar."""

    def acted(self, experience: Any) -> list[Array]:
        """Outputs of the policies that acted."""

    def outputs(self, params: Params, experience: Any) -> list[Array]:
        """Outputs of the policies from `params`, for what those that acted had seen."""

    def divergence(self, outputs: list[Array], experience: Any) -> Array:
        """The mean divergence from the policies that acted to those of `outputs`, a scalar."""


class OuterStep(NamedTuple):
    """An optimiser of the meta-parameters.

    Attributes:
      surrogate: `(ratio, advantage) -> gain`, by which an action counts; `ratio` is pi / pi_acted.
      init: `(params) -> opt_state`.
      step: `(objective, params, opt_state, experience) -> (params, opt_state, metrics)`; the experience has a leading axis
        of tasks.
    """

    surrogate: Callable[[Array, Array], Array]
    init: Callable[[Params], Any]
    step: Callable[[Objective, Params, Any, Any], tuple[Params, Any, Metrics]]


def reported(objective: Objective) -> Callable[[Params, Any, Any], tuple[Array, Metrics]]:
    """The loss as `task_map.mean_gradient` takes it, with itself as a metric."""

    def loss_fn(params: Params, _: Any, experience: Any) -> tuple[Array, Metrics]:
        loss = objective.loss(params, experience)
        return loss, {"loss": loss}

    return loss_fn
