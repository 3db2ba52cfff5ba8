"""The console as a FastAPI application: its pages, what a mistake looks like, and who is told of a refusal."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Form, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.exceptions import HTTPException as AnyHTTPException

from medq_ray.config import Review
from medq_ray.review.console.access import COOKIE, SESSION_SECONDS, Access
from medq_ray.review.console.api import routes, table3_for
from medq_ray.review.console.guard import Guard
from medq_ray.review.queue import Queue
from medq_ray.review.store import Store
from medq_ray.review.table import HEADS, LEGEND, table_rows

LOGGED = (400, 401, 403, 413, 429)
"""Refusals that go to the audit log; a page that does not exist is none, unless the path climbs."""


def console(store: Store, settings: Review, now: Callable[[], float] = time.time) -> FastAPI:
    """The application over an open store; now: seconds since 1970.

    A mistake is one line of JSON, {error}: 400 for what cannot be used, 401 for nobody, 403 for what somebody may not
    do, 413 for too much, 429 for too many wrong tokens, 500 for a fault of ours, 503 when the store cannot be reached.
    """
    app = FastAPI(title="medq review", docs_url=None, redoc_url=None, openapi_url="/api/openapi.json")
    access = Access(store, now)
    queue = Queue(store, settings, now)

    def log(request: Request, action: str, detail: str) -> None:
        with store.writing() as transaction:
            transaction.log(now(), getattr(request.state, "reviewer", ""), action, detail=detail)

    def refused(request: Request, status: int, message: str, headers: dict | None = None) -> JSONResponse:
        if status in LOGGED or ".." in request.url.path:
            address = request.client.host if request.client else "?"
            try:
                log(request, "refused", f"{status} {request.method} {request.url.path} from {address}: {message}"[:500])
            except ConnectionError:
                return away()
        return JSONResponse({"error": message}, status, headers)

    def away() -> JSONResponse:
        """The store's address is nobody's business."""
        return JSONResponse({"error": "the review store cannot be reached: nothing was saved, try again"}, 503)

    @app.exception_handler(AnyHTTPException)
    def told(request: Request, error: AnyHTTPException) -> Response:
        return refused(request, error.status_code, str(error.detail), error.headers)

    @app.exception_handler(RequestValidationError)
    def malformed(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return refused(request, 400, f"{where}: {first['msg']}" if where else first["msg"])

    @app.exception_handler(ValueError)
    def unusable(request: Request, error: ValueError) -> Response:
        return refused(request, 400, " ".join(str(error).split()))

    @app.exception_handler(PermissionError)
    def forbidden(request: Request, error: PermissionError) -> Response:
        return refused(request, 403, " ".join(str(error).split()))

    @app.exception_handler(ConnectionError)
    def unreachable(request: Request, error: ConnectionError) -> Response:
        return away()

    @app.exception_handler(500)
    def failed(request: Request, error: Exception) -> Response:
        """What was wrong goes to the server's log, not to a stranger."""
        return JSONResponse({"error": "the server failed: nothing was saved; its log says why"}, 500)

    app.include_router(routes(queue, access))
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"), name="static")
    _add_pages(app, access, queue, log, refused)
    # Around everything: what is added as a middleware is inside of the one that answers when a handler fails.
    app.middleware_stack = Guard(app.build_middleware_stack(), refused)
    return app


def _add_pages(app: FastAPI, access: Access, queue: Queue, log: Callable, refused: Callable) -> None:
    pages = Environment(loader=PackageLoader("medq_ray.review.console"), autoescape=True, undefined=StrictUndefined,
                        trim_blocks=True, lstrip_blocks=True)  # fmt: skip

    def page(name: str, status: int = 200, **values) -> HTMLResponse:
        return HTMLResponse(pages.get_template(name).render(values), status)

    def to(path: str) -> RedirectResponse:
        return RedirectResponse(path, 303)

    @app.get("/", include_in_schema=False)
    def work(request: Request) -> Response:
        person = access.of_session(request)
        return to("/login") if person is None else page("page.html", person=person, csrf=access.csrf(request, person))

    @app.get("/stats", include_in_schema=False)
    def stats(request: Request) -> Response:
        person = access.of_session(request)
        if person is None:
            return to("/login")
        found = table3_for(queue, person)
        return page("stats.html", person=person, heads=HEADS, groups=table_rows(found), legend=LEGEND)

    @app.get("/login", include_in_schema=False)
    def ask() -> Response:
        return page("login.html", error="")

    @app.post("/login", include_in_schema=False)
    def login(request: Request, token: Annotated[str, Form(max_length=200)] = "") -> Response:
        if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            raise HTTPException(403, "another site sent this")
        try:
            person = access.holder(request, token.strip())
        except HTTPException as error:
            refusal = refused(request, error.status_code, error.detail)
            return page("login.html", refusal.status_code, error=error.detail) if refusal.status_code < 500 else refusal
        log(request, "login", f"from {request.client.host if request.client else '?'}")
        response = to("/")
        response.set_cookie(COOKIE, access.session(person["name"]), max_age=SESSION_SECONDS, httponly=True,
                            samesite="strict", secure=request.url.scheme == "https")  # fmt: skip
        return response

    @app.post("/logout", include_in_schema=False)
    def logout(request: Request) -> Response:
        access.reviewer(request)
        log(request, "logout", "")
        response = Response(status_code=204)
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return response
