"""What goes into the service and what comes out of it, with its limits."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from recsys.retrieval.service.batcher import Conditions
from recsys.retrieval.snapshot import Recommendations

Number = Annotated[int, Field(strict=True, ge=-(2**63), le=2**63 - 1)]
Id = Number | Annotated[str, Field(strict=True, max_length=1000)]
RawId = Annotated[int, Field(strict=True)] | Annotated[str, Field(strict=True)]
"""An id that the catalogue has, however long."""
User = Annotated[str, Field(strict=True, min_length=1, max_length=256)]
Ids = Annotated[list[Id], Field(max_length=100_000)]
History = Annotated[list[Id], Field(max_length=10_000)]
Times = Annotated[list[Number], Field(max_length=10_000)]
Length = Annotated[int, Field(strict=True, ge=1, le=1000)]
Flag = Annotated[bool, Field(strict=True)]
Filters = Annotated[str, Field(max_length=2000)]
Model = Annotated[str | None, Field(description="A served model; the first if not given.")]
Value = str | bool | int | float | list[str] | None
_ID: TypeAdapter[Any] = TypeAdapter(Id)
MOST_OF_A_BATCH = 50_000
"""Items that the lists of one batch may hold together: 1,000 lists of 50. A body of 20 kB could
ask for a million, whose answer takes a thread for seconds."""


class Body(BaseModel):
    """Takes the named fields alone."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Asked(Body):
    """What may come back."""

    k: Length = 10
    exclude: Annotated[Ids, Field(description="Items that must not come back.")] = []
    exclude_seen: Annotated[Flag, Field(description="Nor items of the history.")] = True
    allow: Annotated[Ids | None, Field(description="Items that alone may come back.")] = None
    filters: Annotated[Filters | None, Field(description="SQL over the items' columns.")] = None
    diversity: Annotated[float, Field(strict=True, ge=0, le=1)] = 0.0
    score: Literal["product", "probability"] = "product"
    model: Model = None

    def conditions(self) -> Conditions:
        """For the retriever."""
        return Conditions(
            self.k,
            tuple(self.exclude),
            self.exclude_seen,
            None if self.allow is None else tuple(self.allow),
            self.filters,
            self.diversity,
            self.score,
        )


class Question(Asked):
    """A history, oldest first, or a user whose events were reported."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"history": ["B0SMPL0001", "B0SMPL0014"], "k": 5},
                {"user": "u-17", "k": 5, "filters": "count > 3"},
            ],
            "oneOf": [{"required": ["history"]}, {"required": ["user"]}],
        }
    )
    history: History | None = None
    user: User | None = None
    times: Annotated[Times | None, Field(description="One for each item of the history.")] = None
    reasons: Annotated[Flag, Field(description="Say which event stands behind each item.")] = False

    @model_validator(mode="after")
    def _fits(self) -> "Question":
        if (self.history is None) == (self.user is None):
            raise ValueError("give a history or a user")
        if self.user is not None and (self.times is not None or self.reasons):
            raise ValueError("times and reasons go with a history")
        if self.times is not None and len(self.times) != len(self.history or []):
            raise ValueError("times must name one time for each item of the history")
        return self


class Questions(Asked):
    """Several histories under the same conditions."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"histories": [["B0SMPL0001"], ["B0SMPL0014", "B0SMPL0002"]], "k": 3}]
        }
    )
    histories: Annotated[
        list[History],
        Field(max_length=1000, description=f"At most {MOST_OF_A_BATCH:,} items: lists times k."),
    ]
    times: Annotated[list[Times] | None, Field(description="As the histories.")] = None

    @model_validator(mode="after")
    def _fits(self) -> "Questions":
        if len(self.histories) * self.k > MOST_OF_A_BATCH:
            raise ValueError(
                f"a batch asks for at most {MOST_OF_A_BATCH:,} items: lists times k,"
                f" here {len(self.histories):,} x {self.k:,}"
            )
        if self.times is not None and [len(row) for row in self.times] != [
            len(history) for history in self.histories
        ]:
            raise ValueError("times must name one time for each item of each history")
        return self


class Because(BaseModel):
    """The event without which the score falls most."""

    item: RawId
    title: str | None
    gain: float | None


class Item(BaseModel):
    """A recommended item."""

    item: RawId
    title: str | None
    score: float
    because: Because | None = None


class Answer(BaseModel):
    """A list, best first, and what there is to say of it."""

    model: str
    items: list[Item]
    unknown: Annotated[list[Id], Field(description="Ids of the history that are not known.")]
    fallback: Annotated[str | None, Field(description="popularity, for an unknown history.")]
    short: Annotated[str | None, Field(description="Why fewer than k items came back.")]
    model_version: str
    catalogue_version: int
    index_version: str | None


class Answers(BaseModel):
    """A list for each history."""

    lists: list[Answer]


class Event(Body):
    """A user met an item."""

    item: Id
    time: Number | None = None


class Events(Body):
    """What a user did, oldest first."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"user": "u-17", "events": [{"item": "B0SMPL0001"}]}]}
    )
    user: User
    events: Annotated[list[Event], Field(min_length=1, max_length=1000)]
    model: Model = None


class Taken(BaseModel):
    """The state of the user after the events, which are stored."""

    model: str
    model_version: str
    events: int
    unknown: int


class Forgotten(BaseModel):
    """No state of the user is left."""

    forgotten: Literal[True] = True


class ItemFound(BaseModel):
    """An item of the catalogue."""

    item: RawId
    title: str | None
    available: bool
    count: int | None


class ItemsFound(BaseModel):
    """A page of the items found, most frequent first."""

    total: int
    items: list[ItemFound]


class ItemsToUpsert(Body):
    """Items with the columns of text that the model was trained with."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"items": [{"item": "new-1", "title": "Shiny soap"}]}]}
    )
    items: Annotated[list[dict[str, Value]], Field(min_length=1, max_length=10_000)]

    @model_validator(mode="after")
    def _fits(self) -> "ItemsToUpsert":
        for row in self.items:
            try:
                _ID.validate_python(row.get("item", ""))
            except ValidationError:
                raise ValueError(
                    "ids of items must be whole numbers or texts of at most 1,000 characters"
                ) from None
        return self


class ItemIds(Body):
    """Items by id."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"ids": ["B0SMPL0003"]}]})
    ids: Annotated[Ids, Field(min_length=1)]


class Availability(ItemIds):
    """Items that are in stock from now on, or out of it."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"ids": ["B0SMPL0003"], "available": False}]}
    )
    available: Flag


class Changed(BaseModel):
    """What each model made of a change."""

    models: dict[str, dict[str, Any]]
    error: str | None = None


class Which(Body):
    """A served model."""

    model: Model = None


class Reloaded(BaseModel):
    """How taking over a run ended."""

    took_over: bool
    reason: str | None
    model_version: str
    dropped: int
    seconds: float


class Version(BaseModel):
    """What serves."""

    recsys: str
    default: str
    models: dict[str, dict[str, Any]]


class Status(BaseModel):
    """ok, or what is the matter."""

    status: str


class Failure(BaseModel):
    """What was wrong, in one line."""

    error: str


def answer(model: str, found: Recommendations, because: list[Because | None] | None) -> Answer:
    """The body for one list."""
    reasons = because or [None] * len(found.items)
    rows = zip(found.items, found.titles, found.scores, reasons, strict=True)
    return Answer(
        model=model,
        items=[Item(item=i, title=t, score=s, because=b) for i, t, s, b in rows],
        unknown=found.unknown,
        fallback=found.fallback,
        short=found.short,
        model_version=found.model_version,
        catalogue_version=found.catalogue_version,
        index_version=found.index_version,
    )
