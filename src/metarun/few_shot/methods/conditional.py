"""Conditional networks: one network that answers is told of the task by what the support set has become.

Sources: van den Oord et al. 2016, WaveNet; Garnelo et al. 2018, Conditional Neural Processes; Finn et al. 2017, appendix
C.2, and Rei 2015, Online Representation Learning in Recurrent Neural Network Language Models, for the context vector.
"""

from typing import Any

import jax
import jax.numpy as jnp

from metarun.config.flat_keys import with_settings
from metarun.errors import non_negative_int, one_of, positive_float, positive_int
from metarun.few_shot.in_context import Reading, embedder, in_context
from metarun.few_shot.inner_loop import gradient_descent, numbers_of_steps, split_loss
from metarun.few_shot.learner import stepwise
from metarun.few_shot.losses import OBJECTIVES, average, row_cross_entropy
from metarun.few_shot.sequence import Shot, beside, longest, sequence_learner
from metarun.models import temporal
from metarun.models.mlp import mlp
from metarun.models.neural_process import neural_process
from metarun.types import Method, Model

BODIES = ("wavenet", "neural_process", "context_vector")


@with_settings(reading=Reading())
def conditional(
    *,
    model: Model,
    encoder: Model,
    objective: str,
    num_outputs: int,
    shot: Shot,
    reading: Reading,
    train_shot: Shot | None = None,
    body: str = "neural_process",
    filters: int = 128,
    products: int = 64,
    context_channels: int = 1,
    inner_lr: float = 2.0,
    inner_steps: int = 1,
    eval_inner_steps: int | None = None,
    remat: bool = False,
) -> Method:
    """outputs = g((x_1, y_1), ..., (x_k, y_k), (x, ?)).

    Args:
      model: the network that a context vector is an input of.
      encoder: features of an input; a linear layer to `embedding` numbers follows, of which the two other bodies are made.
      objective: "classification" or "regression".
      num_outputs: the way, or the size of a regression target.
      shot: support examples of each class, or the fewest and the most.
      reading: how it is trained; a context vector without products has of it `query_statistics` alone.
      train_shot: support examples of each class in training; None: as in test.
      body: "wavenet", gated causal dilated convolutions over the sequence, which see the whole of it; "neural_process",
        whose answers do not depend on the order of the support set; or "context_vector", see `context_vector`.
      filters: size of every layer of the body.
      products: of what was read with the query, which the last layer is given; 0: none. Of a context vector, see
        `context_inputs`.
      context_channels, inner_lr, inner_steps, eval_inner_steps, remat: see `context_vector`.

    Raises:
      ConfigError: for a value that is not allowed.
    """
    filters, products = positive_int("method.filters", filters), non_negative_int("method.products", products)
    if one_of("method.body", body, BODIES) == "context_vector":
        descent: dict[str, Any] = {
            "context_channels": context_channels,
            "inner_lr": inner_lr,
            "inner_steps": inner_steps,
            "eval_inner_steps": eval_inner_steps,
            "remat": remat,
        }
        if not products:
            return context_vector(
                model=model, objective=objective, query_statistics=reading.query_statistics, **descent
            )
        return context_inputs(
            encoder=encoder,
            objective=objective,
            num_outputs=num_outputs,
            products=products,
            reading=reading,
            **descent,
        )
    if body == "wavenet":
        network = temporal.wavenet(
            num_outputs=num_outputs,
            num_positions=longest(objective, num_outputs, shot, train_shot),
            filters=filters,
            products=products,
        )
    else:
        by_class = objective == "classification"
        network = neural_process(num_outputs=num_outputs, size=filters, products=products, by_class=by_class)
    return sequence_learner(
        model=network,
        encoder=encoder,
        labels=beside,
        objective=objective,
        num_outputs=num_outputs,
        reading=reading,
    )


def context_vector(
    *,
    model: Model,
    objective: str,
    context_channels: int = 1,
    inner_lr: float = 2.0,
    inner_steps: int = 1,
    eval_inner_steps: int | None = None,
    query_statistics: str = "query",
    remat: bool = False,
) -> Method:
    """min over theta, z of E_task [ L_query(theta, z') ], z' = z - inner_lr * grad_z L_support(theta, z), k times.

    The context z stands beside every input as further channels: of images, `[height, width, context_channels]`. The network
    is the same for all tasks, and what it is told of a task is z'.

    Args:
      model: the network, over inputs of `context_channels` more channels.
      objective: "classification" or "regression".
      context_channels: channels of z, or of a flat input its entries.
      inner_lr: step size on z.
      inner_steps: inner steps in training; at least 1.
      eval_inner_steps: inner steps in evaluation; None: as in training.
      query_statistics: see `learner`.
      remat: trade time for memory in the inner steps, see `inner_loop.iterate`; chosen by `memory.remat`.

    Returns:
      A `Method` whose meta-parameters are {"params": theta, "context": z}; z begins at 0.

    Raises:
      ConfigError: for a value that is not allowed.

    Source: Finn et al. 2017, appendix C.2, after Rei 2015.
    """
    channels, lr = (
        positive_int("method.context_channels", context_channels),
        positive_float("method.inner_lr", inner_lr),
    )
    support_loss = split_loss(model.apply, objective)

    def beside_context(x, context):
        return jnp.concatenate([x, jnp.broadcast_to(context, (x.shape[0], *context.shape))], -1)

    def init(key, task):
        x = task.support.x
        context = jnp.zeros((*x.shape[1:-1], channels), x.dtype)
        return {"params": model.init(key, beside_context(x, context)), "context": context}

    def adapted(meta_params, support, key, num_steps):
        def loss(context):
            return support_loss(meta_params["params"], support._replace(x=beside_context(support.x, context)))

        context = gradient_descent(loss, meta_params["context"], lr=lr, num_steps=num_steps, remat=remat)
        return meta_params["params"], context

    def answer(state, x, reference):
        params, context = state
        return model.apply(params, beside_context(x, context), reference)

    return stepwise(
        init=init,
        adapt=adapted,
        num_steps=numbers_of_steps(inner_steps, eval_inner_steps),
        answer=answer,
        objective=objective,
        query_statistics=query_statistics,
        varies=("shot",),
    )


def context_inputs(
    *,
    encoder: Model,
    objective: str,
    num_outputs: int,
    reading: Reading,
    products: int = 64,
    context_channels: int = 1,
    inner_lr: float = 10.0,
    inner_steps: int = 1,
    eval_inner_steps: int | None = None,
    remat: bool = False,
) -> Method:
    """outputs = W [ (A e(z'_c)) * (B e(x)) for every channel c ] + b, with z' = z - inner_lr * grad_z L_support(theta, z), k times.

    A context vector for a network that multiplies. Every channel of the context z is read as an input is, by the same
    embedding e, and the last layer is given the products of what becomes of it and of the query. As in `context_vector`, z
    alone is adapted. Its network can compare an input with the context where both have passed all layers, and not only
    where they enter.

    Args:
      encoder: features of an input, of which a linear layer makes e.
      objective: "classification" or "regression".
      num_outputs: the way, or the size of a regression target.
      reading: how it is trained. The support set's embeddings do not depend on z, and are computed once.
      products: rows of A and B, which begin as equals.
      context_channels: channels of z, each of the size of an input.
      inner_lr, inner_steps, eval_inner_steps, remat: as in `context_vector`.

    Returns:
      A `Method` whose meta-parameters are {"encoder", "embedding", "what", "where", "last", "context"}: A, B, W and z, which begins at
      random.

    Raises:
      ConfigError: for a value that is not allowed.
    """
    channels = positive_int("method.context_channels", context_channels)
    lr = positive_float("method.inner_lr", inner_lr)
    train_steps, eval_steps = numbers_of_steps(inner_steps, eval_inner_steps)
    embed, init_embedding = embedder(encoder, reading.embedding)
    of_rows = row_cross_entropy if objective == "classification" else OBJECTIVES[objective].loss
    factor, last = mlp(num_outputs=products, hidden=()), mlp(num_outputs=num_outputs, hidden=())

    def init(key, task):
        encoder_key, embedding_key, factor_key, last_key, context_key = jax.random.split(key, 5)
        x = task.support.x
        meta_params = init_embedding(encoder_key, embedding_key, x)
        factors = factor.init(factor_key, embed(meta_params, x))
        return {
            **meta_params,
            "what": factors,
            "where": factors,
            "last": last.init(last_key, jnp.zeros((1, channels * products), x.dtype)),
            "context": jax.random.normal(context_key, (channels, *x.shape[1:]), x.dtype),
        }

    def answer(meta_params, what, embeddings):
        where = factor.apply(meta_params["where"], embeddings)
        return last.apply(meta_params["last"], (what[None] * where[:, None]).reshape(len(where), -1))

    def read(num_steps):
        def read_by_descent(meta_params, support):
            def what(context):
                return factor.apply(meta_params["what"], embed(meta_params, context))

            def loss(context):
                outputs = answer(meta_params, what(context), support.x)
                return average(of_rows(outputs, support.y), support.mask)

            context = gradient_descent(loss, meta_params["context"], lr=lr, num_steps=num_steps, remat=remat)
            return what(context)

        return read_by_descent

    return in_context(
        init=init,
        embed=embed,
        read=read(eval_steps),
        train_read=read(train_steps),
        answer=answer,
        objective=objective,
        num_outputs=num_outputs,
        reading=reading,
        protocol={"eval_inner_steps": eval_steps},
        varies=("shot",),
    )
