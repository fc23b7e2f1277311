"""The console commands: what each does, their messages, and sweeps.

Nothing here computes. May import every other room.
"""
