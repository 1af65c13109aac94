"""What audits and reconciliations read: cuts between two commits, letters, waiting records, and timers."""

# Pauses that leave the loop to handlers.
from engine.calls.time_limit import slot as slot
from engine.declare.timers import TIMERS as TIMERS
from engine.failures.classify import INFRASTRUCTURE_ERRORS as INFRASTRUCTURE_ERRORS
from engine.failures.dead_letters import CLOSED_DEAD_LETTERS as CLOSED_DEAD_LETTERS
from engine.failures.dead_letters import DEAD_LETTERS as DEAD_LETTERS
from engine.failures.dead_letters import DISCARDED as DISCARDED
from engine.failures.lanes import WAITING as WAITING
from engine.health.audits import AUDITS as AUDITS
from engine.health.audits import CLEAN as CLEAN
from engine.health.audits import DIFFERS as DIFFERS
from engine.health.audits import LAST as LAST
from engine.health.audits import UNPROVEN as UNPROVEN
from engine.health.audits import AuditOutcome as AuditOutcome
from engine.health.audits import LastAudit as LastAudit
from engine.health.faults import Fault as Fault
from engine.log.embedded.errors import LogError as LogError
from engine.log.ports import TransportError as TransportError
from engine.partition.engine import Engine as Engine
from engine.partition.task import PartitionTask as PartitionTask
from engine.positions.cut import Cut as Cut
from engine.positions.cut import take_cut as take_cut
from engine.store.snapshot import StoreSnapshot as StoreSnapshot
from engine.store.store import StoreError as StoreError
