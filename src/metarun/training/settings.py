"""How long a run trains, and how often it validates, saves and logs."""

import dataclasses

from metarun.config.named_code import ANY, CODE, SAME
from metarun.errors import ConfigError, non_negative_int, one_of, positive_float, positive_int, true_or_false


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """How long and how often.

    Attributes:
      steps: outer steps in all.
      steps_per_dispatch: outer steps of one call of `Experiment.step`; a call ends earlier where a validation is due.
      eval_every: outer steps from one validation to the next; the last step is validated too. 0 for none, and then
        the last parameters are tested.
      val_tasks: tasks of a validation.
      eval_tasks: tasks of the final test.
      ensemble: how many parameters are tested together, those that validated best.
      checkpoint_every: outer steps from one checkpoint to the next, at the end of a dispatch; 0 for one at the end.
      log_every: outer steps from one line of metrics to the next, at the end of a dispatch.
      time_limit: minutes after which this process saves and ends, to be continued; None for no limit.
      resume: whether to continue what the directory holds, or to replace it.
      code: "same" or "any": by which source, of what is not metarun's own, a run may be continued.
    """

    steps: int
    steps_per_dispatch: int = 10
    eval_every: int = 0
    val_tasks: int = 100
    eval_tasks: int = 600
    ensemble: int = 1
    checkpoint_every: int = 100
    log_every: int = 10
    time_limit: float | None = None
    resume: bool = True
    code: str = SAME

    def __post_init__(self):
        for key in ("steps", "steps_per_dispatch", "val_tasks", "eval_tasks", "ensemble", "log_every"):
            positive_int(key, getattr(self, key))
        for key in ("eval_every", "checkpoint_every"):
            non_negative_int(key, getattr(self, key))
        if self.time_limit is not None:
            positive_float("time_limit", self.time_limit)
        true_or_false("resume", self.resume)
        one_of(CODE, self.code, (SAME, ANY))
        validations = -(-self.steps // self.eval_every) if self.eval_every else 1
        if self.ensemble > validations:
            allowed = (
                f"{validations} or less: with steps={self.steps} and eval_every={self.eval_every} there are no more"
            )
            raise ConfigError("ensemble", self.ensemble, f"{allowed} validations to choose from")
