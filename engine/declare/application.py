"""The names of an application: those of its command, its environment variables, its contracts, its packages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Final

ENGINE_PACKAGE: Final = "engine"


@dataclass(frozen=True, slots=True)
class Application:
    """What an application is called, wherever the engine speaks of it; a class of Settings carries it.

    Attributes:
        name: its command, such as `sensors`. It also begins the attributes of its spans (`sensors.agent`), the headers
            between its workers (`X-Sensors-Forwarded`) and, in upper case, its environment variables (`SENSORS_`).
        module: the module that has its Faust application, as in `faust -A sensors.app`.
        title: the heading of its documents; by default its name with a capital.
        description: what it is called within a sentence, such as `the order system`; by default its title.
        summary: one line about it in the OpenAPI document.
        distribution: the installed distribution whose version is its release; without one that is 0.
        packages: its own packages, which log at the setting `log_level` as the engine does.
        changes: what anybody may do who reaches a worker without a token, as in `send readings`.
        called: what its agents call, with the setting that has the address, such as (`webhook`, `webhook_url`).
        example_values: what fields of these names (as on the wire) have in the examples of the AsyncAPI document.
        page: the package with a folder `assets` of files for the operator's page; they are added to the engine's, and
            stand in the place of those of the same name.
        foreign_variables: environment variables that begin with its prefix, but are no settings.
    """

    name: str
    module: str = ""
    title: str = ""
    description: str = ""
    summary: str = ""
    distribution: str = ""
    packages: tuple[str, ...] = ()
    changes: str = "change its data"
    called: tuple[tuple[str, str], ...] = ()
    example_values: Mapping[str, Any] = field(default_factory=dict, hash=False)
    page: str = ""
    foreign_variables: frozenset[str] = frozenset()

    @property
    def prefix(self) -> str:
        """The beginning of its environment variables, such as `SENSORS_`."""
        return f"{self.name}_".replace("-", "_").upper()

    def variable(self, setting: str) -> str:
        """The environment variable of a setting, such as `SENSORS_WEB_PORT` for `web_port`."""
        return f"{self.prefix}{setting}".upper()

    def command(self, line: str) -> str:
        """A line of its command in a sentence, such as `sensors doctor` in backticks for `doctor`."""
        return f"`{self.name} {line}`"

    def header(self, name: str) -> str:
        """A header between its workers, such as `X-Sensors-Forwarded` for `Forwarded`."""
        return f"X-{self.name.title()}-{name}"

    @property
    def moving_data(self) -> str:
        """How the data folder gets another place; an empty one would begin without the log and stores of this one."""
        place = self.variable("data_dir")
        return f"move the folder with all that is in it while no worker runs, and set {place} to where it is then"

    @property
    def addresses(self) -> str:
        """The settings that have the addresses of what its agents call, in brackets; empty where none is named."""
        named = ", ".join(f"{what}: {self.variable(setting)}" for what, setting in self.called)
        return f" ({named})" if named else ""

    @property
    def heading(self) -> str:
        """Its title, or its name with a capital."""
        return self.title or self.name.capitalize()

    @property
    def described(self) -> str:
        """What it is called within a sentence."""
        return self.description or self.heading

    @property
    def release(self) -> str:
        """The version of its distribution; 0 without one."""
        return version(self.distribution) if self.distribution else "0"

    @property
    def own_packages(self) -> tuple[str, ...]:
        """The packages whose lines in the log are its own: the engine's and those of the application."""
        return (ENGINE_PACKAGE, *self.packages)


NAMELESS: Final = Application(ENGINE_PACKAGE)
"""Stands for the application where a part of the engine is used by itself."""
