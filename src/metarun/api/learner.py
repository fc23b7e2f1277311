"""A learner that adapts to a support set and answers queries, from arrays."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike

from metarun.assembly.few_shot_run import DataFacts
from metarun.data.standardizing import Standard
from metarun.errors import ConfigError, MetarunError, some
from metarun.training.ensemble import Ensemble, ensemble_of, members_of
from metarun.types import Method, Params, Split

BLOCK = 100  # queries that are answered at once, where the answers do not depend on it
_OUTSIDE = 1e-6  # by which rounding may take a picture out of [0, 1]


class Functions(NamedTuple):
    """What a trained learner computes, as pure functions.

    Attributes:
      method: functions of one task, not compiled: for `jax.jit`, `jax.vmap` or `jax.grad` of your own.
      adapt: `(params, support, key) -> adapted`, compiled; of a single member, where an ensemble was selected.
      predict: `(adapted, x: [n, *feature]) -> outputs: [n, num_outputs]`, compiled.
      data: what the inputs and outputs are.
      standard: what the inputs of the run were standardised by; None: by nothing.
      together: whether the answer to a query may depend on the others.
    """

    method: Method
    adapt: Callable[..., Any]
    predict: Callable[..., Any]
    data: DataFacts
    standard: Standard | None
    together: bool

    @classmethod
    def of(cls, method: Method, data: DataFacts, standard: Standard | None) -> "Functions":
        """Those of a method, to be compiled once."""
        together = method.protocol.get("query_statistics") == "query"
        return cls(method, jax.jit(method.adapt), jax.jit(method.predict), data, standard, together)

    def inputs(self, name: str, x: ArrayLike) -> Any:
        """Returns examples as the functions take them, `[n, *feature]` float32.

        Args:
          name: of the argument, for a message.
          x: as in `Run.adapt`.

        Raises:
          ConfigError: other shapes or values.
        """
        return inputs(name, x, self.data, self.standard)


class Learner:
    """A learner that has seen a support set; `Run.adapt` makes it.

    Attributes:
      classes: those of the support set, in the order of the columns of `predict`; empty for a regression.
      functions: by which it answers.
      adapted: what the method has made of the support set; an `Ensemble` of these where parameters answer together.
    """

    def __init__(self, functions: Functions, params: Params | Ensemble, support: Split, classes: Sequence[Any]):
        self.classes = list(classes)
        self.functions = functions
        # In random order, as in training: to a sequence model the order is not nothing.
        order = np.random.default_rng(0).permutation(len(support.y))
        shown = Split(support.x[order], support.y[order])
        key = jax.random.key(0)
        self.adapted = ensemble_of([functions.adapt(member, shown, key) for member in members_of(params)])

    def predict(self, x: ArrayLike) -> np.ndarray:
        """Returns the probabilities of the classes, `[n, way]` float64; each row sums to one.

        Args:
          x: queries, as in `Run.adapt`.

        Raises:
          MetarunError: as `outputs`; or the learner answers with numbers and not with classes.
        """
        if self.functions.data.objective != "classification":
            raise MetarunError("predict gives probabilities of classes, and this is a regression: use outputs.")
        return softmax(self.outputs(x))

    def outputs(self, x: ArrayLike) -> np.ndarray:
        """Returns the method's own outputs, `[n, num_outputs]` float32: logits of the classes, or targets of a regression.

        Args:
          x: queries, as in `Run.adapt`. Unless the learner uses the statistics of all queries, they are answered one by one.

        Raises:
          ConfigError: `x` has another shape, or values that the run's inputs do not have.
          MetarunError: an output is not finite.
        """
        queries = self.functions.inputs("x", x)
        # Blocks of equal size but for one, so that two programs at most are compiled.
        count = 1 if self.functions.together else -(-len(queries) // BLOCK)
        blocks = np.array_split(queries, count)
        each = [self._answered(adapted, blocks) for adapted in members_of(self.adapted)]
        return each[0] if len(each) == 1 else sum(each[1:], each[0]) / len(each)

    def _answered(self, adapted: Any, blocks: Sequence[np.ndarray]) -> np.ndarray:
        found = np.concatenate([np.asarray(self.functions.predict(adapted, block)) for block in blocks])
        if not np.isfinite(found).all():
            raise MetarunError("Adaptation to these examples diverges: the outputs are not finite.")
        return found


def softmax(outputs: np.ndarray) -> np.ndarray:
    """Probabilities of `outputs: [n, way]`, in float64."""
    exponentials = np.exp(outputs.astype(np.float64) - outputs.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def inputs(name: str, x: ArrayLike, data: DataFacts, standard: Standard | None) -> Any:
    """Returns examples as a network takes them, see `Functions.inputs`."""
    array = np.asarray(x)
    kind = str(array.dtype)
    wanted = f"[n, {', '.join(map(str, data.input_shape))}]"
    if array.shape[1:] != data.input_shape or array.ndim == 0 or not len(array):
        raise ConfigError(
            name, f"an array of shape {list(array.shape)}", f"{wanted}, n 1 or more, as the run's own inputs"
        )
    pictures = data.ground is not None
    if pictures and kind == "uint8":
        return array.astype(np.float32) / 255
    # NumPy knows bfloat16 and its like as of no kind, but can cast them.
    real = np.issubdtype(array.dtype, np.floating) or array.dtype.kind == "V" and "float" in kind
    if not (real or not pictures and np.issubdtype(array.dtype, np.integer)):
        allowed = "uint8, or floats in [0, 1]" if pictures else "floats or whole numbers"
        raise ConfigError(name, f"an array of {kind}", allowed)
    array = array.astype(np.float32) if standard is None else standard.applied(array)
    if not np.isfinite(array).all():
        raise ConfigError(name, f"an array of {kind}", "finite numbers; it has NaN or infinity")
    if pictures and (array.min() < -_OUTSIDE or array.max() > 1 + _OUTSIDE):
        span = f"values from {array.min():g} to {array.max():g}"
        raise ConfigError(name, span, "pictures as floats in [0, 1], 0 black and 1 white; or as uint8 from 0 to 255")
    return array


def support_of(shown: Any, y: ArrayLike, data: DataFacts, classes: Sequence[Any] | None) -> tuple[Split, list[Any]]:
    """Returns a support set as a method takes it, class after class, and its classes in order.

    Args:
      shown: its inputs, from `Functions.inputs`.
      y, classes: as in `Run.adapt`.
      data: what the run was trained on.

    Raises:
      ConfigError: other shapes or values.
    """
    given = np.asarray(y)
    if given.ndim == 0 or len(given) != len(shown):
        count = len(given) if given.ndim else "one value"
        raise ConfigError("y", f"{count} for {len(shown)} examples", "one for each row of x")
    if data.objective != "classification":
        return _of_regression(shown, given, data, classes)
    if given.ndim != 1 or given.dtype.kind not in "iuUTO":
        raise ConfigError("y", f"an array of {given.dtype} of shape {list(given.shape)}", "[n], whole numbers or names")
    if given.dtype.kind == "O" and not all(isinstance(each, str) for each in given):
        raise ConfigError("y", "an array of objects", "[n], whole numbers or names")
    found = given.tolist()
    known = sorted(set(found)) if classes is None else list(classes)
    if set(known) != set(found) or len(set(known)) != len(known):
        odd = sorted(map(str, set(known) ^ set(found))) or ["one of them twice"]
        raise ConfigError("classes", f"{len(known)} names", f"those of y, each once; they differ in {some(odd)}")
    if len(known) < 2:
        raise ConfigError("y", f"{len(known)} class", "2 or more")
    number = {each: place for place, each in enumerate(known)}
    labels: Any = np.array([number[each] for each in found], np.int32)
    order = np.argsort(labels, kind="stable")  # as a folder of pictures is read, so that the same set is the same bits
    return Split(shown[order], labels[order]), known


def _of_regression(
    shown: Any, given: np.ndarray, data: DataFacts, classes: Sequence[Any] | None
) -> tuple[Split, list[Any]]:
    if classes is not None:
        raise ConfigError("classes", f"{len(classes)} names", "None: this is a regression")
    if given.dtype.kind not in "fiu":
        raise ConfigError("y", f"an array of {given.dtype}", "numbers, the targets of a regression")
    targets: Any = given.astype(np.float32)
    if targets.ndim == 1 and data.num_outputs == 1:
        targets = targets[:, None]
    if targets.shape != (len(shown), data.num_outputs) or not np.isfinite(targets).all():
        raise ConfigError("y", f"shape {list(given.shape)}", f"[{len(shown)}, {data.num_outputs}], finite numbers")
    return Split(shown, targets), []
