"""The application: endpoints, errors, the gate in front, and the life of the models behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from jaxpool.log import logger
from jaxpool.server import errors
from jaxpool.server.chat import Chat
from jaxpool.server.fast_path import FastPath
from jaxpool.server.gate import REQUEST_ID, Gate
from jaxpool.server.limits import Limits
from jaxpool.server.pictures import Allowed, Pictures
from jaxpool.server.registry import Models
from jaxpool.server.replies import TRUNCATED
from jaxpool.server.routes import cohere, invocations, operations, page, pairs, tei, texts, tokens
from jaxpool.server.serving import Serving

ROUTERS = tuple(part.router for part in (texts, pairs, tokens, cohere, tei, invocations, operations, page))
# Of an answer's headers, beside those that every page may read.
READABLE = (REQUEST_ID, TRUNCATED, "retry-after")


@dataclass(frozen=True)
class Pages:
    """Which web pages from elsewhere may ask, and how: CORS.

    Attributes:
        origins: theirs; none: no page may.
        methods: that they may use.
        headers: that they may send.
        credentials: whether their cookies come along.
    """

    origins: Sequence[str] = ()
    methods: Sequence[str] = ("*",)
    headers: Sequence[str] = ("*",)
    credentials: bool = False


@dataclass(frozen=True)
class Settings:
    """How a server behaves.

    Attributes:
        keys: of which a request has to bring one; none: no key is asked for.
        limits: on requests, and on what waits.
        chat: how conversations are read.
        pictures: what is taken of them.
        pages: the web pages that may ask.
        root_path: in front of every path, behind a proxy.
        warm: whether every shape is compiled at the start.
    """

    keys: Sequence[str] = ()
    limits: Limits = field(default_factory=Limits)
    chat: Chat = field(default_factory=Chat)
    pictures: Allowed = field(default_factory=Allowed)
    pages: Pages = field(default_factory=Pages)
    root_path: str = ""
    warm: bool = True


def make_app(servings: Sequence[Serving], settings: Settings) -> FastAPI:
    """The ASGI application over models that are loaded.

    Raises:
        ValueError: two models of one name, or `pictures` that are not understood.
        ImportError: URLs of pictures are allowed, and what fetches them is not installed.
    """
    pictures = Pictures(settings.pictures)
    app = FastAPI(
        title="jaxpool",
        version=version("jaxpool"),
        lifespan=_lifespan(servings, pictures, warm=settings.warm),
    )
    app.root_path = settings.root_path
    app.state.models, app.state.chat, app.state.pictures = Models(servings), settings.chat, pictures
    for router in ROUTERS:
        app.include_router(router)
    for kind in (errors.ApiError, RequestValidationError, HTTPException, ValueError, Exception):
        app.add_exception_handler(kind, errors.handle)
    # The last that is added is the first to see a request.
    app.add_middleware(FastPath, routes=[route for router in ROUTERS for route in router.routes])
    paths = frozenset(app.openapi()["paths"])
    app.add_middleware(Gate, keys=settings.keys, body_bytes=settings.limits.body_bytes, paths=paths)
    if settings.pages.origins:  # around the gate: a page is to read its refusals too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.pages.origins,
            allow_methods=settings.pages.methods,
            allow_headers=settings.pages.headers,
            allow_credentials=settings.pages.credentials,
            expose_headers=READABLE,
        )
    return app


def _lifespan(
    servings: Sequence[Serving], pictures: Pictures, *, warm: bool
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.create_task(_warm(servings)) if warm else None
        for serving in servings:
            serving.ready = not warm
        yield
        if warming is not None:
            warming.cancel()
        pictures.close()
        for serving in servings:
            await asyncio.get_running_loop().run_in_executor(None, serving.close)

    return lifespan


async def _warm(servings: Sequence[Serving]) -> None:
    for serving in servings:
        try:
            await serving.warm()
        except Exception:
            logger.exception("%s could not be warmed up", serving.name)
