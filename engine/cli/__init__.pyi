"""The command line of an application: the commands that every application has, and what its own are made with."""

from engine.cli.client import NoWorker as NoWorker
from engine.cli.client import Refused as Refused
from engine.cli.client import WorkerClient as WorkerClient
from engine.cli.client import client_for as client_for
from engine.cli.client import path_of as path_of
from engine.cli.commands import COMMANDS as COMMANDS
from engine.cli.commands import command_line as command_line
from engine.cli.console import Failure as Failure
from engine.cli.console import Steps as Steps
from engine.cli.console import echo as echo
from engine.cli.console import echo_json as echo_json
from engine.cli.console import example as example
from engine.cli.console import run_until_interrupted as run_until_interrupted
from engine.cli.console import settings_from as settings_from
from engine.cli.console import steps as steps
from engine.cli.program import Command as Command
from engine.cli.program import Group as Group
from engine.cli.program import Program as Program
from engine.cli.program import SettingOption as SettingOption
from engine.cli.records import HttpRecords as HttpRecords
from engine.cli.waiting import wait_for_token as wait_for_token
from engine.cli.worker import worker_options as worker_options
from engine.faust.worker import run_in_loop as run_in_loop
from engine.faust.worker import serve as serve
from engine.observe.logs import configure_logging as configure_logging
