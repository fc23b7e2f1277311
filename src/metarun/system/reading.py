"""Reading files that may be a stranger's: bounded, as plain data, and with one error for whatever is wrong with them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from metarun.errors import DataError, shown

MOST_BYTES = 64_000_000  # of a JSON file
MOST_YAML = 500_000  # of a YAML file; ours have some thousands
MOST_TEXT = 10_000  # characters of one text
_DEEPEST = 20  # levels of lists and mappings
LARGEST = 1e60  # of numbers: what 32 bits hold, and its square, with room
# libyaml's where there is it: thirty times as fast.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def json_of(path: Path) -> Any:
    """Returns what a JSON file says.

    Raises:
      DataError: it is no file, is too long, or is no JSON.
    """
    text = text_of(path, MOST_BYTES)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{shown(str(path))} cannot be read: it is no JSON ({_first_line(error)}).") from error


def yaml_of(path: Path) -> Any:
    """Returns what a YAML file says, as mappings, lists, texts, numbers, booleans and None.

    Raises:
      DataError: it is no file, is too long, is no YAML, or holds other things, such as an alias, by which a short file
        can stand for an endless one.
    """
    text = text_of(path, MOST_YAML)
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, _Loader)):
            raise DataError(f"{shown(str(path))} cannot be read: it has an alias (*name), which no run writes.")
        value = yaml.load(text, _Loader)  # one of the two safe ones
    except (ValueError, TypeError, LookupError, RecursionError, AttributeError, yaml.YAMLError) as error:
        raise DataError(f"{shown(str(path))} cannot be read: it is no YAML ({_first_line(error)}).") from error
    if not is_plain(value, any_number=True):
        raise DataError(f"{shown(str(path))} cannot be read: it holds more than texts, numbers, lists and mappings.")
    return value


def text_of(path: Path, most: int) -> str:
    """Returns the text of a file of at most so many bytes.

    Raises:
      DataError: it is no file, is longer, or is not in UTF-8.
    """
    try:
        if not path.is_file():  # a pipe would be waited for
            raise DataError(f"{shown(str(path))} cannot be read: it is no file.")
        with path.open("rb") as stream:
            data = stream.read(most + 1)
    except (OSError, ValueError) as error:
        raise DataError(f"{shown(str(path))} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if len(data) > most:
        raise DataError(f"{shown(str(path))} cannot be read: it has more than {most:,} bytes.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{shown(str(path))} cannot be read: it is not in UTF-8 ({error.reason}).") from error


def is_text(value: Any, *, printable: bool = True) -> bool:
    """Whether a value is a text that can be written anywhere: no half of a character, not endless, no control codes."""
    if not isinstance(value, str) or len(value) > MOST_TEXT:
        return False
    return value.isprintable() if printable else value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number that can be computed with."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return -LARGEST <= value <= LARGEST  # which NaN is not


def is_plain(value: Any, *, any_number: bool = False, level: int = 0) -> bool:
    """Whether a value is made of mappings with texts as keys, lists, texts, numbers, booleans and None, not too deep.

    Args:
      value: any.
      any_number: whether numbers may be of any size, and NaN.
      level: of the value, from 0.
    """
    if level > _DEEPEST:
        return False
    if isinstance(value, Mapping):
        return all(is_text(key) and is_plain(x, any_number=any_number, level=level + 1) for key, x in value.items())
    if isinstance(value, list):
        return all(is_plain(x, any_number=any_number, level=level + 1) for x in value)
    if any_number and (isinstance(value, float) or isinstance(value, int) and abs(value) < 10**300):
        return True
    return value is None or isinstance(value, bool) or is_number(value) or is_text(value, printable=False)


def value_shown(value: Any) -> str:
    """A value for a message, in short and without anything that a terminal would obey."""
    try:
        text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a number of many digits"
    except (ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 60 else f"{text[:57]}..."


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
