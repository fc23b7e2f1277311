"""An agent that was not learnt, as a method: tested like the others, on the same tasks."""

import jax.numpy as jnp

from metarun.errors import ConfigError
from metarun.rl.environment import Environment
from metarun.rl.meta_learner import MetaLearner
from metarun.rl.trial import curve_over, outcome, watched


def yardstick(*, environment: Environment, agent: str) -> MetaLearner:
    """One of `Environment.yardsticks`.

    Args:
      environment: the distribution over tasks.
      agent: its name.

    Raises:
      ConfigError: the environment has no such yardstick.
    """
    if agent not in [*environment.yardsticks]:  # what came from the command line need not be hashable
        raise ConfigError("method", agent, f"for this env one that learns, or of {', '.join(environment.yardsticks)}")
    acting = environment.yardsticks[agent]
    return MetaLearner(
        init=lambda key: {},
        improve=lambda params, opt_state, tasks, keys, key: (params, opt_state, {"loss": jnp.zeros(())}),
        outcome=lambda params, task, key, blind: outcome(environment, acting, task, key, blind),
        watch=lambda params, task, key: watched(environment, acting, task, key),
        init_opt=lambda params: {},
        curve_over=curve_over(environment),
        protocol={},
        trains=False,
    )
