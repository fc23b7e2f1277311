"""Outer optimisers: optax with the schedule and the clipping that the command line can ask for."""

import jax
import jax.numpy as jnp
import optax

from metarun.errors import ConfigError, one_of, positive_float, positive_int

SCHEDULES = ("constant", "cosine")


def _unit_interval(key, value):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ConfigError(key, value, "a number from 0 up to but not including 1")
    return float(value)


def adam(
    *,
    outer_lr: float,
    steps: int,
    b1: float = 0.9,
    b2: float = 0.999,
    schedule: str = "constant",
    clip_norm: float | None = None,
    clip_value: float | None = None,
) -> optax.GradientTransformation:
    """Adam on the meta-gradient.

    Args:
      outer_lr: learning rate at the start.
      steps: outer steps of the run, over which "cosine" decays to 0.
      b1: decay of the first moment (`optimizer.b1`).
      b2: decay of the second moment (`optimizer.b2`).
      schedule: "constant" or "cosine".
      clip_norm: largest global norm of the meta-gradient; None: unclipped.
      clip_value: largest absolute entry of it; None: unclipped. MAML's published code clips miniImageNet's at 10.

    Raises:
      ConfigError: for a value that is not allowed.

    Source: Kingma and Ba 2015, Adam, algorithm 1.
    """
    lr = positive_float("outer_lr", outer_lr)
    decay = []
    if one_of("optimizer.schedule", schedule, SCHEDULES) == "cosine":
        decay = [optax.scale_by_schedule(optax.cosine_decay_schedule(1.0, positive_int("steps", steps)))]
    parts = []
    if clip_value is not None:
        parts.append(optax.clip(positive_float("optimizer.clip_value", clip_value)))
    if clip_norm is not None:
        parts.append(optax.clip_by_global_norm(positive_float("optimizer.clip_norm", clip_norm)))
    b1, b2 = _unit_interval("optimizer.b1", b1), _unit_interval("optimizer.b2", b2)
    return optax.chain(*parts, optax.scale_by_adam(b1=b1, b2=b2), *decay, _descend(lr))


def _descend(lr):
    """Multiplies updates by -lr. The rate is state, not a constant of the program: another one compiles nothing."""

    def update(updates, rate, params=None):
        del params
        return jax.tree.map(lambda u: -rate.astype(u.dtype) * u, updates), rate

    return optax.GradientTransformation(lambda params: jnp.float32(lr), update)
