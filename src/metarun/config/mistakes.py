"""What a user is told of a mistake that Hydra or OmegaConf has found: the key, what it got, and what it would take."""

import dataclasses
import difflib
import inspect
import re
import shlex
import traceback
import types
import typing
from collections.abc import Iterator, Sequence

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from metarun.config import choice_files, experiments, named_code, search_path
from metarun.config.schema import COMMANDS, SCHEMAS
from metarun.errors import MetarunError, shown, some

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
# How OmegaConf calls types.
_NAMED = {"Integer": _WORDS[int], "Float": _WORDS[float], "Boolean": _WORDS[bool], "bool": _WORDS[bool]}
# Parts of an override: what comes before the key, the key, and the value.
_OVERRIDE = re.compile(r"(?P<prefix>[~+]*)(?P<key>[^=]*)(=(?P<value>.*))?", re.DOTALL)

# The function of Hydra that follows `defaults`.
_DEFAULTS_TREE = "_create_defaults_tree_impl"
# The head of a file that says where its keys are.
_PACKAGE = re.compile(r"# @package (\S+)")


def explained(error: Exception, part: str, arguments: Sequence[str]) -> str | None:
    """Says in one message what is wrong with a command; None of an error that is no mistake of a user's.

    Args:
      error: which Hydra or OmegaConf has raised, or Python where they went on for ever.
      part: of `conf/`, whose keys are meant.
      arguments: of the command line.
    """
    if isinstance(error, RecursionError):
        return _of_circle(error, part)
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, OverrideParseException):
            return _unparsed(str(cause.override or ""), str(cause))
    text = "\n".join(dict.fromkeys(line for cause in causes for line in str(cause).splitlines()))
    if not isinstance(error, (HydraException, OmegaConfBaseException)):
        return _of_plain_error(error, part, arguments)
    missing = re.search(r"Could not (?:find|load) '([^']+)'", text)
    if missing and (isinstance(causes[0], MissingConfigException) or "Config search path" in text):
        return _no_choice(missing.group(1), text, part)
    if "Ambiguous value for argument" in text or "requires --multirun" in text or "Sweep parameters" in text:
        return _many_values(text, arguments)
    if unknown := re.search(r"Could not (?:override|delete from config\.|append to config)[^'\n]*'([^'\n]+)'", text):
        return _of_key(unknown.group(1), text, part, arguments)
    innermost = next((cause for cause in reversed(causes) if isinstance(cause, OmegaConfBaseException)), None)
    if isinstance(innermost, ConfigAttributeError) and _is_of_groups(innermost):
        return _of_groups(part, arguments)
    if innermost is not None:
        return _of_value(innermost, part, arguments)
    return " ".join(_own_lines(text))


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None and isinstance(current, (HydraException, OmegaConfBaseException, ValueError)):
        yield current
        current = current.__cause__


def _of_circle(error: RecursionError, part: str) -> str | None:
    """What is said of files whose `defaults` lead back to themselves."""
    trees = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_name == _DEFAULTS_TREE]
    if not trees:
        return None
    paths = dict.fromkeys(str(frame.f_locals.get("path")) for frame in trees[-10:])  # those before lead there
    folders = search_path.folders(part)
    files = [file for path in paths for folder in folders if (file := folder / f"{path}.yaml").is_file()]
    return f"{' and '.join(map(str, files))}: the defaults lead back to where they began. Leave that entry out."


def _own_lines(text: str) -> Iterator[str]:
    """The lines of a message of Hydra's or OmegaConf's that say something of the command."""
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith(("Config search path", "Available options")):
            return
        if stripped and not stripped.startswith(
            ("full_key:", "object_type=", "reference_type=", "See http", "provider=", "^")
        ):
            yield stripped


def _given(key: str, arguments: Sequence[str]) -> str:
    """The value that a key was given on the command line, as it was typed; "" without one."""
    for argument in reversed(arguments):
        found: typing.Any = _OVERRIDE.fullmatch(argument)  # it matches whatever is typed
        if found["key"] == key and found["value"] is not None:
            return shown(found["value"])
    return ""


def _unparsed(override: str, text: str) -> str:
    """What is said of an argument that the grammar of overrides does not have."""
    found: typing.Any = _OVERRIDE.fullmatch(override)
    key, value = f"{found['prefix']}{found['key']}", found["value"]
    if value is None:
        return f"{shown(override)}: expected KEY=VALUE, such as way=5."
    if not re.fullmatch(r"[\w./@:-]+", found["key"]):
        return f"{shown(override)}: expected KEY=VALUE, such as way=5; {found['key']!r} is no name of a key."
    if not value.strip() or "mismatched input '<EOF>'" in text:
        return f"{shown(override)}: the value ends early. Expected KEY=VALUE, such as way=5."
    way_out = f" Give {_quoted(key, value)}" if value.isprintable() else ""
    return (
        f"{shown(override)}: the value has to be quoted, for characters such as = # ( ) [ ] {{ }} , and letters with accents "
        f"mean something else here, or nothing.{way_out}"
    )


def _quoted(key: str, value: str) -> str:
    """The override that gives a key a text, as it is typed in a shell."""
    inner = value.strip("'\"") if value[:1] in ("'", '"') or value[-1:] in ("'", '"') else value
    inner = re.sub(r"\\+$", lambda end: 2 * end[0], inner).replace('"', '\\"')
    return shlex.quote(key + '="' + inner + '"')


def _of_plain_error(error: Exception, part: str, arguments: Sequence[str]) -> str | None:
    text = str(error)
    if "Config group override must be" in text or isinstance(error, TypeError) and _is_of_groups(error):
        return _of_groups(part, arguments)
    if "--resolve flag" in text:
        return "--resolve: expected --cfg job beside it."
    return None


def _of_groups(part: str, arguments: Sequence[str]) -> str:
    """What is said of a group that is given something else than the name of an option."""
    keys = {*_groups(part), ""}
    chosen = [argument for argument in arguments if argument.partition("=")[0].lstrip("+~") in keys]
    named = " ".join(chosen or [argument for argument in arguments if "=" in argument] or arguments)
    return f"{named}: expected the name of an option for each group, as `{COMMANDS[part]} --help` lists them."


def _is_of_groups(error: Exception) -> bool:
    """Whether an error was raised as Hydra put the options of groups together, by itself or by what it called of OmegaConf."""
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    own = [module for module in modules if not module.startswith("omegaconf.")]
    return own[-1:] == ["hydra._internal.defaults_list"]


def _no_choice(path: str, text: str, part: str) -> str:
    """What is said of an option that a group has not."""
    if path.startswith(f"{experiments.GROUP}/"):
        return _no_experiment(path.partition("/")[2], text, part)
    group, _, option = path.rpartition("/")
    if not group:
        return f"{option}: there is no such configuration; metarun's own is called config."
    options = re.findall(r"^\t(?!provider)(\S+)$", text, re.MULTILINE)
    if not options:  # of one among several, Hydra does not name them
        options = search_path.options(part).get(group, [])
    near = difflib.get_close_matches(option, options, n=3)
    meant = f" Did you mean {' or '.join(near)}?" if near else ""
    all_of_them = f" There are {', '.join(options)}." if options else ""
    return f"{group}={option}: there is no such {group.rpartition('/')[2]}.{meant}{all_of_them}"


def _no_experiment(name: str, text: str, part: str) -> str:
    """What is said of an experiment that there is not."""
    group = experiments.GROUP
    known = re.findall(r"^\t(?!provider)(\S+)$", text, re.MULTILINE)
    known = known or [name for folder in search_path.experiment_folders(part) for name in experiments.names(folder)]
    words = [f"{group}={name}: there is no such experiment.", experiments.meant(name, known)]
    return " ".join([*filter(None, words), f"There are {len(known)}; metarun-reproduce --list names those of papers."])


def _many_values(text: str, arguments: Sequence[str]) -> str:
    """What is said of an argument with several values where one is expected."""
    found = re.search(r"(?:argument|parameters) '(.*?)'(?:\n|$| requires)", text)
    named = found.group(1) if found else " ".join(argument for argument in arguments if "," in argument)
    key, _, value = named.partition("=")
    quoted = f" For one that has a comma, give {_quoted(key, value)}" if value else ""
    return f"{named}: expected one value. Several make a sweep: add -m to metarun or metarun-rl.{quoted}"


def _of_key(key: str, text: str, part: str, arguments: Sequence[str]) -> str:
    """What is said of a key that there is not, or that there is already."""
    ways_out = f"`{COMMANDS[part]} --help` lists the main keys and `{COMMANDS[part]} --cfg job` all."
    name = key.partition("=")[0]
    if "Could not append" in text:
        return f"+{name}: there is this key already: leave out the +."
    if "Could not delete" in text:
        return f"~{key}: there is nothing of this name to leave out. {ways_out}"
    if name in _groups(part):
        return f"{name}={_given(name, arguments)}: expected the name of an option, as `{COMMANDS[part]} --help` lists them."
    known = _known_keys(part)
    if unlisted := _unlisted(name, part, arguments):
        return unlisted
    if options := known.get(name):
        meant = f"; there is with {some(sorted(options))}."
    elif near := difflib.get_close_matches(name, known, n=3):
        meant = f". Did you mean {' or '.join(near)}?"
    else:
        meant = "."
    return f"{name}: there is no such key for this choice{meant} {ways_out}"


def _unlisted(key: str, part: str, arguments: Sequence[str]) -> str | None:
    """What is said of a key that the function of a chosen addition takes, and that its YAML does not list."""
    group, _, name = key.partition(".")
    option = _given(group, arguments)
    for folder in search_path.additions(part) if option else ():
        file = folder / group / f"{option}.yaml"
        if not file.is_file():
            continue
        try:
            target = str(choice_files.loaded(file).get(named_code.TARGET))
            parameters = inspect.signature(named_code.imported(f"{group}.{named_code.TARGET}", target)).parameters
        except (MetarunError, TypeError, ValueError):  # which is told of once this key is right
            return None
        if name in parameters and parameters[name].default is not inspect.Parameter.empty:
            value = _given(key, arguments) or "VALUE"
            return (
                f"{key}: {file} does not list this key, which {target} takes. List it there, as "
                f"{name}: {parameters[name].default}, or add it by +{key}={value}."
            )
    return None


def _of_value(error: OmegaConfBaseException, part: str, arguments: Sequence[str]) -> str:
    """What is said of a value that a key cannot have."""
    key = str(error.full_key or "")
    if not key:
        return " ".join(_own_lines(str(error)))
    given = _given(key, arguments)
    got = f"{key}={given}" if given else key
    if isinstance(error, MissingMandatoryValue):
        return f"{got}: a value is needed: give {key}=VALUE."
    if isinstance(error, InterpolationResolutionError):
        reason = next(_own_lines(str(error)), "it refers to what there is not")
        reason = re.sub(r"^\w+ raised while resolving interpolation: ", "", reason).replace('"', "")
        if isinstance(error, InterpolationKeyError):
            reason = reason.replace("Interpolation key", "the key")
        return f"{got}: {reason.rstrip('.')}. Expected a value, or ${{KEY}} of a key that there is."
    if isinstance(error, ValidationError):
        if "not Optional" in str(error) and key.startswith("hydra."):
            return f"{got}: expected a value other than null."
        return f"{got}: expected {_allowed(key, part, str(error))}."
    if isinstance(error, ConfigKeyError):
        return _of_key(key, "", part, arguments)
    return f"{got}: {' '.join(_own_lines(str(error)))}"


def _allowed(key: str, part: str, text: str) -> str:
    """The values that a key takes, in words: one of the schema's, or one of Hydra's, of which an error's text tells."""
    kind: typing.Any = SCHEMAS[part]
    for name in key.split("."):
        hints = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
        kind = hints.get(name)
    if dataclasses.is_dataclass(kind):
        names = ", ".join(f"{key}.{each.name}" for each in dataclasses.fields(kind))
        return f"its keys one by one: {names}"
    if kind is None:
        named = next(
            (word for name, word in _NAMED.items() if f"to {name}" in text or f"is not a valid {name}" in text), None
        )
        return named or "a value of another type"
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    words = [_WORDS.get(each) for each in kinds if each is not type(None)]
    return " or ".join([*(word or "another value" for word in words), *["null"] * (type(None) in kinds)])


def _groups(part: str) -> set[str]:
    return {*search_path.options(part), experiments.GROUP}


def _known_keys(part: str) -> dict[str, list[str]]:
    """Every key of the schema and of the groups' YAML files, and the options that have it where not every run does."""
    schema = OmegaConf.structured(SCHEMAS[part])
    keys: dict[str, list[str]] = {key: [] for key in [*schema, *(f"memory.{key}" for key in schema.memory)]}
    for group, file in search_path.files(part):
        try:
            node: typing.Any = choice_files.loaded(file)
        except MetarunError:  # which is told of once it is chosen
            continue
        node = node.get(group, node)  # one that sets keys of the run as well has its own under its name
        package = _PACKAGE.match(file.read_text(encoding="utf-8"))
        above = package[1] if package and package[1] != "_global_" else group
        for key in node:
            if key != "defaults" and not str(key).startswith("_"):
                keys.setdefault(f"{above}.{key}", []).append(f"{group}={file.stem}")
    return keys
