"""The schema of the command line, where its YAML lies, what a choice calls, and the directories of runs.

May import `system` and below.
"""
