"""Routes that ask: for recommendations, similar items and the catalogue."""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from recsys.errors import InputError
from recsys.retrieval.service import bodies
from recsys.retrieval.service.access import Here, reads, served
from recsys.retrieval.service.service import Served, Service
from recsys.retrieval.snapshot import Recommendations

router = APIRouter(dependencies=[Depends(reads)])
Words = Annotated[str, Query(max_length=200)]
K = Annotated[int, Query(ge=1, le=1000)]
Name = Annotated[str | None, Query(description="A served model; the first if not given.")]


@router.post("/recommend")
async def recommend(question: bodies.Question, request: Request, service: Here) -> bodies.Answer:
    """The k best items after a history, or for a user whose events were reported."""
    model = served(service, question.model)
    because = None
    if question.user is not None:
        user, conditions = question.user, question.conditions()
        found = await service.with_states(lambda: service.recommend_to(model, user, conditions))
    elif question.reasons:
        found, because = await _with_reasons(service, model, question)
    else:
        found = await _of_history(model, question)
    service.metrics.list(model.name, found)
    _log(request, service, question.user, model=model.name, items=len(found.items))
    return bodies.answer(model.name, found, because)


@router.post("/recommend/batch", response_model=bodies.Answers)
async def recommend_batch(questions: bodies.Questions, request: Request, service: Here) -> Response:
    """A list for each of several histories."""
    model = served(service, questions.model)
    found, body = await service.in_thread(partial(_lists, model, questions))
    for one in found:
        service.metrics.list(model.name, one)
    _log(request, service, None, model=model.name, lists=len(found))
    return Response(body, media_type="application/json")


@router.get("/similar")
async def similar(
    item: Annotated[str, Query(max_length=1000, examples=["B0SMPL0001"])],
    service: Here,
    k: K = 10,
    filters: Annotated[str | None, Query(max_length=2000)] = None,
    model: Name = None,
) -> bodies.Answer:
    """The items with the most similar vectors; scores are cosines."""
    asked = served(service, model)
    retriever = asked.retriever
    found = await service.in_thread(
        lambda: retriever.similar_items(retriever.vocab.parse(item), k, filters=filters)
    )
    return bodies.answer(asked.name, found, None)


@router.get("/items")
async def items(
    service: Here,
    search: Words = "",
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
    model: Name = None,
) -> bodies.ItemsFound:
    """Items whose title or id holds all the words, most frequent first."""
    retriever = served(service, model).retriever
    found = await service.in_thread(lambda: retriever.find_items(search, limit, offset))
    return bodies.ItemsFound(
        total=found.total,
        items=[
            bodies.ItemFound(item=i.item, title=i.title, available=i.available, count=i.count)
            for i in found.items
        ],
    )


def _lists(model: Served, questions: bodies.Questions) -> tuple[list[Recommendations], str]:
    """The lists for several histories, and the body of the answer.

    The body is written here, in the thread, as FastAPI would write it: on the event loop the
    50,000 items that it may hold would keep all other requests waiting.
    """
    found = model.retriever.recommend_batch(
        questions.histories, times=questions.times, **questions.conditions().as_arguments()
    )
    answers = bodies.Answers(lists=[bodies.answer(model.name, one, None) for one in found])
    return found, answers.model_dump_json()


async def _of_history(model: Served, question: bodies.Question) -> Recommendations:
    """The list for a history."""
    history = question.history or []
    return await model.batcher.ask(history, question.times, question.conditions())


async def _with_reasons(
    service: Service, model: Served, question: bodies.Question
) -> tuple[Recommendations, list[bodies.Because | None]]:
    """The list for a history, and the event behind each item; asked anew where another model took
    over between the two."""
    history = question.history or []
    while True:
        found = await _of_history(model, question)
        explain = partial(model.retriever.reasons, history, found.items, times=question.times)
        try:
            reasons = await service.in_thread(explain)
        except InputError:
            if model.retriever.fingerprint.startswith(found.model_version):
                raise
            continue
        if not model.retriever.fingerprint.startswith(found.model_version):
            continue  # it may know all items of the list, and explained another model's scores
        return found, [
            None
            if reason is None
            else bodies.Because(item=reason.item, title=reason.title, gain=reason.gain)
            for reason in reasons
        ]


def _log(request: Request, service: Service, user: str | None, **fields: Any) -> None:
    """Fields for the line that the request leaves in the log."""
    if user is not None and service.config.log_users:
        fields["user"] = user
    request.scope["recsys_log"] = fields
