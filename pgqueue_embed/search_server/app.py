"""The doors over HTTP: /search, /v1/embeddings, /v1/models, /health, /mcp."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pgqueue_embed.errors import NotFound
from pgqueue_embed.search_server.assistants import McpDoor, assistant_server
from pgqueue_embed.search_server.bodies import SEARCH_FIELDS, JsonResponse, json_object, search_of
from pgqueue_embed.search_server.embeddings import (
    EMBEDDING_FIELDS,
    embedding_answer,
    embedding_request,
    model_answer,
)
from pgqueue_embed.search_server.encoders import WarmEncoders
from pgqueue_embed.search_server.faults import told
from pgqueue_embed.search_server.overload import RequestLimit
from pgqueue_embed.search_server.service import SearchService
from pgqueue_embed.vector_search.hit_json import hit_json
from pgqueue_embed.vector_search.warm_query import VECTOR_FIELDS, VECTOR_PATH
from pgqueue_embed.version import VERSION
from pgqueue_embed.web_server.answers import App, error_body
from pgqueue_embed.web_server.guard import DISCONNECT

HEALTH = "/health"

# Whoever asks for it has less patience than a client whose search waits for a session.
HEALTH_SECONDS = 5.0

# For the log: the client has left.
CLIENT_LEFT = 499

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def make_search_app(conninfo: str, encoders: WarmEncoders, names: Sequence[str] = ()) -> App:
    """Return the application over the pipelines called `names`, or all, their models loaded.

    Raises PgembedError where there is no database, or a pipeline that was named has no model here.
    """
    service = SearchService(conninfo, encoders, names)
    service.warm(encoders)
    mcp = McpDoor(assistant_server(service))

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with mcp.running():
            yield
        service.close()
        encoders.close()

    doors = _Doors(service, encoders)
    routes = [
        Route("/search", _answering(doors.search), methods=["POST"]),
        Route("/v1/embeddings", _answering(doors.embeddings), methods=["POST"]),
        Route("/v1/models", _answering(doors.models), methods=["GET"]),
        Route(HEALTH, _answering(doors.health), methods=["GET"]),
        Route(VECTOR_PATH, _answering(doors.vector), methods=["POST"]),
        Route("/mcp", mcp, methods=["POST"]),
    ]
    app: Any = Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={404: _no_such_path, 405: _no_such_path},
    )
    return RequestLimit(app, open_paths=[HEALTH])


class _Doors:
    """One method for each path."""

    def __init__(self, service: SearchService, encoders: WarmEncoders) -> None:
        self._service = service
        self._encoders = encoders

    async def search(self, request: Request) -> Response:
        search = search_of(json_object(await request.body(), SEARCH_FIELDS))
        hits = await self._service.find(search)
        return JsonResponse({"hits": [hit_json(hit, search.request) for hit in hits]})

    async def embeddings(self, request: Request) -> Response:
        asked = embedding_request(json_object(await request.body(), EMBEDDING_FIELDS))
        pipeline = await self._service.of_model(asked.model)
        asked.check(pipeline)
        encoded = await self._service.encode(pipeline, asked.texts)
        return JsonResponse(embedding_answer(asked, encoded))

    async def models(self, _request: Request) -> Response:
        pipelines = await self._service.pipelines()
        return JsonResponse({"object": "list", "data": [model_answer(each) for each in pipelines]})

    async def health(self, _request: Request) -> Response:
        """Say whether the database answers; nothing else, since anybody may ask."""
        try:
            await asyncio.wait_for(self._service.pipelines(), HEALTH_SECONDS)
        except asyncio.TimeoutError:
            return JsonResponse({"status": "the database does not answer in time"}, 503)
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing can be searched
            answer = told(error)
            return JsonResponse({"status": "the database cannot be read"}, 503, answer.headers)
        return JsonResponse({"status": "ok", "version": VERSION})

    async def vector(self, request: Request) -> Response:
        """Answer `pgembed search` of this machine, through the Unix socket alone."""
        if request.client is not None:
            return _no_such_path(request, None)
        given = json_object(await request.body(), VECTOR_FIELDS)
        encoded = await self._encoders.encode_if_loaded(**given)
        if encoded is None:
            raise NotFound("no such model is loaded here")
        vector = base64.b64encode(encoded.vectors[0].astype("<f4").tobytes()).decode()
        return JsonResponse({"vector": vector, "unknown_share": encoded.unknown_share})


def _answering(handler: Handler) -> Handler:
    async def answer(request: Request) -> Response:
        try:
            await request.body()  # it is kept, and what comes after it is that the client leaves
            return await _unless_left(request, handler(request))
        except Exception as error:  # noqa: BLE001 - each has its status
            says = told(error)
            return JsonResponse(error_body(says.status, says.message), says.status, says.headers)

    return answer


async def _unless_left(request: Request, answering: Coroutine[Any, Any, Response]) -> Response:
    """Return the answer; once its client has left, what is left to do for it is not done."""
    own = asyncio.current_task()
    is_over = False

    def stop(_left: asyncio.Task[None]) -> None:
        if own is not None and not is_over:
            own.cancel()

    left = asyncio.ensure_future(_left(request))
    left.add_done_callback(stop)
    try:
        return await answering
    except asyncio.CancelledError:
        if left.done():
            return Response(status_code=CLIENT_LEFT)
        raise
    finally:
        is_over = True
        left.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != DISCONNECT:
        pass


def _no_such_path(request: Request, error: Any) -> Response:
    status = getattr(error, "status_code", 404)
    message = (
        f"{request.method} {request.url.path} is nothing here; there are POST /search,"
        " POST /v1/embeddings, GET /v1/models, GET /health, POST /mcp"
    )
    return JsonResponse(error_body(status, message), status)
