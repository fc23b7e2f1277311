"""Few-shot learning: experiment, learner, inner loop, losses, and the methods, one file an algorithm.

May import `training` and below.
"""
