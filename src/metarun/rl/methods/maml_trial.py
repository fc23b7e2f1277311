"""MAML within a trial: policy gradient steps from a learnt start, after every few of its episodes, all of which count.

Sources: Finn, Abbeel and Levine 2017, Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks, algorithm 3;
Williams 1992, Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from metarun.config.flat_keys import with_settings
from metarun.errors import ConfigError, positive_float, positive_int, positive_ints, unit_fraction
from metarun.models.mlp import mlp
from metarun.models.recurrent import gru
from metarun.rl.environment import Discrete
from metarun.rl.meta_learner import MetaLearner, Training
from metarun.rl.policy_gradient import TrialLearning, side_by_side, trial_learner
from metarun.types import Array, Params, RecurrentModel


class Adapting(NamedTuple):
    """What a policy that descends in a trial has in mind.

    Attributes:
      moved: theta_k - theta, how far it has come.
      gradient: of the episodes since its last step.
      trace: sum over the steps of the episode so far of gamma^(t - i) grad log pi(a_i | s_i).
      observation: s_{t-1}.
      episodes: that ended.
    """

    moved: Params
    gradient: Params
    trace: Params
    observation: Array
    episodes: Array


@with_settings(training=Training, learning=TrialLearning(decay=0.95, value=5.0))
def maml_trial(
    *,
    training: Training,
    learning: TrialLearning,
    hidden: Sequence[int] = (16,),
    rollouts: int = 1,
    inner_lr: float = 0.1,
    inner_discount: float = 0.99,
    value_hidden: int = 32,
) -> MetaLearner:
    """theta_k+1 = theta_k + alpha grad J(theta_k), J of the K episodes played by theta_k; theta_0 is learnt.

    Where `maml` gathers many rollouts and counts the returns after the gradient steps, here a trial is all there is, and
    what is earned while learning counts. The outer gradient is that of the whole trial's reward, through all gradient
    steps and with what an action tells the later ones: theta_k is the memory of a `trial_learner`.

    Args:
      training: what every method is given.
      learning: how theta_0 and the value, which is a GRU's, learn from trials.
      hidden: sizes of the policy's hidden layers, with ReLU.
      rollouts: K, episodes before each gradient step.
      inner_lr: alpha.
      inner_discount: gamma of the inner gradient, within an episode.
      value_hidden: cells of the GRU.

    Raises:
      ConfigError: for a value that is not allowed.

    Source: Finn et al. 2017, equation 4 and algorithm 3; that a trial's rewards all count, as in Mishra et al. 2018, A
    Simple Neural Attentive Meta-Learner, section 5.2.
    """
    environment = training.environment
    if not isinstance(environment.actions, Discrete):
        raise ConfigError("method", "maml_trial", "maml, for an environment of continuous actions")
    descending = partial(
        policy_that_descends,
        hidden=positive_ints("method.hidden", hidden, "[16]"),
        observation_size=environment.observation_size,
        rollouts=positive_int("method.rollouts", rollouts),
        lr=positive_float("method.inner_lr", inner_lr),
        discount=unit_fraction("method.inner_discount", inner_discount),
    )
    value = partial(gru, num_outputs=1, hidden=positive_int("method.value_hidden", value_hidden))

    def network(num_outputs: int, num_inputs: int) -> RecurrentModel:
        del num_inputs  # which both find from their first row
        return side_by_side(policy=descending(num_actions=num_outputs - 1), value=value())

    learner = trial_learner(training, network, learning)
    return learner._replace(protocol={**learner.protocol, "rollouts": rollouts})


def policy_that_descends(
    *, num_actions: int, hidden: Sequence[int], observation_size: int, rollouts: int, lr: float, discount: float
) -> RecurrentModel:
    """A network over `(s_t, a_{t-1}, r_{t-1}, d_{t-1})` that gives the logits of theta_k, and steps when an episode ends.

    REINFORCE, as it comes in: sum_i grad log pi(a_i | s_i) sum_{t >= i} gamma^(t - i) (r_t - b) is the sum over t of
    (r_t - b) and the trace. The baseline b is learnt with theta, since one episode cannot tell it.

    Args:
      num_actions: of which one is taken.
      hidden: sizes of the policy's hidden layers.
      observation_size: entries of s.
      rollouts: K.
      lr: alpha.
      discount: gamma.
    """
    policy = mlp(num_outputs=num_actions, hidden=hidden)

    def logits(theta: Params, observation: Array) -> Array:
        return policy.apply(theta, jnp.append(observation, 1.0)[None])[0]  # 1: a bandit has nothing to observe

    def init(key: Array, x: Array) -> Params:
        theta = policy.init(key, jnp.ones((1, observation_size + 1), x.dtype))
        return {"theta": theta, "baseline": jnp.zeros((), x.dtype)}

    shapes = jax.eval_shape(lambda: init(jax.random.key(0), jnp.zeros(())))["theta"]

    def start(dtype: Any) -> Adapting:
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype), shapes)
        return Adapting(nothing, nothing, nothing, jnp.zeros(observation_size, dtype), jnp.zeros((), dtype))

    def step(params: Params, state: Adapting, x: Array) -> tuple[Adapting, Array]:
        observation, action, (reward, done) = jnp.split(x, [observation_size, x.size - 2])
        theta = jax.tree.map(jnp.add, params["theta"], state.moved)
        # At the start of a trial no action was taken, and the sum is 0.
        score = jax.grad(lambda theta: jax.nn.log_softmax(logits(theta, state.observation)) @ action)(theta)
        trace = jax.tree.map(lambda e, s: discount * e + s, state.trace, score)
        gradient = jax.tree.map(lambda g, e: g + (reward - params["baseline"]) * e, state.gradient, trace)
        episodes = state.episodes + done
        due = jnp.where(episodes % rollouts == 0, done, 0)
        moved = jax.tree.map(lambda m, g: m + due * lr / rollouts * g, state.moved, gradient)
        ends = lambda tree, ended: jax.tree.map(lambda leaf: (1 - ended) * leaf, tree)
        state = Adapting(moved, ends(gradient, due), ends(trace, done), observation, episodes)
        return state, logits(jax.tree.map(jnp.add, params["theta"], moved), observation)

    return RecurrentModel(
        init=init,
        start=start,
        step=step,
        unroll=lambda params, rows: lax.scan(partial(step, params), start(rows.dtype), rows)[1],
    )
