"""What a payment gateway answers."""

import msgspec


class Charged(msgspec.Struct, frozen=True, gc=False):
    """The money was taken; `reference` is what the gateway knows it by."""

    reference: str


class Refunded(msgspec.Struct, frozen=True, gc=False):
    """The money was given back; `reference` is what the gateway knows that by."""

    reference: str


class Declined(msgspec.Struct, frozen=True, gc=False):
    """The gateway refuses, for good: `reason` is a stable snake_case code."""

    reason: str
