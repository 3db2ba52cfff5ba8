"""The console's JSON interface and its images. Handlers are plain functions: Starlette runs them in its threads."""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, HTTPException, Query
from fastapi.responses import Response

from medq_ray.depth import beside, read_depth
from medq_ray.images import encode_png, read_image
from medq_ray.review.console.access import Access
from medq_ray.review.console.shapes import (
    Body, Given, Item, Me, Progress, ReasonBody, Refusal, Renewed, VerdictBody, item_of,
)  # fmt: skip
from medq_ray.review.queue import LEADS, Queue
from medq_ray.review.stats import overview

PNG = {200: {"content": {"image/png": {}}}}
RAW = {200: {"content": {"application/octet-stream": {}}, "headers": {"X-Depth": {"schema": {"type": "string"}}}}}


def routes(queue: Queue, access: Access) -> APIRouter:
    """Everything under /api."""
    api = APIRouter(prefix="/api", responses={"4XX": {"model": Refusal}, 503: {"model": Refusal}})
    Person = Annotated[dict, Depends(access.reviewer)]

    def meant(token: int, body: Body) -> dict:
        """The arguments that came with a token. Raises PermissionError when it is another lease's than the sender's."""
        if body.taken_at is not None:
            with queue.store.reading() as transaction:
                lease = transaction.lease(token)
            if lease is None or lease["taken_at"] != body.taken_at:
                raise PermissionError(f"lease {token} is another one here: it was given by another store")
        return body.model_dump(exclude={"taken_at"})

    @api.get("/me")
    def me(person: Person) -> Me:
        """Who is asking."""
        return Me(name=person["name"], role=person["role"])

    @api.post("/next")
    def following(person: Person, after: Annotated[int | None, Query(ge=0)] = None) -> Item | None:
        """The item to read now; after: the one after that of this lease. Null when nothing is left for this reviewer.
        Whoever asks holds it, for as long as they `renew`."""
        lease = queue.lease(person["name"], after)
        return None if lease is None else item_of(lease)

    @api.post("/leases/{token}/renew")
    def renew(person: Person, token: int) -> Renewed:
        """The sign of life."""
        return Renewed(until=queue.renew(person["name"], token))

    @api.post("/leases/{token}/release", status_code=204)
    def release(person: Person, token: int) -> None:
        """Give an item back unread."""
        queue.release(person["name"], token)

    @api.post("/leases/{token}/verdict")
    def verdict(person: Person, token: int, body: VerdictBody) -> Given:
        """Accept, edit or reject; the same sent again is the same event."""
        return Given(**vars(queue.verdict(person["name"], token, **meant(token, body))))

    @api.post("/leases/{token}/skip")
    def skip(person: Person, token: int, body: ReasonBody) -> Given:
        """Leave the item to others."""
        return Given(**vars(queue.skip(person["name"], token, **meant(token, body))))

    @api.post("/leases/{token}/flag")
    def flag(person: Person, token: int, body: ReasonBody) -> Given:
        """Ask for a colleague's opinion."""
        return Given(**vars(queue.flag(person["name"], token, **meant(token, body))))

    @api.post("/undo")
    def undo(person: Person) -> Item | None:
        """Take one's last verdict, skip or flag back and have its item again; null when colleagues have it."""
        lease = queue.undo(person["name"])
        return None if lease is None else item_of(lease)

    @api.get("/progress")
    def progress(person: Person) -> Progress:
        """How many items there are, in all iterations, and what is left of them."""
        rows = list(queue.left().values())
        sums = {name: sum(row[name] for row in rows) for name in ("done", "unread", "second", "adjudicate", "held")}
        return Progress(items=sum(sums.values()) - sums["held"], **sums)

    @api.get("/stats")
    def stats(person: Person) -> dict:
        """Table 3 as it stands; of single reviewers only who is asking, for leads all."""
        return table3_for(queue, person)

    @api.get("/items/{item_id}/images/{number}", response_class=Response, responses=PNG)
    def image(person: Person, item_id: int, number: int) -> Response:
        """An image of an item, from 0, as PNG without metadata; for leads, and for who holds or held the item."""
        return png(read(person, item_id, "image", number, read_image))

    @api.get("/items/{item_id}/depth/{number}", response_class=Response, responses=RAW)
    def depth(person: Person, item_id: int, number: int) -> Response:
        """The same image in all its bits: 16-bit little-endian numbers, row by row; the header X-Depth has what they
        mean as JSON: value = slope * number + intercept, in the unit."""
        found = read(person, item_id, "depth", number, lambda path: read_depth(beside(path)))
        height, width = found.numbers.shape
        meaning = json.dumps(asdict(found.meaning) | {"width_px": width, "height_px": height})
        return Response(found.numbers.astype("<u2").tobytes(), media_type="application/octet-stream",
                        headers={"X-Depth": meaning})  # fmt: skip

    @api.get("/items/{item_id}/failures/{number}", response_class=Response, responses=PNG)
    def failure(person: Person, item_id: int, number: int) -> Response:
        """An image that the model failed at in the same way."""
        return png(read(person, item_id, "failure", number, read_image))

    def png(pixels: np.ndarray) -> Response:
        return Response(encode_png(pixels), media_type="image/png")

    def read(person: dict, item_id: int, what: str, number: int, reading: Callable[[str], Any]) -> Any:
        """What `reading` makes of the path of an item's image or failure."""
        if not queue.may_see(person["name"], item_id):
            raise PermissionError(f"item {item_id} is not {person['name']}'s to see")
        with queue.store.writing() as transaction:
            payload = transaction.item(item_id)["payload"]
            transaction.log(queue.now(), person["name"], what, item_id, f"{what} {number}")
        uris = [row["uri"] for row in payload["failures"]] if what == "failure" else payload["images"]
        if not 0 <= number < len(uris):
            raise HTTPException(404, f"item {item_id} has no {what} {number}")
        try:
            return reading(uris[number])
        except ValueError as error:
            with queue.store.writing() as transaction:
                transaction.log(queue.now(), person["name"], "unreadable", item_id, str(error))
            raise HTTPException(404, f"{what} {number} of item {item_id} cannot be read") from error  # no path leaves

    return api


def table3_for(queue: Queue, person: dict) -> dict:
    """`stats.overview` as somebody may see it."""
    with queue.store.reading() as transaction:
        found = overview(transaction)
    if person["role"] not in LEADS:
        found["reviewers"] = [row for row in found["reviewers"] if row["name"] == person["name"]]
    return found
