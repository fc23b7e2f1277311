"""When two numbers may be compared: their protocols, key by key."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from metarun.errors import MetarunError
from metarun.system.files import canonical_json

ABSENT = "absent"
# The keys, at the top of a protocol, that decide which tasks a test consists of.
OF_TASKS = ("dataset", "env", "environment", "way", "shot", "query_shot", "eval_seed")


class Difference(NamedTuple):
    """A key in which two protocols differ: `first` and `second` are its values, `ABSENT` where there is none."""

    key: str
    first: Any
    second: Any

    def __str__(self) -> str:
        return f"{self.key} ({self.first} and {self.second})"


def differences(first: Mapping[str, Any], second: Mapping[str, Any], *, same_method: bool) -> list[Difference]:
    """The keys in which two protocols differ, flat, in their order.

    Args:
      first, second: protocols as in `result.json`.
      same_method: whether both are of one method. Of two methods, a convention that only one of them knows, such as its
        inner steps at test, belongs to the method and makes no difference.
    """
    flat = [dict(flattened(protocol)) for protocol in (first, second)]
    found = []
    for key in {**flat[0], **flat[1]}:
        values = [each.get(key, ABSENT) for each in flat]
        of_one = ABSENT in values and key.startswith("method.") and not same_method
        if values[0] != values[1] and not of_one:
            found.append(Difference(key, *values))
    return found


def flattened(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The entries of nested mappings, named by their keys joined by dots; an empty mapping is an entry."""
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def refuse_different(first: Mapping[str, Any], second: Mapping[str, Any], way_out: str) -> None:
    """Raises `MetarunError` unless two results are of one protocol, naming the keys in which they are not.

    Args:
      first, second: results as in `result.json`.
      way_out: what the user can do to compare them all the same.
    """
    same_method = first["method"] == second["method"]
    found = differences(first["protocol"], second["protocol"], same_method=same_method)
    if first["metric"] != second["metric"]:
        found.insert(0, Difference("metric", first["metric"], second["metric"]))
    if found:
        raise MetarunError(
            f"These numbers are not of one protocol: they differ in {', '.join(map(str, found))}. {way_out}"
        )


def protocol_id(protocol: Mapping[str, Any]) -> str:
    """Returns 16 hexadecimal digits that are equal for equal protocols, whatever the order of their keys."""
    return hashlib.sha256(canonical_json(protocol).encode()).hexdigest()[:16]
