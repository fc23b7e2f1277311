"""The host loop of a run: stopping, divergence, checkpoints, metrics, optimisers, `result.json`.

May import `trust` and below.
"""
