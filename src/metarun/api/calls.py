"""What a call of the interface is given, in the words of the command line; and its errors, each one message."""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from metarun.config import mistakes, search_path
from metarun.config.named_code import additions_end_nothing
from metarun.errors import ConfigError, MetarunError, Stopped
from metarun.training.stopping import Interrupted

# A text that means itself on the command line.
_WORD = re.compile(r"[A-Za-z_./][\w./-]*")
_MEANS_ELSE = {"null", "true", "false", "on", "off", "yes", "no", "nan", "inf"}


def add_config_dir(*folders: str | Path) -> None:
    """Has choices of your own be found from here on, as `--config-dir` does for a command.

    Args:
      *folders: each with a folder for each group, such as `method/mine.yaml`.

    Raises:
      metarun.errors.MetarunError: one is no folder, or mixes two layouts.
    """
    search_path.add(folders)


def as_overrides(words: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
    """`KEY=VALUE` for each setting, after those that are given as such.

    Args:
      words: each `KEY=VALUE`, as typed on the command line without the quotes of a shell.
      settings: values by key: numbers, texts, paths, booleans, None, and lists and dicts of these.

    Raises:
      MetarunError: one of `words` has no `=`.
      ConfigError: a value that no command line can have.
    """
    for word in words:
        if not isinstance(word, str) or "=" not in word and not word.startswith("~"):
            raise MetarunError(f"{word}: expected a text of the form KEY=VALUE, such as 'way=5'.")
    return [*words, *(f"{key}={_in_words(key, value)}" for key, value in settings.items())]


def _in_words(key: str, value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, np.number):
        value = value.item()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | PurePath):
        text = str(value)
        if _WORD.fullmatch(text) and text.lower() not in _MEANS_ELSE:
            return text
        # Backslashes are doubled where Hydra reads them as such: before a quote, and at the end.
        text = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), text)
        return f"'{text}'"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{_in_words(key, each)}" for name, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_in_words(key, each) for each in value) + "]"
    raise ConfigError(key, value, "a number, a text, a path, true or false, None, or a list of these")


@contextlib.contextmanager
def explained(part: str, overrides: Sequence[str]) -> Iterator[None]:
    """Has every mistake and condition within come as a `MetarunError`.

    Args:
      part: of `conf/`, whose keys are meant.
      overrides: those of the call.

    Raises:
      MetarunError: the message that the command prints.
      Stopped: a signal or the time limit has ended a run.
      KeyboardInterrupt: Ctrl-C has.
    """
    try:
        with additions_end_nothing():
            yield
    except MetarunError:
        raise
    except Interrupted as stopped:
        if stopped.code == 130:
            raise KeyboardInterrupt(str(stopped)) from None
        raise Stopped(str(stopped)) from None
    except (HydraException, OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
        message = mistakes.explained(error, getattr(error, "part", part), overrides)
        if message is None:
            raise
        raise MetarunError(message) from error
