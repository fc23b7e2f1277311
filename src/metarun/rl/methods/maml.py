"""MAML for reinforcement learning: policy gradient steps from a learnt start.

Source: Finn, Abbeel and Levine 2017, Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks, algorithm 3.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from metarun.compiled.task_map import Layout, map_tasks
from metarun.config.flat_keys import hold, with_settings
from metarun.errors import (
    ConfigError,
    non_negative_float,
    one_of,
    positive_float,
    positive_int,
    positive_ints,
    true_or_false,
)
from metarun.rl.exploration import credit_of, exploration_gain
from metarun.rl.inner_gradient import ESTIMATORS
from metarun.rl.meta_learner import MetaLearner, Outcome, Training, Watched
from metarun.rl.outer_step import OuterStep
from metarun.rl.proximal import proximal
from metarun.rl.returns import mean_over
from metarun.rl.rollouts import Player, Rollouts, Sampling, player
from metarun.rl.trust_region import trust_region
from metarun.types import Array, Metrics, Params


@dataclass(frozen=True)
class InnerSteps:
    """The gradient steps within a task.

    Attributes:
      inner_lr: alpha.
      inner_steps: gradient steps in training.
      eval_inner_steps: the same in a test.
      later_lr: alpha after the first step, in a test and in training; None: half of `inner_lr`.
      first_order: whether theta' counts as theta plus a constant.
      estimator: what the inner gradient is the gradient of, see `inner_gradient.ESTIMATORS`.

    Raises:
      ConfigError: for a value that is not allowed.
    """

    inner_lr: float = 0.1
    inner_steps: int = 1
    eval_inner_steps: int = 3
    later_lr: float | None = None
    first_order: bool = False
    estimator: str = "log_prob"

    def __post_init__(self) -> None:
        hold(
            self,
            inner_lr=positive_float("method.inner_lr", self.inner_lr),
            inner_steps=positive_int("method.inner_steps", self.inner_steps),
            eval_inner_steps=positive_int("method.eval_inner_steps", self.eval_inner_steps),
            later_lr=None if self.later_lr is None else positive_float("method.later_lr", self.later_lr),
            first_order=true_or_false("method.first_order", self.first_order),
            estimator=one_of("method.estimator", self.estimator, ESTIMATORS),
        )

    def rates(self, steps: int) -> list[float]:
        """alpha of each of so many steps."""
        return [self.inner_lr, *[self.inner_lr / 2 if self.later_lr is None else self.later_lr] * (steps - 1)]


@dataclass(frozen=True)
class OuterSettings:
    """The optimiser of the meta-parameters.

    Attributes:
      outer: "trpo" or "ppo".
      radius: largest mean divergence of TRPO, in nats.
      epochs: gradients of PPO in an outer step, all over all tasks.
      clip: epsilon of PPO.

    Raises:
      ConfigError: for a value that is not allowed.
    """

    outer: str = "trpo"
    radius: float = 0.01
    epochs: int = 5
    clip: float = 0.2

    def __post_init__(self) -> None:
        hold(
            self,
            outer=one_of("method.outer", self.outer, OUTER),
            radius=positive_float("method.radius", self.radius),
            epochs=positive_int("method.epochs", self.epochs),
            clip=positive_float("method.clip", self.clip),
        )


def _trpo(training: Training, settings: OuterSettings) -> OuterStep:
    return trust_region(_learning_layout(training), radius=settings.radius)


def _ppo(training: Training, settings: OuterSettings) -> OuterStep:
    optimizer = training.optimizer(steps=training.steps * settings.epochs)
    return proximal(_learning_layout(training), optimizer, epochs=settings.epochs, clip=settings.clip)


def _learning_layout(training: Training) -> Layout:
    """One task at a time on a core: what a network computes for all rollouts of many tasks is too much for its cache."""
    return training.layout.cached(training.meta_batch_size, 1)


OUTER: Mapping[str, Callable[[Training, OuterSettings], OuterStep]] = {"trpo": _trpo, "ppo": _ppo}


@with_settings(training=Training, sampling=Sampling(), inner=InnerSteps(), outer=OuterSettings())
def maml(
    *,
    training: Training,
    sampling: Sampling,
    inner: InnerSteps,
    outer: OuterSettings,
    hidden: Sequence[int] = (100, 100),
    initial_std: float = 1.0,
    standardise: bool = False,
    exploration: float = 0.0,
    every_step: bool = False,
) -> MetaLearner:
    """theta'_i = theta - alpha grad L_i(theta), rollouts by theta; theta follows the loss of rollouts by theta'_i.

    Args:
      training: what every method is given; of an environment with one episode a trial.
      sampling: how many rollouts, and how an action in them is judged.
      inner: the gradient steps in a task.
      outer: the optimiser of theta; of the two, PPO uses `training.optimizer`.
      hidden: sizes of the policy's hidden layers, with ReLU.
      initial_std: standard deviation of continuous actions at the start of training; it is learnt from there.
      standardise: whether the policy is given observations of mean 0 and variance 1, by those of training so far.
      exploration: weight of E-MAML's term, by which rollouts before a gradient step are credited for the return after it;
        0: they count only for the gradient that they give.
      every_step: whether the returns after all inner steps of training count, alike, and are held within the radius; else
        those after the last.

    Raises:
      ConfigError: for a value that is not allowed.

    Source: Finn et al. 2017, algorithm 3 and section 5.3; Rothfuss et al. 2019, ProMP: Proximal Meta-Policy Search,
    section 5, for `inner.estimator`; Stadie et al. 2018, Some Considerations on Learning to Explore via
    Meta-Reinforcement Learning, section 3, for E-MAML.
    """
    environment = training.environment
    if environment.episodes != 1:
        raise ConfigError(
            "env.episodes",
            environment.episodes,
            "1: with method=maml a trial is method.rollouts episodes; method=maml_trial learns within those of env",
        )
    if not environment.observation_size:
        raise ConfigError("method", "maml", "maml_trial, for an environment that shows nothing, such as a bandit")
    layers = positive_ints("method.hidden", hidden, "[100,100]")
    std = positive_float("method.initial_std", initial_std)
    plays = player(environment, layers, std, true_or_false("method.standardise", standardise), sampling)
    adaptation = Adaptation(plays, ESTIMATORS[inner.estimator], inner.first_order)
    steps, outer_step = inner.inner_steps, OUTER[outer.outer](training, outer)
    rates, test_rates = inner.rates(steps), inner.rates(inner.eval_inner_steps)
    objective = MetaObjective(
        adaptation,
        rates,
        counted=range(1, steps + 1) if true_or_false("method.every_step", every_step) else [steps],
        surrogate=outer_step.surrogate,
        exploration=non_negative_float("method.exploration", exploration),
    )

    def gathered(params: Params, task_and_key: tuple[Any, Array]) -> list[Rollouts]:
        task, key = task_and_key
        return adaptation.gather(params, task, key, rates)

    def improve(params: Params, opt_state: Any, tasks: Any, keys: Array, key: Array) -> tuple[Params, Any, Metrics]:
        del key
        batches = map_tasks(gathered, training.layout, params, (tasks, keys))
        returns = [batch.reward.sum((1, 2)) / sampling.rollouts for batch in batches]
        earned = {f"reward/{k}": of_tasks.mean() for k, of_tasks in enumerate(returns)}
        experience = Experience(batches, credit_of(returns[-1]))
        learnt, opt_state, metrics = outer_step.step(objective, params, opt_state, experience)
        # The moments are of what was there before the step: an optimiser that decays weights is not to decay them.
        params = {**learnt, **plays.moments(params, batches)}
        return params, opt_state, {"reward": earned[f"reward/{steps}"], **earned, **metrics}

    def outcome(params: Params, task: Any, key: Array, blind: bool) -> Outcome:
        batches = adaptation.gather(params, task, key, test_rates, blind)
        curve = jnp.stack([batch.reward.sum() / sampling.rollouts for batch in batches])
        return Outcome(curve[-1], curve, batches[0].reward[:, 0].mean())

    def watch(params: Params, task: Any, key: Array) -> Watched:
        batches = adaptation.gather(params, task, key, test_rates)
        observation = jnp.stack([batch.observation[0] for batch in batches])
        live = jnp.stack([batch.weight[0] for batch in batches]) > 0
        return Watched(observation, live, jnp.zeros_like(live))

    return MetaLearner(
        init=plays.init,
        improve=improve,
        outcome=outcome,
        watch=watch,
        init_opt=outer_step.init,
        curve_over="inner step",
        protocol={
            "eval_inner_steps": inner.eval_inner_steps,
            "rollouts": sampling.rollouts,
            "actions": "sampled from the policy",
        },
    )


@dataclass(frozen=True)
class Adaptation:
    """The inner loop: theta_0 = theta, theta_k+1 = theta_k - alpha_k grad L(theta_k), L of rollouts by theta_k.

    Attributes:
      player: whose network has the parameters theta.
      estimator: factor of each advantage in L, one of `inner_gradient.ESTIMATORS`.
      first_order: whether the gradient is a constant.
    """

    player: Player
    estimator: Callable[[Array, Array], Array]
    first_order: bool

    def loss(self, params: Params, batch: Rollouts) -> Array:
        """L(theta) = - mean of f(log pi(a | s)) A, f being the estimator (equation 4 of Finn et al.)."""
        log_prob = self.player.log_prob(self.player.outputs(params, batch), batch)
        factor = self.estimator(log_prob, self.player.log_prob(batch.outputs, batch))
        return -mean_over(factor * batch.advantage, batch.weight)

    def step(self, params: Params, batch: Rollouts, lr: float | Array) -> Params:
        """theta - alpha grad L(theta) (line 7)."""
        gradient = jax.grad(self.loss)(params, batch)
        if self.first_order:
            gradient = lax.stop_gradient(gradient)
        return jax.tree.map(lambda p, g: p - lr * g, params, gradient)

    def gather(
        self, params: Params, task: Any, key: Array, rates: Sequence[float], blind: bool = False
    ) -> list[Rollouts]:
        """The rollouts before each gradient step, and those after the last (lines 5 to 8).

        Args:
          params: theta.
          task: to play in.
          key: of all that is random.
          rates: alpha of each gradient step.
          blind: whether every reward counts as 0.
        """

        def advance(params: Params, number_and_rate: tuple[Array, Array]) -> tuple[Params, Rollouts]:
            number, rate = number_and_rate
            batch = self.player.play(params, task, jax.random.fold_in(key, number), blind)
            return self.step(params, batch, rate), batch

        # A loop, so that an environment is compiled once, however many steps there are; after the last none is taken.
        steps = jnp.array([*rates, 0.0])
        _, batches = lax.scan(advance, params, (jnp.arange(steps.size), steps))
        return [jax.tree.map(itemgetter(number), batches) for number in range(steps.size)]

    def stages(self, params: Params, batches: Sequence[Rollouts], rates: Sequence[float]) -> list[Params]:
        """theta_0, ..., theta_k: the parameters that each of the batches was gathered by, from theta_0."""
        found = [params]
        for batch, rate in zip(batches[:-1], rates, strict=True):
            found.append(self.step(found[-1], batch, rate))
        return found


class Experience(NamedTuple):
    """What the outer step learns from, of one task.

    Attributes:
      batches: the rollouts before each gradient step, and those after the last.
      credit: of the task's return against those of the others, a scalar, see `exploration`.
    """

    batches: list[Rollouts]
    credit: Array


@dataclass(frozen=True)
class MetaObjective:
    """What theta follows: the loss of rollouts by theta_k, as a function of theta (line 10). An `outer_step.Objective`.

    Attributes:
      adaptation: by which theta becomes theta_k.
      rates: alpha of each gradient step.
      counted: the k after which rollouts count.
      surrogate: by which an action counts, of the outer optimiser.
      exploration: weight of E-MAML's term.
    """

    adaptation: Adaptation
    rates: Sequence[float]
    counted: Sequence[int]
    surrogate: Callable[[Array, Array], Array]
    exploration: float

    def gain(self, params: Params, batch: Rollouts, advantage: Array) -> Array:
        """The mean surrogate of pi / pi_acted and A."""
        player = self.adaptation.player
        log_prob = player.log_prob(player.outputs(params, batch), batch)
        ratio = jnp.exp(log_prob - player.log_prob(batch.outputs, batch))
        return mean_over(self.surrogate(ratio, advantage), batch.weight)

    def loss(self, params: Params, experience: Experience) -> Array:
        """Minus the gain after the steps that count, and minus E-MAML's."""
        batches, credit = experience
        stages = self.adaptation.stages(params, batches, self.rates)
        gains = (self.gain(stages[k], batches[k], batches[k].advantage) for k in self.counted)
        loss = -sum(gains, start=jnp.zeros(())) / len(self.counted)
        if self.exploration:
            loss -= self.exploration * exploration_gain(self.gain, stages, batches, credit)
        return loss

    def acted(self, experience: Experience) -> list[Array]:
        """Outputs of the policies after the steps that count, when they acted."""
        return [experience.batches[k].outputs for k in self.counted]

    def outputs(self, params: Params, experience: Experience) -> list[Array]:
        """Outputs of the policies after the steps that count, from `params`, for what was seen then."""
        stages = self.adaptation.stages(params, experience.batches, self.rates)
        return [self.adaptation.player.outputs(stages[k], experience.batches[k]) for k in self.counted]

    def divergence(self, outputs: list[Array], experience: Experience) -> Array:
        """The mean divergence from those that acted to those of `outputs`."""
        found = [
            self.adaptation.player.divergence(of_step, experience.batches[k])
            for k, of_step in zip(self.counted, outputs, strict=True)
        ]
        return sum(found, start=jnp.zeros(())) / len(self.counted)
