"""Methods of few-shot learning, one file an algorithm."""
