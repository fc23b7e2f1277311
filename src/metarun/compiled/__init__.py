"""What becomes a compiled program: map over tasks, outer steps, memory plan, streaming, runs in lockstep.

May import `models` and below.
"""
