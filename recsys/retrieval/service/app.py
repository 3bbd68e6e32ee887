"""The FastAPI application around a service."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from recsys import __version__
from recsys.errors import InputError, WorkError
from recsys.retrieval.service import about, asking, changing
from recsys.retrieval.service.bodies import Failure
from recsys.retrieval.service.guard import Guard
from recsys.retrieval.service.service import Service

FAILURES: dict[int | str, dict[str, Any]] = {
    400: {"model": Failure, "description": "The body is not JSON"},
    401: {"model": Failure, "description": "No key, or an unknown one"},
    403: {
        "model": Failure,
        "description": "The key, the name that was asked or the page that asks forbids that",
    },
    404: {"model": Failure, "description": "No such model"},
    408: {"model": Failure, "description": "The body did not come in time"},
    409: {"model": Failure, "description": "The run was refused"},
    413: {"model": Failure, "description": "The body is too long"},
    422: {"model": Failure, "description": "What was asked makes no sense"},
    503: {"model": Failure, "description": "Too much to do, or the store of states is away"},
    504: {"model": Failure, "description": "Not answered in time"},
}


def application(service: Service) -> FastAPI:
    """Answers from a service, which it closes when it is shut down."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.watch()
        yield
        service.close()

    # Swagger's page would load its scripts from elsewhere; the description itself is there.
    app = FastAPI(
        title="recsys",
        version=__version__,
        description="Next items for histories and users, by the models that are served.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses=FAILURES,
    )
    app.state.service = service
    for router in (asking.router, changing.router, about.router):
        app.include_router(router)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(InputError, _makes_no_sense)
    app.add_exception_handler(WorkError, _failed)
    app.add_middleware(Guard, service=service)
    if service.keys is None:
        _take_keys_out(app.openapi())
    return app


def _take_keys_out(description: dict[str, Any]) -> None:
    """Off the description of a service that has none; it is made once and kept."""
    description["components"].pop("securitySchemes")
    for methods in description["paths"].values():
        for operation in methods.values():
            operation.pop("security", None)
            operation["responses"].pop("401")


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """The first fault, with its place and without what was sent."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return JSONResponse({"error": "the body is not JSON"}, 400)
    parts = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    message = first["msg"].removeprefix("Value error, ")
    if parts and parts[-1].startswith("constrained-"):  # of the kinds that an id may be of
        parts, message = parts[:-1], "an id is a string of 1,000 signs or a number of 64 bits"
    place = ".".join(parts)
    return _failure(f"{place}: {message}" if place else message, 422)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return _failure(str(error.detail), error.status_code, error.headers)


async def _makes_no_sense(request: Request, error: Exception) -> JSONResponse:
    return _failure(str(error), 422)


async def _failed(request: Request, error: Exception) -> JSONResponse:
    request.scope["recsys_log"] = {"error": str(error)}
    return _failure(str(error), 503, {"retry-after": "1"})


def _failure(message: str, status: int, headers: Any = None) -> JSONResponse:
    """One line of text that is sound, even where it repeats half of a surrogate pair."""
    line = " ".join(message.split())[:1000].encode("utf-8", "replace").decode()
    return JSONResponse({"error": line}, status, headers)
