"""W3C trace context is read as the standard says, and as the SDK's own propagator reads it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.context import Context
from opentelemetry.trace import SpanContext, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from engine.observe.tracing.w3c import NO_PARENT, TRACESTATE_LENGTH_MAX, parent_in, traceparent_of

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"


def context_of(parent: Context) -> SpanContext:
    """What the SDK finds in a context."""
    return get_current_span(parent).get_span_context()


@pytest.mark.parametrize(
    "value", [GOOD, f"00-{TRACE}-{SPAN}-00", f"01-{TRACE}-{SPAN}-01-more", f"cc-{TRACE}-{SPAN}-03"]
)
def test_what_is_well_formed_is_gone_on_with(value: str) -> None:
    found = context_of(parent_in([value], []))
    assert (f"{found.trace_id:032x}", f"{found.span_id:016x}", found.is_remote) == (TRACE, SPAN, True)
    assert found.trace_flags.sampled == (value[53:55] != "00")
    assert traceparent_of(found) == f"00-{value[3:55]}"


@pytest.mark.parametrize(
    "value",
    [
        [],
        [GOOD, GOOD],
        [""],
        [GOOD.upper()],
        [f"00-{TRACE}-{SPAN}-01-more"],
        [f"00-{TRACE}-{SPAN}-01\n"],
        [f"ff-{TRACE}-{SPAN}-01"],
        [f"00-{'0' * 32}-{SPAN}-01"],
        [f"00-{TRACE}-{'0' * 16}-01"],
        [f"00-{TRACE[1:]}-{SPAN}-01"],
        [f"00-{TRACE}-{SPAN}"],
    ],
)
def test_what_is_malformed_is_none(value: list[str]) -> None:
    assert parent_in(value, ["vendor=x"]) is NO_PARENT


def test_tracestate_is_carried_on_within_its_bounds() -> None:
    assert context_of(parent_in([GOOD], ["a=1,b=2", "c=3"])).trace_state.to_header() == "a=1,b=2,c=3"
    assert not context_of(parent_in([GOOD], ["not a member"])).trace_state
    assert not context_of(parent_in([GOOD], [f"a={'x' * TRACESTATE_LENGTH_MAX}"])).trace_state


PART = st.sampled_from(["00", "01", "ff", TRACE, SPAN, "0" * 32, "0" * 16, TRACE.upper(), "", "x", "1"])


@given(st.lists(PART, max_size=6).map("-".join))
def test_it_reads_what_the_propagator_reads(value: str) -> None:
    expected = context_of(TraceContextTextMapPropagator().extract({"traceparent": value}, Context()))
    found = context_of(parent_in([value], []))
    assert (found.trace_id, found.span_id, found.trace_flags) == (
        expected.trace_id,
        expected.span_id,
        expected.trace_flags,
    )
