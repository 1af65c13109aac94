"""The front door: what an application is declared with, and composed of."""

# The readers of topics.
from engine.declare.agent import Agent as Agent
from engine.declare.agent import Projection as Projection

# The names of an application.
from engine.declare.application import Application as Application

# What flows: messages, their envelopes and times.
from engine.declare.envelope import Envelope as Envelope
from engine.declare.envelope import Id as Id
from engine.declare.envelope import Message as Message
from engine.declare.envelope import Metadata as Metadata
from engine.declare.envelope import Time as Time
from engine.declare.envelope import TimeText as TimeText
from engine.declare.envelope import derived_id as derived_id
from engine.declare.envelope import follow_up as follow_up
from engine.declare.envelope import format_timestamp as format_timestamp
from engine.declare.envelope import new_envelope as new_envelope

# What a handler or a call may raise.
from engine.declare.errors import NotRetryable as NotRetryable
from engine.declare.errors import RecordError as RecordError
from engine.declare.errors import Unavailable as Unavailable

# Services: agents, tables, topics, timers.
from engine.declare.partition import Partition as Partition
from engine.declare.partition import Rendering as Rendering
from engine.declare.registry import EventRegistry as EventRegistry
from engine.declare.service import Service as Service
from engine.declare.settings import APP_ID_PATTERN as APP_ID_PATTERN
from engine.declare.settings import Settings as Settings
from engine.declare.settings import SettingsError as SettingsError
from engine.declare.settings import is_http_url as is_http_url
from engine.declare.settings import load_settings as load_settings
from engine.declare.table import NUMBERED_KEY as NUMBERED_KEY
from engine.declare.table import AnyTable as AnyTable
from engine.declare.table import KeyCodec as KeyCodec
from engine.declare.table import Table as Table
from engine.declare.table import encode_prefix as encode_prefix
from engine.declare.timers import Timer as Timer
from engine.declare.times import format_ms as format_ms
from engine.declare.times import is_accepted as is_accepted
from engine.declare.times import later as later
from engine.declare.topic import DAY_MS as DAY_MS
from engine.declare.topic import Published as Published
from engine.declare.topic import Topic as Topic
from engine.declare.unit_of_work import UnitOfWork as UnitOfWork

# Applications.
from engine.faust.app import EngineApp as EngineApp
from engine.faust.app import app_from_environment as app_from_environment
from engine.faust.app import create_app as create_app
from engine.faust.app import discover as discover
from engine.faust.app import engine_services as engine_services

# Records, and where they are.
from engine.log.partitioner import partition_for as partition_for
from engine.log.ports import Position as Position
from engine.log.ports import Record as Record

# Logs and traces of what services do.
from engine.observe.about import about as about
from engine.observe.quiet import Quiet as Quiet
from engine.observe.tracing.current import Attributes as Attributes
from engine.observe.tracing.current import annotate as annotate
from engine.observe.tracing.current import answered as answered
from engine.observe.tracing.current import calling as calling
