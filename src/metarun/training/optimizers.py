"""Outer optimisers: optax with the schedules and the clipping that the command line can ask for."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from metarun.errors import ConfigError, non_negative_float, one_of, positive_float, positive_int

# Beside "constant", schedules as a factor of the learning rate: `(steps, end, halve_every) -> (step -> factor)`.
SCHEDULES: dict[str, Callable[[int, float, int], optax.Schedule]] = {
    "cosine": lambda steps, end, halve_every: optax.cosine_decay_schedule(1.0, steps, alpha=end),
    "linear": lambda steps, end, halve_every: optax.linear_schedule(1.0, end, steps),
    "halving": lambda steps, end, halve_every: optax.exponential_decay(1.0, halve_every, 0.5, staircase=True),
}
# Those that are functions of the length of the run: one that is made longer is another run.
OVER_THE_RUN = ("cosine", "linear")


def adam(
    *,
    outer_lr: float,
    steps: int,
    b1: float = 0.9,
    b2: float = 0.999,
    schedule: str = "constant",
    end_lr: float = 0.0,
    halve_every: int = 2000,
    clip_norm: float | None = None,
    clip_value: float | None = None,
) -> optax.GradientTransformation:
    """Adam on the meta-gradient.

    Args:
      outer_lr: learning rate at the start.
      steps: outer steps of the run.
      b1: decay of the first moment (`optimizer.b1`).
      b2: decay of the second moment (`optimizer.b2`).
      schedule: of the learning rate: "constant"; "cosine" or "linear", which reach `end_lr` at the last step; or
        "halving", by half every `halve_every` steps.
      end_lr: learning rate in which "cosine" and "linear" end.
      halve_every: outer steps between two halvings.
      clip_norm: largest global norm of the meta-gradient; None: unclipped.
      clip_value: largest absolute entry of it; None: unclipped. MAML's published code clips miniImageNet's at 10.

    Raises:
      ConfigError: for a value that is not allowed.

    Source: Kingma and Ba 2015, Adam, algorithm 1.
    """
    direction = optax.scale_by_adam(b1=_unit_interval("optimizer.b1", b1), b2=_unit_interval("optimizer.b2", b2))
    return _scheduled(
        direction,
        outer_lr=outer_lr,
        steps=steps,
        schedule=schedule,
        end_lr=end_lr,
        halve_every=halve_every,
        clip_norm=clip_norm,
        clip_value=clip_value,
    )


def sgd(
    *,
    outer_lr: float,
    steps: int,
    momentum: float = 0.0,
    schedule: str = "constant",
    end_lr: float = 0.0,
    halve_every: int = 2000,
    clip_norm: float | None = None,
    clip_value: float | None = None,
) -> optax.GradientTransformation:
    """Gradient descent on the meta-gradient, with momentum if asked for; the other arguments are those of `adam`.

    Args:
      momentum: decay of the accumulated gradient (`optimizer.momentum`).

    Raises:
      ConfigError: for a value that is not allowed.
    """
    momentum = _unit_interval("optimizer.momentum", momentum)
    direction = optax.trace(decay=momentum) if momentum else optax.identity()
    return _scheduled(
        direction,
        outer_lr=outer_lr,
        steps=steps,
        schedule=schedule,
        end_lr=end_lr,
        halve_every=halve_every,
        clip_norm=clip_norm,
        clip_value=clip_value,
    )


def _scheduled(direction, *, outer_lr, steps, schedule, end_lr, halve_every, clip_norm, clip_value):
    """Clipping, a direction of descent, and a learning rate that follows a schedule."""
    lr, end = positive_float("outer_lr", outer_lr), non_negative_float("optimizer.end_lr", end_lr)
    if end > lr:
        raise ConfigError("optimizer.end_lr", end_lr, f"a number from 0 to outer_lr={outer_lr}")
    steps, halve_every = positive_int("steps", steps), positive_int("optimizer.halve_every", halve_every)
    one_of("optimizer.schedule", schedule, ("constant", *SCHEDULES))
    parts = []
    if clip_value is not None:
        parts.append(optax.clip(positive_float("optimizer.clip_value", clip_value)))
    if clip_norm is not None:
        parts.append(optax.clip_by_global_norm(positive_float("optimizer.clip_norm", clip_norm)))
    parts.append(direction)
    if schedule in SCHEDULES:
        parts.append(optax.scale_by_schedule(SCHEDULES[schedule](steps, end / lr, halve_every)))
    return optax.chain(*parts, _descend(lr))


def _unit_interval(key, value):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ConfigError(key, value, "a number from 0 up to but not including 1")
    return float(value)


def _descend(lr):
    """Multiplies updates by -lr. The rate is state, not a constant of the program: another one compiles nothing."""

    def update(updates, rate, params=None):
        del params
        return jax.tree.map(lambda u: -rate.astype(u.dtype) * u, updates), rate

    return optax.GradientTransformation(lambda params: jnp.float32(lr), update)
