"""Why a number can be believed: checks, leaks, protocol, equivalence, published cells.

May import `compiled` and below.
"""
