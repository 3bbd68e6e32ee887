"""What the routes of the service stand on: the service, and who may ask."""

from typing import Annotated, cast

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from recsys.retrieval.service.keys import Role
from recsys.retrieval.service.service import Served, Service

bearer = HTTPBearer(auto_error=False, description="An API key, where the service has keys.")
Given = Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]


async def service_of(request: Request) -> Service:
    """The service that a request came to; async, as FastAPI calls others in a thread."""
    return cast(Service, request.app.state.service)


Here = Annotated[Service, Depends(service_of)]


async def reads(service: Here, given: Given) -> None:
    """Any key will do."""
    _allow("read", service, given)


async def administers(service: Here, given: Given) -> None:
    """Takes a key of an administrator."""
    _allow("admin", service, given)


def served(service: Service, name: str | None) -> Served:
    """The model of a name, the default without one; 404 for another name."""
    if name is None:
        return service.default
    if name not in service.models:
        known = ", ".join(service.models)
        raise HTTPException(404, f"no such model is served, but {known}")
    return service.models[name]


def _allow(wanted: Role, service: Service, given: HTTPAuthorizationCredentials | None) -> None:
    if service.keys is None:
        return
    role = service.keys.role(given.credentials if given else None)
    if role is None:
        raise HTTPException(401, "an API key is needed", {"www-authenticate": "Bearer"})
    if wanted == "admin" and role != "admin":
        raise HTTPException(403, "that takes a key of the role admin")
