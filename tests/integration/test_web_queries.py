"""Queries: any worker answers for any partition, and workers of two releases never show less than there is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import msgspec
import pytest
from aiohttp import web

from engine.declare.partition import Query
from engine.declare.service import Service
from engine.faust.app import EngineApp, create_app, engine_services
from engine.faust.assignor import NumberAssignor
from engine.partition.engine import Engine
from engine.partition.task import PartitionTask
from engine.web.answers import Problem, json_response
from engine.web.routes.queries import ask_all
from streams.app import shop_services
from tests.apps import make_settings, running, wait_until
from tests.integration.web import check_problem, check_unavailable, client_of, find

TOKEN = "a-secret-of-two-workers"


class Asked(msgspec.Struct, frozen=True):
    """What `parts` is asked."""

    word: str


class Part(msgspec.Struct, frozen=True):
    """What a partition says."""

    worker: str
    partition: int
    word: str


class OtherPart(msgspec.Struct, frozen=True):
    """The same in another release."""

    number: int


def asking(answer: type[Any] = Part, asked: type[Any] = Asked) -> Service:
    """A service with queries, and routes that ask them in all partitions."""
    service = Service("asking")

    async def said(engine: Engine, task: PartitionTask, question: Any) -> Any:
        if getattr(question, "word", "") == "refuse":
            raise Problem(409, "not this word", reason="refused", word="refuse")
        if answer is OtherPart:
            return OtherPart(task.number)
        return Part(engine.settings.public_url, task.number, question.word)

    said.__annotations__ = {"question": asked, "return": answer}
    parts: Query[Any, Any] = service.query("parts")(said)
    change: Query[Any, Any] = service.query("change", changes=True)(said)

    @service.route("GET", "/parts/{word}")
    async def get_parts(request: web.Request) -> web.StreamResponse:
        return json_response(await ask_all(request, parts, Asked(request.match_info["word"])))

    @service.route("POST", "/parts/{word}")
    async def change_parts(request: web.Request) -> web.StreamResponse:
        return json_response(await ask_all(request, change, Asked(request.match_info["word"])))

    return service


@asynccontextmanager
async def two_workers(tmp_path: Path, other: Service | None) -> AsyncIterator[httpx.AsyncClient]:
    """Run two workers, one with partition 0 and one with partition 1; gives a client of the first.

    The second has the services of the first, but for the `other` one, if any.
    """
    settings = [make_settings("memory://", tmp_path / str(index), partitions=2, api_token=TOKEN) for index in range(2)]
    theirs = [*engine_services()] if other is None else [*engine_services(), other]
    async with (
        running(settings[0], [*engine_services(), asking()]) as one,
        running(settings[1], theirs) as two,
        client_of(one) as client,
    ):
        for app, number, peer in ((one, 0, two), (two, 1, one)):
            await app.engine.revoked()
            app.consumer_generation_id += 1
            await app.engine.assigned({number}, app.consumer_generation_id)
            urls: Any = {peer.engine.settings.public_url: {"dead-letter-commands": [1 - number]}}
            cast(NumberAssignor, app.assignor).external_topic_distribution = urls
            await wait_until(app.engine.is_ready, "its partition is restored")
        yield client


async def test_all_partitions_answer_in_the_order_of_their_numbers_wherever_they_are(tmp_path: Path) -> None:
    async with two_workers(tmp_path, asking()) as client:
        one, two = await find(client, "/parts/ä%20%26%2F")
        assert (one["partition"], two["partition"]) == (0, 1)
        assert one["word"] == two["word"] == "ä &/"
        assert one["worker"] != two["worker"]


async def test_a_problem_of_the_query_is_the_same_from_another_worker(tmp_path: Path) -> None:
    async with two_workers(tmp_path, asking()) as client:
        problem = check_problem(await client.get("/parts/refuse"), 409)
        assert (problem["detail"], problem["reason"], problem["word"]) == ("not this word", "refused", "refuse")


async def test_a_query_that_changes_something_takes_the_clients_token_along(tmp_path: Path) -> None:
    async with two_workers(tmp_path, asking()) as client:
        check_problem(await client.post("/parts/word"), 401)
        answer = await client.post("/parts/word", headers={"Authorization": f"Bearer {TOKEN}"})
        assert [part["partition"] for part in answer.json()] == [0, 1]
        check_problem(await client.get("/internal/queries/change/0", params={"asked": '{"word": "x"}'}), 404)
        check_problem(await client.post("/internal/queries/change/0", params={"asked": '{"word": "x"}'}), 401)


@pytest.mark.parametrize(
    "other",
    [None, asking(answer=OtherPart), asking(asked=OtherPart)],
    ids=["no such query", "another answer", "another question"],
)
async def test_nothing_is_left_out_where_a_worker_of_another_release_cannot_answer(
    tmp_path: Path, other: Service | None
) -> None:
    async with two_workers(tmp_path, other) as client:
        problem = check_unavailable(await client.get("/parts/word"))
        assert problem["detail"] == "partition 1 is at a worker of another version; try again"


@pytest.mark.parametrize("path", ["/internal/tables/orders/0?limit=20", "/internal/tables/orders/0/o-1", "/nothing"])
async def test_what_a_worker_of_another_release_asks_for_is_unavailable_rather_than_missing(
    tmp_path: Path, path: str
) -> None:
    """Workers of the release before queries take 404 for "there is no such row", and pages that end."""
    async with running(make_settings("memory://", tmp_path), engine_services()) as app, client_of(app) as client:
        check_unavailable(await client.get(path, headers={"X-Orders-Forwarded": "1"}))
        check_problem(await client.get(path), 404)


# ---- declarations


@pytest.mark.parametrize(
    "query", [query for service in shop_services() for query in service.queries], ids=lambda query: query.name
)
def test_question_and_answer_of_every_query_can_go_between_workers(query: Query[Any, Any]) -> None:
    for decode in (query.decode_asked, query.decode_answer):
        with pytest.raises(msgspec.DecodeError):
            decode(b"no JSON")


def test_two_queries_of_the_same_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two services declare a query parts"):
        create_app(make_settings("memory://", tmp_path), [asking(), asking()])


def test_an_application_knows_its_queries(tmp_path: Path) -> None:
    app: EngineApp = create_app(make_settings("memory://", tmp_path), [asking()])
    assert set(app.queries) == {"parts", "change"}
