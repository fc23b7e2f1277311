"""Why a number can be believed: checks, leaks, protocol, equivalence, published cells.

A new check is a change of tasks and a verdict in `checks.py`; `few_shot/learner_checks.py` and `rl/meta_test.py` make it.

May import `compiled` and below.
"""
