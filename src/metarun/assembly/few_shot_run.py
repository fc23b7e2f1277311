"""From a composed configuration to the objects of a run. A factory's signature is the schema of its group."""

import inspect
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from omegaconf import DictConfig

from metarun.assembly import returned
from metarun.assembly.keys import Keys
from metarun.assembly.run_parts import (
    Run,
    circumstances,
    identity,
    layouts_of,
    loggers_of,
    selection_of,
    set_by_user,
    settings_of,
)
from metarun.assembly.starting import Start, identity_of, start_of
from metarun.compiled.memory import available, parse_limit
from metarun.config.schema import FEW_SHOT, INIT_FROM
from metarun.data.class_bank import SplitBank
from metarun.data.decoding import OF_FILE, Range, checked_range
from metarun.data.fitting import fit_data_set, input_shape
from metarun.data.standardizing import Standard
from metarun.errors import ConfigError, DataError, MetarunError, positive_int, seed_of
from metarun.few_shot.experiment import few_shot_experiment
from metarun.few_shot.losses import OBJECTIVES
from metarun.system.backend import at_precision
from metarun.system.reading import is_number
from metarun.system.several_processes import join
from metarun.training.settings import RunSettings
from metarun.types import DataSet, Experiment, Method, Split, Task

_LARGEST_SIDE = 100_000  # of an input that a checkpoint may state

# In a run's identity: `dataset.range`, or the numbers that `set` has come to.
BLACK_AND_WHITE = "dataset.black_and_white"
# In a run's identity: shift and factor of its inputs, see `types.DataSet`.
STANDARDIZED = "dataset.standardized"


class DataFacts(NamedTuple):
    """What a learner has to know of its data; recorded with a run, so that it can be made again without them.

    Attributes:
      objective, num_outputs, num_train_classes, ground: as in `DataSet`.
      input_shape: of one input, `[*feature]`.
    """

    objective: str
    num_outputs: int
    num_train_classes: int
    ground: float | None
    input_shape: tuple[int, ...]


def build(config: DictConfig, choices: Mapping[str, str], *, begun: Mapping[str, Any] | None = None) -> Run:
    """Makes the objects of a few-shot run.

    Args:
      config: the composed configuration, without Hydra's own node.
      choices: option chosen in each group, e.g. {"method": "maml"}.
      begun: the identity of the run's checkpoint, where it has one already.

    Raises:
      ConfigError: for a value that cannot be used.
      DataError: where the data set cannot be had.
      MetarunError: for a key that nothing reads.
    """
    keys = Keys.of(config, choices, FEW_SHOT)
    join(**keys["distributed"])
    dataset = _data_set(keys, test_only=False)
    data = _facts_of(dataset)
    variants = _variants(keys, data)
    _refuse_varying(keys, choices, dataset, next(iter(variants.values())))
    _refuse_misshapen(keys, dataset, variants)
    _check_training(keys, choices, dataset, next(iter(variants.values())))
    loggers = loggers_of(keys, choices)
    start = start_of(keys[INIT_FROM], begun)
    experiment, settings, facts = _experiment(keys, choices, dataset, variants, keys["precision"], start)
    keys.refuse_unread(set_by_user(keys, FEW_SHOT))
    trained_on = {"dataset.sha256": dataset.protocol.get("sha256")}
    trained_on |= {f"dataset.{name}": fact for name, fact in data._asdict().items()}
    if "range" in dataset.protocol:
        trained_on[BLACK_AND_WHITE] = dataset.protocol["range"]
    if dataset.standardized is not None:
        trained_on[STANDARDIZED] = [list(part) for part in dataset.standardized]
    trained_on |= identity_of(start)
    return Run(experiment, settings, facts, identity(keys.values, choices, trained_on | keys.code()), loggers)


def _data_set(keys: Keys, *, test_only: bool) -> DataSet:
    """The data set; of one for regression, what it takes of numbers of classes counts as not read.

    Raises:
      MetarunError: it comes from outside and is not what its type promises.
    """
    dataset = keys.call("dataset", test_only=test_only)
    if (factory := keys.factory("dataset")).is_added:
        returned.refuse(factory.choice, returned.data_set_faults(dataset))
    if dataset.objective == "regression":
        keys.read -= {"way", "train_way"}
    return dataset


def build_evaluation(
    config: DictConfig,
    choices: Mapping[str, str],
    *,
    changed: Iterable[str],
    learner: DictConfig,
    begun: Mapping[str, Any],
) -> tuple[Experiment, RunSettings, Mapping[str, Any]]:
    """Makes the objects that a trained learner is tested by, on data that are brought to the shape of its own.

    Args:
      config: the configuration of the test.
      choices: as in `build`.
      changed: keys at the top of `config` that differ from the run's, each of which has to matter.
      learner: the configuration that decides what the learner computes: that of its training.
      begun: the identity of its checkpoint, which says what it was trained on.

    Returns:
      experiment, settings and facts as in `Run`.

    Raises:
      ConfigError, DataError, MetarunError: as `build`; or the data are of another kind than the run's, or the learner
        has an output for each class of its training tasks, and `way` is another number.
    """
    keys, data = Keys.of(config, choices, FEW_SHOT), recorded(begun)
    dataset = _data_set(keys, test_only=True)
    if dataset.objective != data.objective:
        allowed = f"data for {data.objective}, which the run was trained for"
        raise ConfigError("dataset", choices["dataset"], f"{allowed}; these are for {dataset.objective}")
    if dataset.contents is not None and {"dataset", "shot"} & {*changed}:  # else it holds those of the training already
        dataset = dataset._replace(contents=_against_training(dataset.contents, learner, choices))
    dataset = fit_data_set(dataset, data.input_shape)
    if not takes_way(learner, choices, data, dataset.num_outputs):
        allowed = f"{data.num_outputs}: method={choices['method']} was trained with an output for each class of a task"
        raise ConfigError("way", dataset.num_outputs, allowed)
    learner_keys = Keys.of(learner, choices, FEW_SHOT)
    variants = _variants(learner_keys, data._replace(num_outputs=dataset.num_outputs))
    _refuse_varying(keys, choices, dataset, next(iter(variants.values())))
    start = start_of(learner_keys[INIT_FROM], begun)
    parts = _experiment(keys, choices, dataset, variants, learner_keys["precision"], start)
    keys.refuse_unread({*changed} - {"method"})  # whose keys the learner has read
    return parts


def _against_training(
    contents: Mapping[str, Any], learner: DictConfig, choices: Mapping[str, str]
) -> Mapping[str, Any]:
    """The contents of a test's classes beside those that a learner was trained and validated on.

    Those are left out where its data set is no longer at hand.
    """
    try:
        trained = Keys.of(learner, choices, FEW_SHOT).call("dataset", test_only=False).contents
    except (ConfigError, DataError):
        trained = None
    return {**(trained or {}), "test": contents["test"]}


def build_learner(config: DictConfig, choices: Mapping[str, str], data: DataFacts) -> Method:
    """Makes the method of a run without its data, in the form that evaluates.

    Args:
      config, choices: as in `build`.
      data: what it was trained on, with the classes of a task that it is to answer as `num_outputs`.
    """
    keys = Keys.of(config, choices, FEW_SHOT)
    method, at = next(iter(_variants(keys, data).values())), partial(at_precision, keys["precision"])
    functions = ("init", "adapt", "predict", "loss", "unadapted")
    scoped: dict[str, Any] = {name: at(getattr(method, name)) for name in functions}
    return method._replace(**scoped)


def shapes_of(method: Method, data: DataFacts) -> Any:
    """The meta-parameters of a method, as shapes."""
    x: Any = jax.ShapeDtypeStruct((data.num_outputs, *data.input_shape), jnp.float32)
    y: Any = jax.ShapeDtypeStruct(x.shape[:1], jnp.int32)
    if data.objective == "regression":
        y = jax.ShapeDtypeStruct((data.num_outputs, data.num_outputs), jnp.float32)
    return jax.eval_shape(method.init, jax.random.key(0), Task(Split(x, y), Split(x, y)))


def takes_way(config: DictConfig, choices: Mapping[str, str], data: DataFacts, way: int) -> bool:
    """Whether a learner can answer tasks of `way` classes with the parameters that it has.

    Args:
      config, choices: as in `build`.
      data: what it was trained on.
      way: classes of a task.
    """
    if way == data.num_outputs:
        return True
    asked, trained = (data._replace(num_outputs=number) for number in (way, data.num_outputs))
    shapes = [shapes_of(build_learner(config, choices, facts), facts) for facts in (asked, trained)]
    return shapes[0] == shapes[1]


def recorded(identity: Mapping[str, Any]) -> DataFacts:
    """What a run was trained on, from the identity that its checkpoints hold.

    Raises:
      MetarunError: they do not have it.
    """
    try:
        facts = DataFacts(*(identity[f"dataset.{name}"] for name in DataFacts._fields))
    except KeyError as error:
        raise MetarunError(
            "The run was begun with an earlier version of metarun, whose checkpoints do not say what the inputs are. "
            "Train it again."
        ) from error
    shape = facts.input_shape
    good = (
        facts.objective in [*OBJECTIVES]
        and isinstance(shape, list | tuple)
        and all(type(size) is int and 0 < size <= _LARGEST_SIDE for size in shape)
        and type(facts.num_outputs) is int
        and facts.num_outputs > 0
        and type(facts.num_train_classes) is int
        and (facts.ground is None or is_number(facts.ground))
    )
    if not good:
        raise MetarunError("The run's checkpoint says of its data what no data can be.")
    return facts._replace(input_shape=tuple(shape))


def recorded_range(identity: Mapping[str, Any]) -> Range:
    """What is black and what is white in the grey pictures of more than 8 bits that a run was trained on.

    Raises:
      ConfigError: the identity, which is data, has something else there.
    """
    return checked_range("range", identity.get(BLACK_AND_WHITE), (OF_FILE,))


def recorded_standard(identity: Mapping[str, Any]) -> Standard | None:
    """What the inputs that a run was trained on were standardised by; None: by nothing.

    Raises:
      MetarunError: the identity, which is data, has something else there.
    """
    parts = identity.get(STANDARDIZED)
    if parts is None:
        return None
    sizes = (1, *recorded(identity).input_shape[-1:])
    good = (
        isinstance(parts, list)
        and len(parts) == 2
        and all(isinstance(part, list) and len(part) in sizes and all(map(is_number, part)) for part in parts)
    )
    if not good:
        raise MetarunError("The run's checkpoint says of its data what no data can be.")
    return Standard(*(np.array(part, np.float64) for part in parts))


def _facts_of(dataset: DataSet) -> DataFacts:
    shared = {name: getattr(dataset, name) for name in DataFacts._fields if name != "input_shape"}
    return DataFacts(**shared, input_shape=input_shape(dataset))


def _experiment(
    keys: Keys,
    choices: Mapping[str, str],
    dataset: DataSet,
    variants: Mapping[str, Method],
    precision: str,
    start: Start | None,
) -> tuple[Experiment, RunSettings, dict[str, Any]]:
    """Experiment, settings and facts as in `Run`."""
    settings = settings_of(keys, trains=next(iter(variants.values())).trains_on != "nothing")
    meta_batch_size = positive_int("meta_batch_size", keys["meta_batch_size"])
    layouts = layouts_of(keys["memory"]["chunk"], meta_batch_size)
    optimizer = keys.call("optimizer")
    if (factory := keys.factory("optimizer")).is_added:
        params = shapes_of(next(iter(variants.values())), _facts_of(dataset))
        returned.refuse(factory.choice, returned.optimizer_faults(optimizer, params))
    devices = list(layouts[0].mesh.devices.flat)
    bytes_available = available(devices, parse_limit(keys["memory"]["limit"]))
    sizes = {key: keys[key] for key in ("way", "shot", "query_shot", "eval_query_shot") if key in keys.read}
    eval_query_shot = sizes["query_shot"] if sizes.get("eval_query_shot") is None else sizes["eval_query_shot"]
    experiment = few_shot_experiment(
        variants,
        dataset,
        optimizer,
        layouts,
        seed=seed_of("seed", keys["seed"]),
        eval_seed=seed_of("eval_seed", keys["eval_seed"]),
        meta_batch_size=meta_batch_size,
        protocol={
            **{key: sizes[key] for key in ("way", "shot") if key in sizes},
            "query_shot": eval_query_shot,
            **selection_of(settings),
            "ensemble": settings.ensemble,
            **(start.protocol if start else {}),
        },
        start=start.params if start else None,
        precision=precision,
        bytes_available=bytes_available,
        stream=_streams(keys["memory"]["stream"], dataset, bytes_available, choices),
    )
    facts = {
        "method": choices["method"],
        "dataset": choices["dataset"],
        "way": sizes.get("way"),
        "shot": sizes["shot"],
        "query_shot": eval_query_shot,
        "split": dataset.protocol.get("split"),
        **circumstances(keys, experiment, devices),
    }
    return experiment, settings, facts


def classes(config: DictConfig, choices: Mapping[str, str]) -> SplitBank:
    """Has the data set of a configuration prepared, and returns its classes without cutting tasks from them.

    Args:
      config, choices: as in `build`.

    Raises:
      ConfigError, DataError: as `build`; or the data set is no collection of classes.
    """
    keys = Keys.of(config, choices, FEW_SHOT)
    load = getattr(keys.factory("dataset").function, "load", None)
    if load is None:
        raise ConfigError("dataset", choices["dataset"], "one with classes of images, or of arrays")
    known = inspect.signature(load).parameters
    return load(**{key: value for key, value in keys["dataset"].items() if key in known})


def _check_training(keys: Keys, choices: Mapping[str, str], dataset: DataSet, method: Method) -> None:
    """Raises `ConfigError` where the method cannot be trained on what the data set has."""
    fixed = not keys.factory("method").takes("train_way") and method.trains_on == "tasks"
    if fixed and dataset.train_way not in (None, dataset.num_outputs):
        allowed = f"null or {dataset.num_outputs}: method={choices['method']} has an output for each class of a task"
        raise ConfigError("train_way", dataset.train_way, allowed)
    if method.trains_on == "classes" and dataset.train_classes is None:
        raise ConfigError("dataset", choices["dataset"], f"one with classes, which method={choices['method']} needs")


def _refuse_varying(keys: Keys, choices: Mapping[str, str], dataset: DataSet, method: Method) -> None:
    """Raises `ConfigError` where tasks differ in what the method needs to be the same."""
    for what, reason in (("way", "it has an output for each class of a task"), ("shot", "it takes no padded tasks")):
        if what in dataset.varies and what not in method.varies:
            method_name = choices["method"]
            for key in (what, f"train_{what}"):
                if not isinstance(keys[key], int | None):
                    raise ConfigError(
                        key, keys[key], f"a number for method={method_name}, with these settings: {reason}"
                    )
            allowed = f"one whose tasks are all of one {what}, for method={method_name}: {reason}"
            raise ConfigError("dataset", choices["dataset"], allowed)
    if "way" in dataset.varies and method.protocol.get("query_statistics") == "query":
        raise ConfigError(
            "method.query_statistics", "query", "support or each where way is a range: queries are padded"
        )


def _refuse_misshapen(keys: Keys, dataset: DataSet, variants: Mapping[str, Method]) -> None:
    """Raises `MetarunError` where a network or a method from outside returns what its type does not promise."""
    factories = {group: keys.factory(group) for group in ("model", "method")}
    task = jax.eval_shape(dataset.test.sample, dataset.test.data, jax.random.key(0))
    if factories["model"].is_added:
        model = keys.call("model", num_outputs=dataset.num_outputs)
        returned.refuse(factories["model"].choice, returned.model_faults(model, task.support.x, dataset.num_outputs))
    for method in variants.values() if factories["method"].is_added else ():
        returned.refuse(factories["method"].choice, returned.method_faults(method, task, dataset.num_outputs))


def _streams(asked: object, dataset: DataSet, bytes_available: int | None, choices: Mapping[str, str]) -> bool:
    """Whether images stay on the host: as `memory.stream` says, or if they would take more than half of a device."""
    if asked != "auto" and not isinstance(asked, bool):
        raise ConfigError("memory.stream", asked, "auto, true or false")
    sources = dataset.train, dataset.val, dataset.test
    streams = [source.stream for source in sources if source.stream is not None]
    if len(streams) < len(sources):
        if asked is True:
            raise ConfigError("memory.stream", asked, f"auto or false: dataset={choices['dataset']} has no images")
        return False
    if isinstance(asked, bool):
        return asked
    images = {id(stream.items): stream.items.nbytes for stream in streams}
    return bytes_available is not None and 2 * sum(images.values()) > bytes_available


def _variants(keys: Keys, data: DataFacts) -> dict[str, Method]:
    """The variants of the method that `memory.remat` leaves, in words, the fastest first."""
    given = {
        "model": keys.call("model", num_outputs=data.num_outputs),
        "encoder": keys.call("model", num_outputs=None),
        "objective": data.objective,
        "num_outputs": data.num_outputs,
        "num_train_classes": data.num_train_classes,
    }
    remat = keys["memory"]["remat"]
    if remat != "auto" and not isinstance(remat, bool):
        raise ConfigError("memory.remat", remat, "auto, true or false")
    if not keys.factory("method").takes("remat"):
        if remat is True:
            raise ConfigError("memory.remat", remat, "auto or false: this method has no inner steps to compute again")
        return {"": keys.call("method", **given)}
    words = {False: "inner steps kept", True: "inner steps rematerialised"}
    allowed = (False, True) if remat == "auto" else (remat,)
    return {words[again]: keys.call("method", remat=again, **given) for again in allowed}
