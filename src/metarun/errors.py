"""What a user is told when an input is wrong, and the checks that say it."""

import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TypeGuard

# A device counts in 32 bits: with signs what there is of a thing, without what a key of random numbers is made of.
_MOST, _LAST_SEED, _LARGEST = 2**31 - 1, 2**32 - 1, 2.0**128 - 2.0**104


class MetarunError(Exception):
    """A mistake or a condition that the user can act on: printed as one message, without a traceback.

    What a terminal would obey is escaped in it, for a message may name what comes from a stranger.
    """

    def __str__(self) -> str:
        return "\n".join(map(shown, super().__str__().split("\n")))


class ConfigError(MetarunError):
    """A configuration value that cannot be used.

    Args:
      key: the key to change, as typed on the command line, e.g. `method.inner_lr`.
      got: the value as it arrived.
      allowed: the values that would do, in words.
    """

    def __init__(self, key: str, got: object, allowed: str):
        self.key, self.got, self.allowed = key, got, allowed
        shown = str(got) if str(got).isprintable() else repr(str(got))  # nor does it move a terminal's cursor
        super().__init__(f"{key}={shown}: expected {allowed}.")

    def __reduce__(self):  # how it comes back from the process of another point of a sweep
        return type(self), (self.key, self.got, self.allowed)


class Diverged(MetarunError):
    """A run whose loss or parameters stopped being finite, and would again.

    Args:
      step: the outer step in which they did.
      message: what the user is told.
    """

    def __init__(self, step: int, message: str):
        self.step = step
        super().__init__(message)

    def __reduce__(self):
        return type(self), (self.step, str(self))


class Pruned(MetarunError):
    """A trial of a search that its pruner has ended: it did worse than others at the same step.

    Args:
      step: the outer step of the validation after which it ended.
      value: what that validation has found.
    """

    def __init__(self, step: int, value: float):
        self.step, self.value = step, value
        super().__init__(f"Pruned at step {step}: its validation, {value:.4g}, is worse than that of other trials.")

    def __reduce__(self):
        return type(self), (self.step, self.value)


class Stopped(MetarunError):
    """A run that a signal or its time limit has ended, all saved: the same call continues it."""


class DataError(MetarunError):
    """A data set that is absent, broken, or too small; the message names the file and the ways out."""


def _real(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _whole(key: str, value: object, least: int, allowed: str, most: int = _MOST) -> int:
    if not _real(value) or value != int(value) or value < least:
        raise ConfigError(key, value, allowed)
    if value > most:
        raise ConfigError(key, value, f"a whole number from {least} to {most}")
    return int(value)


def positive_int(key: str, value: object) -> int:
    """Returns `value` if it is a whole number of at least 1; raises `ConfigError` otherwise."""
    return _whole(key, value, 1, "a whole number, 1 or more")


def positive_range(key: str, value: object) -> tuple[int, int]:
    """Returns both ends of a range `[LOW, HIGH]` of whole numbers of at least 1, or twice the one number; raises `ConfigError` otherwise."""
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        shown = "null" if value is None else value  # as it is typed
        number = _whole(key, shown, 1, "a whole number, 1 or more, or a range such as [1,5]")
        return number, number
    if len(value) != 2:
        raise ConfigError(key, list(value), "a range of two numbers such as [1,5]")
    low, high = (positive_int(key, end) for end in value)
    if low > high:
        raise ConfigError(key, [low, high], f"the smaller number first, [{high},{low}]")
    return low, high


def positive_ints(key: str, values: object, such_as: str, *, least: int = 0) -> tuple[int, ...]:
    """Returns `values` if they are a list of at least `least` whole numbers of at least 1; raises `ConfigError` otherwise."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence) or len(values) < least:
        raise ConfigError(key, values, f"a list of whole numbers such as {such_as}")
    return tuple(positive_int(key, value) for value in values)


def non_negative_int(key: str, value: object) -> int:
    """Returns `value` if it is a whole number of at least 0; raises `ConfigError` otherwise."""
    return _whole(key, value, 0, "a whole number, 0 or more")


def seed_of(key: str, value: object) -> int:
    """Returns `value` if it is a whole number of 32 bits: JAX drops all further ones, and so would repeat a run."""
    return _whole(key, value, 0, f"a whole number from 0 to {_LAST_SEED}", _LAST_SEED)


def positive_float(key: str, value: object) -> float:
    """Returns `value` as a float if it is a finite number above 0; raises `ConfigError` otherwise."""
    if not _real(value) or value <= 0:
        raise ConfigError(key, value, "a number above 0")
    if value > _LARGEST:
        raise ConfigError(key, value, f"a number above 0, at most {_LARGEST:.1e}")
    return float(value)


def non_negative_float(key: str, value: object) -> float:
    """Returns `value` as a float if it is a finite number of at least 0; raises `ConfigError` otherwise."""
    if not _real(value) or value < 0:
        raise ConfigError(key, value, "a number, 0 or more")
    if value > _LARGEST:
        raise ConfigError(key, value, f"a number from 0 to {_LARGEST:.1e}")
    return float(value)


def unit_fraction(key: str, value: object) -> float:
    """Returns `value` as a float if it is a number from 0 to 1; raises `ConfigError` otherwise."""
    if not _real(value) or not 0 <= value <= 1:
        raise ConfigError(key, value, "a number from 0 to 1")
    return float(value)


def one_of(key: str, value: object, allowed: Iterable[str]) -> str:
    """Returns `value` if it is among `allowed`; raises `ConfigError` otherwise."""
    allowed = list(allowed)
    if value not in allowed:
        raise ConfigError(key, value, "one of " + ", ".join(map(str, allowed)))
    return value


def true_or_false(key: str, value: object) -> bool:
    """Returns `value` if it is a boolean; raises `ConfigError` otherwise."""
    if not isinstance(value, bool):
        raise ConfigError(key, value, "true or false")
    return value


def in_a_line(error: BaseException) -> str:
    """What an error says, in one line; of one that is not ours, with its kind."""
    text = " ".join(str(error).split())
    return text if isinstance(error, MetarunError) else f"{type(error).__name__}: {text}"


def some(names: Sequence[str]) -> str:
    """The first three of many names, for a message."""
    return ", ".join(map(shown, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def shown(name: str) -> str:
    """A name as it can be shown anywhere: with escapes for what does not show, such as `\\n`, and for a byte that is no
    UTF-8, such as `\\xb9`. A file may be called by anything, and what moves the cursor of a terminal is no name."""
    return "".join(map(_escaped, name))


def _escaped(character: str) -> str:
    if 0xDC80 <= ord(character) <= 0xDCFF:  # how Python holds a byte of a file name that is no UTF-8
        return f"\\x{ord(character) - 0xDC00:x}"
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    return character.encode("unicode_escape").decode() if hidden else character
