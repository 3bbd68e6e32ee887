"""Routes about the service itself, and its page."""

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


@router.get("/", include_in_schema=False)
async def page() -> Response:
    """The page to try the models on."""
    return _file("page.html")


@router.get("/page.css", include_in_schema=False)
async def style() -> Response:
    """How the page looks."""
    return _file("page.css")


@router.get("/page.js", include_in_schema=False)
async def script() -> Response:
    """What the page does."""
    return _file("page.js")


@router.get("/asking.js", include_in_schema=False)
async def asking() -> Response:
    """How the page asks the service."""
    return _file("asking.js")


@router.get("/icon.svg", include_in_schema=False)
async def icon() -> Response:
    """The page's icon."""
    return _file("icon.svg")


def _file(name: str) -> Response:
    return FileResponse(PAGE / name, media_type=FILES[name])
