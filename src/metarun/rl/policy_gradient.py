"""Learning to act through trials: a network that remembers, trained by the policy gradient over whole trials.

What RL2 and SNAIL share. The network is fed, step by step, all that is seen (observation, last action, last reward, whether
the episode ended), and is never reset within a trial: its memory is what it learns a task by.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from metarun.compiled.outer_loop import updated
from metarun.compiled.task_map import map_tasks, mean_gradient
from metarun.config.flat_keys import hold
from metarun.errors import (
    ConfigError,
    non_negative_float,
    one_of,
    positive_float,
    positive_int,
    true_or_false,
    unit_fraction,
)
from metarun.rl.environment import Agent, Environment, Seen, no_action
from metarun.rl.meta_learner import MetaLearner, Training
from metarun.rl.policy import Policy, policy_over
from metarun.rl.proximal import clipped
from metarun.rl.returns import advantages, mean_over, normalised
from metarun.rl.trial import curve_over, outcome, play, watched
from metarun.types import Array, Metrics, Params, RecurrentModel

ALGORITHMS = ("ppo", "a2c")
Network = Callable[[int, int], RecurrentModel]  # from its number of outputs and its number of inputs


@dataclass(frozen=True)
class TrialLearning:
    """How a network learns from trials.

    Attributes:
      algorithm: "ppo"; or "a2c", which follows one gradient per outer step.
      epochs: how often PPO goes through an outer step's trials.
      minibatches: in how many parts it does, each of which gives a gradient.
      clip: epsilon of PPO.
      discount: gamma, see `returns.advantages`.
      decay: lambda, see there.
      entropy: weight of the policy's entropy in the loss.
      value: weight of the value's squared error in the loss.

    Raises:
      ConfigError: for a value that is not allowed.
    """

    algorithm: str = "ppo"
    epochs: int = 4
    minibatches: int = 4
    clip: float = 0.2
    discount: float = 0.99
    decay: float = 1.0
    entropy: float = 0.01
    value: float = 0.5

    def __post_init__(self) -> None:
        hold(
            self,
            algorithm=one_of("method.algorithm", self.algorithm, ALGORITHMS),
            epochs=positive_int("method.epochs", self.epochs),
            minibatches=positive_int("method.minibatches", self.minibatches),
            clip=positive_float("method.clip", self.clip),
            discount=unit_fraction("method.discount", self.discount),
            decay=unit_fraction("method.decay", self.decay),
            entropy=non_negative_float("method.entropy", self.entropy),
            value=non_negative_float("method.value", self.value),
        )

    def epochs_and_parts(self, meta_batch_size: int) -> tuple[int, int]:
        """How often the trials of an outer step are gone through, and in how many parts; once and whole by A2C.

        Raises:
          ConfigError: the trials cannot be parted evenly.
        """
        if self.algorithm == "a2c":
            return 1, 1
        if meta_batch_size % self.minibatches:
            raise ConfigError("method.minibatches", self.minibatches, f"a divisor of meta_batch_size={meta_batch_size}")
        return self.epochs, self.minibatches


class Lesson(NamedTuple):
    """A trial, as it is learnt from: each entry with a leading axis `[length]`.

    Attributes:
      x: what the network was fed.
      action: taken.
      log_prob: its logarithmic probability when it was.
      advantage: A, by how much it was better than expected.
      value_target: what the value should have been.
      weight: 1 where the trial still ran, else 0.
      reward: earned.
    """

    x: Array
    action: Array
    log_prob: Array
    advantage: Array
    value_target: Array
    weight: Array
    reward: Array


@dataclass(frozen=True)
class TrialAgent:
    """A network as an agent: what it is fed, and what its outputs mean.

    Attributes:
      environment: in which it acts.
      policy: how outputs become actions.
      model: the network; its outputs are those of the policy and, last, the value.
    """

    environment: Environment
    policy: Policy
    model: RecurrentModel

    def encode(self, seen: Seen) -> Array:
        """(s_t, a_{t-1}, r_{t-1}, d_{t-1}), a row of the network's input."""
        action = self.policy.encode(seen.action) * (1 - seen.first)
        return jnp.concatenate([seen.observation, action, jnp.stack([seen.reward, seen.done])])

    def init(self, key: Array) -> Params:
        """The parameters to begin with."""
        zero, environment = jnp.zeros(()), self.environment
        seen = Seen(jnp.zeros(environment.observation_size), no_action(environment.actions), zero, zero, zero)
        return self.model.init(key, self.encode(seen))

    def acting(self, params: Params) -> Agent:
        """The agent; it notes its input, the logarithmic probability of its action, and the value."""

        def act(state: Any, seen: Seen, key: Array) -> tuple[Any, Array, tuple[Array, Array, Array]]:
            x = self.encode(seen)
            state, outputs = self.model.step(params, state, x)
            action = self.policy.sample(key, outputs[:-1])
            return state, action, (x, self.policy.log_prob(outputs[:-1], action), outputs[-1])

        return Agent(lambda key: self.model.start(jnp.float32), act)


def trial_agent(environment: Environment, network: Network) -> TrialAgent:
    """The agent by a network of as many inputs and outputs as the environment needs."""
    policy = policy_over(environment.actions)
    action_size = policy.encode(no_action(environment.actions)).size
    model = network(policy.num_outputs + 1, environment.observation_size + action_size + 2)
    return TrialAgent(environment, policy, model)


def trial_learner(
    training: Training, network: Network, learning: TrialLearning, at_once: int | None = None
) -> MetaLearner:
    """A meta-learner whose network goes through trials.

    Args:
      training: what every method is given; each trial of an outer step is in a task of its own.
      network: whose last output is the value.
      learning: how it learns from trials.
      at_once: trials that a core of a CPU differentiates at once, see `Layout.cached`; None: as many as it plays.

    Raises:
      ConfigError: the trials of an outer step cannot be parted evenly.

    Source: Schulman et al. 2017, Proximal Policy Optimization Algorithms, algorithm 1; Mnih et al. 2016, Asynchronous
    Methods for Deep Reinforcement Learning, section 4, for A2C.
    """
    environment, layout, trials = training.environment, training.layout, training.meta_batch_size
    epochs, parts = learning.epochs_and_parts(trials)
    learning_layout = layout if at_once is None else layout.cached(trials // parts, at_once)
    agent = trial_agent(environment, network)
    optimizer = training.optimizer(steps=training.steps * epochs * parts)

    def improve(params: Params, opt_state: Any, tasks: Any, keys: Array, key: Array) -> tuple[Params, Any, Metrics]:
        experience = lambda params, task_and_key: lesson_of(agent, learning, params, *task_and_key)
        lessons = map_tasks(experience, layout, params, (tasks, keys))
        reward = lessons.reward.sum(1).mean()
        lessons = lessons._replace(advantage=normalised(lessons.advantage, lessons.weight))

        def update(params_and_opt_state: tuple[Params, Any], rows: Array) -> tuple[tuple[Params, Any], Metrics]:
            params, opt_state = params_and_opt_state
            part = jax.tree.map(lambda x: x[rows], lessons)
            loss_fn = lambda params, _, lesson: loss_of(agent, learning, params, lesson)
            gradient, metrics = mean_gradient(loss_fn, learning_layout, params, (), part)
            return updated(optimizer, gradient, params, opt_state), metrics

        shuffled = jax.vmap(lambda key: jax.random.permutation(key, trials))(jax.random.split(key, epochs))
        rows = shuffled.reshape(epochs * parts, -1)
        (params, opt_state), metrics = lax.scan(update, (params, opt_state), rows)
        return params, opt_state, {"reward": reward, **jax.tree.map(lambda m: m.mean(0), metrics)}

    return MetaLearner(
        init=agent.init,
        improve=improve,
        outcome=lambda params, task, key, blind: outcome(environment, agent.acting(params), task, key, blind),
        watch=lambda params, task, key: watched(environment, agent.acting(params), task, key),
        init_opt=optimizer.init,
        curve_over=curve_over(environment),
        protocol={"actions": "sampled from the policy"},
    )


def lesson_of(agent: TrialAgent, learning: TrialLearning, params: Params, task: Any, key: Array) -> Lesson:
    """A trial in a task, and what is to be learnt from it.

    Rewards are divided by the steps that the discount looks ahead, at most those of a trial, so that values are of the
    size of a reward.
    """
    discount, length = learning.discount, agent.environment.length
    ahead = min(length, 1 / (1 - discount)) if discount < 1 else length
    trajectory = play(agent.environment, agent.acting(params), task, key)
    x, log_prob, values = trajectory.noted
    weight = trajectory.live.astype(jnp.float32)
    # Beyond the end of a trial nothing is earned, so no value counts there.
    advantage = advantages(trajectory.reward / ahead, values * weight, jnp.zeros(()), discount, learning.decay)
    return Lesson(x, trajectory.action, log_prob, advantage, advantage + values, weight, trajectory.reward)


def loss_of(agent: TrialAgent, learning: TrialLearning, params: Params, lesson: Lesson) -> tuple[Array, Metrics]:
    """- mean of min(ratio A, clip(ratio) A), plus the value's squared error, less the entropy, by their weights.

    Source: Schulman et al. 2017, equation 9.
    """
    outputs = agent.model.unroll(params, lesson.x)
    log_prob = jax.vmap(agent.policy.log_prob)(outputs[:, :-1], lesson.action)
    ratio = jnp.exp(log_prob - lesson.log_prob)
    gain = clipped(ratio, lesson.advantage, learning.clip)
    losses = {
        "policy": -mean_over(gain, lesson.weight),
        "value": mean_over((outputs[:, -1] - lesson.value_target) ** 2, lesson.weight),
        "entropy": mean_over(jax.vmap(agent.policy.entropy)(outputs[:, :-1]), lesson.weight),
    }
    total = losses["policy"] + learning.value * losses["value"] - learning.entropy * losses["entropy"]
    return total, {"loss": total, **losses}


def policy_and_value(network: Network, shared: object) -> Network:
    """The network as it is, for policy and value, if `shared` (`method.shared`); else one such network for each.

    Raises:
      ConfigError: `shared` is neither true nor false.
    """
    if true_or_false("method.shared", shared):
        return network
    return lambda num_outputs, num_inputs: side_by_side(
        policy=network(num_outputs - 1, num_inputs), value=network(1, num_inputs)
    )


def side_by_side(**models: RecurrentModel) -> RecurrentModel:
    """Networks with nothing in common, fed the same: their outputs one after the other, their parameters by name."""

    def init(key: Array, x: Array) -> Params:
        keys = jax.random.split(key, len(models))
        return {name: model.init(key, x) for key, (name, model) in zip(keys, models.items(), strict=True)}

    def step(params: Params, states: Any, x: Array) -> tuple[Any, Array]:
        both = {name: model.step(params[name], states[name], x) for name, model in models.items()}
        outputs = jnp.concatenate([outputs for _, outputs in both.values()])
        return {name: state for name, (state, _) in both.items()}, outputs

    return RecurrentModel(
        init=init,
        start=lambda dtype: {name: model.start(dtype) for name, model in models.items()},
        step=step,
        unroll=lambda params, rows: jnp.concatenate([m.unroll(params[name], rows) for name, m in models.items()], 1),
    )
