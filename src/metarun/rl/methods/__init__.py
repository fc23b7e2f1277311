"""Methods of meta-reinforcement learning, one file an algorithm, and the agents that are not learnt."""
