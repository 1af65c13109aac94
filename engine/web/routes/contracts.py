"""The published contracts: what the routes take and answer, and what the topics carry."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp import ETag, web

from engine.contracts.documents import DOCUMENTS, Document, Documents
from engine.declare.operation import Answer, Header, Operation, Parameter
from engine.declare.service import Service

ETAG = Header("ETag", "the same for the same document")
IF_NONE_MATCH = Parameter("If-None-Match", "the `ETag` of a document that is known already", where="header")

service = Service("contracts")


def _document_operation() -> Operation:
    answers = {200: Answer(dict[str, Any], (ETAG,)), 304: Answer(headers=(ETAG,), media_type=None)}
    return Operation(answers, (IF_NONE_MATCH,))


@service.route("GET", "/openapi.json", _document_operation())
async def get_openapi(request: web.Request) -> web.StreamResponse:
    """The contract of the routes, OpenAPI 3.1; 304 when the document is known already."""
    return await _answer(request, lambda documents: documents.openapi)


@service.route("GET", "/asyncapi.json", _document_operation())
async def get_asyncapi(request: web.Request) -> web.StreamResponse:
    """The contract of the topics, AsyncAPI 3.0; 304 when the document is known already."""
    return await _answer(request, lambda documents: documents.asyncapi)


async def _answer(request: web.Request, choose: Callable[[Documents], Document]) -> web.Response:
    # Making one takes about 0.1 s, for which the loop must not stand still.
    document = await asyncio.to_thread(choose, request.app[DOCUMENTS])
    known = request.if_none_match or ()
    if any(tag.value in (document.etag, "*") for tag in known):
        answer = web.Response(status=304)
    else:
        answer = web.Response(body=document.body, content_type="application/json")
    answer.etag = ETag(document.etag)
    answer.headers["Cache-Control"] = "no-cache"  # kept, but asked for anew each time
    return answer
