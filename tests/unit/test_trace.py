"""A trace reads as Python's own, whether its lines were seen before or not."""

from __future__ import annotations

import traceback

import pytest

from engine.failures.trace import format_trace


class Unspeakable(Exception):
    """Its text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def fail(text: str) -> None:
    raise ValueError(text)


def fail_with_cause(text: str) -> None:
    try:
        fail(text)
    except ValueError as error:
        raise KeyError(text) from error


def fail_while_handling(text: str) -> None:
    try:
        fail(text)
    except ValueError:
        fail(f"again {text}")


def fail_quietly(text: str) -> None:
    try:
        fail(text)
    except ValueError:
        raise KeyError(text) from None


def fail_with_note(text: str) -> None:
    error = ValueError(text)
    error.add_note("a note")
    raise error


def fail_without_words(text: str) -> None:
    raise Unspeakable(text)


def fail_to_compile(text: str) -> None:
    compile(f"not ( {text} python", "a file", "exec")


def fail_in_a_group(text: str) -> None:
    raise BaseExceptionGroup(text, [ValueError(text), SystemExit(1)])


@pytest.mark.parametrize(
    "function",
    [
        fail,
        fail_with_cause,
        fail_while_handling,
        fail_quietly,
        fail_with_note,
        fail_without_words,
        fail_to_compile,
        fail_in_a_group,
    ],
)
def test_it_is_what_python_would_say(function: object) -> None:
    for text in ("first", "second", ""):  # the second time the lines are known
        with pytest.raises(BaseException) as raised:  # noqa: PT011
            function(text)  # type: ignore[operator]
        assert format_trace(raised.value) == "".join(traceback.format_exception(raised.value))


def test_an_error_that_was_never_raised_has_no_lines() -> None:
    assert format_trace(ValueError("x")) == "ValueError: x\n"


def test_a_ring_of_causes_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert format_trace(first).endswith("ValueError: a\n")
