"""Environments of meta-reinforcement learning, each a distribution over tasks."""
