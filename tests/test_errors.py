"""The error tree: what every error must tell."""

from __future__ import annotations

import re

import grpc
import pytest

from ditmesh import errors
from ditmesh.errors import DitmeshError, Retry, by_reason

ALL = sorted(by_reason().values(), key=lambda cls: cls.__name__)


@pytest.mark.parametrize("cls", ALL)
def test_every_error_says_what_it_was_given(cls: type[DitmeshError]) -> None:
    """Message, field and delay; the message is what the user reads."""
    error = cls("words", field="a.b", retry_after_s=1.5)
    assert (str(error), error.message, error.field, error.retry_after_s) == (
        "words",
        "words",
        "a.b",
        1.5,
    )
    assert cls("words").retry_after_s is None


def test_every_class_has_a_reason_of_its_own() -> None:
    """A reason names the class on the wire; two classes must not share one."""
    classes = [getattr(errors, name) for name in dir(errors)]
    tree = {c for c in classes if isinstance(c, type) and issubclass(c, DitmeshError)}
    assert set(ALL) == tree
    assert all(cls.reason == reason for reason, cls in by_reason().items())
    assert all(re.fullmatch(r"[A-Z_]+", reason) for reason in by_reason())


@pytest.mark.parametrize("cls", ALL)
def test_the_drawn_tree_is_the_tree(cls: type[DitmeshError]) -> None:
    """The module's docstring names each class with its status code, below its parent."""
    assert errors.__doc__ is not None
    line = next(
        row for row in errors.__doc__.splitlines() if re.search(rf"\b{cls.__name__}\b", row)
    )
    if cls is DitmeshError:
        return
    assert cls.code.name in line.split()
    depth = {"DitmeshError": 0}
    for parent in reversed(cls.__mro__):
        if issubclass(parent, DitmeshError) and parent is not DitmeshError:
            depth[parent.__name__] = depth[parent.__mro__[1].__name__] + 1
    assert line.index(cls.__name__) == 4 + 4 * depth[cls.__name__]


@pytest.mark.parametrize("cls", ALL)
def test_the_advice_fits_the_status(cls: type[DitmeshError]) -> None:
    """A caller who is told to try again later must not read that the request was wrong."""
    if cls.code is grpc.StatusCode.INVALID_ARGUMENT:
        assert cls.retry is Retry.NEVER
    if cls.retry is Retry.LATER:
        assert cls.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert cls.code is not grpc.StatusCode.OK
