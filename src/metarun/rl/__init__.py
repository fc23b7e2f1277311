"""Meta-reinforcement learning: experiment, trials, policy gradients, environments, methods.

May import `training` and below.
"""
