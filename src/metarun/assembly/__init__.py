"""From a composed configuration to the objects of a run, and a finished run read back.

May import all but `commands` and `api`.
"""
