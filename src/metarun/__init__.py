"""Meta-learning experiments from the command line: trained, evaluated and checked, in JAX."""
