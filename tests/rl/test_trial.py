"""Trials: what is seen and when, ends of episodes, and the agents' memory across them."""

import jax
import jax.numpy as jnp
import numpy as np
from counting_environment import always, counting

from metarun.rl.trial import by_episode, outcome, play

TASK = jnp.float32(1)


def test_episodes_are_truncated_and_begin_anew_while_memory_goes_on():
    trajectory = play(counting(horizon=3, episodes=2), always(2), TASK, jax.random.key(0))
    np.testing.assert_array_equal(trajectory.reward, [102, 112, 122, 102, 112, 122])
    np.testing.assert_array_equal(trajectory.seen.observation[:, 0], [0, 1, 2, 0, 1, 2])
    np.testing.assert_array_equal(trajectory.truncated, [False, False, True] * 2)
    assert not trajectory.terminated.any() and trajectory.live.all()
    np.testing.assert_array_equal(trajectory.noted, range(6))


def test_what_an_agent_sees_is_what_came_before():
    trajectory = play(counting(horizon=2, episodes=2), always(1), TASK, jax.random.key(0))
    np.testing.assert_array_equal(trajectory.seen.action, [0, 1, 1, 1])
    np.testing.assert_array_equal(trajectory.seen.reward, [0, 101, 111, 101])
    np.testing.assert_array_equal(trajectory.seen.done, [0, 0, 1, 0])
    np.testing.assert_array_equal(trajectory.seen.first, [1, 0, 0, 0])


def test_an_early_termination_is_no_truncation_and_ends_the_trial_early():
    trajectory = play(counting(horizon=3, episodes=2, lasts=2), always(0), TASK, jax.random.key(0))
    np.testing.assert_array_equal(trajectory.terminated, [False, True, False, True, False, False])
    assert not trajectory.truncated.any()
    np.testing.assert_array_equal(trajectory.live, [True] * 4 + [False] * 2)
    np.testing.assert_array_equal(trajectory.reward, [100, 110, 100, 110, 0, 0])
    np.testing.assert_array_equal(by_episode(trajectory, 2), [210, 210])


def test_an_end_at_the_horizon_is_a_termination_where_the_task_ends_there():
    trajectory = play(counting(horizon=2, episodes=1, lasts=2), always(0), TASK, jax.random.key(0))
    assert trajectory.terminated.tolist() == [False, True] and not trajectory.truncated.any()


def test_the_blind_are_shown_no_reward_and_earn_it_all_the_same():
    trajectory = play(counting(horizon=2, episodes=2), always(1), TASK, jax.random.key(0), blind=True)
    assert not trajectory.seen.reward.any()
    np.testing.assert_array_equal(trajectory.reward, [101, 111, 101, 111])


def test_an_outcome_adds_up():
    found = outcome(counting(horizon=2, episodes=2), always(1), TASK, jax.random.key(0), False)
    assert float(found.value) == 424 and found.curve.tolist() == [212, 212] and float(found.first) == 101
    assert outcome(counting(horizon=2, episodes=1), always(1), TASK, jax.random.key(0), False).curve.tolist() == [
        101,
        111,
    ]
