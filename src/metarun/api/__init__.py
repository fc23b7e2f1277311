"""The Python interface: train, load, adapt, predict, evaluate, export. The commands are built on it.

May import all but `commands`.
"""
