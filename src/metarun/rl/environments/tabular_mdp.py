"""Random tabular Markov decision processes."""

import jax
import jax.numpy as jnp

from metarun.errors import positive_int
from metarun.rl import planning, task_space
from metarun.rl.environment import Discrete, Environment, Step, random_agent


def tabular_mdp(*, states: int = 10, actions: int = 5, horizon: int = 10, episodes: int = 10) -> Environment:
    """Every episode begins in the first state; the state is observed one-hot.

    Transitions p(. | s, a) from Dirichlet(1, ..., 1); rewards N(m, 1) with m of each state and action from N(1, 1).

    Args:
      states, actions: how many.
      horizon: steps of an episode.
      episodes: of a trial.

    Raises:
      ConfigError: for a value that is not allowed.

    Source: Duan et al. 2016, RL2, section 3.2; Osband et al. 2013.
    """
    states, actions = positive_int("env.states", states), positive_int("env.actions", actions)
    horizon, episodes = positive_int("env.horizon", horizon), positive_int("env.episodes", episodes)

    def sample(key, split):
        transition_key, reward_key = jax.random.split(key)
        transitions = jax.random.dirichlet(transition_key, jnp.ones(states), (states, actions))
        return planning.Model(transitions, 1 + task_space.normal(reward_key, split, (states, actions)))

    def step(task, state, action, key):
        state_key, reward_key = jax.random.split(key)
        following = jax.random.categorical(state_key, jnp.log(task.transitions[state, action])).astype(jnp.int32)
        reward = task.rewards[state, action] + jax.random.normal(reward_key)
        return Step(following, reward, jnp.bool_(False))

    return Environment(
        sample=sample,
        reset=lambda task, key: jnp.int32(0),
        observe=lambda task, state: jax.nn.one_hot(state, states),
        step=step,
        actions=Discrete(actions),
        observation_size=states,
        horizon=horizon,
        episodes=episodes,
        protocol={"states": states, "actions": actions, "transitions": "Dirichlet(1)", "rewards": "N(N(1, 1), 1)"},
        optimum=lambda task: episodes * planning.plan(task, horizon)[0, 0].max(),
        yardsticks={
            "random": random_agent(Discrete(actions)),
            "psrl": planning.psrl(states, actions, horizon),
            "opsrl": planning.psrl(states, actions, horizon, samples=10),
        },
        exchangeable=True,
    )
