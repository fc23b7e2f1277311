"""Settings that several factories share: flat keys outside, one object within."""

import inspect
import typing
from dataclasses import dataclass
from functools import partial

import pytest

from metarun.config.flat_keys import hold, with_settings
from metarun.errors import ConfigError, positive_int


@dataclass(frozen=True)
class Given:
    places: int


@dataclass(frozen=True)
class Pace:
    steps: int = 3
    rate: float | None = None

    def __post_init__(self):
        hold(self, steps=positive_int("method.steps", self.steps))


@with_settings(given=Given, pace=Pace(rate=0.5))
def factory(*, given: Given, pace: Pace, size: int = 7) -> tuple:
    return given, pace, size


def test_the_fields_are_keywords_with_the_defaults_of_the_instance():
    parameters = inspect.signature(factory).parameters
    assert {name: p.default for name, p in parameters.items()} == {
        "places": inspect.Parameter.empty,
        "steps": 3,
        "rate": 0.5,
        "size": 7,
    }
    assert list(inspect.signature(partial(factory, size=2)).parameters) == list(parameters)
    assert typing.get_type_hints(factory) == {
        "places": int,
        "steps": int,
        "rate": float | None,
        "size": int,
        "return": tuple,
    }


def test_each_group_is_handed_on_as_one_object():
    assert factory(places=2) == (Given(2), Pace(3, 0.5), 7)
    assert factory(places=2, steps=4.0, rate=None, size=1) == (Given(2), Pace(4, None), 1)


def test_the_checks_of_the_settings_are_made():
    with pytest.raises(ConfigError, match="method.steps=0"):
        factory(places=2, steps=0)


@pytest.mark.parametrize(
    "values, message", [({}, "places"), ({"places": 1, "pace": Pace()}, "pace"), ({"places": 1, "extra": 1}, "extra")]
)
def test_a_keyword_that_is_missing_or_unknown_is_named(values, message):
    with pytest.raises(TypeError, match=message):
        factory(**values)
