"""Settings that several factories share: one dataclass in Python, flat keys on the command line."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, replace
from functools import wraps
from inspect import Parameter
from typing import Any, TypeVar

Made = TypeVar("Made")


def with_settings(**groups: Any) -> Callable[[Callable[..., Made]], Callable[..., Made]]:
    """Gives a factory keywords for the fields of its settings; it is handed each group of them as one object.

    The factory's signature, which says what keys a group of the configuration has, names the fields in place of the argument.

    Args:
      **groups: by argument of the factory, its dataclass, or an instance of it whose values are the defaults.

    Returns:
      A decorator of factories all of whose arguments are keywords.

    Example:
      @with_settings(learning=TrialLearning(decay=0.95))
      def mine(*, learning: TrialLearning, hidden: int = 64): ...

      mine(clip=0.1)  # learning is TrialLearning(decay=0.95, clip=0.1)
    """

    def decorated(factory: Callable[..., Made]) -> Callable[..., Made]:
        signature = inspect.signature(factory)
        parameters = []
        for name, parameter in signature.parameters.items():
            parameters += _flat(groups[name]) if name in groups else [parameter]
        flat = signature.replace(parameters=parameters)
        names = {group: {field.name for field in fields(settings)} for group, settings in groups.items()}

        @wraps(factory)
        def flattened(**values: Any) -> Made:
            flat.bind(**values)  # says what is missing, or is no keyword
            made = {}
            for group, settings in groups.items():
                own = {name: values.pop(name) for name in names[group] & values.keys()}
                made[group] = settings(**own) if isinstance(settings, type) else replace(settings, **own)
            return factory(**values, **made)

        flattened.__signature__ = flat  # type: ignore[attr-defined]
        flattened.__annotations__ = {name: each.annotation for name, each in flat.parameters.items()}
        flattened.__annotations__["return"] = flat.return_annotation
        return flattened

    return decorated


def hold(settings: Any, **checked: Any) -> None:
    """Sets fields of a frozen dataclass to what their checks returned; for its `__post_init__` alone."""
    for name, value in checked.items():
        object.__setattr__(settings, name, value)


def _flat(settings: Any) -> list[Parameter]:
    """The fields of a dataclass, or of an instance, as keywords."""

    def default(field: Field[Any]) -> Any:
        if not isinstance(settings, type):
            return getattr(settings, field.name)
        return Parameter.empty if field.default is MISSING else field.default

    return [
        Parameter(field.name, Parameter.KEYWORD_ONLY, default=default(field), annotation=field.type)
        for field in fields(settings)
    ]
