"""A composed configuration, read with care: factories called with their keys, and no key left unread."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from metarun.assembly.offered import OFFERED, SCALARS
from metarun.config.named_code import (
    CODE,
    TARGET,
    code_of,
    imported,
    is_own,
    module_of,
    names_code,
    place_in_additions,
    would_end,
)
from metarun.config.schema import CIRCUMSTANCES
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

    def bound(self, own: Mapping[str, Any], given: Mapping[str, Any], later: Iterable[str] = ()) -> Callable[..., Any]:
        """The function with its own keys, and what it takes of what is given.

        Args:
          own: its own keys.
          given: by name, of which it takes what it asks for.
          later: names of what it will be given when it is called, as keywords, of which it takes what it asks for.

        Raises:
          MetarunError: it does not know a key, or asks for something that it is not given. When it is called: an addition
            fails, or returns something of another type.
        """
        call = self.keyed(own)
        handed = {name: value for name, value in given.items() if self.takes(name)}
        self.refuse_lacking({**call.keywords, **handed, **dict.fromkeys(later)})

        def made(**known: Any) -> Any:
            return self._made(partial(call, **handed, **{name: known[name] for name in known if self.takes(name)}))

        return made

    def _made(self, call: Callable[[], Any]) -> Any:
        try:
            made = call()
        except BaseException as error:
            is_error = isinstance(error, Exception) and not isinstance(error, MetarunError)
            if not self.is_added or not (is_error or would_end(error)):
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
    offered = OFFERED[part][group.partition(".")[0]]
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
        return self._prepared(self.factory(group), given, ())()

    def deferred(self, group: str, later: Iterable[str], **given: Any) -> Callable[..., Any]:
        """A group's factory with what `call` hands it, to be called once the rest is known.

        Args:
          group: such as "logger.tensorboard", one of `members`.
          later: names of what it will be given, as keywords, of which it takes what it asks for.
          **given: as in `call`.

        Raises:
          MetarunError: it asks for something that it is not given, or does not know a key of its own; or what `check` of the
            factory says, a function that is called with its keys.
        """
        factory = self.factory(group)
        prepared = self._prepared(factory, given, later)
        if check := getattr(factory.function, "check", None):
            check(**self._own(group))
        return prepared

    def members(self, group: str) -> list[str]:
        """What is chosen of a group that may have several choices, each to be named to `factory`: logger.jsonl, logger.mlflow.

        A choice has its keys under its own name. One that has not, as a file without `# @package`, has them in the group itself,
        where it can be the only one of several that were chosen: Hydra would take the last in silence.

        Raises:
          MetarunError: it is one of several; or there is a key that none of them reads.
        """
        node = self[group]
        if not isinstance(node, Mapping):
            raise MetarunError(f"{group}={node}: expected the name of an option, or several: [NAME,NAME].")
        names = [name for name, inner in node.items() if _calls(inner)]
        if TARGET not in node:
            for name in node:
                if name not in names:
                    raise MetarunError(
                        f"{group}.{name} is read by nothing: {group}=[{','.join(names)}] has the keys of "
                        f"{', '.join(f'{group}.{each}' for each in names)}."
                    )
        elif group not in self._choices:  # so it is where several are chosen
            raise MetarunError(
                f"{group}.{TARGET}={node[TARGET]}: expected {group}.NAME.{TARGET} where several are chosen. Begin the file "
                f"of that choice with # @package {group}.NAME, NAME being its own."
            )
        return [group] * (TARGET in node) + [f"{group}.{name}" for name in names]

    def _prepared(self, factory: Factory, given: Mapping[str, Any], later: Iterable[str]) -> Callable[..., Any]:
        """A factory with its own keys, and what it takes of what is given and of the run's scalars."""
        own = self._own(factory.group)
        scalars = [name for name in SCALARS if name in self.values and name not in {**own, **given}]
        of_run = {name: self[name] for name in scalars if factory.takes(name)}
        return factory.bound(own, {**given, **of_run}, later)

    def _node(self, group: str) -> Any:
        """The keys of a group, or of one of its `members`."""
        group, _, name = group.partition(".")
        return self[group][name] if name else self[group]

    def _own(self, group: str) -> dict[str, Any]:
        """The keys of a group's choice, without those of others that are in it."""
        return {key: value for key, value in self._node(group).items() if key != TARGET and not _calls(value)}

    def _chosen(self, group: str) -> str:
        """A choice in words, such as method=maml; or that of one of the `members` of a group."""
        group, _, name = group.partition(".")
        return f"{group}={name or self._choices.get(group)}"

    def factory(self, group: str) -> Factory:
        """What the choice of a group, or one of its `members`, names as its `_target_`."""
        node, choice = self._node(group), self._chosen(group)
        if not isinstance(node, Mapping) or TARGET not in node:
            raise MetarunError(f"{choice}: this choice names no _target_.")
        function = imported(f"{group}.{TARGET}", node[TARGET])
        return factory_of(function, choice, group, self._part)

    def code(self, groups: Iterable[str] | None = None) -> dict[str, str]:
        """Hashes of the source that is not metarun's own and that a run is made of, see `named_code.code_of`.

        Args:
          groups: whose; None: all that move a number.
        """
        found = {}
        for group in [each for each in OFFERED[self._part] if each not in CIRCUMSTANCES] if groups is None else groups:
            function = self.factory(group).function
            named = [value for key, value in self.values[group].items() if names_code(function, key, value)]
            own, target = module_of(function), self._node(group)[TARGET].replace(":", ".").rpartition(".")[0]
            above = [target] * (target.split(".")[0] != own.split(".")[0])  # which may change what it hands on
            modules = [own, *above, *(value.partition(":")[0] for value in named)]
            if hashes := [code for module in modules if (code := code_of(module))]:
                found[f"{group}.{CODE}"] = "+".join(hashes)
        return found

    def refuse_unread(self, keys: Iterable[str]) -> None:
        """Raises `MetarunError` for one of the keys, which a user has added or set, that nothing has read."""
        for key in keys:
            if key not in self.read:
                chosen = ", ".join(f"{group}={self._choices.get(group)}" for group in list(OFFERED[self._part])[:3])
                raise MetarunError(f"{key}={self.values[key]} is read by nothing in a run of {chosen}: leave it out.")


def _calls(node: object) -> bool:
    return isinstance(node, Mapping) and TARGET in node
