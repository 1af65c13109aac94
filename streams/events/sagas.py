"""Commands of sagas."""

from typing import ClassVar

from engine import Id, Message


class SagaMessage(Message, frozen=True, gc=False):
    """What all commands of sagas have in common."""

    schema_version: ClassVar[int] = 1
    aggregate_type: ClassVar[str] = "Saga"
    aggregate_id_field: ClassVar[str | None] = "order_id"


class ResumeSaga(SagaMessage, frozen=True, gc=False):
    """Ask a saga that stands as `compensation_failed` to try again."""

    event_type: ClassVar[str] = "saga.resume"

    order_id: Id


SAGA_TYPES: tuple[type[SagaMessage], ...] = (ResumeSaga,)
