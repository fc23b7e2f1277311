"""Episodes that a policy without a memory plays in a task, with how much better than expected each action was."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metarun.config.flat_keys import hold
from metarun.errors import positive_int, unit_fraction
from metarun.models.mlp import mlp
from metarun.rl import observed
from metarun.rl.baseline import features, fitted_values
from metarun.rl.environment import Agent, Discrete, Environment, Seen
from metarun.rl.policy import Policy, policy_over
from metarun.rl.returns import advantages, discounted, mean_over, normalised
from metarun.rl.trial import play
from metarun.types import Array, Model, Params

_NEGLIGIBLE = 1e-4  # part of the returns that the fit of a baseline may miss, and rounding


@dataclass(frozen=True)
class Sampling:
    """How many episodes are played, and how an action in them is judged.

    Attributes:
      rollouts: K, episodes before each gradient step, and after the last.
      discount: gamma.
      decay: lambda of generalised advantage estimation.

    Raises:
      ConfigError: for a value that is not allowed.
    """

    rollouts: int = 20
    discount: float = 0.99
    decay: float = 1.0

    def __post_init__(self) -> None:
        hold(
            self,
            rollouts=positive_int("method.rollouts", self.rollouts),
            discount=unit_fraction("method.discount", self.discount),
            decay=unit_fraction("method.decay", self.decay),
        )


class Rollouts(NamedTuple):
    """Episodes in one task, as a policy learns from them: each entry with leading axes `[rollouts, horizon]`.

    Attributes:
      observation: before the action.
      action: taken.
      outputs: of the policy, when it was.
      advantage: A, by how much it was better than expected.
      weight: 1 where the episode still ran, else 0.
      reward: earned.
    """

    observation: Array
    action: Array
    outputs: Array
    advantage: Array
    weight: Array
    reward: Array


@dataclass(frozen=True)
class Player:
    """A policy by a network of the observation alone.

    Attributes:
      environment: that it plays in.
      policy: how outputs become actions.
      network: `[n, observation_size]` -> `[n, policy.num_outputs]`.
      sampling: how many episodes it plays.
      standardise: whether the network is given observations of mean 0 and variance 1, by moments among the parameters.
    """

    environment: Environment
    policy: Policy
    network: Model
    sampling: Sampling
    standardise: bool = False

    def init(self, key: Array) -> Params:
        """The parameters to begin with."""
        size = self.environment.observation_size
        params = self.network.init(key, jnp.zeros((1, size)))
        return {**params, "observed": observed.of_nothing(size)} if self.standardise else params

    def moments(self, params: Params, batches: Sequence[Rollouts]) -> Params:
        """Those among the parameters with what was observed in `batches` in them too; nothing where there are none."""
        if not self.standardise:
            return {}
        moments = params["observed"]
        for batch in batches:
            moments = observed.including(moments, batch.observation, batch.weight)
        return {"observed": moments}

    def apply(self, params: Params, observation: Array) -> Array:
        """Outputs for observations `[n, observation_size]`."""
        if self.standardise:
            observation = observed.standardised(params["observed"], observation)
        return self.network.apply(params, observation)

    def agent(self, params: Params) -> Agent:
        """Who plays; it notes its outputs."""

        def act(memory: Any, seen: Seen, key: Array) -> tuple[Any, Array, Array]:
            outputs = self.apply(params, seen.observation[None])[0]
            return memory, self.policy.sample(key, outputs), outputs

        return Agent(lambda key: (), act)

    def play(self, params: Params, task: Any, key: Array, blind: bool = False) -> Rollouts:
        """Rollouts of a task by the policy of `params`.

        Args:
          params: of the network.
          task: to play in.
          key: of all that is random.
          blind: whether every reward counts as 0.
        """
        keys = jax.random.split(key, self.sampling.rollouts)
        played = jax.vmap(lambda key: play(self.environment, self.agent(params), task, key))(keys)
        weight = played.live.astype(jnp.float32)
        reward = jnp.zeros_like(played.reward) if blind else played.reward
        advantage = fitted_advantages(played.seen.observation, reward, weight, self.sampling)
        return Rollouts(played.seen.observation, played.action, played.noted, advantage, weight, played.reward)

    def outputs(self, params: Params, batch: Rollouts) -> Array:
        """Outputs by `params` for what was seen, `[rollouts, horizon, num_outputs]`."""
        # As rows of one matrix, so that a gradient in a layer's weights is one product, without transposed copies.
        rollouts, horizon, *shape = batch.observation.shape
        outputs = self.apply(params, batch.observation.reshape(rollouts * horizon, *shape))
        return outputs.reshape(rollouts, horizon, -1)

    def log_prob(self, outputs: Array, batch: Rollouts) -> Array:
        """log pi of the actions taken, by other outputs or by `batch.outputs`, `[rollouts, horizon]`."""
        return jax.vmap(jax.vmap(self.policy.log_prob))(outputs, batch.action)

    def divergence(self, outputs: Array, batch: Rollouts) -> Array:
        """The mean divergence from the policy that acted to that of `outputs`, a scalar."""
        return mean_over(jax.vmap(jax.vmap(self.policy.divergence))(batch.outputs, outputs), batch.weight)


def player(
    environment: Environment, hidden: Sequence[int], initial_std: float, standardise: bool, sampling: Sampling
) -> Player:
    """A player by layers of the sizes `hidden`, with ReLU; normal policies have one standard deviation everywhere.

    Args:
      environment: to play in.
      hidden: sizes of the layers.
      initial_std: the standard deviation of normal policies before they have learnt.
      standardise: whether the network is given observations of mean 0 and variance 1.
      sampling: how many rollouts, and how an action in them is judged.
    """
    actions = environment.actions
    if isinstance(actions, Discrete):
        network = _named_mean(mlp(num_outputs=actions.n, hidden=hidden))
    else:
        network = _with_log_std(_named_mean(mlp(num_outputs=actions.size, hidden=hidden)), actions.size, initial_std)
    return Player(environment, policy_over(actions), network, sampling, standardise)


def fitted_advantages(observation: Array, reward: Array, weight: Array, sampling: Sampling) -> Array:
    """Advantages over a linear fit to the returns of the same episodes, of mean 0 and standard deviation 1.

    Args:
      observation: before each action, `[rollouts, horizon, observation_size]`.
      reward: after it, `[rollouts, horizon]`.
      weight: 1 where the episode still ran, else 0.
      sampling: gamma and lambda.

    Returns:
      `[rollouts, horizon]`.
    """
    discount, decay = sampling.discount, sampling.decay
    returns = jax.vmap(lambda r: discounted(r, discount))(reward)
    flat = lambda a: a.reshape(-1, *a.shape[2:])
    values = fitted_values(flat(jax.vmap(features)(observation)), flat(returns), flat(weight))
    values = values.reshape(weight.shape) * weight
    advantage = jax.vmap(lambda r, v: advantages(r, v, jnp.zeros(()), discount, decay))(reward, values)
    least = _NEGLIGIBLE * jnp.sqrt(mean_over(returns**2, weight)) + 1e-8
    return normalised(advantage, weight, least)


def _named_mean(model: Model) -> Model:
    """The model with its parameters under "mean"."""
    return Model(
        init=lambda key, x: {"mean": model.init(key, x)},
        apply=lambda params, x, reference=None: model.apply(params["mean"], x),
    )


def _with_log_std(model: Model, size: int, initial_std: float) -> Model:
    """The model's outputs, and beside them logarithms of standard deviations that are parameters."""

    def apply(params: Params, x: Array, reference: int | None = None) -> Array:
        means = model.apply(params, x)
        return jnp.concatenate([means, jnp.broadcast_to(params["log_std"][None], means.shape)], 1)

    return Model(
        init=lambda key, x: {**model.init(key, x), "log_std": jnp.full(size, log(initial_std), jnp.float32)},
        apply=apply,
    )
