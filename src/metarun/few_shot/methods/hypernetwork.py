"""Hypernetworks: a network that reads the support set and writes the parameters of the one that answers the queries.

Sources: Ha, Dai and Le 2017, HyperNetworks, section 3.1 (weights generated from an embedding by a linear layer); Zaheer
et al. 2017, Deep Sets (pooling); Requeima et al. 2019, CNAPs (generated scale and shift, generated last layer).
"""

from collections.abc import Mapping
from math import prod

import jax
import jax.numpy as jnp

from metarun.errors import ConfigError, non_negative_float, one_of, positive_int
from metarun.few_shot.in_context import nearest_mean_loss
from metarun.few_shot.learner import class_means, conditioned, encoded, flat, only, query_loss, target_rows
from metarun.models.mlp import mlp
from metarun.types import Array, Method, Model, Params

GENERATES = ("all", "film", "head")


def hypernetwork(
    *,
    model: Model,
    encoder: Model,
    objective: str,
    num_outputs: int,
    generates: str = "all",
    embedding_size: int = 64,
    code_size: int = 8,
    query_statistics: str = "support",
    embedding_loss: float = 0.0,
) -> Method:
    """theta(S) = theta_0 + U c(S): parameters of `model` are learnt constants plus what the support set S asks for.

    Each example of S gives an embedding e_n = phi(f(x_n)). Then:

    - the code of the set is c = rho(mean of relu(e_n)), and each generated parameter array, unrolled, is
      theta_0 + U c, with a matrix U of its own: `code_size` numbers for every number that is generated;
    - in classification, column k of a generated last layer is V^T c_k instead, with c_k the mean of e_n over class k:
      the same V serves all classes, so that numbering the classes anew does no more than permute the answers. The code
      is then pooled over classes, c = rho(mean of relu(c_k)).

    Pooling by means makes all of it invariant to the order of S. In regression, and where "film" leaves the last layer
    to be learnt, the network that reads must be told y, and phi has it as an input beside f(x).

    Args:
      model: the network that answers; its last layer is called "head".
      encoder: the network f, whose parameters are not the model's.
      objective: "classification" or "regression".
      num_outputs: the way, or the size of a regression target.
      generates: what is generated, all else being learnt: "all" parameters; "film", scale and shift of every layer
        but the last (of its normalisation, or its biases); or "head", the last layer.
      embedding_size: size of e_n.
      code_size: size of c; unused by "head" in classification.
      query_statistics: see `learner`.
      embedding_loss: weight of `in_context.nearest_mean_loss` of the features f(x), which queries pass f for; a regression
        has none. With it f learns what is alike, before the generator has learnt what to write of it.

    Returns:
      A `Method` whose `sizes` tell how many parameters are generated and what generates them.

    Raises:
      ConfigError: for a value that is not allowed.
    """
    one_of("method.generates", generates, GENERATES)
    embedding_size = positive_int("method.embedding_size", embedding_size)
    by_class = objective == "classification" and generates != "film"
    phi = mlp(num_outputs=embedding_size, hidden=[embedding_size])
    code_size = positive_int("method.code_size", code_size)
    rho = mlp(num_outputs=code_size, hidden=[embedding_size])
    weight = non_negative_float("method.embedding_loss", embedding_loss)

    def is_generated(name):
        in_head = name.startswith("head.")
        if generates == "film":
            return not in_head and ("norm_" in name or name.endswith(".bias"))
        return generates == "all" or in_head

    def from_class(name):
        return by_class and name.startswith("head.")

    def features(meta_params, x, reference=None):
        return flat(encoder.apply(meta_params["encoder"], x, reference))

    def seen(features, targets):
        """What phi takes of each example."""
        return features if by_class else jnp.concatenate([features, targets], 1)

    def init(key, task):
        keys = jax.random.split(key, 5)
        x = task.support.x
        start = _named(model.init(keys[0], x))
        written = {name: leaf for name, leaf in start.items() if is_generated(name)}
        if not written:
            raise ConfigError("method.generates", generates, "all or head: the model has neither scale, shift nor bias")

        def generator(key, name, leaf):
            if not from_class(name):
                # Training begins with theta_0, a network as it is usually initialised.
                return jnp.zeros((code_size, leaf.size), x.dtype)
            # Outputs of the size that a last layer usually gives them.
            shape = (embedding_size, prod(leaf.shape[:-1]))
            return jax.random.normal(key, shape, x.dtype) / prod(shape) ** 0.5

        generator_keys = jax.random.split(keys[2], len(written))
        meta_params = {
            "learnt": {name: leaf for name, leaf in start.items() if not from_class(name)},
            "generator": {
                name: generator(key, name, leaf)
                for key, (name, leaf) in zip(generator_keys, written.items(), strict=True)
            },
            "encoder": encoder.init(keys[1], x),
        }
        nothing = jnp.zeros((x.shape[0], num_outputs), x.dtype)
        meta_params["phi"] = phi.init(keys[3], seen(features(meta_params, x), nothing))
        if not all(map(from_class, written)):
            meta_params["rho"] = rho.init(keys[4], jnp.zeros((1, embedding_size), x.dtype))
        return meta_params

    def generated(meta_params, support, features):
        """theta(S), of a support set whose targets are rows, and what f makes of its inputs."""
        x, targets, mask = support
        embeddings = phi.apply(meta_params["phi"], seen(features, targets))
        pooled, counted = embeddings, mask
        if by_class:
            pooled, counted = class_means(embeddings, targets), None if mask is None else (targets > 0).any(0)
        if "rho" in meta_params:
            active = jax.nn.relu(pooled)
            mean = active.mean(0) if counted is None else only(active, counted).sum(0) / counted.sum().astype(x.dtype)
            code = rho.apply(meta_params["rho"], mean[None])

        # The parameters' names and shapes, of which the meta-parameters hold only what is learnt.
        template = jax.eval_shape(model.init, jax.random.key(0), x)
        params = dict(meta_params["learnt"])
        for name, matrix in meta_params["generator"].items():
            shape = _named(template)[name].shape
            if from_class(name):
                params[name] = (pooled @ matrix).T.reshape(shape)
            else:
                params[name] = params[name] + (code @ matrix).reshape(shape)
        return jax.tree.unflatten(jax.tree.structure(template), [params[name] for name in _named(template)])

    def sizes(meta_params, task):
        template = _named(jax.eval_shape(model.init, jax.random.key(0), task.support.x))
        return {
            "generated": sum(leaf.size for name, leaf in template.items() if is_generated(name)),
            "generator": _count(meta_params["generator"]),
            "reader": sum(_count(meta_params[name]) for name in ("encoder", "phi", "rho") if name in meta_params),
        }

    method = conditioned(
        init=init,
        read=lambda params, support, key: generated(params, support, features(params, support.x, support.mask)),
        answer=model.apply,
        objective=objective,
        num_outputs=num_outputs,
        query_statistics=query_statistics,
        varies=("way", "shot") if by_class else ("shot",),
    )._replace(sizes=sizes)
    judged = query_loss(answer=model.apply, objective=objective, query_statistics=query_statistics)

    def loss_with_embedding(meta_params, task, key):
        draw = encoded(lambda x, reference: features(meta_params, x, reference), task, query_statistics)
        support = task.support._replace(y=target_rows(task.support, objective, num_outputs))
        loss, metrics = judged(generated(meta_params, support, draw.support.x), task)
        of_embedding = nearest_mean_loss(draw, num_outputs)
        return loss + weight * of_embedding, {**metrics, "embedding_loss": of_embedding}

    return method._replace(loss=loss_with_embedding) if weight and objective == "classification" else method


def _named(params: Params) -> Mapping[str, Array]:
    """Arrays by their path, such as "conv0.kernel", in the order of `jax.tree.leaves`."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _count(params: Params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))
