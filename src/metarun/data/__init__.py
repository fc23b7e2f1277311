"""Class banks, samplers of tasks, decoding of pictures; one file a source.

A new data set is a function that returns a `types.DataSet`, and a file in `conf/few_shot/dataset/` that names it. Of pictures
in classes, write what loads them, and decorate it with `episodes.few_shot_of`, as `omniglot.py` does.

May import `config` and below.
"""
