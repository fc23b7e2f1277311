"""Few-shot learning as an experiment: a method, a data set and an outer optimiser become what the runner drives."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from metarun.compiled.memory import fastest_that_fits
from metarun.compiled.outer_loop import plan_of, several, shapes_on, traced_at, updated
from metarun.compiled.streaming import Prefetch, gatherer, host_device
from metarun.compiled.task_map import Layout, map_tasks, mean_gradient, placed
from metarun.few_shot.losses import OBJECTIVES
from metarun.training.ensemble import answered
from metarun.trust import checks as check
from metarun.trust import leaks
from metarun.types import (
    Array,
    DataSet,
    Evaluation,
    Experiment,
    Inspection,
    Method,
    Program,
    Task,
    TaskSource,
    TrainState,
)

_BLOCK = 50  # tasks of one evaluation dispatch: what bounds its memory, and how long a stop signal waits
_ALONE = 15  # queries of a checked task that are asked one at a time, for each of which the support set is read again
_CHECKED = 200  # tasks on which the checks run: enough to see a leak of five points


def few_shot(
    variants: Mapping[str, Method],
    dataset: DataSet,
    optimizer: optax.GradientTransformation,
    layouts: Sequence[Layout],
    *,
    seed: int,
    eval_seed: int,
    meta_batch_size: int,
    protocol: Mapping[str, Any],
    precision: str = "float32",
    bytes_available: int | None = None,
    stream: bool = False,
) -> Experiment:
    """Meta-trains a method on `dataset`: every outer step draws tasks and follows the mean of their outer gradients.

    Args:
      variants: words -> the meta-learner, functions of one task; the variants compute the same, the fastest first and
        the most frugal last. Evaluation, which keeps nothing for a backward pass, uses the first.
      dataset: sources of training, validation and test tasks.
      optimizer: outer optimiser.
      layouts: where tasks are computed, of one mesh, the fastest first.
      seed: of the initial parameters and the training tasks.
      eval_seed: of the validation and test tasks, the same for every training seed.
      meta_batch_size: tasks of an outer step.
      protocol: further facts to state beside the data set's and the method's.
      precision: of products of float32 arrays, see `backend.PRECISIONS`; the models of `variants` have been made for it.
      bytes_available: memory of a device, which decides between variants and layouts; None: the first will do.
      stream: whether images stay on the host, and those of an outer step's tasks are sent when their step comes. The
        tasks are the same.

    Returns:
      An `Experiment`. Its `prepare` raises `MetarunError` if no variant in any layout fits. Its `examples` are tasks, and
      the outputs on their queries before and after adaptation, `[num_tasks, num_query, num_outputs]`.
    """
    method, layout = next(iter(variants.values())), layouts[0]
    eval_layout = layout  # until `prepare` has chosen
    score = OBJECTIVES[dataset.objective]
    classification = dataset.objective == "classification"
    way, resized = dataset.num_outputs if classification else None, "fitted" in dataset.protocol
    # Keys are arguments of every compiled program, so that other seeds do not compile it again.
    init_key, train_key = jax.random.split(jax.random.key(seed))
    train = dataset.train_classes if method.trains_on == "classes" else dataset.train
    task_shape = jax.eval_shape(train.sample, train.data, jax.random.key(0))
    if stream:
        gather, host_key = gatherer(train.stream), jax.device_put(train_key, host_device())
        train, val, test = (source._replace(data=()) for source in (train, dataset.val, dataset.test))
    else:
        train, val, test = _placed((train, dataset.val, dataset.test), layout)
    train_key = placed(train_key, layout.replicated)
    samplers = {name: _sampler(source, layout, stream) for name, source in (("val", val), ("test", test))}

    def init():
        task = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), task_shape)
        params = jax.jit(method.init)(init_key, task)
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    def sizes():
        params = jax.eval_shape(method.init, init_key, task_shape)
        return {"meta_params": sum(leaf.size for leaf in jax.tree.leaves(params)), **method.sizes(params, task_shape)}

    def task_keys(root_key, step, index):
        """The keys of a task of an outer step: of its drawing, and of the method."""
        return jax.random.split(jax.random.fold_in(jax.random.fold_in(root_key, step), index))

    def losses_of(learner):
        """What meta-training follows, phase by phase, as losses `(params, task, key, step)`."""
        return [*(loss for _, loss in learner.early), lambda *args: learner.loss(*args[:3])]

    def phase_of(learner, step):
        return sum((step >= end).astype(jnp.int32) for end, _ in learner.early)

    def task_of(shared, index_and_fetched):
        """A task of an outer step, and the key of the method."""
        (data, root_key, step), (index, fetched) = shared, index_and_fetched
        sample_key, method_key = task_keys(root_key, step, index)
        return train.sample(data, sample_key) if fetched is None else train.stream.cut(*fetched), method_key

    def outer_step(variant, layout, state, data, root_key, fetched=None):
        learner = variants[variant]

        def followed(loss):
            def task_loss(params, shared, index_and_fetched):
                task, method_key = task_of(shared, index_and_fetched)
                return loss(params, task, method_key, shared[2])

            shared, tasks = (data, root_key, state.step), (jnp.arange(meta_batch_size), fetched)
            return lambda: mean_gradient(task_loss, layout, state.params, shared, tasks)

        # Chosen between gradients: the gradient of a choice would keep what both alternatives need for theirs.
        branches = [followed(loss) for loss in losses_of(learner)]
        gradient, metrics = lax.switch(phase_of(learner, state.step), branches) if learner.early else branches[0]()
        params, opt_state = updated(optimizer, gradient, state.params, state.opt_state)
        return TrainState(state.step + 1, params, opt_state), metrics

    @jax.jit
    def sample_keys(root_key, step):
        return jax.vmap(lambda index: task_keys(root_key, step, index)[0])(jnp.arange(meta_batch_size))

    def fetch(step):
        return placed(gather(sample_keys(host_key, step)), layout.of_tasks(meta_batch_size))

    fetched = Prefetch(fetch)

    chunks = {candidate.chunk_of(meta_batch_size): candidate for candidate in layouts}

    def steps(variant, chunk):
        run = several(partial(outer_step, variant, chunks[chunk]))
        return lambda state, num_steps: run(state, train.data, train_key, num_steps)

    @cache
    def fitted():
        arguments = shapes_on(layout, (jax.eval_shape(init), train.data, train_key))
        last = fetch(0) if stream else shapes_on(layout, jnp.int32(0))

        def compile_fn(variant, chunk):
            one_step = partial(outer_step, variant, chunks[chunk])
            run = one_step if stream else several(one_step)
            return jax.jit(run, donate_argnums=0).lower(*arguments, last).compile()

        return fastest_that_fits(compile_fn, list(variants), list(chunks), bytes_available, arguments)

    def prepare():
        nonlocal eval_layout
        fit = fitted()
        eval_layout = layout._replace(chunk=fit.chunk)
        return plan_of(fit, layout, meta_batch_size, stream, bytes_available)

    def step(state, num_steps):
        program = fitted().program
        state, count = placed((state, jnp.int32(num_steps)), layout.replicated)
        if not stream:
            return program(state, train.data, train_key, count)
        first, sums = int(state.step), None
        for number in range(first, first + num_steps):
            items = fetched(number)
            jax.block_until_ready(sums)  # so that no more than two steps' items are on a device
            state, metrics = program(state, train.data, train_key, items)
            sums = metrics if sums is None else jax.tree.map(jnp.add, sums, metrics)
        return state, jax.tree.map(lambda total: total / num_steps, sums)

    @partial(jax.jit, static_argnums=(0, 1, 2))
    def inspected(variant, phase, layout, params, shared, fetched):
        loss = losses_of(variants[variant])[phase]

        def one(params_and_shared, index_and_fetched):
            params, shared = params_and_shared
            task, key = task_of(shared, index_and_fetched)
            value, gradient = jax.value_and_grad(lambda params: loss(params, task, key, shared[2])[0])(params)
            return task, value, jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))

        tasks = jnp.arange(meta_batch_size), fetched
        return lax.with_sharding_constraint(map_tasks(one, layout, (params, shared), tasks), layout.replicated)

    def inspect(state):
        fit = fitted()
        state, number = placed(state, layout.replicated), int(state.step)
        phase = int(phase_of(variants[fit.variant], jnp.int32(number)))
        at = layout._replace(chunk=fit.chunk)
        shared = train.data, train_key, state.step
        found = inspected(fit.variant, phase, at, state.params, shared, fetched(number) if stream else None)
        keys = jax.random.key_data(sample_keys(train_key, placed(jnp.int32(number), layout.replicated)))
        return Inspection(np.asarray(keys), *jax.tree.map(np.asarray, found))

    def answers(adapt_and_predict):
        """Compiled `(params, tasks, key) -> answers` over tasks, which share the program for every split and check."""

        def one(params_and_key, task_and_index):
            (params, key), (task, index) = params_and_key, task_and_index
            return adapt_and_predict(params, task, jax.random.fold_in(key, index))

        @partial(jax.jit, static_argnums=0)
        def over_tasks(layout, params, tasks, key):
            indices = jnp.arange(jax.tree.leaves(tasks)[0].shape[0])
            # Whole on every device: the host reads it, of which there may be several.
            return lax.with_sharding_constraint(
                map_tasks(one, layout, (params, key), (tasks, indices)), layout.replicated
            )

        return lambda params, tasks, key: answered(params, lambda each: over_tasks(eval_layout, each, tasks, key))

    def in_companies(params, task_and_order, key):
        """The answers to the queries as they come, in another order, some of them with others, and some alone."""
        (task, order), x = task_and_order, task_and_order[0].query.x
        adapted, predict = method.adapt(params, task.support, key), method.predict
        sets = jnp.stack([x, x[order], check.replace_others(x, _kept(len(x)))])
        # By one program: what differs between the three is not its rounding.
        together, reordered, replaced = lax.map(lambda x: predict(adapted, x), sets)
        alone = jax.vmap(lambda x: predict(adapted, x[None])[0])(x[:_ALONE])
        return {
            "together": together,
            "reordered": jnp.zeros_like(reordered).at[order].set(reordered),
            "replaced": replaced,
            "alone": alone,
        }

    answer = answers(lambda params, task, key: method.predict(method.adapt(params, task.support, key), task.query.x))
    answer_unadapted = answers(
        lambda params, task, key: method.predict(method.unadapted(params, task.support, key), task.query.x)
    )
    answer_in_companies = answers(in_companies)

    @jax.jit
    def measure(outputs, y):
        return jax.vmap(lambda outputs, y: score.measure(outputs, y).mean())(outputs, y)

    # Compiled whole: dispatched one by one, their operations take longer to compile than the checks to compute.
    orders = jax.jit(jax.vmap(lambda key, y: jax.random.permutation(key, y.shape[0])))
    shuffle_support_labels = jax.jit(jax.vmap(check.shuffle_support_labels))
    relabel = jax.jit(jax.vmap(partial(check.relabel, way=dataset.num_outputs)))

    def draw(split, block, num_tasks):
        """The `block`-th tasks of a split, the key of their adaptation, and those of three checks, `[3, n]`."""
        block_key = jax.random.fold_in(jax.random.fold_in(jax.random.key(eval_seed), split == "test"), block)
        sample_key, adapt_key, check_key = jax.random.split(block_key, 3)
        tasks = samplers[split](jax.random.split(sample_key, num_tasks))
        return tasks, adapt_key, jax.random.split(check_key, (3, num_tasks))

    def evaluate(params, split, num_tasks, checks=False):
        params = placed(params, layout.replicated)
        per_task, checked = [], []
        for block in range(-(-num_tasks // _BLOCK)):
            tasks, key, check_keys = draw(split, block, _BLOCK)
            outputs = answer(params, tasks, key)
            per_task.append(np.asarray(measure(outputs, tasks.query.y)))
            if checks and block * _BLOCK < _CHECKED:
                checked.append(_check_block(params, tasks, key, check_keys, outputs) | _data_block(tasks, split))
        per_task = np.concatenate(per_task)[:num_tasks]
        verdicts = {}
        if checks:
            found = {name: np.concatenate([b[name] for b in checked])[:num_tasks] for name in checked[0]}
            verdicts = _verdicts(found) | _data_verdicts(found)
        ci95 = 1.96 * check.standard_error(per_task)
        return Evaluation(score.metric, float(per_task.mean()), ci95, num_tasks, per_task, verdicts)

    def _check_block(params, tasks, key, check_keys, outputs):
        """Outputs and measures of a block of tasks under the changes of `checks`, `[block, ...]` NumPy arrays."""
        few_y = tasks.query.y[:, :_ALONE]
        found = answer_in_companies(params, (tasks, orders(check_keys[0], tasks.query.y)), key)
        found |= {
            "alone_per_task": measure(found["alone"], few_y),
            "together_per_task": measure(found["together"][:, :_ALONE], few_y),
        }
        if classification:
            shuffled = shuffle_support_labels(tasks, check_keys[1])
            relabelled, permutation = relabel(tasks, check_keys[2])
            new_outputs = answer(params, relabelled, key)
            found |= {
                "outputs": outputs,
                "per_task": measure(outputs, tasks.query.y),
                "unadapted_per_task": measure(answer_unadapted(params, tasks, key), tasks.query.y),
                "shuffled_per_task": measure(answer(params, shuffled, key), tasks.query.y),
                "relabelled_per_task": measure(new_outputs, relabelled.query.y),
                "relabelled": jnp.take_along_axis(new_outputs, permutation[:, None, :], axis=2),
            }
        return jax.tree.map(np.asarray, found)

    def _verdicts(found):
        def changed(one, other):
            return check.fraction_changed(one, other, classification)

        together, kept = found["together"], _kept(found["together"].shape[1])
        verdicts = {
            "query_order": check.is_same(together, found["reordered"], classification),
            "query_count": check.query_count(
                found["together_per_task"],
                found["alone_per_task"],
                changed(together[:, :_ALONE], found["alone"]),
                changed(together[:, :kept], found["replaced"][:, :kept]),
                transductive=method.protocol.get("query_statistics") == "query",
                precision=precision,
            ),
        }
        if not classification:
            return verdicts | dict.fromkeys(
                ("chance_before_adaptation", "chance_with_shuffled_labels", "relabelling"),
                check.not_checked(leaks.NO_CLASSES),
            )
        chance = 1 / dataset.num_outputs
        return verdicts | {
            "chance_before_adaptation": check.is_chance(found["unadapted_per_task"], chance),
            "chance_with_shuffled_labels": check.is_chance(found["shuffled_per_task"], chance),
            "relabelling": check.is_unmoved(
                found["per_task"], found["relabelled_per_task"], changed(found["outputs"], found["relabelled"])
            ),
        }

    def _data_block(tasks, split):
        known = None if resized or dataset.contents is None else dataset.contents.get(split)
        return leaks.traces(tasks, way, known)

    def _data_verdicts(found):
        return leaks.verdicts(found, way, dataset.contents, resized)

    def examples(params, num_tasks):
        params = placed(params, layout.replicated)
        tasks, key, _ = draw("test", 0, _BLOCK)
        found = tasks, answer_unadapted(params, tasks, key), answer(params, tasks, key)
        return jax.tree.map(lambda x: np.asarray(x)[:num_tasks], found)

    experiment = Experiment(
        init=init,
        prepare=prepare,
        step=step,
        inspect=inspect,
        evaluate=evaluate,
        examples=examples,
        metric=score.metric,
        maximize=score.maximize,
        tasks_per_step=meta_batch_size,
        protocol={
            "dataset": dict(dataset.protocol),
            "method": dict(method.protocol),
            "eval_seed": eval_seed,
            **protocol,
        },
        sizes=sizes,
        program=None if stream else Program(steps, list(variants), list(chunks), layout, bytes_available),
    )
    return traced_at(precision, experiment)


def _kept(num_queries: int) -> int:
    """Queries of a checked task that stay while the others are replaced: at most half, so that there are others."""
    return min(_ALONE, num_queries - num_queries // 2)


def _placed(sources: Sequence[TaskSource], layout: Layout) -> list[TaskSource]:
    """The sources with their data on the devices, an array that several of them share placed once."""
    found = {}

    def place(leaf):
        if id(leaf) not in found:
            found[id(leaf)] = placed(leaf, layout.replicated)
        return found[id(leaf)]

    return [source._replace(data=jax.tree.map(place, source.data)) for source in sources]


def _sampler(source: TaskSource, layout: Layout, stream: bool) -> Callable[[Array], Task]:
    """Returns `keys: [n] -> tasks`, with a leading axis `[n]`."""
    if stream:
        gather, cut = gatherer(source.stream), jax.jit(jax.vmap(source.stream.cut))
        return lambda keys: cut(*placed(gather(keys), layout.replicated))
    sample = jax.jit(jax.vmap(source.sample, (None, 0)))
    return lambda keys: sample(source.data, keys)
