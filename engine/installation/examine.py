"""What the doctor says of the owner of topics."""

from __future__ import annotations

from engine.health.check import Check, some
from engine.installation.mark import Marks, NotTheOwner
from engine.installation.ownership import Ownership
from engine.installation.rules import refusal
from engine.installation.unmarked import unmarked_applications
from engine.log.ports import Broker

DO_THAT = "do what the message says; until then a worker with these settings is refused"


async def check_owner(ownership: Ownership, broker: Broker) -> list[Check]:
    """May a worker with these settings work on this log, and does another application work on the same topics?

    Changes nothing. Raises TransportError.
    """
    marks = await ownership.marks.read() if await ownership.marks.is_there() else {}
    try:
        problem = refusal(await ownership.applicant(), marks, await ownership.unmarked(marks))
    except NotTheOwner as error:
        problem = str(error)
    if problem is not None:
        return [Check("owner", False, problem, DO_THAT)]
    mark = marks.get(ownership.app_id)
    if mark is None:
        return [Check("owner", True, "the log has no mark of this application yet; the first start writes it")]
    told = f"; {mark.moves[-1].reason} ({mark.moves[-1].by})" if mark.moves else ""
    owner = Check("owner", True, f"{mark.owner} owns {len(mark.topics)} topics since {mark.since}{told}")
    return [owner, *await _check_unmarked(ownership, broker, marks)]


async def _check_unmarked(ownership: Ownership, broker: Broker, marks: Marks) -> list[Check]:
    """Releases before marks cannot be refused: another application of theirs may process the same topics."""
    checks = []
    for app_id, topics in (await unmarked_applications(broker, marks, ownership.topics)).items():
        if workers := await broker.members(app_id):
            detail = f"application {app_id!r}, which writes no mark, processes {some(topics)} as well: {some(workers)}"
            advice = "stop these workers: each record is decided, charged and counted twice"
            checks.append(Check("owner", False, detail, advice))
        else:
            detail = f"application {app_id!r}, which has written no mark, has processed {some(topics)}; none runs now"
            checks.append(Check("owner", True, detail, "see that it is not started again with a release before marks"))
    return checks
