"""The topics of dead letters, which every application has."""

from engine.declare.topic import DAY_MS, Topic
from engine.failures.decisions import DEAD_LETTER_TYPES
from engine.log.ports import DEAD_LETTER_BYTES_MAX

DEAD_LETTER_COMMANDS = Topic(
    "dead-letter-commands",
    "what people decide about dead letters; key = the letter's id, in the letter's partition",
    retention_ms=7 * DAY_MS,
    lanes=False,  # a decision must not wait behind what is to be decided
    key="dead letter id",
    carries=DEAD_LETTER_TYPES,
)
DEAD_LETTERS = Topic(
    "dead-letters",
    "records that could not be processed, byte for byte",
    retention_ms=90 * DAY_MS,
    record_bytes_max=DEAD_LETTER_BYTES_MAX,
    key="key of the record that failed",
)
