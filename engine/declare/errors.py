"""Errors of records that can never be processed, however often they are tried, and of what is away for a while.

Any error may say with two attributes what becomes of its record: `retryable` (by default True), whether trying again
may help; and `parks` (by default True), whether later records of the same aggregate have to wait when it does not.
"""

from typing import ClassVar


class RecordError(Exception):
    """A record that can never be processed by this version; nothing waits behind it unless its type says so.

    The class name is stable: it is the `error_type` of the dead letter. The message says what is wrong and what to do.
    """

    retryable: ClassVar[bool] = False
    parks: ClassVar[bool] = False


class UndecodableRecord(RecordError):
    """The value is not JSON, or not an event envelope."""


class InvalidPayload(RecordError):
    """The envelope is well-formed, but its payload does not fit the type; the message names the path."""


class UnknownEventType(RecordError):
    """No class is registered for the envelope's `eventType`: another version may know it, so its aggregate waits."""

    parks = True


class UnknownEventVersion(RecordError):
    """The payload's version is newer than those known here, or no upcaster leads from it to the current one.

    The next version will know it, so its aggregate waits.
    """

    parks = True


class InvalidBusinessTime(RecordError):
    """The envelope's `timestamp` lies outside of the years that are accepted from outside."""


class OversizeRecord(RecordError):
    """The value is larger than the largest accepted record."""


class MissingKey(RecordError):
    """The record has no key, so its aggregate is unknown."""


class KeyMismatch(RecordError):
    """The record's key differs from its envelope's `aggregateId`."""


class WrongPartition(RecordError):
    """The record lies in another partition than Kafka's default partitioner (murmur2) gives to its key."""


class NotRetryable(Exception):
    """Base of errors of handlers that trying again does not mend: the record is a dead letter at once."""

    retryable: ClassVar[bool] = False


class HandlerTimeout(BaseException):
    """A handler did not return in time: it was interrupted, or the process was ended to get out of it.

    Not an Exception, so that a handler that swallows those cannot swallow this.
    """

    retryable = False


class Unavailable(Exception):
    """Something outside cannot be reached or does not answer: it is tried again."""
