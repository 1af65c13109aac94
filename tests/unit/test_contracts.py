"""The published contracts: valid documents of all routes and topics, and a snapshot that others rely on."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from click.testing import CliRunner
from openapi_spec_validator import OpenAPIV31SpecValidator

from cli import main
from engine.contracts import snapshot
from engine.contracts.asyncapi import asyncapi
from engine.contracts.events import event_contracts
from engine.contracts.openapi import openapi
from engine.contracts.schemas import resolved
from engine.declare.envelope import Message
from engine.declare.operation import INTERNAL_PREFIX, Operation, Undocumented
from engine.declare.registry import EventRegistry
from engine.declare.service import Route, Service
from engine.declare.topic import Topic
from streams.settings import Settings
from tests.contracts import SNAPSHOT, application, asyncapi_validator, check_message, documents

APP = application()
OPENAPI, ASYNCAPI = documents(APP)
ROUTES = [route for service in APP.services for route in service.routes]


def undocumented(routes: list[Route]) -> list[str]:
    """Routes of which nothing is said, with what to do about it."""
    return [
        f"{route.method} {route.path} ({route.function.__module__}.{route.function.__name__}) is in no contract. "
        "Say what it answers: @service.route(method, path, Operation({200: TypeOfTheAnswer}, parameters=(...), "
        "body=TypeOfTheBody, problems=(404,))), see engine/declare/operation.py; or, when nobody is to rely on it, "
        "Undocumented(reason)"
        for route in routes
        if route.operation is None and not route.path.startswith(INTERNAL_PREFIX)
    ]


# ---- HTTP


def test_every_route_is_in_the_contract_or_says_why_not() -> None:
    assert not undocumented(ROUTES), "\n".join(undocumented(ROUTES))
    for route in ROUTES:
        shown = route.method.lower() in OPENAPI["paths"].get(route.path, {})
        internal = route.path.startswith(INTERNAL_PREFIX) or isinstance(route.operation, Undocumented)
        assert shown is not internal, route.path


def test_a_route_of_which_nothing_is_said_is_noticed() -> None:
    service = Service("test")

    @service.route("GET", "/forgotten/{id}")
    async def forgotten(request: Any) -> Any:
        return None

    (complaint,) = undocumented(service.routes)
    assert complaint.startswith("GET /forgotten/{id} ")


def test_the_http_contract_is_valid_openapi_3_1() -> None:
    assert OPENAPI["openapi"].startswith("3.1.")
    assert [error.message for error in OpenAPIV31SpecValidator(OPENAPI).iter_errors()] == []


@pytest.mark.parametrize(
    ("path", "method"), [(path, method) for path, found in OPENAPI["paths"].items() for method in found]
)
def test_an_operation_is_described_completely(path: str, method: str) -> None:
    operation = OPENAPI["paths"][path][method]
    parameters = operation.get("parameters", [])
    in_path = {parameter["name"] for parameter in parameters if parameter["in"] == "path"}
    assert in_path == set(re.findall(r"\{(\w+)\}", path))
    assert max(Counter((found["in"], found["name"]) for found in parameters).values(), default=1) == 1
    assert operation["summary"]
    assert len(operation["description"]) >= len(operation["summary"])
    assert {"500", "503"} <= operation["responses"].keys()
    assert any(status.startswith("2") for status in operation["responses"])
    if any(found["in"] != "path" for found in parameters) or "requestBody" in operation:
        assert "422" in operation["responses"]
    if method != "get":
        assert "401" in operation["responses"]


def test_operation_ids_are_unique() -> None:
    ids = [operation["operationId"] for found in OPENAPI["paths"].values() for operation in found.values()]
    assert len(ids) == len(set(ids))


def test_no_component_goes_unused() -> None:
    used = set(re.findall(r"#/components/(\w+/[^\"]+)", repr(OPENAPI).replace("'", '"')))
    there = {f"{kind}/{name}" for kind in ("schemas", "responses") for name in OPENAPI["components"][kind]}
    assert used == there


@pytest.mark.parametrize("api_token", ["", "secret"])
def test_only_changing_requests_need_the_token_and_only_where_there_is_one(api_token: str) -> None:
    document = openapi(APP.services, Settings(_env_file=None, api_token=api_token))
    for operations in document["paths"].values():
        for method, operation in operations.items():
            needs: Any = [{"bearer": []}] if api_token and method != "get" else None
            assert operation.get("security") == needs
    assert api_token == "" or api_token not in repr(document)


@pytest.mark.parametrize(
    ("path", "method", "names"),
    [
        ("/orders/{order_id}", "get", {"order_id", "after", "timeout"}),
        (
            "/customers/{customer_id}/orders",
            "get",
            {"customer_id", "status", "from", "to", "limit", "cursor", "after", "timeout"},
        ),
        ("/orders", "post", {"wait", "Idempotency-Key", "X-Correlation-Id"}),
    ],
)
def test_parameters_come_from_the_route_and_what_decorates_it(path: str, method: str, names: set[str]) -> None:
    assert {found["name"] for found in OPENAPI["paths"][path][method]["parameters"]} == names


def test_schemas_are_those_of_the_code() -> None:
    schemas = OPENAPI["components"]["schemas"]
    order = resolved(schemas["OrderView"], schemas)
    assert order["properties"]["status"]["enum"] == ["pending", "confirmed", "cancelled", "rejected"]
    assert order["properties"]["items"]["items"]["properties"]["price"]["properties"]["amount"] == {
        "type": "string", "pattern": r"^-?[0-9]+(\.[0-9]+)?$",
    }  # fmt: skip
    assert schemas["PlaceOrderBody"]["required"] == ["customer_id", "items"]
    assert schemas["RetryManyBody"]["additionalProperties"] is False


def test_routes_are_declared_with_operations_that_say_what_is_answered() -> None:
    operations = [route.operation for route in ROUTES if isinstance(route.operation, Operation)]
    assert len(operations) > 35
    assert all(operation.answers for operation in operations)


# ---- topics


def test_the_contract_of_the_topics_is_valid_asyncapi_3_0() -> None:
    assert ASYNCAPI["asyncapi"] == "3.0.0"
    assert [f"{error.json_path}: {error.message}" for error in asyncapi_validator().iter_errors(ASYNCAPI)] == []


def test_every_reference_leads_somewhere() -> None:
    for document in (OPENAPI, ASYNCAPI):
        for reference in set(re.findall(r"'\$ref': '#/([^']+)'", repr(document))):
            place = document
            for part in reference.split("/"):
                place = place[part]


def test_every_topic_and_every_type_is_in_the_contract() -> None:
    assert ASYNCAPI["channels"].keys() == APP.engine.topics.keys()
    carried = {name for channel in ASYNCAPI["channels"].values() for name in channel["messages"]}
    missing = APP.engine.registry.classes.keys() - carried
    assert not missing, f"in no topic's contract: {missing}; name them in `carries` of their Topic"
    assert carried == {*APP.engine.registry.classes, "dead-letter"}
    assert all(channel["messages"] for channel in ASYNCAPI["channels"].values())


def test_every_agent_receives_from_its_topic_and_every_service_sends_to_what_it_writes() -> None:
    operations = ASYNCAPI["operations"]
    for agent, topic in APP.engine.agents.items():
        assert operations[f"{agent}.receive"]["channel"] == {"$ref": f"#/channels/{topic.name}"}
    sent = {operation["channel"]["$ref"] for operation in operations.values() if operation["action"] == "send"}
    assert "#/channels/order-events" in sent


@pytest.mark.parametrize(
    ("channel", "name"),
    [(channel, name) for channel, found in ASYNCAPI["channels"].items() for name in found["messages"]],
)
def test_examples_are_what_the_application_reads_and_writes(channel: str, name: str) -> None:
    message = ASYNCAPI["channels"][channel]["messages"][name]
    assert message.get("examples") or name == "dead-letter"
    for example in message.get("examples", []):
        check_message(ASYNCAPI, message, example["payload"], example.get("headers", {}))
        if channel != "integration-events":
            decoded = APP.engine.registry.decode(msgspec.json.encode(example["payload"]))
            assert decoded.event_type == name


def test_types_of_any_shape_have_a_contract() -> None:
    class Odd(Message, frozen=True):
        event_type = "odd.happened"
        schema_version = 3
        aggregate_type = "Odd"

        thing_id: str
        status: int
        share: float
        flags: dict[str, bool]
        pairs: list[tuple[int, str]]
        short: Annotated[str, msgspec.Meta(max_length=2)]
        code: Annotated[str, msgspec.Meta(pattern="^[A-Z]+$")]

    registry, topic = EventRegistry([Odd]), Topic("odd", "odd things", carries=(Odd,))
    document = asyncapi([], registry, [topic], Settings(_env_file=None))
    assert [error.message for error in asyncapi_validator().iter_errors(document)] == []
    assert "odd.happened" in document["channels"]["odd"]["messages"]
    assert event_contracts(registry, [topic])["odd.happened/3"].topics == {"odd": "aggregate id"}


# ---- the snapshot


def test_nothing_has_changed_that_others_rely_on() -> None:
    registry = APP.engine.registry
    now = event_contracts(registry, tuple(APP.engine.topics.values()))
    found = snapshot.compare(snapshot.read(SNAPSHOT), now, registry.reads)
    assert not found.breaks, (
        "this breaks others; give the type a new schema_version and register an upcaster (EventRegistry.upcaster), or "
        "take it back (for integration events, which have no versions: publish another type):\n"
        + "\n".join(found.breaks)
    )
    assert not found.differs, (
        "the contracts have changed compatibly: run `orders contracts --write` and commit the file"
    )


def test_the_command_tells_what_breaks_and_what_is_only_new(tmp_path: Path) -> None:
    file = tmp_path / "events.json"

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["contracts", *arguments, str(file)])
        return result.exit_code, result.output

    assert run("--write") == (0, f"{file}: {len(snapshot.read(file))} contracts\n")
    assert run() == (0, "Nothing has changed.\n")
    known = snapshot.read(file)
    snapshot.write(file, {name: found for name, found in known.items() if name != "order.placed/1"})
    status, output = run()
    assert (status, "is not up to date, though nothing breaks" in output) == (1, True)
    assert run("--write")[0] == 0
    assert snapshot.read(file) == known

    gone = msgspec.structs.replace(known["order.placed/1"], version=None)
    snapshot.write(file, known | {"order.forgotten": gone})
    for arguments in ((), ("--write",)):
        status, output = run(*arguments)
        assert (status, "order.forgotten: is gone" in output, "schema_version" in output) == (1, True, True)
    assert run("--write", "--even-if-it-breaks")[0] == 0
    assert snapshot.read(file) == known


def test_the_snapshot_holds_every_contract() -> None:
    assert snapshot.read(SNAPSHOT).keys() >= {"envelope", "dead-letter", "order.place/1", "integration/order.placed"}
