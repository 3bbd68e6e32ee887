"""Routes that change: events of users, the catalogue, the models that serve."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

import pyarrow as pa
from fastapi import APIRouter, Depends, Path, Response
from fastapi.responses import JSONResponse

from recsys.errors import InputError
from recsys.retrieval.retriever import Retriever
from recsys.retrieval.service import bodies
from recsys.retrieval.service.access import Here, administers, reads, served
from recsys.retrieval.service.service import Service

router = APIRouter()
reading = [Depends(reads)]
administering = [Depends(administers)]


@router.post("/events", dependencies=reading)
async def events(reported: bodies.Events, service: Here) -> bodies.Taken:
    """Take what a user did into the user's state; the answer says that it is stored."""
    model = served(service, reported.model)
    steps = [(event.item, event.time) for event in reported.events]
    state = await service.with_states(lambda: service.take(model, reported.user, steps))
    return bodies.Taken(
        model=model.name,
        model_version=state.fingerprint[:12],
        events=state.events,
        unknown=state.unknown,
    )


@router.delete("/users/{user:path}", dependencies=administering)
async def forget(
    user: Annotated[str, Path(min_length=1, max_length=256, examples=["u-17"])], service: Here
) -> bodies.Forgotten:
    """Forget the user's states in every model."""
    await service.with_states(lambda: service.store.remove(user))
    return bodies.Forgotten()


@router.post("/items", dependencies=administering, response_model=bodies.Changed)
async def upsert(given: bodies.ItemsToUpsert, service: Here) -> Response:
    """Serve new items by their text, and known ones by other words."""
    columns = list(given.items[0])
    if any(row.keys() != set(columns) for row in given.items):
        raise InputError("all items of one request name the same columns")
    try:
        table = pa.Table.from_pylist(given.items)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise InputError(f"items disagree on a column: {error}") from None
    except UnicodeEncodeError as error:
        raise InputError(f"items hold what is no text: {error}") from None
    return await _change(service, "upsert", lambda r: {"new": r.upsert_items(table)})


@router.post("/items/remove", dependencies=administering, response_model=bodies.Changed)
async def remove(which: bodies.ItemIds, service: Here) -> Response:
    """Recommend these items no more."""
    return await _change(service, "remove", lambda r: {"known": r.remove_items(which.ids)})


@router.post("/items/availability", dependencies=administering, response_model=bodies.Changed)
async def availability(which: bodies.Availability, service: Here) -> Response:
    """Recommend these items, or not for now."""
    return await _change(
        service,
        "availability",
        lambda r: {"known": r.set_availability(which.ids, which.available)},
    )


@router.post("/items/compact", dependencies=administering, response_model=bodies.Changed)
async def compact(service: Here) -> Response:
    """Shorten the journals and build the indexes anew."""

    def compacted(retriever: Retriever) -> dict[str, Any]:
        retriever.compact()
        return {}

    return await _change(service, "compact", compacted)


@router.post("/reload", dependencies=administering, response_model=bodies.Reloaded)
async def reload(which: bodies.Which, service: Here) -> Response:
    """Take over the run that lies in the model's place now; 409 where it is refused."""
    model = served(service, which.model)
    result = await service.in_thread(lambda: service.reload(model))
    body = {name: value for name, value in asdict(result).items() if name != "run"}
    if not result.took_over:
        body["error"] = f"refused: {result.reason}"
    return JSONResponse(body, 200 if result.took_over else 409)


async def _change(
    service: Service, what: str, change: Callable[[Retriever], dict[str, Any]]
) -> Response:
    """A change of every model's catalogue, as an answer."""
    results, refused = await service.change(what, change)
    body = {"models": results} if refused is None else {"models": results, "error": refused}
    return JSONResponse(body, 200 if refused is None else 422)
