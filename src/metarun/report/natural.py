"""The order in which people count: `run2` before `run10`."""

import re


def natural(text: str) -> tuple[object, ...]:
    """A key to sort texts by, which takes the numbers in them as numbers."""
    pieces = re.split(r"([0-9]+)", text)
    # A number by its length and then its digits: to read one of thousands of digits takes long, and a name may have that.
    numbers = [(len(digits.lstrip("0")), digits.lstrip("0"), digits) for digits in pieces[1::2]]
    return tuple(piece for pair in zip(pieces[::2], [*numbers, (0, "", "")], strict=True) for piece in pair)
