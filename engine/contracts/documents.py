"""The contract documents of one application, made once and served as they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import msgspec
from aiohttp import web

from engine.contracts.asyncapi import asyncapi
from engine.contracts.openapi import openapi
from engine.declare.service import Service
from engine.partition.engine import Engine


class Document(NamedTuple):
    """A document as it is served; the same code and settings give the same tag."""

    body: bytes
    etag: str


class Documents:
    """Both contracts of an application; each is made when somebody asks for it first."""

    def __init__(self, engine: Engine, services: tuple[Service, ...]) -> None:
        self._engine = engine
        self._services = services

    @cached_property
    def openapi(self) -> Document:
        """What the routes take and answer."""
        return _document(openapi(self._services, self._engine.settings))

    @cached_property
    def asyncapi(self) -> Document:
        """What the topics carry."""
        engine = self._engine
        return _document(asyncapi(self._services, engine.registry, tuple(engine.topics.values()), engine.settings))


DOCUMENTS: web.AppKey[Documents] = web.AppKey("documents", Documents)


def _document(content: Mapping[str, Any]) -> Document:
    body = msgspec.json.encode(content)
    return Document(body, hashlib.sha256(body).hexdigest()[:32])
