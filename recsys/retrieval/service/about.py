"""Routes about the service itself, and its page."""

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter, Depends, Response
from fastapi.responses import FileResponse, JSONResponse

from recsys import __version__
from recsys.retrieval.service import bodies
from recsys.retrieval.service.access import Here, reads

router = APIRouter()
PAGE = Path(__file__).parent / "page"
FILES = {
    "page.html": "text/html",
    "page.css": "text/css",
    "page.js": "text/javascript",
    "asking.js": "text/javascript",
    "elements.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
"""Of the page, with their types: the system's own table of types may say something else."""


@router.get("/healthz")
async def healthz() -> bodies.Status:
    """The process lives."""
    return bodies.Status(status="ok")


@router.get("/readyz", response_model=bodies.Status, responses={503: {"model": bodies.Status}})
async def readyz(service: Here) -> Response:
    """Whether requests should be sent here."""
    if service.stopping:
        return JSONResponse({"status": "stopping"}, 503)
    return JSONResponse({"status": "ok"})


@router.get("/version", dependencies=[Depends(reads)])
async def version(service: Here) -> bodies.Version:
    """What serves."""
    return bodies.Version(
        recsys=__version__, default=service.default.name, models=service.versions()
    )


@router.get("/metrics", dependencies=[Depends(reads)], response_class=Response)
async def metrics(service: Here) -> Response:
    """For Prometheus."""
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


def _serves(name: str) -> Callable[[], Awaitable[Response]]:
    async def file() -> Response:
        return FileResponse(PAGE / name, media_type=FILES[name])

    return file


for name in FILES:
    place = "/" if name == "page.html" else f"/{name}"
    router.add_api_route(place, _serves(name), name=name, include_in_schema=False)
