"""MAML for reinforcement learning: policy gradient steps from a learnt start.

Source: Finn, Abbeel and Levine 2017, Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks, algorithm 3.
"""

from collections.abc import Callable, Sequence
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
    positive_ints,
    true_or_false,
    unit_fraction,
)
from metarun.models.mlp import mlp
from metarun.rl.baseline import features, fitted_values
from metarun.rl.environment import Agent, Discrete, Environment
from metarun.rl.meta_learner import MetaLearner, Outcome, Watched
from metarun.rl.policy import policy_over
from metarun.rl.returns import advantages, discounted, mean_over, normalised
from metarun.rl.surrogate import clipped
from metarun.rl.trial import play
from metarun.rl.trust_region import trust_region_step
from metarun.types import Array, Params

OUTER = ("trpo", "ppo")
ESTIMATORS = ("log_prob", "ratio")
_NEGLIGIBLE = 1e-4  # part of the returns that the fit of a baseline may miss, and rounding


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


def maml(
    *,
    environment: Environment,
    optimizer: Callable[..., optax.GradientTransformation],
    layout: Layout,
    meta_batch_size: int,
    steps: int,
    hidden: Sequence[int] = (100, 100),
    rollouts: int = 20,
    inner_lr: float = 0.1,
    inner_steps: int = 1,
    eval_inner_steps: int = 3,
    later_lr: float | None = None,
    first_order: bool = False,
    estimator: str = "log_prob",
    exploration: float = 0.0,
    every_step: bool = False,
    outer: str = "trpo",
    radius: float = 0.01,
    epochs: int = 5,
    clip: float = 0.2,
    discount: float = 0.99,
    decay: float = 1.0,
) -> MetaLearner:
    """theta'_i = theta - alpha grad L_i(theta), rollouts by theta; theta follows the loss of rollouts by theta'_i.

    Args:
      environment: the distribution over tasks, with one episode a trial.
      optimizer: from the number of gradients that it will follow in the whole run; of PPO, TRPO has none.
      layout: where tasks are computed.
      meta_batch_size: tasks of an outer step.
      steps: outer steps of the run.
      hidden: sizes of the policy's hidden layers, with ReLU.
      rollouts: K, episodes before each gradient step, and after the last.
      inner_lr: alpha.
      inner_steps: gradient steps in training.
      eval_inner_steps: the same in a test.
      later_lr: alpha after the first step, in a test and in training; None: half of `inner_lr`.
      first_order: whether theta' counts as theta plus a constant.
      estimator: what the inner gradient is the gradient of. Both have the same; they differ in what is differentiated in
        turn. "log_prob", log pi A, as Finn et al.; "ratio", pi / pi_sampled A, whose derivatives are unbiased at each
        step (ProMP, "low variance curvature").
      exploration: weight of E-MAML's term, by which rollouts before a gradient step are credited for the return after it;
        0: they count only for the gradient that they give.
      every_step: whether the returns after all inner steps of training count, alike, and are held within the radius; else
        those after the last.
      outer: "trpo" or "ppo".
      radius: largest mean divergence of TRPO, in nats.
      epochs: gradients of PPO in an outer step, all over all tasks.
      clip: epsilon of PPO.
      discount: gamma.
      decay: lambda of generalised advantage estimation.

    Raises:
      ConfigError: for a value that is not allowed.

    Source: Finn et al. 2017, algorithm 3 and section 5.3; Rothfuss et al. 2019, ProMP: Proximal Meta-Policy Search,
    section 5; Stadie et al. 2018, Some Considerations on Learning to Explore via Meta-Reinforcement Learning, section 3,
    for E-MAML.
    """
    if environment.episodes != 1:
        raise ConfigError(
            "env.episodes",
            environment.episodes,
            "1: with method=maml a trial is method.rollouts episodes; method=maml_trial learns within those of env",
        )
    rollouts = positive_int("method.rollouts", rollouts)
    inner_lr = positive_float("method.inner_lr", inner_lr)
    later_lr = inner_lr / 2 if later_lr is None else positive_float("method.later_lr", later_lr)
    inner_steps = positive_int("method.inner_steps", inner_steps)
    eval_inner_steps = positive_int("method.eval_inner_steps", eval_inner_steps)
    rates, test_rates = ([inner_lr, *[later_lr] * (n - 1)] for n in (inner_steps, eval_inner_steps))
    first_order = true_or_false("method.first_order", first_order)
    one_of("method.estimator", estimator, ESTIMATORS)
    exploration = non_negative_float("method.exploration", exploration)
    counted = range(1, inner_steps + 1) if true_or_false("method.every_step", every_step) else [inner_steps]
    one_of("method.outer", outer, OUTER)
    radius, clip = positive_float("method.radius", radius), positive_float("method.clip", clip)
    epochs = positive_int("method.epochs", epochs)
    discount, decay = unit_fraction("method.discount", discount), unit_fraction("method.decay", decay)
    policy = policy_over(environment.actions)
    discrete = isinstance(environment.actions, Discrete)
    hidden = positive_ints("method.hidden", hidden, "[100,100]")
    mean = mlp(num_outputs=environment.actions.n if discrete else environment.actions.size, hidden=hidden)
    optimizer = optimizer(steps=steps * epochs) if outer == "ppo" else optax.identity()

    def init(key):
        params = {"mean": mean.init(key, jnp.zeros((1, environment.observation_size)))}
        return params if discrete else {**params, "log_std": jnp.zeros(environment.actions.size)}

    def outputs_of(params: Params, observations: Array) -> Array:
        """`[n, observation_size]` -> `[n, num_outputs]`."""
        means = mean.apply(params["mean"], observations)
        if discrete:
            return means
        return jnp.concatenate([means, jnp.broadcast_to(params["log_std"][None], means.shape)], 1)

    def agent(params: Params) -> Agent:
        def act(memory, seen, key):
            outputs = outputs_of(params, seen.observation[None])[0]
            return memory, policy.sample(key, outputs), outputs

        return Agent(lambda key: (), act)

    def sampled(params: Params, task: Any, key: Array, blind: bool = False) -> Rollouts:
        """Rollouts of a task by a policy, with what is better than a fit to their returns."""
        played = jax.vmap(lambda key: play(environment, agent(params), task, key))(jax.random.split(key, rollouts))
        weight = played.live.astype(jnp.float32)
        reward = jnp.zeros_like(played.reward) if blind else played.reward
        returns = jax.vmap(lambda r: discounted(r, discount))(reward)
        x = jax.vmap(features)(played.seen.observation)
        flat = lambda a: a.reshape(-1, *a.shape[2:])
        values = fitted_values(flat(x), flat(returns), flat(weight)).reshape(weight.shape) * weight
        advantage = jax.vmap(lambda r, v: advantages(r, v, jnp.zeros(()), discount, decay))(reward, values)
        least = _NEGLIGIBLE * jnp.sqrt(mean_over(returns**2, weight)) + 1e-8
        advantage = normalised(advantage, weight, least)
        return Rollouts(played.seen.observation, played.action, played.noted, advantage, weight, played.reward)

    def log_probs(params: Params, batch: Rollouts) -> Array:
        outputs = jax.vmap(lambda observations: outputs_of(params, observations))(batch.observation)
        return jax.vmap(jax.vmap(policy.log_prob))(outputs, batch.action)

    def acted(batch: Rollouts) -> Array:
        return jax.vmap(jax.vmap(policy.log_prob))(batch.outputs, batch.action)

    def inner_loss(params: Params, batch: Rollouts) -> Array:
        log_prob = log_probs(params, batch)
        weighed = jnp.exp(log_prob - acted(batch)) if estimator == "ratio" else log_prob
        return -mean_over(weighed * batch.advantage, batch.weight)

    def adapted(params: Params, batch: Rollouts, lr: float | Array) -> Params:
        gradient = jax.grad(inner_loss)(params, batch)
        if first_order:
            gradient = lax.stop_gradient(gradient)
        return jax.tree.map(lambda p, g: p - lr * g, params, gradient)

    def gathered(params: Params, task: Any, key: Array, rates: Sequence[float], blind: bool = False) -> list[Rollouts]:
        """The rollouts before each gradient step, one step for each of the learning rates, and those after the last."""

        def advance(params, number_and_rate):
            number, rate = number_and_rate
            batch = sampled(params, task, jax.random.fold_in(key, number), blind)
            return adapted(params, batch, rate), batch

        # A loop, so that an environment is compiled once, however many steps there are; after the last none is taken.
        rates = jnp.array([*rates, 0.0])
        _, batches = lax.scan(advance, params, (jnp.arange(rates.size), rates))
        return [jax.tree.map(lambda x: x[number], batches) for number in range(rates.size)]

    def stages(params: Params, batches: list[Rollouts]) -> list[Params]:
        """The parameters that each of the batches was gathered by."""
        found = [params]
        for batch, rate in zip(batches[:-1], rates, strict=True):
            found.append(adapted(found[-1], batch, rate))
        return found

    def gain(params: Params, batch: Rollouts, advantage: Array) -> Array:
        ratio = jnp.exp(log_probs(params, batch) - acted(batch))
        return mean_over(clipped(ratio, advantage, clip) if outer == "ppo" else ratio * advantage, batch.weight)

    def outer_loss(params: Params, _, batches_and_credit: tuple[list[Rollouts], Array]):
        batches, credit = batches_and_credit
        found = stages(params, batches)
        loss = -sum(gain(found[k], batches[k], batches[k].advantage) for k in counted) / len(counted)
        if exploration:
            before = zip(found[:-1], batches[:-1], strict=True)
            loss -= exploration * sum(gain(*stage, credit) for stage in before)
        return loss, {"loss": loss}

    def later_outputs(params: Params, batches: list[Rollouts]) -> list[Array]:
        """What the policies after the gradient steps that count, from `params`, give for what was seen then."""
        found = stages(params, batches)
        return [jax.vmap(lambda seen: outputs_of(found[k], seen))(batches[k].observation) for k in counted]

    def divergence(outputs: list[Array], batches: list[Rollouts]) -> Array:
        of = lambda k, o: mean_over(jax.vmap(jax.vmap(policy.divergence))(batches[k].outputs, o), batches[k].weight)
        return sum(of(k, o) for k, o in zip(counted, outputs, strict=True)) / len(counted)

    def improve(params, opt_state, tasks, keys, key):
        del key
        batches = map_tasks(lambda p, of: gathered(p, *of, rates), layout, params, (tasks, keys))
        returns = [batch.reward.sum((1, 2)) / rollouts for batch in batches]
        earned = {f"reward/{k}": of_tasks.mean() for k, of_tasks in enumerate(returns)}
        learnt_from = batches, credit_of(returns[-1])

        def follow(params_and_opt_state, _):
            params, opt_state = params_and_opt_state
            gradient, metrics = mean_gradient(outer_loss, layout, params, (), learnt_from)
            return updated(optimizer, gradient, params, opt_state), metrics

        if outer == "ppo":
            (params, opt_state), metrics = lax.scan(follow, (params, opt_state), length=epochs)
            metrics = jax.tree.map(lambda m: m.mean(0), metrics)
        else:
            gradient, _ = mean_gradient(outer_loss, layout, params, (), learnt_from)

            def fisher_product(vector):
                def along(params, vector, batches):
                    # Where there is no divergence yet its Hessian is J^T H J, J of the outputs and H over them.
                    _, moved = jax.jvp(lambda p: later_outputs(p, batches), (lax.stop_gradient(params),), (vector,))
                    slope = lambda outputs: jax.grad(divergence)(outputs, batches)
                    _, curved = jax.jvp(slope, ([batches[k].outputs for k in counted],), (moved,))
                    pairs = zip(later_outputs(params, batches), lax.stop_gradient(curved), strict=True)
                    return sum((outputs * curved).sum() for outputs, curved in pairs), {}

                return mean_gradient(along, layout, params, vector, batches)[0]

            def measure(params):
                def of_task(params, batches_and_credit):
                    batches, _ = batches_and_credit
                    outputs = later_outputs(params, batches)
                    return outer_loss(params, (), batches_and_credit)[0], divergence(outputs, batches)

                return jax.tree.map(lambda x: x.mean(0), map_tasks(of_task, layout, params, learnt_from))

            params, metrics = trust_region_step(params, gradient, fisher_product, measure, radius)
        return params, opt_state, {"reward": earned[f"reward/{inner_steps}"], **earned, **metrics}

    def outcome(params, task, key, blind):
        batches = gathered(params, task, key, test_rates, blind)
        curve = jnp.stack([batch.reward.sum() / rollouts for batch in batches])
        return Outcome(curve[-1], curve, batches[0].reward[:, 0].mean())

    def watch(params, task, key):
        batches = gathered(params, task, key, test_rates)
        observation = jnp.stack([batch.observation[0] for batch in batches])
        live = jnp.stack([batch.weight[0] for batch in batches]) > 0
        return Watched(observation, live, jnp.zeros_like(live))

    return MetaLearner(
        init=init,
        improve=improve,
        outcome=outcome,
        watch=watch,
        init_opt=optimizer.init,
        curve_over="inner step",
        protocol={"eval_inner_steps": eval_inner_steps, "rollouts": rollouts, "actions": "sampled from the policy"},
    )


def credit_of(returns: Array) -> Array:
    """By how much each task's return exceeds the mean of the others', in their standard deviations, `[n]` -> `[n]`.

    That a task is not held against itself leaves the gradient of the expected return unbiased. All 0 for one task, or
    equal returns.
    """
    others = (returns.sum() - returns) / jnp.maximum(returns.size - 1, 1)
    return jnp.where(returns.size > 1, returns - others, 0.0) / (returns.std() + 1e-8)
