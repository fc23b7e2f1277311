"""A composed configuration, read with care: factories called with their keys, and no key left unread."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from metarun.assembly.offered import OFFERED, SCALARS
from metarun.config.named_code import CODE, TARGET, code_of, imported, is_own, names_code, place_in_additions
from metarun.errors import MetarunError, in_a_line


class Factory(NamedTuple):
    """What a choice calls, and what it takes.

    Attributes:
      function: called.
      choice: in words, such as "method=maml".
      group: of the choice.
      returns: the type of what it has to return; None: any.
      objects: names of what metarun offers to factories of the group, see `offered`.
      parameters: those of the function, by name.
    """

    function: Callable[..., Any]
    choice: str
    group: str
    returns: type | None
    objects: frozenset[str]
    parameters: Mapping[str, inspect.Parameter]

    @property
    def is_added(self) -> bool:
        """Whether it is an addition from outside."""
        return not is_own(self.function.__module__)

    @property
    def name(self) -> str:
        return f"{self.function.__module__}.{getattr(self.function, '__name__', type(self.function).__name__)}"

    def takes(self, name: str) -> bool:
        """Whether it asks for something that is offered, an object or a scalar of the run."""
        return name in self.parameters and (name in self.objects or name in SCALARS)

    def keyed(self, node: Mapping[str, Any]) -> partial:
        """The function with the keys of its group filled in; raises `MetarunError` for a key that it does not know."""
        own = [name for name in self.parameters if name not in self.objects]
        for key in node:
            if key not in own:
                settable = [name for name in own if name in node or name not in SCALARS]
                allowed = ", ".join(f"{self.group}.{name}" for name in settable) or "no key"
                raise MetarunError(f"{self.group}.{key} is read by nothing: {self.choice} knows {allowed}.")
        return partial(self.function, **node)

    def refuse_lacking(self, given: Iterable[str]) -> None:
        """Raises `MetarunError` where it needs more than what is `given`."""
        for name, parameter in self.parameters.items():
            named = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if named and parameter.default is parameter.empty and name not in given:
                raise MetarunError(
                    f"{self.choice}: {self.name} needs {name!r}, which it is not given. Give "
                    f"+{self.group}.{name}=VALUE or a default; metarun offers {', '.join([*sorted(self.objects), *SCALARS])}."
                )

    def called(self, own: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
        """Returns what the function makes of its own keys and of what it takes of what is given.

        Raises:
          MetarunError: it does not know a key, or lacks something; an addition fails, or returns something of another type.
        """
        call = self.keyed(own)
        handed = {name: value for name, value in given.items() if self.takes(name)}
        self.refuse_lacking({**call.keywords, **handed})
        try:
            made = call(**handed)
        except Exception as error:
            if isinstance(error, MetarunError) or not self.is_added:
                raise
            where = place_in_additions(error)
            where = f" in {where}" if where else ""
            raise MetarunError(f"{self.choice}: {self.name} fails{where}: {in_a_line(error)}") from error
        if self.returns is not None and not isinstance(made, self.returns):
            wanted = f"{self.returns.__module__}.{self.returns.__qualname__}"
            raise MetarunError(f"{self.choice}: {self.name} returns a {type(made).__name__}: expected a {wanted}.")
        return made


def factory_of(function: Callable[..., Any], choice: str, group: str, part: str) -> Factory:
    """What a function takes as the factory of a choice.

    Args:
      function: called.
      choice: in words.
      group: of the choice.
      part: of `conf/`, which says what factories of the group are offered.

    Raises:
      MetarunError: it does not say what it takes.
    """
    offered = OFFERED[part][group]
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:  # of what is built in
        raise MetarunError(f"{choice}: {function!r} does not say what it takes ({error}).") from error
    return Factory(function, choice, group, offered.returns, frozenset(offered.offers), parameters)


class Keys:
    """The configuration as a mapping that remembers what was read.

    Args:
      values: of all keys.
      choices: option chosen in each group.
      part: of `conf/`, which says of what groups a run is made and what their factories are offered.
    """

    def __init__(self, values: Mapping[str, Any], choices: Mapping[str, str], part: str):
        self.values, self._choices, self._part = values, choices, part
        self.read: set[str] = set()

    @classmethod
    def of(cls, config: DictConfig, choices: Mapping[str, str], part: str) -> "Keys":
        """That of a composed configuration; raises `OmegaConfBaseException` where a value is missing."""
        values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        return cls(values, choices, part)

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        if key not in self.values:
            raise MetarunError(f"{key}: this run has no such key, and needs it. Leave out ~{key}.")
        return self.values[key]

    def call(self, group: str, **given: Any) -> Any:
        """Calls the group's factory with its own keys, and with what it takes of what is given and of the run's scalars.

        Raises:
          MetarunError: it asks for something that it is not given.
        """
        factory = self.factory(group)
        own = self._own(group)
        scalars = [name for name in SCALARS if name in self.values and name not in {**own, **given}]
        return factory.called(own, given | {name: self[name] for name in scalars if factory.takes(name)})

    def partial(self, group: str) -> partial:
        """The group's factory with its own keys filled in."""
        return self.factory(group).keyed(self._own(group))

    def _own(self, group: str) -> dict[str, Any]:
        """The keys of a group's choice."""
        return {key: value for key, value in self[group].items() if key != TARGET}

    def factory(self, group: str) -> Factory:
        """What the group's choice names as its `_target_`."""
        node, choice = self[group], f"{group}={self._choices.get(group)}"
        if not isinstance(node, Mapping) or TARGET not in node:
            raise MetarunError(f"{choice}: this choice names no _target_.")
        function = imported(f"{group}.{TARGET}", node[TARGET])
        return factory_of(function, choice, group, self._part)

    def code(self, groups: Iterable[str] | None = None) -> dict[str, str]:
        """Hashes of the source that is not metarun's own and that a run is made of, see `named_code.code_of`.

        Args:
          groups: whose; None: all.
        """
        found = {}
        for group in OFFERED[self._part] if groups is None else groups:
            function = self.factory(group).function
            named = [value for key, value in self.values[group].items() if names_code(function, key, value)]
            modules = [function.__module__, *(value.partition(":")[0] for value in named)]
            if hashes := [code for module in modules if (code := code_of(module))]:
                found[f"{group}.{CODE}"] = "+".join(hashes)
        return found

    def refuse_unread(self, keys: Iterable[str]) -> None:
        """Raises `MetarunError` for one of the keys, which a user has added or set, that nothing has read."""
        for key in keys:
            if key not in self.read:
                chosen = ", ".join(f"{group}={self._choices.get(group)}" for group in list(OFFERED[self._part])[:3])
                raise MetarunError(f"{key}={self.values[key]} is read by nothing in a run of {chosen}: leave it out.")
