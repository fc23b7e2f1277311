"""A module of Flax that reads a set, and answers from what it has read, as a model."""

from collections.abc import Callable
from typing import Any

from metarun.types import SequenceModel


def set_model(module_of: Callable[[Any], Any]) -> SequenceModel:
    """The model that is a module.

    Args:
      module_of: type of the rows -> the module, whose parameters are of that type. It has `read: (rows, mask) -> memory`,
        `answer: (memory, ends) -> outputs`, and, to be initialised by, both as `__call__: (rows, ends) -> outputs`.
    """

    def apply(dtype, params, *args, method):
        return module_of(dtype).apply({"params": params}, *args, method=method)

    def read(params, rows, mask=None):
        return apply(rows.dtype, params, rows, mask, method="read")

    return SequenceModel(
        init=lambda key, rows, ends: module_of(rows.dtype).init(key, rows, ends)["params"],
        read=read,
        answer=lambda params, memory, ends: apply(ends.dtype, params, memory, ends, method="answer"),
    )
