"""What can go wrong with the embedded log, each error with its remedy."""


class LogError(Exception):
    """Base of every error of the embedded log."""


class LogLocked(LogError):
    """Another process, or another log of this process, holds the folder."""


class LogUnavailable(LogError):
    """The folder cannot be opened: permissions, a file in the way, a layout of another version, damage."""


class LogDamaged(LogUnavailable):
    """Something that was acknowledged is not there any more, or cannot be read; a person decides how to go on."""


class LogReadFailed(LogError):
    """Stored rows are damaged or missing; reading on would silently skip records."""


class LogWriteFailed(LogError):
    """The storage refused a write (disk full, size limit, I/O error).

    What the log answers is as before the call. As with a lost reply of a Kafka commit, the outcome counts as unknown
    until the next write, which opens the storage again and reads the truth from it.
    """


class UnknownTopicOrPartition(LogError):
    """The topic does not exist or has no such partition."""


class TopicExistsDifferently(LogError):
    """The topic exists with another number of partitions."""


class OffsetOutOfRange(LogError):
    """The offset lies beyond the end of the partition."""


class RecordTooLarge(LogError):
    """A record is larger than its topic allows."""


class KeyRequired(LogError):
    """A record without a key was appended to a compacted topic."""


class ProducerFenced(LogError):
    """A newer producer has started with the same transactional id."""
