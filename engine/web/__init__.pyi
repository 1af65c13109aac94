"""The routes of an application: what they declare, read, answer and publish."""

# What a route says of itself for the published contract.
from engine.declare.operation import LOCATION as LOCATION
from engine.declare.operation import Answer as Answer
from engine.declare.operation import Lines as Lines
from engine.declare.operation import Operation as Operation
from engine.declare.operation import Parameter as Parameter
from engine.declare.operation import Undocumented as Undocumented

# Queries, which any worker answers, of an engine and its partitions.
from engine.partition.engine import Engine as Engine
from engine.partition.task import PartitionTask as PartitionTask
from engine.web.answers import ENGINE as ENGINE
from engine.web.answers import TIMEOUT_MAX_S as TIMEOUT_MAX_S
from engine.web.answers import TIMEOUT_S as TIMEOUT_S
from engine.web.answers import Problem as Problem
from engine.web.answers import ProblemDetails as ProblemDetails
from engine.web.answers import duration_parameter as duration_parameter
from engine.web.answers import encode_json as encode_json
from engine.web.answers import int_parameter as int_parameter
from engine.web.answers import invalid as invalid
from engine.web.answers import json_answer as json_answer
from engine.web.answers import json_response as json_response
from engine.web.answers import time_of as time_of
from engine.web.answers import unavailable as unavailable

# Bodies and parameters of requests.
from engine.web.bodies import SETTINGS as SETTINGS
from engine.web.bodies import Body as Body
from engine.web.bodies import Id as Id
from engine.web.bodies import Time as Time
from engine.web.bodies import parse as parse
from engine.web.bodies import read_body as read_body
from engine.web.cursors import InvalidCursor as InvalidCursor
from engine.web.cursors import decode_cursor as decode_cursor
from engine.web.cursors import encode_cursor as encode_cursor

# Reads that are not older than a token, from one partition or from all.
from engine.web.events import EventView as EventView
from engine.web.events import event_views as event_views
from engine.web.freshness import FRESHNESS as FRESHNESS
from engine.web.freshness import Hop as Hop
from engine.web.freshness import Path as Path
from engine.web.freshness import by_key as by_key
from engine.web.freshness import catch_up as catch_up
from engine.web.freshness import catch_up_with_now as catch_up_with_now
from engine.web.freshness import wait_here as wait_here
from engine.web.gathering import ROWS_PER_SLICE as ROWS_PER_SLICE
from engine.web.gathering import Sums as Sums
from engine.web.gathering import TableRow as TableRow
from engine.web.gathering import every_row as every_row
from engine.web.gathering import gather as gather
from engine.web.outcomes import CommandAsked as CommandAsked
from engine.web.outcomes import Unprocessed as Unprocessed
from engine.web.outcomes import outcome_of as outcome_of
from engine.web.outcomes import wait_for_outcome as wait_for_outcome
from engine.web.parameters import CURSOR as CURSOR
from engine.web.parameters import LIMIT as LIMIT
from engine.web.parameters import LIMIT_MAX as LIMIT_MAX
from engine.web.parameters import duration as duration
from engine.web.parameters import limit as limit
from engine.web.parameters import number as number
from engine.web.parameters import optional_number as optional_number

# Commands of clients, as records in the log.
from engine.web.publish import CORRELATION_ID as CORRELATION_ID
from engine.web.publish import ID_CHARACTERS_MAX as ID_CHARACTERS_MAX
from engine.web.publish import IDEMPOTENCY_KEY as IDEMPOTENCY_KEY
from engine.web.publish import encode as encode
from engine.web.publish import envelope as envelope
from engine.web.publish import id_header as id_header
from engine.web.publish import metadata as metadata
from engine.web.publish import publish_command as publish_command
from engine.web.publish import publish_commands as publish_commands
from engine.web.publish import publish_record as publish_record
from engine.web.publish import token_of as token_of
from engine.web.routes.queries import ask as ask
from engine.web.routes.queries import ask_all as ask_all
from engine.web.routes.tables import rows_of as rows_of
from engine.web.routing import ROUTER as ROUTER
from engine.web.routing import partition_of as partition_of
from engine.web.routing import task_here as task_here

# Answers and problems.
from engine.work.waiters import Wanted as Wanted
