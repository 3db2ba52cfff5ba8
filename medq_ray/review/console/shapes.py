"""What comes in and goes out as JSON. An item as the page sees it is made here, name by name, out of what the store
holds: nothing goes out that is not named, so no path does."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from medq_ray.model.prompts import parse_letter
from medq_ray.questions import DEGRADATION_NAMES, closing, finding, opening
from medq_ray.questions.findings import read_findings
from medq_ray.review.queue import LONGEST, Lease
from medq_ray.schema import DEGRADATIONS, GRADES, SEVERITIES

Text = Annotated[str, Field(max_length=LONGEST)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    seconds: float = Field(ge=0, allow_inf_nan=False)
    """Active time since the item was shown."""
    taken_at: float | None = Field(None, allow_inf_nan=False)
    """Of the lease, as it came with the item. What waited in a browser may reach another store that has taken the
    address since, whose lease of that number is another."""


class VerdictBody(Body):
    action: Literal["accept", "edit", "reject"]
    after: Text = ""
    """The label that an edit makes."""
    reason: Text = ""
    """Of a rejection."""


class ReasonBody(Body):
    reason: Text


class FlagBody(ReasonBody):
    colleague: Text | None = None
    """Whose opinion is asked for (`/api/colleagues`), null for anybody's."""


class Question(BaseModel):
    text: str
    kind: str
    modality: str
    options: list[str]


class Found(BaseModel):
    degradations: list[str]
    severity: str
    grade: str


class Fields(BaseModel):
    """The sentences that a description is made of, so that the wording has one home."""

    opening: str
    clean: str
    findings: dict[str, dict[str, str]]
    """Degradation -> severity -> sentence."""
    names: dict[str, str]
    """Degradation -> in words."""
    closings: dict[str, str]
    """Grade -> sentence."""
    severities: list[str]
    found: Found | None
    """What the label put forward says, None where its words leave a doubt."""


class Facts(BaseModel):
    """Why this item is here. Numbers are null where nobody computed them."""

    modality: str
    capability: str
    strategy: str
    prototype: int | None
    similarity: float | None
    entropy: float | None
    agreement: float | None
    route: str
    audit: bool
    labelled_by: str
    simulated: bool


class About(BaseModel):
    """What there is to know of one image: never whose it is, when it was made, or where it lies."""

    source: str
    licence: str
    width: int | None
    height: int | None
    """Pixels that are shown; null where the picture cannot be read."""
    bits: int
    """Of a grey level of the original."""
    spacing: tuple[float, float] | None
    """Millimetres between rows and between columns, null where nobody knows."""
    deep: bool
    """Whether `depth` has all bits."""


class Failure(BaseModel):
    text: str
    expected: str
    given: str


class Note(BaseModel):
    reviewer: str
    colleague: str | None
    """Whom they ask, null for anybody."""
    reason: str


class Read(BaseModel):
    reviewer: str
    action: str
    after: str
    reason: str


class Item(BaseModel):
    token: int
    """The lease: goes with everything that is sent about the item."""
    item_id: int
    stage: Literal["read", "adjudicate"]
    taken_at: float
    """The lease's begin in seconds since 1970; with the token it is like no other, in any store."""
    until: float
    """The lease's end in seconds since 1970, if nothing is heard."""
    images: int
    """How many: one, or the two of a comparison."""
    about: list[About]
    """The images, in their order; none in a store that was filled before there was this."""
    question: Question
    before: str
    """The label put forward."""
    choice: int | None
    """The option that `before` names, null where it names none."""
    fields: Fields | None
    """Of a description."""
    facts: Facts
    failures: list[Failure]
    notes: list[Note]
    reads: list[Read]


class Given(BaseModel):
    event_id: int
    counts: bool
    why: str
    """Why it does not count, '' if it does."""


class Renewed(BaseModel):
    until: float | None
    """Null: the lease is over and cannot be had again."""


class Progress(BaseModel):
    items: int
    done: int
    unread: int
    second: int
    adjudicate: int
    held: int


class Person(BaseModel):
    name: str
    role: str


class Refusal(BaseModel):
    error: str


def item_of(lease: Lease) -> Item:
    """An item as its holder may see it."""
    question, annotation, why = (lease.payload[name] for name in ("question", "annotation", "selection"))
    described = question["kind"] == "description"
    letter = None if described else parse_letter(lease.before, len(question["options"]))
    facts = {name: annotation[name] for name in ("entropy", "agreement", "route", "audit", "labelled_by")}
    facts |= {name: why[name] for name in ("capability", "strategy", "similarity")}
    simulated = annotation["labelled_by"] == "oracle" and bool(annotation["oracle_simulated"])
    return Item(
        token=lease.token, item_id=lease.item_id, stage=lease.stage, taken_at=lease.taken_at, until=lease.until,
        images=len(lease.payload["images"]), about=lease.payload.get("about", []), before=lease.before,
        choice=None if letter is None else ord(letter) - 65,
        question=Question(**{name: question[name] for name in Question.model_fields}),
        fields=fields_of(question["modality"], lease.before) if described else None,
        facts=Facts(modality=question["modality"], prototype=why["prototype_id"], simulated=simulated, **facts),
        failures=[Failure(**{name: row[name] for name in Failure.model_fields}) for row in lease.payload["failures"]],
        notes=[Note(**note) for note in lease.notes], reads=[Read(**read) for read in lease.reads],
    )  # fmt: skip


def fields_of(modality: str, text: str) -> Fields:
    """The structured form of a description of a modality, filled in with what `text` says."""
    found = read_findings(text)
    names = DEGRADATIONS[modality]
    known = found is not None and found.degradations <= set(names)
    return Fields(
        opening=opening(modality),
        clean=finding("none", "none"),
        findings={name: {level: finding(name, level) for level in SEVERITIES[1:]} for name in names},
        names={name: DEGRADATION_NAMES[name] for name in names},
        closings={grade: closing(grade) for grade in GRADES},
        severities=list(SEVERITIES),
        found=Found(degradations=sorted(found.degradations), severity=found.severity, grade=found.grade)
        if known else None,
    )  # fmt: skip
