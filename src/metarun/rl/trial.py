"""How an agent goes through a trial: one compiled loop, whatever the environment."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from metarun.rl.environment import Agent, Environment, Seen, Trajectory, no_action
from metarun.rl.meta_learner import Outcome, Watched
from metarun.types import Array


def play(environment: Environment, agent: Agent, task: Any, key: Array, *, blind: bool = False) -> Trajectory:
    """An agent's trial in a task.

    Episodes follow each other without pause, so that a trial ends early where episodes terminate early.

    Args:
      environment: of the task.
      agent: who acts.
      task: in which.
      key: of all that is random.
      blind: whether the agent is shown a reward of 0 whatever it earns.

    Returns:
      The trajectory, `[environment.length]`.
    """
    start_key, reset_key, loop_key = jax.random.split(key, 3)
    zero = jnp.zeros(())

    def advance(carry, number):
        memory, state, seen, time, episode = carry
        act_key, step_key, reset_key = jax.random.split(jax.random.fold_in(loop_key, number), 3)
        memory, action, noted = agent.act(memory, seen, act_key)
        after = environment.step(task, state, action, step_key)
        live = episode < environment.episodes
        terminated = after.terminated & live
        truncated = (time + 1 >= environment.horizon) & ~after.terminated & live
        done = terminated | truncated
        reward = jnp.where(live, after.reward, 0.0)
        step = Trajectory(seen, action, reward, terminated, truncated, live, noted)

        begun = environment.reset(task, reset_key)
        state = jax.tree.map(lambda new, old: jnp.where(done, new, old), begun, after.state)
        seen = Seen(
            environment.observe(task, state), action, zero if blind else reward, done.astype(jnp.float32), first=zero
        )
        return (memory, state, seen, jnp.where(done, 0, time + 1), episode + done.astype(jnp.int32)), step

    state = environment.reset(task, reset_key)
    seen = Seen(environment.observe(task, state), no_action(environment.actions), zero, zero, first=jnp.ones(()))
    begin = agent.start(start_key), state, seen, jnp.int32(0), jnp.int32(0)
    return lax.scan(advance, begin, jnp.arange(environment.length))[1]


def by_episode(trajectory: Trajectory, episodes: int) -> Array:
    """The total reward of each episode of a trial, `[episodes]`."""
    ended = (trajectory.terminated | trajectory.truncated).astype(jnp.int32)
    number = jnp.cumsum(ended) - ended
    return jnp.zeros(episodes).at[number].add(trajectory.reward, mode="drop")


def curve_over(environment: Environment) -> str:
    """What the rewards of a trial are summed over to be looked at: "episode", or "step" where there is but one."""
    return "episode" if environment.episodes > 1 else "step"


def outcome(environment: Environment, agent: Agent, task: Any, key: Array, blind: bool) -> Outcome:
    """What comes of an agent's trial: its total reward, and that of each episode or, of a single one, of each step."""
    trajectory = play(environment, agent, task, key, blind=blind)
    curve = by_episode(trajectory, environment.episodes) if environment.episodes > 1 else trajectory.reward
    return Outcome(trajectory.reward.sum(), curve, trajectory.reward[0])


def watched(environment: Environment, agent: Agent, task: Any, key: Array) -> Watched:
    """An agent's trial, to be looked at."""
    trajectory = play(environment, agent, task, key)
    ended = trajectory.terminated | trajectory.truncated
    return Watched(*(x[None] for x in (trajectory.seen.observation, trajectory.live, ended)))
