"""Learning to act through trials: a network that remembers, trained by the policy gradient over whole trials.

What RL2 and SNAIL share. The network is fed, step by step, all that is seen (observation, last action, last reward, whether
the episode ended), and is never reset within a trial: its memory is what it learns a task by.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from metarun.compiled.outer_loop import updated
from metarun.compiled.task_map import Layout, map_tasks, mean_gradient
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
from metarun.rl.meta_learner import MetaLearner
from metarun.rl.policy import policy_over
from metarun.rl.returns import advantages, mean_over, normalised
from metarun.rl.surrogate import clipped
from metarun.rl.trial import curve_over, outcome, play, watched
from metarun.types import Array, Params, RecurrentModel

ALGORITHMS = ("ppo", "a2c")


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


def trial_learner(
    *,
    environment: Environment,
    network: Callable[[int, int], RecurrentModel],
    optimizer: Callable[..., optax.GradientTransformation],
    layout: Layout,
    meta_batch_size: int,
    steps: int,
    algorithm: str,
    epochs: int,
    minibatches: int,
    clip: float,
    discount: float,
    decay: float,
    entropy: float,
    value: float,
    shared: bool,
) -> MetaLearner:
    """A meta-learner whose network goes through trials.

    Rewards are divided by the steps that the discount looks ahead, at most those of a trial, so that values are of the
    size of a reward.

    Args:
      environment: the distribution over tasks.
      network: from its number of outputs and its number of inputs.
      optimizer: from the number of gradients that it will follow in the whole run, `epochs * minibatches` in an outer step.
      layout: where trials are computed.
      meta_batch_size: trials of an outer step, each in a task of its own.
      steps: outer steps of the run.
      algorithm: "ppo"; or "a2c", which follows one gradient per outer step.
      epochs, minibatches: how often PPO goes through an outer step's trials, and in how many parts.
      clip: epsilon of PPO.
      discount, decay: gamma and lambda, see `returns.advantages`.
      entropy: weight of the policy's entropy in the loss.
      value: weight of the value's squared error in the loss.
      shared: whether policy and value are outputs of one network; else each has a network of its own.

    Raises:
      ConfigError: for a value that is not allowed.

    Source: Schulman et al. 2017, Proximal Policy Optimization Algorithms, equations 7 and 9; Mnih et al. 2016, Asynchronous
    Methods for Deep Reinforcement Learning, section 4, for A2C.
    """
    one_of("method.algorithm", algorithm, ALGORITHMS)
    epochs, minibatches = positive_int("method.epochs", epochs), positive_int("method.minibatches", minibatches)
    if algorithm == "a2c":
        epochs = minibatches = 1
    if meta_batch_size % minibatches:
        raise ConfigError("method.minibatches", minibatches, f"a divisor of meta_batch_size={meta_batch_size}")
    clip = positive_float("method.clip", clip)
    entropy, value = non_negative_float("method.entropy", entropy), non_negative_float("method.value", value)
    discount, decay = unit_fraction("method.discount", discount), unit_fraction("method.decay", decay)
    policy = policy_over(environment.actions)
    action_size = policy.encode(no_action(environment.actions)).size
    num_inputs = environment.observation_size + action_size + 2
    if true_or_false("method.shared", shared):
        model = network(policy.num_outputs + 1, num_inputs)
    else:
        model = side_by_side(policy=network(policy.num_outputs, num_inputs), value=network(1, num_inputs))
    optimizer = optimizer(steps=steps * epochs * minibatches)
    ahead = min(environment.length, 1 / (1 - discount)) if discount < 1 else environment.length

    def encode(seen: Seen) -> Array:
        action = policy.encode(seen.action) * (1 - seen.first)
        return jnp.concatenate([seen.observation, action, jnp.stack([seen.reward, seen.done])])

    def init(key):
        zero = jnp.zeros(())
        seen = Seen(jnp.zeros(environment.observation_size), no_action(environment.actions), zero, zero, zero)
        return model.init(key, encode(seen))

    def agent(params: Params) -> Agent:
        def act(state, seen, key):
            x = encode(seen)
            state, outputs = model.step(params, state, x)
            action = policy.sample(key, outputs[:-1])
            return state, action, (x, policy.log_prob(outputs[:-1], action), outputs[-1])

        return Agent(lambda key: model.start(jnp.float32), act)

    def experience(params: Params, task_and_key: Any) -> Lesson:
        trajectory = play(environment, agent(params), *task_and_key)
        x, log_prob, values = trajectory.noted
        weight = trajectory.live.astype(jnp.float32)
        # Beyond the end of a trial nothing is earned, so no value counts there.
        advantage = advantages(trajectory.reward / ahead, values * weight, jnp.zeros(()), discount, decay)
        return Lesson(x, trajectory.action, log_prob, advantage, advantage + values, weight, trajectory.reward)

    def loss(params: Params, _, lesson: Lesson):
        outputs = model.unroll(params, lesson.x)
        log_prob = jax.vmap(policy.log_prob)(outputs[:, :-1], lesson.action)
        ratio = jnp.exp(log_prob - lesson.log_prob)
        gain = clipped(ratio, lesson.advantage, clip)
        losses = {
            "policy": -mean_over(gain, lesson.weight),
            "value": mean_over((outputs[:, -1] - lesson.value_target) ** 2, lesson.weight),
            "entropy": mean_over(jax.vmap(policy.entropy)(outputs[:, :-1]), lesson.weight),
        }
        total = losses["policy"] + value * losses["value"] - entropy * losses["entropy"]
        return total, {"loss": total, **losses}

    def improve(params, opt_state, tasks, keys, key):
        lessons = map_tasks(experience, layout, params, (tasks, keys))
        reward = lessons.reward.sum(1).mean()
        lessons = lessons._replace(advantage=normalised(lessons.advantage, lessons.weight))

        def update(params_and_opt_state, rows):
            params, opt_state = params_and_opt_state
            part = jax.tree.map(lambda x: x[rows], lessons)
            gradient, metrics = mean_gradient(loss, layout, params, (), part)
            return updated(optimizer, gradient, params, opt_state), metrics

        shuffled = jax.vmap(lambda key: jax.random.permutation(key, meta_batch_size))(jax.random.split(key, epochs))
        rows = shuffled.reshape(epochs * minibatches, -1)
        (params, opt_state), metrics = lax.scan(update, (params, opt_state), rows)
        return params, opt_state, {"reward": reward, **jax.tree.map(lambda m: m.mean(0), metrics)}

    return MetaLearner(
        init=init,
        improve=improve,
        outcome=lambda params, task, key, blind: outcome(environment, agent(params), task, key, blind),
        watch=lambda params, task, key: watched(environment, agent(params), task, key),
        init_opt=optimizer.init,
        curve_over=curve_over(environment),
        protocol={"actions": "sampled from the policy"},
    )


def side_by_side(**models: RecurrentModel) -> RecurrentModel:
    """Networks with nothing in common, fed the same: their outputs one after the other, their parameters by name."""

    def init(key, x):
        keys = jax.random.split(key, len(models))
        return {name: model.init(key, x) for key, (name, model) in zip(keys, models.items(), strict=True)}

    def step(params, states, x):
        both = {name: model.step(params[name], states[name], x) for name, model in models.items()}
        outputs = jnp.concatenate([outputs for _, outputs in both.values()])
        return {name: state for name, (state, _) in both.items()}, outputs

    return RecurrentModel(
        init=init,
        start=lambda dtype: {name: model.start(dtype) for name, model in models.items()},
        step=step,
        unroll=lambda params, rows: jnp.concatenate([m.unroll(params[name], rows) for name, m in models.items()], 1),
    )
