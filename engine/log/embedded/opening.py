"""Opening the RocksDB of an embedded log: a new one only where none has been, an old one only when it is whole."""

from __future__ import annotations

import logging
import time
import uuid
from pathlib import Path
from typing import Final

from msgspec.structs import replace
from rocksdict import AccessType, BlockBasedOptions, Cache, DBCompressionType, DBRecoveryMode, Options, Rdict

from engine.declare.application import NAMELESS, Application
from engine.log.embedded.errors import LogDamaged, LogLocked, LogUnavailable
from engine.log.embedded.mark import FORMAT, Mark, MarkFile, mark_path, read_mark, this_boot

logger = logging.getLogger(__name__)

ID_KEY: Final = b"i"
_BLOCK_CACHE_BYTES: Final = 64 * 1024 * 1024
_WRITE_BUFFER_BYTES: Final = 32 * 1024 * 1024
_INFO_LOG_BYTES: Final = 4 * 1024 * 1024
_DAMAGE: Final = ("corruption", "no such file")  # in RocksDB's words, in small letters


def remedy(application: Application) -> str:
    """What to do about a log that is damaged, without losing more."""
    return (
        f"Restore the whole data folder from a backup. Without one, {application.command('log check')} says what is "
        f"there, and {application.command('log repair')} goes on with that and writes down what is lost"
    )


def open_log(folder: Path, application: Application = NAMELESS) -> tuple[Rdict, MarkFile]:
    """Open a log that is whole, or create one in an empty folder.

    Raises LogLocked, LogDamaged when something that was acknowledged is missing, and LogUnavailable otherwise.
    """
    mark = read_mark(folder, application)
    is_new = mark is None and not has_rows(folder)
    if not is_new and not (folder / "CURRENT").exists():
        raise LogDamaged(
            f"there was a log in {folder}, and its file CURRENT is missing: it was deleted, or a copy broke off. "
            f"{remedy(application)}"
        )
    database = open_database(folder, create=is_new, application=application)
    try:
        return database, MarkFile(folder, _compared(folder, mark, database, application))
    except BaseException:
        close_database(database)
        raise


def has_rows(folder: Path) -> bool:
    """Whether a folder, which may not exist, holds rows: a start that was killed leaves files without any."""
    return any(folder.glob("*.sst")) or any(file.stat().st_size for file in folder.glob("*.log"))


def open_database(
    folder: Path,
    *,
    create: bool = False,
    is_read_only: bool = False,
    up_to_damage: bool = False,
    application: Application = NAMELESS,
) -> Rdict:
    """Open RocksDB; `up_to_damage` leaves out the write-ahead log from its first damage on.

    Without it a write-ahead log may break off, as a power cut leaves it, but not be damaged in the middle. Raises
    LogLocked, LogDamaged, LogUnavailable.
    """
    access = AccessType.read_only() if is_read_only else AccessType.read_write()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return Rdict(str(folder), _options(create, up_to_damage), access_type=access)
    except Exception as error:
        raise _explained(folder, str(error), application) from error


def close_database(database: Rdict) -> None:
    """Close RocksDB, which lets go of its folder also where it has found damage meanwhile."""
    try:
        database.close()
    except Exception as error:  # rocksdict raises plain Exceptions
        logger.warning("a log was closed without a final flush: %s", error)


def is_damage(text: str) -> bool:
    """Whether an error of RocksDB means that files are not as it wrote them."""
    return any(word in text.lower() for word in _DAMAGE)


def _explained(folder: Path, text: str, application: Application) -> LogUnavailable | LogLocked:
    if "lock hold by current process" in text or "While lock file" in text:
        return LogLocked(
            f"the log in {folder} is in use by another worker. Stop that worker, "
            "or give this one a data folder of its own."
        )
    if is_damage(text):
        return LogDamaged(f"the log in {folder} is damaged: {text}. {remedy(application)}")
    return LogUnavailable(
        f"cannot open the log in {folder}: {text}. The folder must be on a working disk with free space "
        f"and this user must be allowed to read and write it; or {application.moving_data}."
    )


def new_mark(database: Rdict) -> Mark:
    """The mark of an open log as it is now; gives the log an id where it has none yet."""
    log_id = _id_of(database) or _give_id(database, uuid.uuid4().hex)
    now = time.time()
    return Mark(FORMAT, log_id, now, database.latest_sequence_number(), now, "", False)


def _id_of(database: Rdict) -> str | None:
    stored = database.get(ID_KEY)
    return None if stored is None else bytes(stored).decode()


def _give_id(database: Rdict, log_id: str) -> str:
    database.put(ID_KEY, log_id.encode())
    return log_id


def _compared(folder: Path, mark: Mark | None, database: Rdict, application: Application) -> Mark:
    """The mark of an open log, a new one for a log that has none yet; raises LogDamaged when the log has less."""
    try:
        if mark is None:
            return new_mark(database)
        log_id, sequence = _id_of(database), database.latest_sequence_number()
    except Exception as error:  # rocksdict raises plain Exceptions
        raise LogDamaged(f"the log in {folder} is damaged: {error}. {remedy(application)}") from error
    if log_id is not None and log_id != mark.log:
        raise LogDamaged(
            f"{folder} holds another log than {mark_path(folder).name} beside it is of: copies were mixed. "
            f"{remedy(application)}"
        )
    if sequence < mark.sequence:
        _check_torn(folder, mark, sequence, application)
        mark = replace(mark, sequence=sequence, lost_end_at=round(time.time(), 3))
    if log_id is None:  # it went down with the first writes
        _give_id(database, mark.log)
    return mark


def _check_torn(folder: Path, mark: Mark, sequence: int, application: Application) -> None:
    """Tell a machine that went down from damage: what was not synced is lost with the machine, not with a process."""
    at = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(mark.at))
    lost = f"the last {mark.sequence - sequence} of {mark.sequence} rows, the newest of them of {at}"
    if mark.is_closed or mark.boot == this_boot():
        raise LogDamaged(f"the log in {folder} has lost {lost}, although they were acknowledged. {remedy(application)}")
    logger.warning("the machine went down, and the log in %s has lost %s: they were not on the disk yet", folder, lost)


def _options(create: bool, up_to_damage: bool) -> Options:
    # Rows are large and mostly read once, soon after they were written: a small cache and write buffer do, where the
    # defaults would take more memory than the application. LZ4 halves JSON for next to no time. All else is default.
    blocks = BlockBasedOptions()
    blocks.set_block_cache(Cache(_BLOCK_CACHE_BYTES))
    options = Options(raw_mode=True)
    options.create_if_missing(create)
    options.set_paranoid_checks(True)
    options.set_wal_recovery_mode(
        DBRecoveryMode.point_in_time() if up_to_damage else DBRecoveryMode.tolerate_corrupted_tail_records()
    )
    options.set_block_based_table_factory(blocks)
    options.set_write_buffer_size(_WRITE_BUFFER_BYTES)
    options.set_compression_type(DBCompressionType.lz4())
    options.set_max_log_file_size(_INFO_LOG_BYTES)
    options.set_keep_log_file_num(2)
    return options
