"""Few-shot classification tasks cut from a bank of images, or of examples of another kind."""

import functools
import inspect
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random

from metarun.data import augment
from metarun.data.class_bank import ClassBank, Domain, SplitBank, of_classes
from metarun.data.class_split import counts_in_words
from metarun.data.contents import NUM_TURNS
from metarun.data.pictures import border_level
from metarun.data.task_sizes import TaskSizes, differing, sizes_by_split
from metarun.errors import (
    ConfigError,
    DataError,
    non_negative_float,
    non_negative_int,
    some,
    true_or_false,
)
from metarun.types import Array, DataSet, Split, Stream, Task, TaskSource


class Domains(NamedTuple):
    """The parts of a bank's classes of which a task is of one.

    Attributes:
      first, size: `[num_domains]` int32, the first class of each and how many it has.
      share: `[num_domains]` float32, how often a task is of it.
    """

    first: np.ndarray
    size: np.ndarray
    share: np.ndarray


# Arguments of `few_shot_data_set` that change images.
OF_IMAGES = ("rotations", "test_rotations", "flip", "shift", "jitter")


def episodes(
    bank: ClassBank,
    sizes: TaskSizes,
    *,
    rotations: bool,
    split: str = "data",
    own_labels: bool = False,
    domains: Domains | None = None,
) -> TaskSource:
    """Returns the source of tasks over the classes of `bank`.

    A task draws `way` distinct classes and `shot + query_shot` distinct images of each, all uniformly. Labels
    0..way-1 fall on the classes at random, and support and query are each in random order: neither the label nor the
    position of an image says anything about its class. Images come as float32 in [0, 1], other examples as they are.

    Where way or shot is a range, they are drawn for each task, and the sets are padded to the largest, see `Split.mask`.

    Args:
      bank: the images of one split.
      sizes: of the tasks; a domain may have fewer classes than the largest. support.x is `[way*shot, height, width, channel]`,
        query.x `[way*query_shot, height, width, channel]`, with the most of each.
      rotations: whether a class turned by 90, 180 and 270 degrees makes three more classes.
      split: what to call the bank in an error.
      own_labels: label each class by its own number among the bank's classes (turned ones counted, class `c` turned
        `t` times being `c * turns + t`), for training without tasks.
      domains: of which one a task's classes are; None: of all.

    Raises:
      ConfigError: sizes that ask for more classes or images than the bank has, or for less than two classes.
      DataError: there are less than two classes; or rotations of images that are not square.

    References:
      Rotations as classes: Santoro et al., "Meta-Learning with Memory-Augmented Neural Networks", 2016.
    """
    (least_way, way), (_, shot), query_shot = sizes.way, sizes.shot, sizes.query_shot
    way_key, shot_key, query_key = sizes.keys
    turns = NUM_TURNS if true_or_false("dataset.rotations", rotations) else 1
    of_parts = np.array([len(bank.count)]) if domains is None else domains.size
    fewest, num_classes = turns * int(of_parts.min()), turns * int(of_parts.max())
    if fewest < 2:
        raise DataError(f"{way_key}={way}: {split} has {fewest} class, and a task needs two or more of them.")
    if not 2 <= least_way <= fewest or way > num_classes:
        got = way if least_way == way else [least_way, way]
        raise ConfigError(
            way_key, got, f"2 to {fewest if least_way > fewest else num_classes}, the number of classes in {split}"
        )
    for need, which, most in (
        (sizes.least_examples, "smallest", int(bank.count.min())),
        (shot + query_shot, "largest", int(bank.count.max())),
    ):
        if need > most:
            allowed = f"at most {most}, the images of the {which} class in {split}"
            raise ConfigError(f"{shot_key}+{query_key}", f"{need - query_shot}+{query_shot}", allowed)
    if turns > 1:
        height, width = bank.images.shape[1:3]
        if height != width:
            raise DataError(f"Images of {split} are not square and cannot be turned: set dataset.rotations=false.")
        upright = np.arange(height * width, dtype=np.int32).reshape(height, width)
        turned = np.stack([np.rot90(upright, turn).reshape(-1) for turn in range(turns)])

    def choose(index: ClassBank, key: Array) -> tuple[Array, Any]:
        """The rows of a task's images, support first, the classes chosen, which of them each image shows, and both sets' masks."""
        first, count = jnp.asarray(index.first), jnp.asarray(index.count)
        class_key, image_key, support_key, query_key, *size_key = random.split(key, 4 + sizes.vary)
        its_first: int | Array = 0
        its_size: int | Array = count.size
        if domains is not None:
            domain_key, class_key = random.split(class_key)
            domain = random.choice(domain_key, len(domains.share), p=jnp.asarray(domains.share))
            its_first, its_size = (jnp.asarray(part)[domain] for part in (domains.first, domains.size))
        draw = distinct if fewest >= way else distinct_or_fewer
        chosen = turns * its_first + draw(class_key, way, turns * its_size)
        keys, classes = (image_key, support_key, query_key), chosen // turns
        if not sizes.vary:
            rows, label = drawn_examples(first, count, classes, keys, shot=shot, query_shot=query_shot)
            return rows, (chosen, label, None)
        drawn = sizes.draw(size_key[0], count[classes], turns * its_size)
        rows, label, masks = padded_examples(first, count, classes, keys, sizes, *drawn)
        return rows, (chosen, label, masks)

    num_support = sizes.most_support

    def cut(images: Array, drawn: Any) -> Task:
        chosen, label, masks = drawn
        if turns > 1:
            pixels = images.reshape(len(images), height * width, -1)
            source = jnp.asarray(turned)[chosen[label] % turns]
            images = jnp.take_along_axis(pixels, source[:, :, None], axis=1).reshape(images.shape)
        return masked_at(num_support, as_inputs(images), chosen[label] if own_labels else label, masks)

    return source_of(bank, choose, cut)


def as_inputs(items: Array) -> Array:
    """Examples as a learner sees them, float32: images in 256 levels as numbers in [0, 1], all others as they are."""
    return items.astype(jnp.float32) / 255 if items.dtype == jnp.uint8 else items


def split_at(num_support: int, x: Array, y: Array) -> Task:
    """The task whose support set is the first `num_support` rows of `x` and `y`, and whose query set is the rest."""
    return Task(*(Split(x[part], y[part]) for part in (slice(num_support), slice(num_support, None))))


def masked_at(num_support: int, x: Array, y: Array, masks: tuple[Array, Array] | None) -> Task:
    """As `split_at`, with the masks of both sets, unless these are None."""
    task = split_at(num_support, x, y)
    if masks is None:
        return task
    return Task(*(part._replace(mask=mask) for part, mask in zip(task, masks, strict=True)))


def drawn_examples(
    first: Array, count: Array, classes: Array, keys: Sequence[Array], *, shot: int, query_shot: int
) -> tuple[Array, Array]:
    """Draws distinct examples of each of a task's classes, the support set first, each set in random order.

    Args:
      first, count: rows of each class of a bank, as in `ClassBank`.
      classes: those of the task, `[way]`, whose labels are 0 to way - 1 in this order.
      keys: of the examples, and of the order of support and query set.
      shot, query_shot: examples of a class in each.

    Returns:
      rows of the bank and labels, `[way * (shot + query_shot)]` int32 each.
    """
    image_key, support_key, query_key = keys
    rows = _examples_of(first, count, classes, image_key, shot + query_shot, distinct)

    def shuffled(key: Array, rows: Array) -> tuple[Array, Array]:
        label = jnp.repeat(jnp.arange(classes.size, dtype=jnp.int32), rows.shape[1])
        order = random.permutation(key, label.size)
        return rows.reshape(-1)[order], label[order]

    support, query = shuffled(support_key, rows[:, :shot]), shuffled(query_key, rows[:, shot:])
    rows, label = (jnp.concatenate(parts) for parts in zip(support, query, strict=True))
    return rows, label


def padded_examples(
    first: Array, count: Array, classes: Array, keys: Sequence[Array], sizes: TaskSizes, way: Array, shots: Array
) -> tuple[Array, Array, tuple[Array, Array]]:
    """As `drawn_examples`, of a task whose size was drawn; each set has its examples first and then padding.

    Args:
      first, count, keys: as there.
      classes: as many as a task has at most; this one has the first of them.
      sizes: that tasks may have.
      way, shots: its own, see `TaskSizes.draw`.

    Returns:
      rows of the bank and labels, of the largest task; and the masks of both sets.
    """
    image_key, support_key, query_key = keys
    # Queries first, for a class may have less than the largest support set takes.
    rows = _examples_of(first, count, classes, image_key, sizes.query_shot + sizes.shot[1], distinct_or_fewer)

    def shuffled(key: Array, rows: Array, its: Array, most: int) -> tuple[Array, Array, Array]:
        label = jnp.repeat(jnp.arange(classes.size, dtype=jnp.int32), rows.shape[1])
        is_example = (jnp.arange(rows.shape[1])[None] < its[:, None]).reshape(-1)
        order = jnp.argsort(jnp.where(is_example, random.uniform(key, label.shape), 2))[:most]
        return rows.reshape(-1)[order], jnp.where(is_example, label, 0)[order], is_example[order]

    queries = jnp.where(jnp.arange(classes.size) < way, sizes.query_shot, 0)
    support = shuffled(support_key, rows[:, sizes.query_shot :], shots, sizes.most_support)
    query = shuffled(query_key, rows[:, : sizes.query_shot], queries, classes.size * sizes.query_shot)
    rows, label = (jnp.concatenate(parts) for parts in list(zip(support, query, strict=True))[:2])
    return rows, label, (support[2], query[2])


def _examples_of(first: Array, count: Array, classes: Array, key: Array, num: int, draw: Callable[..., Array]) -> Array:
    """Rows of a bank of `num` distinct examples of each class, `[way, num]`, drawn by `draw`, such as `distinct`."""
    its = jax.vmap(lambda key, count: draw(key, num, count))
    return first[classes][:, None] + its(random.split(key, classes.size), count[classes])


def source_of(
    bank: Any, choose: Callable[[Any, Array], tuple[Array, Any]], cut: Callable[[Array, Any], Task]
) -> TaskSource:
    """Returns the source of tasks for which `choose` chooses among the images of `bank`, see `types.Stream`.

    `bank` is a `ClassBank`, or another named tuple with a field `images`.
    """

    def sample(bank: Any, key: Array) -> Task:
        rows, rest = choose(bank, key)
        return cut(jnp.asarray(bank.images)[rows], rest)

    return TaskSource(bank, sample, Stream(bank.images, bank._replace(images=None), choose, cut))


def few_shot_data_set(
    loaded: SplitBank,
    *,
    way: int | Sequence[int],
    shot: int | Sequence[int],
    query_shot: int,
    eval_query_shot: int | None = None,
    train_way: int | Sequence[int] | None = None,
    train_shot: int | Sequence[int] | None = None,
    sampling: str = "equal",
    rotations: bool = False,
    test_rotations: bool = False,
    flip: bool = False,
    shift: int = 0,
    jitter: float = 0.0,
    test_only: bool = False,
) -> DataSet:
    """Few-shot classification of the classes of each split.

    Args:
      loaded: the classes.
      way, shot, query_shot, sampling: the size of a task, see `TaskSizes`.
      eval_query_shot: query images a class in meta-validation and meta-test; None: as in meta-training.
      train_way, train_shot: classes and support images a class in meta-training; None: as in test.
      rotations: whether turned classes are classes of their own in meta-training.
      test_rotations: the same for meta-validation and meta-test.
      flip, shift, jitter: how each image of meta-training is changed at random, see `augment`: whether it is mirrored,
        the most pixels by which it is shifted, and the strength of a change of its colours, at most 1; 0: none.
      test_only: whether meta-test's source stands for all others, whose classes need not be enough for a task.

    Returns:
      The data set. To the protocol, class counts before turning are added, and of images rotations and image size, of
      other examples their shape.

    Raises:
      ConfigError: as `episodes`, for the first split that the numbers do not fit.
      DataError: classes of no split are large enough.
    """
    turned = {
        "train": true_or_false("dataset.rotations", rotations),
        "val": true_or_false("dataset.test_rotations", test_rotations),
        "test": test_rotations,
    }
    sizes = sizes_by_split(
        way=way,
        shot=shot,
        query_shot=query_shot,
        eval_query_shot=eval_query_shot,
        train_way=train_way,
        train_shot=train_shot,
        sampling=sampling,
    )
    varies = differing(sizes.values())
    of_images = loaded.bank.images.dtype == np.uint8
    change = _changes(loaded.bank.images.shape[1:3], flip=flip, shift=shift, jitter=jitter) if of_images else []
    classes = loaded.classes
    if loaded.uneven:
        classes = {split: large_enough(loaded, split, its) for split, its in sizes.items()}
    them_all = f" (classes: {counts_in_words(classes)})"

    def source(split, bank, own_labels=False, domains=None, called=""):
        its_sizes = sizes[split]
        if called or own_labels:  # which may have less than the largest task takes
            fewest = len(bank.count) if domains is None else int(domains.size.min())
            images = bank.count.min() if own_labels else bank.count.max()
            its_sizes = its_sizes.within((NUM_TURNS if turned[split] else 1) * fewest, int(images))
        cut = episodes(
            bank,
            its_sizes.largest() if own_labels else its_sizes,
            rotations=turned[split],
            split=f"{called}the {split} split{them_all}",
            own_labels=own_labels,
            domains=domains,
        )
        return _changed(cut, change) if split == "train" and change else cut

    def contents(classes):
        return [loaded.hashes[loaded.bank.first[c] :][: loaded.bank.count[c]] for c in classes]

    made = ("test",) if test_only else turned
    of_domains = {split: _by_domain(loaded.domains, classes[split]) for split in made}
    # Each by itself: of meta-test to be tested on, and of the others so that one with too few classes is named.
    by_itself = {
        split: {
            domain.name: source(split, of_classes(loaded.bank, its), called=f"{domain.name} of ")
            for domain, its in of_domains[split].items()
        }
        for split in made
    }
    sources = {
        split: source(split, of_classes(loaded.bank, classes[split]), domains=_shares(of_domains[split], split))
        for split in made
    }
    shape = list(loaded.bank.images.shape[1:])
    of_kind = {"rotations": turned, "image_size": shape[:2]} if of_images else {"input_shape": shape}
    return DataSet(
        **dict.fromkeys(turned, sources["test"]) | sources,
        objective="classification",
        num_outputs=sizes["test"].way[1],
        protocol={
            **loaded.protocol,
            **({"sampling": sampling} if varies else {}),
            "classes": {split: len(classes[split]) for split in turned},
            **of_kind,
        },
        train_way=sizes["train"].way[1],
        train_classes=sources["test"]
        if test_only
        else source("train", sources["train"].data, own_labels=True, domains=_shares(of_domains["train"], "train")),
        num_train_classes=len(classes["train"]) * (NUM_TURNS if rotations else 1),
        contents={split: contents(classes[split]) for split in turned},
        # Of each class the first image.
        ground=border_level(loaded.bank.images[loaded.bank.first]) if of_images else None,
        standardized=loaded.standardized,
        domains=by_itself["test"],
        varies=varies,
    )


def _by_domain(domains: Sequence[Domain], classes: Sequence[int]) -> dict[Domain, list[int]]:
    """Those of some classes of a bank that each of its domains has, without domains that have none."""
    ends = np.cumsum([domain.classes for domain in domains])
    found: dict[Domain, list[int]] = {}
    for c in classes if domains else ():
        found.setdefault(domains[int(np.searchsorted(ends, c, "right"))], []).append(c)
    return found


def _shares(of_domains: Mapping[Domain, Sequence[int]], split: str) -> Domains | None:
    """The parts of a split's classes: in meta-test each has as many tasks, elsewhere as many as its weight says."""
    if not of_domains:
        return None
    size = np.array([len(its) for its in of_domains.values()], np.int32)
    weight = np.array([1 if split == "test" else domain.weight for domain in of_domains], np.float32)
    return Domains((np.cumsum(size) - size).astype(np.int32), size, weight / weight.sum())


def few_shot_of(load: Callable[..., SplitBank], without: Collection[str] = ()) -> Callable[..., DataSet]:
    """Makes a data set's factory of what loads its classes: it takes the arguments of both `load` and `few_shot_data_set`.

    `factory.load` is what it was made of.

    Args:
      load: loads the classes.
      without: arguments of `few_shot_data_set` that it does not take.
    """
    own = inspect.signature(load).parameters
    given = inspect.signature(few_shot_data_set).parameters
    tasks = [parameter for name, parameter in given.items() if name not in ("loaded", *without)]
    signature = inspect.Signature([*tasks, *own.values()], return_annotation=DataSet)

    @functools.wraps(load)
    def factory(**settings: Any) -> DataSet:
        settings = signature.bind(**settings).arguments
        loaded = load(**{name: value for name, value in settings.items() if name in own})
        return few_shot_data_set(loaded, **{name: value for name, value in settings.items() if name not in own})

    factory.__signature__, factory.load = signature, load  # type: ignore[attr-defined]
    return factory


def few_shot_of_arrays(load: Callable[..., SplitBank]) -> Callable[..., DataSet]:
    """As `few_shot_of`, for examples that are no images: what changes images is no argument of the factory."""
    return few_shot_of(load, OF_IMAGES)


def _changes(size: tuple[int, int], *, flip: bool, shift: int, jitter: float) -> list[Callable[[Array, Array], Array]]:
    """The random changes `(key, x) -> x` that the settings ask for."""
    if non_negative_int("dataset.shift", shift) >= min(size):
        raise ConfigError("dataset.shift", shift, f"less than {min(size)}, the side of an image")
    if non_negative_float("dataset.jitter", jitter) > 1:
        raise ConfigError("dataset.jitter", jitter, "a number of at most 1, or 0")
    wanted: list[tuple[Any, Any]] = [
        (true_or_false("dataset.flip", flip), augment.flipped),
        (shift, functools.partial(augment.shifted, most=int(shift))),
        (jitter, functools.partial(augment.jittered, strength=float(jitter))),
    ]
    return [change for asked, change in wanted if asked]


def _changed(source: TaskSource, changes: Sequence[Callable[[Array, Array], Array]]) -> TaskSource:
    """The source whose tasks have their images changed, each by a key of its own."""
    stream: Any = source.stream  # every source that `source_of` makes has one

    def choose(index: ClassBank, key: Array) -> tuple[Array, Any]:
        keys = random.split(key, 1 + 2 * len(changes))
        rows, rest = stream.choose(index, keys[0])
        return rows, (rest, random.key_data(keys[1:]))

    def cut(images: Array, drawn: Any) -> Task:
        rest, data = drawn
        keys, changed = list(random.wrap_key_data(data)), []
        for split in stream.cut(images, rest):
            for change in changes:
                split = split._replace(x=change(keys.pop(), split.x))
            changed.append(split)
        return Task(*changed)

    return source_of(source.data, choose, cut)


def large_enough(loaded: SplitBank, split: str, sizes: TaskSizes) -> list[int]:
    """The classes of a split that have the examples that each class needs; those that are left out are named."""
    one, _, examples = loaded.nouns
    need, (_, shot_key, query_key) = sizes.least_examples, sizes.keys
    kept = [c for c in loaded.classes[split] if loaded.bank.count[c] >= need]
    if not kept:
        most = max((int(loaded.bank.count[c]) for c in loaded.classes[split]), default=0)
        raise DataError(
            f"No {one} of {split} has {need} {examples}, the largest {most}. Lower {shot_key} or {query_key}, or choose other data."
        )
    if small := [loaded.names[c] for c in loaded.classes[split] if loaded.bank.count[c] < need]:
        print(f"Left out of {split}, having less than {need} {examples}: {some(small)}.", file=sys.stderr)
    return kept


def distinct(key: Array, num: int, bound: int | Array) -> Array:
    """Draws `num` distinct whole numbers from [0, bound), in random order: `[num]` int32.

    Floyd's algorithm: it costs `num` steps whatever the bound, where a permutation would sort all classes for a few.
    """
    draw_key, order_key = random.split(key)
    last = bound - num + jnp.arange(num, dtype=jnp.int32)
    drawn = random.randint(draw_key, (num,), 0, last + 1, jnp.int32)

    def pick(i: Array, chosen: Array) -> Array:
        # `last[i]` was out of every earlier choice's reach, so it stands in for a number that is taken.
        return chosen.at[i].set(jnp.where(jnp.any(chosen == drawn[i]), last[i], drawn[i]))

    chosen = lax.fori_loop(0, num, pick, jnp.full(num, -1, jnp.int32))
    # A late number is likelier at a late place, hence the shuffle.
    return random.permutation(order_key, chosen)


def distinct_or_fewer(key: Array, num: int, bound: int | Array) -> Array:
    """As `distinct`; where there are less than `num` numbers, all of them in random order, and zeros after them."""
    key, of_fewer = random.split(key)
    place = jnp.arange(num, dtype=jnp.int32)
    order = jnp.argsort(jnp.where(place < bound, random.uniform(of_fewer, (num,)), 2)).astype(jnp.int32)
    enough = distinct(key, num, jnp.maximum(bound, num))
    return jnp.where(num <= bound, enough, jnp.where(place < bound, order, 0))
