"""The console's JSON interface and its images.

What a request wants is done in one thread, from who is asking to what they get: FastAPI would go to one for each of
who is asking, the handler and its reply, which took more of the processor than the database did.
"""

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Annotated, TypeVar

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import Response
from joblib import cpu_count
from starlette.concurrency import run_in_threadpool

from medq_ray.depth import beside, read_depth
from medq_ray.images import encode_png, read_image
from medq_ray.review.console.access import Access
from medq_ray.review.console.shapes import (
    Body, FlagBody, Given, Item, Person, Progress, ReasonBody, Refusal, Renewed, VerdictBody, item_of,
)  # fmt: skip
from medq_ray.review.queue import LEADS, Queue
from medq_ray.review.stats import overview

PNG = {200: {"content": {"image/png": {}}}}
RAW = {200: {"content": {"application/octet-stream": {}}, "headers": {"X-Depth": {"schema": {"type": "string"}}}}}
Answer = TypeVar("Answer")


def routes(queue: Queue, access: Access) -> APIRouter:
    """Everything under /api."""
    api = APIRouter(prefix="/api", responses={"4XX": {"model": Refusal}, 503: {"model": Refusal}})
    # A picture of 512 pixels takes 20 to 40 ms of a processor, an item 2: items are not to wait behind pictures.
    painters = ThreadPoolExecutor(cpu_count(), "picture")

    async def asking(request: Request, act: Callable[[dict], Answer]) -> Answer:
        """What `act` gives to whoever is asking."""
        return await run_in_threadpool(lambda: act(access.reviewer(request)))

    def meant(token: int, body: Body) -> dict:
        """The arguments that came with a token. Raises PermissionError when it is another lease's than the sender's."""
        if body.taken_at is not None:
            with queue.store.reading() as transaction:
                lease = transaction.lease(token)
            if lease is None or lease["taken_at"] != body.taken_at:
                raise PermissionError(f"lease {token} is another one here: it was given by another store")
        return body.model_dump(exclude={"taken_at"})

    @api.get("/me")
    async def me(request: Request) -> Person:
        """Who is asking."""
        return await asking(request, lambda person: Person(name=person["name"], role=person["role"]))

    @api.get("/colleagues")
    async def colleagues(request: Request) -> list[Person]:
        """All others who may review: whom a flag may name."""
        others = await asking(request, lambda person: queue.colleagues(person["name"]))
        return [Person(**other) for other in others]

    @api.post("/next")
    async def following(request: Request, after: Annotated[int | None, Query(ge=0)] = None) -> Item | None:
        """The item to read now; after: the one after that of this lease. Null when nothing is left for this reviewer.
        Whoever asks holds it, for as long as they `renew`."""
        lease = await asking(request, lambda person: queue.lease(person["name"], after))
        return None if lease is None else item_of(lease)

    @api.post("/leases/{token}/renew")
    async def renew(request: Request, token: int) -> Renewed:
        """The sign of life."""
        return Renewed(until=await asking(request, lambda person: queue.renew(person["name"], token)))

    @api.post("/leases/{token}/release", status_code=204)
    async def release(request: Request, token: int) -> None:
        """Give an item back unread."""
        await asking(request, lambda person: queue.release(person["name"], token))

    @api.post("/leases/{token}/verdict")
    async def verdict(request: Request, token: int, body: VerdictBody) -> Given:
        """Accept, edit or reject; the same sent again is the same event."""
        return await give(request, queue.verdict, token, body)

    @api.post("/leases/{token}/skip")
    async def skip(request: Request, token: int, body: ReasonBody) -> Given:
        """Leave the item to others."""
        return await give(request, queue.skip, token, body)

    @api.post("/leases/{token}/flag")
    async def flag(request: Request, token: int, body: FlagBody) -> Given:
        """Ask for a colleague's opinion."""
        return await give(request, queue.flag, token, body)

    async def give(request: Request, act: Callable, token: int, body: Body) -> Given:
        return Given(**vars(await asking(request, lambda person: act(person["name"], token, **meant(token, body)))))

    @api.post("/undo")
    async def undo(request: Request, event: Annotated[int | None, Query(ge=0)] = None) -> Item | None:
        """Take one's last verdict, skip or flag back and have its item again; null when colleagues have it. event:
        which one that is, so that the same sent again takes back no other."""
        lease = await asking(request, lambda person: queue.undo(person["name"], event))
        return None if lease is None else item_of(lease)

    @api.get("/progress")
    async def progress(request: Request) -> Progress:
        """How many items there are, in all iterations, and what is left of them."""
        rows = list((await asking(request, lambda person: queue.left())).values())
        sums = {name: sum(row[name] for row in rows) for name in ("done", "unread", "second", "adjudicate", "held")}
        return Progress(items=sum(sums.values()) - sums["held"], **sums)

    @api.get("/stats")
    async def stats(request: Request) -> dict:
        """Table 3 as it stands; of single reviewers only who is asking, for leads all."""
        return await asking(request, lambda person: table3_for(queue, person))

    @api.get("/items/{item_id}/images/{number}", response_class=Response, responses=PNG)
    async def image(request: Request, item_id: int, number: int) -> Response:
        """An image of an item, from 0, as PNG without metadata; for leads, and for who holds or held the item."""
        return await picture(request, item_id, "image", number, painted)

    @api.get("/items/{item_id}/depth/{number}", response_class=Response, responses=RAW)
    async def depth(request: Request, item_id: int, number: int) -> Response:
        """The same image in all its bits: 16-bit little-endian numbers, row by row; the header X-Depth has what they
        mean as JSON: value = slope * number + intercept, in the unit."""
        return await picture(request, item_id, "depth", number, deep)

    @api.get("/items/{item_id}/failures/{number}", response_class=Response, responses=PNG)
    async def failure(request: Request, item_id: int, number: int) -> Response:
        """An image that the model failed at in the same way."""
        return await picture(request, item_id, "failure", number, painted)

    async def picture(
        request: Request, item_id: int, what: str, number: int, paint: Callable[[str], Response]
    ) -> Response:
        """What `paint` makes of the path of an item's image or failure."""
        person, uri = await asking(request, lambda person: (person["name"], seen(person, item_id, what, number)))
        try:
            return await asyncio.get_running_loop().run_in_executor(painters, paint, uri)
        except ValueError as error:
            await run_in_threadpool(log, person, "unreadable", item_id, str(error))
            raise HTTPException(404, f"{what} {number} of item {item_id} cannot be read") from error  # no path leaves

    def seen(person: dict, item_id: int, what: str, number: int) -> str:
        """The path of a picture that this person may see and is now shown."""
        if not queue.may_see(person["name"], item_id):
            raise PermissionError(f"item {item_id} is not {person['name']}'s to see")
        payload = log(person["name"], what, item_id, f"{what} {number}")
        uris = [row["uri"] for row in payload["failures"]] if what == "failure" else payload["images"]
        if not 0 <= number < len(uris):
            raise HTTPException(404, f"item {item_id} has no {what} {number}")
        return uris[number]

    def log(name: str, action: str, item_id: int, detail: str) -> dict:
        """Into the audit log; the item's payload."""
        with queue.store.writing() as transaction:
            transaction.log(queue.now(), name, action, item_id, detail)
            return transaction.item(item_id)["payload"]

    return api


def painted(path: str) -> Response:
    """Grey as one channel: half of the work, and pictures are most of what a server does."""
    pixels = read_image(path)
    grey = bool((pixels == pixels[..., :1]).all())
    return Response(encode_png(pixels[..., 0] if grey else pixels), media_type="image/png")


def deep(path: str) -> Response:
    found = read_depth(beside(path))
    height, width = found.numbers.shape
    meaning = json.dumps(asdict(found.meaning) | {"width_px": width, "height_px": height})
    return Response(found.numbers.astype("<u2").tobytes(), media_type="application/octet-stream",
                    headers={"X-Depth": meaning})  # fmt: skip


def table3_for(queue: Queue, person: dict) -> dict:
    """`stats.overview` as somebody may see it."""
    with queue.store.reading() as transaction:
        found = overview(transaction)
    if person["role"] not in LEADS:
        found["reviewers"] = [row for row in found["reviewers"] if row["name"] == person["name"]]
    return found
