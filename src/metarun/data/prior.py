"""Tables that are drawn: classification tasks of a synthetic prior, on which a learner in context learns to read real ones."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import random

from metarun.data.class_split import SPLITS
from metarun.data.task_sizes import sizes_by_split
from metarun.errors import ConfigError, non_negative_float, positive_range
from metarun.types import Array, DataSet, Split, Task, TaskSource

FUNCTIONS = ("linear", "network", "tree")
_UNITS = 24  # of each of the two hidden layers of a network
_DEPTH = 5  # of a tree
_FURTHEST = 5.0  # standard deviations at which a number is cut off
_LEAST = 1e-6  # of a standard deviation, below which a column says nothing


def prior(
    *,
    way: int | Sequence[int],
    shot: int | Sequence[int],
    query_shot: int,
    eval_query_shot: int | None = None,
    features: int | Sequence[int] = (2, 32),
    functions: Sequence[str] = FUNCTIONS,
    noise: float = 0.3,
) -> DataSet:
    """Rows x and their classes, argmax over k of g_k(x) + bias_k + noise, with g a random function.

    A table has a number of features of its own, some of them mixtures of others, skewed, or of few values. g is linear, a
    network of two hidden layers, or a tree, each drawn anew for every table. Each g_k is brought to mean 0 and variance 1
    over the rows, so that classes differ in frequency by their biases alone.

    Features are standardised as those of a real table would be, see `as_features`. A query whose class no support row has is
    left out. All is drawn by the step's own keys, and each split draws tables of its own.

    Args:
      way: classes of a table, or the fewest and the most.
      shot: support rows of a table, divided by its way; or the fewest and the most.
      query_shot: query rows, divided by its way, in training.
      eval_query_shot: the same in evaluation; None: as in training.
      features: numbers of a row, or the fewest and the most; inputs are `[n, most]`.
      functions: which of `FUNCTIONS` are drawn, each as often.
      noise: the most by which g_k is disturbed, in its standard deviations; a table has less, uniformly.

    Returns:
      A classification `DataSet`, whose tasks always have masks.

    Raises:
      ConfigError: a value that cannot be used.

    Source: the idea and the kinds of functions: Müller et al. 2022, Transformers Can Do Bayesian Inference, section 5; Hollmann et
    al. 2023, TabPFN, section 4. The distributions are our own.
    """
    least_features, most_features = positive_range("dataset.features", features)
    noise = non_negative_float("dataset.noise", noise)
    if isinstance(functions, str) or not functions or not {*functions} <= {*FUNCTIONS}:
        raise ConfigError("dataset.functions", functions, f"a list of {', '.join(FUNCTIONS)}")
    sizes_of = sizes_by_split(way=way, shot=shot, query_shot=query_shot, eval_query_shot=eval_query_shot)
    ways = sizes_of["test"].way
    if ways[0] < 2:
        raise ConfigError("way", way, "2 or more")
    kinds = {"linear": _linear, "network": _network, "tree": _tree}
    drawn = [partial(kinds[name], ways[1]) for name in functions]

    def source(split: str) -> TaskSource:
        sizes, number = sizes_of[split], SPLITS.index(split)
        most_support, most_query = sizes.most_support, ways[1] * sizes.query_shot

        def sample(data: tuple[()], key: Array) -> Task:
            keys = random.split(random.fold_in(key, number), 6)
            size_key, count_key, x_key, function_key, kind_key, label_key = keys
            its_way, its_shots = sizes.draw(size_key, jnp.zeros(ways[1], jnp.int32))
            is_feature = jnp.arange(most_features) < random.randint(
                count_key, (), least_features, most_features + 1, jnp.int32
            )
            x = _rows(x_key, most_support + most_query, is_feature)
            columns = _standardised(x, x, is_feature)
            function_keys = random.split(function_key, len(drawn))
            # All are computed: they take little beside a learner, and a batch of tables would have it so anyway.
            of_each = jnp.stack(
                [draw(key, columns, is_feature) for draw, key in zip(drawn, function_keys, strict=True)]
            )
            scores = of_each[random.randint(kind_key, (), 0, len(drawn), jnp.int32)]
            y = _labels(label_key, scores, jnp.arange(ways[1]) < its_way, noise)
            known = jnp.arange(most_support) < its_shots.sum()
            seen = (known[:, None] & (y[:most_support, None] == jnp.arange(ways[1])[None])).any(0)
            asked = (jnp.arange(most_query) < its_way * sizes.query_shot) & seen[y[most_support:]]
            first = jnp.argsort(~asked)  # examples before padding
            support_x, query_x = x[:most_support], x[most_support:][first]
            inputs = [as_features(part, support_x, is_feature, known) for part in (support_x, query_x)]
            return Task(
                Split(inputs[0], y[:most_support], known), Split(inputs[1], y[most_support:][first], asked[first])
            )

        return TaskSource((), sample)

    return DataSet(
        source("train"),
        source("val"),
        source("test"),
        "classification",
        ways[1],
        {
            "name": "prior",
            "features": [least_features, most_features],
            "functions": [*functions],
            "noise": noise,
        },
        varies=["way", "shot"],
    )


def as_features(x: Array, support_x: Array, is_feature: Array, mask: Array | None = None) -> Array:
    """Rows of a table as a learner of tables takes them, `[n, most]`.

    Each feature is standardised by the support set and cut off at five standard deviations; what is no feature is 0; and all
    grow with the share of zeros, so that the length of a row does not tell how many features there are.

    Args:
      x: `[n, most]`.
      support_x: of the support set, `[k, most]`.
      is_feature: which columns are features, `[most]` bool.
      mask: which rows of the support set are examples; None: all.
    """
    there = is_feature.astype(x.dtype)
    scale = jnp.sqrt(there.size / there.sum())
    return _standardised(x, support_x, is_feature, mask) * scale


def _standardised(x: Array, by: Array, is_feature: Array, mask: Array | None = None) -> Array:
    """Columns of `x` with the mean and the deviation that those of `by` have taken out, cut off, zeros for what is no feature."""
    weight = jnp.ones(len(by), x.dtype) if mask is None else mask.astype(x.dtype)
    weight = weight / weight.sum()
    mean = weight @ by
    deviation = jnp.sqrt(weight @ jnp.square(by - mean[None]))
    told = is_feature & (deviation > _LEAST)
    scaled = (x - mean[None]) / jnp.where(told, deviation, 1)[None]
    return jnp.where(told[None], jnp.clip(scaled, -_FURTHEST, _FURTHEST), 0)


def _rows(key: Array, number: int, is_feature: Array) -> Array:
    """Features of so many rows: normal, mixed with others, and then skewed or of few values, each by chance."""
    z_key, mix_key, is_mixed_key, kind_key, level_key = random.split(key, 5)
    size = is_feature.size
    z = jnp.where(is_feature[None], random.normal(z_key, (number, size)), 0)
    weights = random.normal(mix_key, (size, size)) / jnp.sqrt(is_feature.sum().astype(z.dtype))
    mixed = jnp.where(random.bernoulli(is_mixed_key, 0.5, (size,))[None], z + 2 * z @ weights, z)
    levels = random.randint(level_key, (size,), 1, 6, jnp.int32).astype(z.dtype)
    of_kinds = [mixed, jnp.exp(0.7 * mixed), jnp.round(mixed * levels[None] / 2)]
    kind = random.choice(kind_key, 3, (size,), p=jnp.array([0.6, 0.2, 0.2]))
    return jnp.where(is_feature[None], jnp.choose(kind[None], of_kinds, mode="clip"), 0)


def _linear(way: int, key: Array, x: Array, is_feature: Array) -> Array:
    return x @ random.normal(key, (x.shape[1], way))


def _network(way: int, key: Array, x: Array, is_feature: Array) -> Array:
    first, second, last, scale_key, bias_key = random.split(key, 5)
    scale = jnp.exp(random.uniform(scale_key, minval=-0.7, maxval=1.0)) / jnp.sqrt(is_feature.sum().astype(x.dtype))
    biases = random.normal(bias_key, (2, 1, _UNITS))
    hidden = jnp.tanh(scale * x @ random.normal(first, (x.shape[1], _UNITS)) + biases[0])
    hidden = jnp.tanh(hidden @ random.normal(second, (_UNITS, _UNITS)) / 2 + biases[1])
    return hidden @ random.normal(last, (_UNITS, way))


def _tree(way: int, key: Array, x: Array, is_feature: Array) -> Array:
    """Leaves of a complete tree; a node compares one feature with its value in a random row."""
    feature_key, row_key, leaf_key = random.split(key, 3)
    nodes = 2**_DEPTH - 1
    feature = random.randint(feature_key, (nodes,), 0, is_feature.sum(), jnp.int32)
    threshold = x[random.randint(row_key, (nodes,), 0, len(x), jnp.int32), feature]
    node: Any = jnp.zeros(len(x), jnp.int32)
    for _ in range(_DEPTH):
        is_right = jnp.take_along_axis(x, feature[node][:, None], 1)[:, 0] > threshold[node]
        node = 2 * node + 1 + is_right.astype(jnp.int32)
    return random.normal(leaf_key, (nodes + 1, way))[node - nodes]


def _labels(key: Array, scores: Array, there: Array, noise: float) -> Array:
    """argmax over the classes that there are of standardised scores with a bias each and noise, `[n]` int32."""
    bias_key, noise_key, size_key = random.split(key, 3)
    deviation = scores.std(0, keepdims=True)
    standard = (scores - scores.mean(0, keepdims=True)) / jnp.where(deviation > _LEAST, deviation, 1)
    bias = 0.5 * random.normal(bias_key, (1, scores.shape[1]))
    disturbed = noise * random.uniform(size_key) * random.normal(noise_key, scores.shape)
    return jnp.where(there[None], standard + bias + disturbed, -jnp.inf).argmax(1).astype(jnp.int32)
